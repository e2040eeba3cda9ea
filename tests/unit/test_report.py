from __future__ import annotations

import base64
import io
import json
import re
import struct
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image
from synthetic_run import FOUR, KINDS, make_run

from repmode_cl.errors import RepmodeError
from repmode_cl.report import budget_table, structure_table, to_csv
from repmode_cl.report.page import build_report
from repmode_cl.report.page.chart_data import matrices_over_seeds
from repmode_cl.report.page.slices import png_data_uri
from repmode_cl.report.page.svg import heat_style, nice_ticks
from repmode_cl.report.page.volume_mosaics import volume_mosaics
from repmode_cl.results import ResultsTable, read_run, read_run_info
from repmode_cl.results.predictions import read_prediction
from repmode_cl.structures import TWELVE_STRUCTURES
from repmode_cl.utils.number_format import number


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
    assert sections == [
        "table", "comparisons", "costs", "frontier", "structures", "forgetting", "learning", "matrices", "pictures",
        "gates", "settings",
    ]  # fmt: skip
    assert "(bit-identical)" in page
    assert "stayed the same bit for bit" in page
    assert (
        page.count('class="panel"') == 5
    )  # of the first structure, without a script; of the others there are data
    assert page.count('id="volumes-') == 4


def test_unknown_values_leave_no_trace_of_python(page):
    text = re.sub(r"<(style|script|pre)\b.*?</\1>", "", page, flags=re.S)
    assert not re.search(r"\bnan\b|None|Undefined|np\.float", text)


