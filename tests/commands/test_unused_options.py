"""Arguments that would not be used, or are of another kind, are refused before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from repmode_cl.cli.app import app


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("bench", "quickstart", "--jobs", "2", "--scheduler", "tcp://node1:8786"),
            "leave out one of the two",
        ),
        (
            ("perf", "--quick", "--only", "startup", "--variant", "ours-1"),
            "--variant chooses rows of the training",
        ),
        (
            ("train", "manifest.csv", "--out", "model"),
            "a manifest is named in a configuration, as data.manifest",
        ),
        (("bench", "image.tif"), "a configuration is a YAML file, saved as UTF-8"),
    ],
)
def test_refused(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("manifest.csv").write_text("structure,signal,target\ndna,a.tif,b.tif\n", encoding="utf-8")
    Path("image.tif").write_bytes(b"II*\0\xff\xff")
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert sorted(tmp_path.iterdir()) == before
