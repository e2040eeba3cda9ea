"""``repmode-cl data prepare``: a cache filled before training, here or by workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.utils import dask_cluster


def prepare(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["data", "prepare", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def volumes(cache: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file() and path.suffix == ".npy"
    }


@pytest.fixture
def configuration(manifest: Path, tmp_path: Path) -> Path:
    path = tmp_path / "my.yaml"
    lines = [
        "name: prepared",
        f"data: {{manifest: {manifest}}}",
        "network: {width: 4, depth: 1}",
        "patch: {size: [4, 8, 8]}",
        "training: {batch_size: 2, steps: 4}",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_cache_is_filled_once_and_the_same_by_a_cluster(configuration, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    code, out, _ = prepare(configuration, "--cache", here, "--workers", 1)
    assert code == 0
    assert out.startswith(f"{here}: ")
    made = volumes(here)
    assert made
    times = {path: path.stat().st_mtime_ns for path in here.rglob("*.npy")}
    assert prepare(configuration, "--set", f"data.cache={here}", "--workers", 1)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*.npy")} == times

    class Elsewhere:
        def __init__(self, address: str) -> None:
            assert address == "tcp://node:1"

        def __enter__(self) -> Elsewhere:
            return self

        def __exit__(self, *error: object) -> None: ...

        def run(
            self, function: Callable[[Any], Any], jobs: Sequence[Any], *, name: Callable[[Any], str]
        ) -> Iterator[Any]:
            assert all(job.path.is_absolute() for job in jobs)
            assert name(jobs[0]) == str(jobs[0].path)
            yield from map(function, reversed(jobs))

    monkeypatch.setattr(dask_cluster, "DaskJobs", Elsewhere)
    assert prepare(configuration, "--cache", there, "--scheduler", "tcp://node:1")[0] == 0
    assert volumes(there) == made


def test_what_is_missing_is_named(configuration, tmp_path):
    code, _, err = prepare(configuration)
    assert (code, "Give --cache FOLDER" in err) == (2, True)
    code, _, err = prepare(configuration, "--cache", tmp_path / "c", "--workers", 2, "--scheduler", "a:1")
    assert (code, "leave out one of the two" in err) == (2, True)
    code, _, err = prepare("quickstart", "--cache", tmp_path / "c", "--set", "data.manifest=null")
    assert (code, "names no manifest" in err) == (2, True)