def test_texts_of_the_run_are_escaped(tmp_path):
    folder = make_run(tmp_path / "run", seeds=(0,))
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config["name"] = "<script>alert(1)</script>"
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    text = build_report(folder).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    Page(text)


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
    lines = [re.sub(r"(fine_tuning,,0,2,\w+,(?:r2|mse|mae|pearson)),.*", r"\1,nan", line) for line in lines]
    assert sum(line.endswith(",nan") for line in lines) == 16
    (folder / "results.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Page(build_report(folder).read_text(encoding="utf-8"))
    # Its mean over seeds is no number, as in the tables, and not that of the other seed.
    matrix = matrices_over_seeds(read_run(folder), "", "r2")["fine_tuning"]
    assert matrix.evaluated[2].all()
    assert np.isnan(matrix.mean[2]).all()
    assert np.isfinite(matrix.mean[1][matrix.evaluated[1]]).all()


def charts_of(text, section, view=None):
    """Return the charts of a section: of the view that is visible first, or of another (stream, metric)."""
    part = re.search(rf'<section id="{section}">(.*?)</section>', text, re.DOTALL)[1]
    if view is None:
        part = re.sub(r"<template.*?</template>", "", part, flags=re.DOTALL)
    else:
        part = re.search(
            rf'<(div|template)[^>]*data-view="{re.escape(view)}">(.*?)(<template|$)', part, re.DOTALL
        )[2]
    return re.findall(r'<svg class="chart".*?</svg></svg>', part, re.DOTALL)


def lines_of(chart):
    """Return the points of each strategy's line, by its number."""
    lines = re.findall(r'<g data-strategy="(\d+)">.*?<path class="line s\d+" d="([^"]+)"/>', chart)
    return {
        int(strategy): [tuple(map(float, point.split())) for point in re.split("[ML]", path)[1:]]
        for strategy, path in lines
    }


def test_charts_of_every_metric_and_stream_hold_the_means_of_results_csv(tmp_path):
    streams = {"order-0": FOUR, "order-1": (FOUR[0], FOUR[2], FOUR[1])}
    folder = make_run(tmp_path / "run", streams=streams)
    text = build_report(folder).read_text(encoding="utf-8")
    results = ResultsTable.read(folder / "results.csv")
    checked = 0
    for stream, steps in streams.items():
        structures = [name for names in steps[:-1] for name in names]
        for metric in ("r2", "mse", "mae", "pearson"):
            charts = charts_of(text, "forgetting", f"{stream}|{metric}")
            assert len(charts) == len(structures)
            for structure, chart in zip(structures, charts, strict=True):
                lines = lines_of(chart)
                assert set(lines) == set(range(len(KINDS)))
                for strategy, title in enumerate(KINDS):
                    for step, mean in lines[strategy]:
                        values = [
                            row.value
                            for row in results.select(strategy=title, stream=stream, metric=metric)
                            if (row.step, row.structure) == (step, structure)
                        ]
                        assert len(values) == 2
                        assert mean == pytest.approx(np.mean(values), rel=1e-4)
                        checked += 1
            maps = re.search(
                rf'data-view="{re.escape(stream)}\|{metric}">\s*<div class="maps(.*?)(<template|</section)',
                text,
                re.DOTALL,
            )
            cells = re.findall(r'data-values="([^" ]+) ([^" ]+) ([^" ]+)">([^<]+)<', maps[1])
            assert len(cells) == len(KINDS) * (2 + 3 + 4)
            for mean, low, high, cell in cells:
                assert float(low) <= float(mean) <= float(high)
                assert cell == number(float(mean), 3)
    assert checked == 2 * 4 * len(KINDS) * (3 + 3 + 2)


def test_a_structure_that_ran_away_leaves_room_for_the_others(tmp_path):
    folder = make_run(tmp_path / "run", seeds=(0,))
    lines = (folder / "results.csv").read_text(encoding="utf-8").splitlines()
    lines = [re.sub(r"(fine_tuning,.*,2,dna,r2),.*", r"\1,-17.7", line) for line in lines]
    assert sum(line.endswith(",-17.7") for line in lines) == 1
    (folder / "results.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = build_report(folder).read_text(encoding="utf-8")
    charts = charts_of(text, "forgetting")
    assert len(charts) == 3
    for chart in charts:
        ticks = [
            float(tick.replace("\N{MINUS SIGN}", "-"))
            for tick in re.findall(r'text-anchor="end">([^<]+)<', chart)
        ]
        assert min(ticks) == -1
    # The axis ends there, while the line goes on to its value.
    assert '<div class="charts" data-low="-1.' in text
    assert lines_of(charts[0])[1][2] == (2.0, -17.7)


def test_a_curve_of_one_point_is_a_dot_and_joint_training_has_no_curve(tmp_path):
    folder = make_run(tmp_path / "run", seeds=(0,))
    curve = folder / "fine_tuning" / "seed-0" / "learning.csv"
    kept = [line for line in curve.read_text().splitlines() if not re.match(r"1,mitochondria,(?!300,)", line)]
    more = [f"1,mitochondria,{at},r2,0.1" for at in range(301, 321)]
    other = folder / "multi_net_k3" / "seed-0" / "learning.csv"
    curve.write_text("\n".join(kept) + "\n")
    other.write_text(other.read_text() + "\n".join(more) + "\n")
    text = build_report(folder).read_text(encoding="utf-8")
    assert len(charts_of(text, "learning")) == 4
    # Beside a long line there is no dot but the one that stands for a line.
    dots = [
        sum(path.count("M") for path in re.findall(r'<path class="dots [^>]*d="([^"]+)"', chart))
        for chart in charts_of(text, "learning")
    ]
    assert sorted(dots) == [1, 33, 33, 33]
    run = json.loads((folder / "run.json").read_text())
    run["strategies"]["experts_frozen"]["name"] = "joint"
    (folder / "run.json").write_text(json.dumps(run))
    before, after = (
        charts_of(page, "learning")[-1] for page in (text, build_report(folder).read_text(encoding="utf-8"))
    )
    assert "R² of nucleolus" in before
    assert "R² of nucleolus" in after
    assert set(lines_of(before)) == {0, 1, 2}
    assert set(lines_of(after)) == {1, 2}


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
    decoded = Image.open(io.BytesIO(data))
    assert decoded.mode == "L"
    np.testing.assert_array_equal(np.asarray(decoded), image)


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


def test_streams_are_averaged_or_seen_one_by_one_and_budgets_compared(tmp_path):
    streams = {"order-0": FOUR, "order-1": (FOUR[0], FOUR[2], FOUR[1])}
    kinds = {**KINDS, "experts_frozen_100steps": "experts_frozen"}
    folder = make_run(tmp_path / "run", streams=streams, kinds=kinds, seeds=range(6))
    text = build_report(folder).read_text(encoding="utf-8")
    data = data_of(text)
    assert [scope["label"] for scope in data["scopes"]] == ["all 2 orders", "order 0", "order 1"]
    assert [stream["steps"][-1] for stream in data["streams"]] == [["nucleolus"], ["mitochondria"]]
    # What the page exports is what `repmode-cl report --tables` writes.
    info = read_run_info(folder)
    results = ResultsTable.read(folder / "results.csv")
    assert data["tables"]["budgets|0|r2"]["csv"] == to_csv(budget_table(results, info))
    assert data["tables"]["structures|2|mse"]["csv"] == to_csv(
        structure_table(results, info, "mse", streams=["order-1"])
    )
    first, *_ = data["tables"]["comparisons|0|r2"]["rows"]
    assert [cell[0] for cell in first["cells"][:2]] == ["experts_frozen", "fine_tuning"]
    assert "ahead beyond noise" in [cell[0] for cell in first["cells"]]
    assert r"\toprule" in data["tables"]["comparisons|0|r2"]["tex"]


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def decoded(panel):
    data = base64.b64decode(panel["uri"].removeprefix("data:image/jpeg;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


def test_volumes_are_kept_slice_by_slice_with_one_scale_of_levels(run_folder):
    files = {"dna": {title: run_folder / title / "seed-0/predictions/dna.npz" for title in KINDS}}
    notes = []
    stack = volume_mosaics(files, notes)["dna"]
    assert notes == []
    assert [panel["key"] for panel in stack["panels"]] == ["signal", "truth", *KINDS]
    low, high = stack["levels"]
    (depth, height, width), (rows, columns) = stack["size"], stack["tile"]
    for panel, volume in zip(
        stack["panels"][1:],
        [read_prediction(files["dna"]["multi_net_k3"]).target]
        + [read_prediction(path).prediction for path in files["dna"].values()],
        strict=True,
    ):
        mosaic = decoded(panel)
        for z in range(depth):
            top, left = z // stack["across"] * rows, z % stack["across"] * columns
            levels = mosaic[top : top + height, left : left + width]
            expected = volume[z].clip(low, high)
            # As near as the finest JPEG keeps noise.
            assert np.abs(low + levels / 255 * (high - low) - expected).mean() < 0.03 * (high - low)


def test_pictures_give_way_to_the_budget_first_in_quality_then_in_size(run_folder):
    files = {"dna": {title: run_folder / title / "seed-0/predictions/dna.npz" for title in KINDS}}

    def made(budget):
        [stack] = volume_mosaics(files, [], budget=budget).values()
        size = sum(len(panel["uri"]) for panel in stack["panels"])
        assert size <= budget
        return size, stack["quality"], int(np.prod(stack["size"]))

    size, quality, voxels = made(10**6)
    smaller = made(size - 1)
    assert smaller[1] < quality
    assert smaller[2] == voxels
    assert made(size // 2)[2] < voxels


def test_pictures_of_another_test_image_are_left_out_with_a_note(run_folder, tmp_path):
    other = tmp_path / "dna.npz"
    np.savez(other, **{key: np.zeros((2, 3, 4)) for key in ("signal", "target", "prediction")})
    notes = []
    first = run_folder / "fine_tuning/seed-0/predictions/dna.npz"
    [stack] = volume_mosaics({"dna": {"fine_tuning": first, "other": other}}, notes).values()
    assert [panel["key"] for panel in stack["panels"]] == ["signal", "truth", "fine_tuning"]
    assert ["other kept another test image of dna" in note for note in notes] == [True]
    assert volume_mosaics({"dna": {"other": tmp_path / "absent.npz"}}, notes) == {}


@pytest.mark.slow
def test_a_page_of_twelve_structures_and_eight_strategies_stays_below_10_megabytes(tmp_path):
    kinds = {**KINDS, **{f"fine_tuning_{k}": "fine_tuning" for k in range(5)}}
    stream = (TWELVE_STRUCTURES[:4], *((name,) for name in TWELVE_STRUCTURES[4:]))
    folder = make_run(tmp_path / "run", stream, seeds=range(6), shape=(24, 96, 96), kinds=kinds)
    for title in kinds:
        for path in (folder / title / "seed-0" / "predictions").glob("*.npz"):
            with np.load(path) as kept:
                volumes = dict(kept)
            # Noise everywhere, which no picture can be made small of.
            rng = np.random.default_rng(0)
            noisy = {key: value + rng.normal(scale=0.5, size=value.shape) for key, value in volumes.items()}
            np.savez(path, **{key: value.astype(np.float16) for key, value in noisy.items()})
    page = build_report(folder)
    assert page.stat().st_size < 10_000_000
    assert page.read_text(encoding="utf-8").count('id="volumes-') == 12


def test_of_many_runs_that_failed_or_are_not_finished_a_few_are_named(tmp_path):
    folder = make_run(tmp_path / "run", streams={"order-0": FOUR}, seeds=range(8), shape=(4, 8, 8))
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    run["finished"] = [unit for unit in run["finished"] if unit[0] == "experts_frozen"]
    run["failed"] = [["fine_tuning", "order-0", seed, "ran <out> of memory"] for seed in range(8)]
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    text = build_report(folder).read_text(encoding="utf-8")
    assert "failed: fine_tuning on order-0 with seed 5: ran &lt;out&gt; of memory" in text
    assert "failed besides: 2 more runs" in text
    assert "8 of 24 runs, such as multi_net_k3 on order-0 with seed 0" in text
    assert "seed 7" not in text
