from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from repmode_cl.errors import RepmodeError
from repmode_cl.evaluation import ResultsTable
from repmode_cl.report import build_report, read_run_info
from repmode_cl.report.charts import heat_style, nice_ticks, number
from repmode_cl.report.images import png_data_uri, read_prediction

EXPERTS = ["conv5", "conv3", "conv1", "avg3", "avg5"]
BLOCKS = ["encoder.0.0", "encoder.0.1", "encoder.1.0", "bottleneck.0", "decoder.1.0", "decoder.0.1"]
KINDS = {"experts_frozen": "experts_frozen", "fine_tuning": "fine_tuning", "multi_net_k3": "multi_net"}
FOUR = (("dna", "cell_membrane"), ("mitochondria",), ("nucleolus",))


def make_run(folder: Path, experiences=FOUR, seeds=(0, 1), shape=(6, 24, 20), finished=True) -> Path:
    """Write a run's folder with random but plausible numbers."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    structures = [name for names in experiences for name in names]
    level = dict(zip(structures, np.linspace(0.78, 0.15, len(structures)), strict=True))
    results = ResultsTable()
    for title, kind in KINDS.items():
        for seed in seeds:
            place = folder / title / f"seed-{seed}"
            (place / "predictions").mkdir(parents=True)
            _results(results, rng, title, kind, seed, experiences, level)
            _curves(place / "learning.csv", rng, kind, experiences, level)
            if kind != "multi_net":
                _gates(place / "gates.json", rng, kind, structures, experiences[0])
            if seed == seeds[0]:
                for name in structures:
                    _volumes(place / "predictions" / f"{name}.npz", name, kind, level[name], shape)
    results.write(folder / "results.csv")
    run = {
        "experiences": [list(names) for names in experiences],
        "strategies": {
            title: {"name": kind, "bit_identical": {"experts_frozen": True, "fine_tuning": False}.get(kind)}
            for title, kind in KINDS.items()
        },
        "seeds": list(seeds),
        "multi_net": "multi_net_k3",
        "finished": [
            [title, seed] for title in KINDS for seed in seeds if finished or title != "fine_tuning"
        ],
    }
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    config = {
        "name": "quickstart",
        "data": {"simulate": {"fields": 16, "shape": [32, 128, 128]}},
        "network": {"width": 8, "depth": 3, "experts": EXPERTS},
        "patch": {"size": [16, 64, 64]},
        "training": {
            "steps": 300,
            "base_steps": 500,
            "batch_size": 8,
            "learning_rate": 0.002,
            "schedule": "one_cycle",
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "environment.json").write_text(
        json.dumps({"torch": "2.15.0", "device": {"name": "cpu", "threads": 2}}), encoding="utf-8"
    )
    return folder


def _results(results, rng, title, kind, seed, experiences, level):
    learned: dict[str, float] = {}
    for step, names in enumerate(experiences):
        for name in names:
            learned[name] = level[name] + rng.normal(scale=0.01) - (0.02 if kind == "multi_net" else 0.0)
        for name, value in learned.items():
            if kind == "fine_tuning" and name not in names:
                value = learned[name] = value - abs(rng.normal(0.25, 0.1))
            for metric, of in {
                "r2": value,
                "mse": 1 - value,
                "mae": 0.8 * (1 - value) ** 0.5,
                "pearson": max(value, 0.01) ** 0.5,
            }.items():
                results.append(title, seed, step, name, metric, of)
        of = names[0] if len(names) == 1 else "base"
        added = {"experts_frozen": 331_000, "fine_tuning": 200, "multi_net": 362_000}[kind]
        results.append(title, seed, step, of, "train_seconds", rng.uniform(30, 50))
        results.append(title, seed, step, of, "added_parameters", added if step else 1_930_000)
        results.append(title, seed, step, of, "added_bytes", (added if step else 1_930_000) * 4)
        results.append(title, seed, step, of, "peak_memory_bytes", 1.2e9)


def _curves(path, rng, kind, experiences, level):
    lines = ["experience,structure,train_step,metric,value"]
    speed = {"experts_frozen": 50, "fine_tuning": 70, "multi_net": 100}[kind]
    for step, names in enumerate(experiences):
        for name in names:
            for at in range(0, 301, 30):
                value = level[name] - (level[name] + 0.6) * np.exp(-at / speed) + rng.normal(scale=0.01)
                lines += [f"{step},{name},{at},r2,{value}", f"{step},{name},{at},mse,{1 - value}"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _gates(path, rng, kind, structures, base):
    gates = {}
    for name in structures:
        experts = EXPERTS + ([name] if kind == "experts_frozen" and name not in base else [])
        gates[name] = {
            block: dict(zip(experts, rng.dirichlet([8] * len(experts)).tolist(), strict=True))
            for block in BLOCKS
        }
    path.write_text(json.dumps(gates), encoding="utf-8")


def _volumes(path, name, kind, level, shape):
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(len(name))
    target = gaussian_filter(rng.normal(size=shape), 2.5) > 0.02
    target = gaussian_filter(target.astype(float), 0.8) + rng.normal(scale=0.03, size=shape)
    target = (target - target.mean()) / target.std()
    signal = np.gradient(gaussian_filter(target, 1.5), axis=0) + rng.normal(scale=0.05, size=shape)
    blur = {"experts_frozen": 1.2, "fine_tuning": 5.0, "multi_net": 1.6}[kind]
    np.savez_compressed(
        path,
        signal=signal.astype(np.float16),
        target=target.astype(np.float16),
        prediction=(level + 0.2) * gaussian_filter(target, blur).astype(np.float16),
    )


class Page(HTMLParser):
    """Collects tags, checks that they are closed, and gathers text and addresses."""

    VOID = frozenset({"meta", "img", "br", "hr", "input", "link", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.counts: dict[str, int] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.addresses += [value for key, value in attrs if key in ("src", "href", "action", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def page(run_folder):
    path = build_report(run_folder)
    assert path == run_folder / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_is_whole_html_and_asks_for_nothing_outside(page):
    parsed = Page(page)
    assert parsed.addresses
    assert all(address.startswith("data:image/png;base64,") for address in parsed.addresses)
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|https?://", page)


def test_the_page_has_every_section_and_the_table_first(page):
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == ["table", "forgetting", "learning", "matrices", "pictures", "gates", "settings"]
    assert "(bit-identical)" in page
    assert "stayed the same bit for bit" in page
    assert page.count('class="panel"') == 4 * 5


def test_unknown_values_leave_no_trace_of_python(page):
    text = re.sub(r"<style>.*?</style>|<script>.*?</script>|<pre>.*?</pre>", "", page, flags=re.S)
    assert not re.search(r"\bnan\b|None|Undefined|np\.float", text)


def test_texts_of_the_run_are_escaped(tmp_path):
    folder = make_run(tmp_path / "run", seeds=(0,))
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config["name"] = "<script>alert(1)</script>"
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    text = build_report(folder).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_what_is_missing_or_damaged_is_said_on_the_page(tmp_path):
    folder = make_run(tmp_path / "run", seeds=(0,), finished=False)
    (folder / "config.yaml").unlink()
    seed = folder / "experts_frozen" / "seed-0"
    (seed / "gates.json").write_text("{", encoding="utf-8")
    (seed / "learning.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    (seed / "predictions" / "dna.npz").write_bytes(b"PK\x03\x04damaged")
    (seed / "predictions" / "nucleolus.npz").unlink()
    text = build_report(folder).read_text(encoding="utf-8")
    Page(text)
    for expected in (
        "config.yaml is missing",
        "gates.json cannot be read",
        "learning.csv cannot be read",
        "dna.npz",
        "fine_tuning with seed 0",
        "unfinished",
    ):
        assert expected in text


def test_a_single_joint_step_has_no_forgetting_section(tmp_path):
    folder = make_run(tmp_path / "run", experiences=(("dna", "nucleolus"),), seeds=(0,))
    text = build_report(folder).read_text(encoding="utf-8")
    assert 'id="forgetting"' not in text
    assert 'id="matrices"' in text


def test_a_diverged_strategy_still_gives_a_page(tmp_path):
    folder = make_run(tmp_path / "run", seeds=(0, 1))
    lines = (folder / "results.csv").read_text(encoding="utf-8").splitlines()
    lines = [re.sub(r"(fine_tuning,0,2,\w+,(?:r2|mse|mae|pearson)),.*", r"\1,nan", line) for line in lines]
    (folder / "results.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Page(build_report(folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize("missing", ["run.json", "results.csv", "folder"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, missing):
    folder = tmp_path / "run"
    if missing != "folder":
        make_run(folder, seeds=(0,))
        (folder / missing).unlink()
    with pytest.raises(RepmodeError):
        build_report(folder)
    if missing != "results.csv":
        with pytest.raises(RepmodeError):
            read_run_info(folder)


def test_png_holds_the_very_pixels():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    data = base64.b64decode(png_data_uri(image).removeprefix("data:image/png;base64,"))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (4, 3)
    start = data.index(b"IDAT") + 4
    rows = np.frombuffer(zlib.decompress(data[start:-16]), np.uint8).reshape(3, 5)
    np.testing.assert_array_equal(rows[:, 1:], image)


def test_volumes_of_different_shapes_or_with_pickles_are_refused(tmp_path):
    volume = np.zeros((2, 3, 4))
    np.savez(tmp_path / "a.npz", signal=volume, target=volume, prediction=volume[0])
    np.savez(tmp_path / "b.npz", signal=np.array([None]), target=np.zeros(1), prediction=np.zeros(1))
    for name in ("a.npz", "b.npz", "absent.npz"):
        with pytest.raises(RepmodeError):
            read_prediction(tmp_path / name)


def test_numbers_and_ticks():
    assert number(-0.0001, 3) == "0.000"
    assert number(-0.25) == "\N{MINUS SIGN}0.25"
    assert nice_ticks(-0.1, 0.9) == pytest.approx([0.0, 0.25, 0.5, 0.75])
    assert nice_ticks(1.0, 1.0) == [1.0]
    assert heat_style(float("nan"), 0, 1) == ""
    assert heat_style(0.0, 1.0, 0.0) == heat_style(1.0, 0.0, 1.0)
