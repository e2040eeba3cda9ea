"""A benchmark over many files goes on without those that cannot be used, where asked, and says what it left."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from tiny_run import STRUCTURES, make_manifest
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.config import DataConfig, parse_config
from repmode_cl.data.manifest import read_manifest
from repmode_cl.data.pipeline import prepared_samples
from repmode_cl.errors import ManifestError
from repmode_cl.results.left_out import read_left_out, write_left_out


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a manifest of 24 rows: a signal of four of them is gone, a target cut off, one no image."""
    path = make_manifest(tmp_path)
    (tmp_path / "signal0.tif").unlink()
    data = (tmp_path / "dna1.tif").read_bytes()
    (tmp_path / "dna1.tif").write_bytes(data[: len(data) // 2])
    (tmp_path / "nucleolus2.tif").write_text("no image")
    return path


def line_of(path: Path, structure: str, field: int) -> int:
    return next(
        r.number
        for r in read_manifest(path).for_structure(structure)
        if r.target.stem == f"{structure}{field}"
    )


def test_rows_are_left_out_and_listed(broken: Path, tmp_path: Path) -> None:
    data = DataConfig(manifest=str(broken))
    with pytest.raises(ManifestError, match=r"signal0\.tif cannot be read"):
        prepared_samples(data, tmp_path / "refused")
    skipped: list[tuple[int, str]] = []
    samples, _ = prepared_samples(data, tmp_path / "kept", structures=STRUCTURES, skipped=skipped)
    gone = [line_of(broken, name, 0) for name in STRUCTURES]
    gone += [line_of(broken, "dna", 1), line_of(broken, "nucleolus", 2)]
    assert sorted(line for line, _ in skipped) == sorted(gone)
    assert {sample.row for sample in samples} == {row.number for row in read_manifest(broken).rows} - set(
        gone
    )
    told = dict(skipped)
    assert "signal0.tif" in told[line_of(broken, "dna", 0)]
    assert "dna1.tif" in told[line_of(broken, "dna", 1)]
    assert "nucleolus2.tif" in told[line_of(broken, "nucleolus", 2)]


def test_a_structure_without_any_image_is_no_detail(broken: Path, tmp_path: Path) -> None:
    for path in tmp_path.glob("mitochondria*.tif"):
        path.write_bytes(b"")
    with pytest.raises(ManifestError, match="no image of mitochondria can be used") as caught:
        prepared_samples(
            DataConfig(manifest=str(broken)), tmp_path / "run", structures=STRUCTURES, skipped=[]
        )
    assert "mitochondria3.tif" in str(caught.value)
    for path in tmp_path.glob("signal*.tif"):
        path.unlink()
    with pytest.raises(ManifestError, match="no image of dna"):
        prepared_samples(
            DataConfig(manifest=str(broken)), tmp_path / "run", structures=STRUCTURES, skipped=[]
        )


CONFIG = """
name: tiny
seeds: [3]
output: {output}
data: {{manifest: {manifest}}}
stream: {{base: [dna], order: [cell_membrane]}}
network: {{width: 2, depth: 1, experts: [conv1]}}
patch: {{size: [4, 8, 8]}}
training: {{batch_size: 2, steps: 1, base_steps: 1, learning_rate: 0.01, precision: float32, device: cpu}}
strategies: [{{name: fine_tuning}}]
"""


def test_bench_ends_with_what_it_left(broken: Path, tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG.format(output=tmp_path / "runs", manifest=broken))
    arguments = ["bench", str(config), "--workers", "1"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "signal0.tif" in refused.stderr
    done = CliRunner().invoke(app, [*arguments, "--keep-going", "--resume"])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "runs" / "tiny" / "left_out.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    lines = {line_of(broken, "dna", 0), line_of(broken, "dna", 1), line_of(broken, "cell_membrane", 0)}
    assert {int(row["line"]) for row in rows} == lines
    assert "left out 3 rows of the manifest" in done.stderr
    assert "note: 3 rows of the manifest were left out" in done.stderr
    assert all(f"line {line}: " in done.stderr for line in lines)
    assert (tmp_path / "runs" / "tiny" / "report.html").exists()
    assert "3 rows of the manifest were left out" in (tmp_path / "runs" / "tiny" / "notes.txt").read_text()


def test_one_row_that_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from repmode_cl.benchmark import run_images
    from repmode_cl.benchmark.resume import ResumeState

    def prepared(*_: Any, skipped: list[tuple[int, str]], **__: Any) -> tuple[list[Any], list[str]]:
        skipped.append((2, "damaged"))
        return [], []

    monkeypatch.setattr(run_images, "prepared_samples", prepared)
    monkeypatch.setattr(run_images, "check_images", lambda *_: [])
    config = parse_config(CONFIG.format(output=tmp_path, manifest="x.csv"), "tiny.yaml")
    found = run_images.run_images(config, tmp_path, {}, ResumeState(), workers=1, keep_going=True)
    assert found.notes[0].startswith("1 row of the manifest was left out")


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_left_out(tmp_path, [(7, "b, c"), (3, "a")])
    assert (tmp_path / "left_out.csv").read_bytes() == b'line,reason\n3,a\n7,"b, c"\n'
    assert read_left_out(tmp_path) == [(3, "a"), (7, "b, c")]
    write_left_out(tmp_path, [])
    assert not (tmp_path / "left_out.csv").exists()
    assert read_left_out(tmp_path) == []
