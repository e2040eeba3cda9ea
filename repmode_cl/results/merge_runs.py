"""Several runs of one configuration, made at different times or places, become one to report on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from repmode_cl.config import Config, parse_config
from repmode_cl.config.diff import GROWS, NO_RESULT, first_difference
from repmode_cl.config.load import dump_config
from repmode_cl.errors import RepmodeError
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.results.results_table import Result, ResultsTable
from repmode_cl.results.run_info import RunInfo, Unit, read_run_info, unit_folder
from repmode_cl.utils.atomic_files import TEMPORARY_MARK, read_json, write_text

__all__ = ["merge_runs"]

#: What is copied of a unit: all that tables and page are made of, and how it ended.
_FILES = ("results.csv", "unit.json", "learning.csv", "gates.json")

#: A run's only stream: what arrives, and the images that each arrival is limited to.
_Only = tuple[tuple[tuple[str, ...], ...], int | None]


@dataclass(frozen=True)
class _Source:
    folder: Path
    info: RunInfo
    document: Mapping[str, Any]
    """run.json as it is."""
    config: Config
    results: ResultsTable
    names: Mapping[str, str]
    """Streams' names in it -> in what becomes of it."""


def merge_runs(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Merge runs into a folder that can be reported on as if they had been one.

    Parameters
    ----------
    folders
        Runs whose configurations differ in nothing that counts: seeds, strategies, streams, name and output may be
        others in each.
    out
        A folder that does not exist, is empty, or was merged before and is made anew.

    Returns
    -------
    Path
        `out`. It holds what tables and page are made of, and neither models nor checkpoints. Where the runs' only
        streams differ, each is named after its run's folder.

    Raises
    ------
    RepmodeError
        If a folder is no run, two differ in what counts (the message names the key), the same unit (strategy, stream,
        seed) has other figures in two of them, or `out` holds something else. Of a unit that is in several runs with
        the same figures the first is taken: seconds and memory may differ.
    """
    out = Path(out)
    _check_out(out, [Path(folder) for folder in folders])
    sources = _named([_read(Path(folder)) for folder in folders])
    for first, other in combinations(sources, 2):
        _check_alike(first, other)
    # Beside, so that what was there stays whole until the new is.
    beside = out.with_name(f"{out.name}{TEMPORARY_MARK}merged")
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir(parents=True)
    results = ResultsTable()
    finished: dict[Unit, _Source] = {}
    for source in sources:
        for unit in _units(source):
            renamed = (unit[0], source.names[unit[1]], unit[2])
            rows = [row._replace(stream=renamed[1]) for row in _rows(source.results, unit)]
            if renamed in finished:
                _check_equal(renamed, rows, _rows(results, renamed), source, finished[renamed])
                continue
            finished[renamed] = source
            for row in rows:
                results.append(*row)
            _copy(source.folder / unit_folder(*unit), beside / unit_folder(*renamed), rows)
    results.write(beside / "results.csv")
    write_text(beside / "run.json", json.dumps(_describe(sources, finished), indent=2) + "\n")
    write_text(beside / "config.yaml", dump_config(_config(sources, out)))
    environment = sources[0].folder / "environment.json"
    if environment.exists():
        shutil.copy2(environment, beside / "environment.json")
    if out.exists():
        shutil.rmtree(out)
    beside.replace(out)
    return out


def _check_out(out: Path, folders: Sequence[Path]) -> None:
    if any(out.resolve() == folder.resolve() for folder in folders):
        raise RepmodeError(f"{out} is one of the runs to merge: name another folder with --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    path = out / "run.json"
    if not path.is_file() or "merged" not in json.loads(path.read_text(encoding="utf-8")):
        raise RepmodeError(f"{out} holds something that was not merged: name a folder that is not there yet")


def _read(folder: Path) -> _Source:
    info = read_run_info(folder)
    path = folder / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RepmodeError(
            f"{path}: cannot be read ({error.strerror}), so what the run did is not known"
        ) from error
    document = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    config = parse_config(text, str(path))
    return _Source(folder, info, document, config, ResultsTable.read(folder / "results.csv"), {})


def _named(sources: list[_Source]) -> list[_Source]:
    """Name the runs' only streams after their folders where they differ: a name stands for one stream."""
    first: dict[_Only, Path] = {}
    for source in sources:
        if "" in source.info.streams:
            first.setdefault(_only(source), source.folder.resolve())
    titles = dict(zip(first, _distinct(list(first.values())), strict=True))
    differ = len(first) > 1 or any("" not in source.info.streams for source in sources)
    named = []
    for source in sources:
        names = {name: name for name in source.info.streams}
        if "" in names and differ:
            names[""] = titles[_only(source)]
        named.append(_Source(**{**vars(source), "names": names}))
    return named


def _only(source: _Source) -> _Only:
    return source.info.streams[""], _images(source)


def _distinct(folders: Sequence[Path]) -> list[str]:
    """Name folders by as many of their last parts as tell them apart."""
    most = max((len(folder.parts) for folder in folders), default=0)
    names: list[str] = []
    for parts in range(1, most + 1):
        joined = ("-".join(folder.parts[-parts:]).lower() for folder in folders)
        names = [re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "run" for name in joined]
        if len(set(names)) == len(names):
            break
    return names


def _check_alike(first: _Source, other: _Source) -> None:
    # Which streams they have is compared by what arrives, not by how that was said.
    difference = first_difference(first.config, other.config, NO_RESULT | GROWS | {"stream"})
    if difference is not None:
        raise RepmodeError(f"{first.folder} and {other.folder} cannot be merged: {difference}")
    mine = {first.names[name]: (found, _images(first)) for name, found in first.info.streams.items()}
    for name, experiences in other.info.streams.items():
        theirs = (experiences, _images(other))
        if mine.get(other.names[name], theirs) != theirs:
            raise RepmodeError(
                f"{first.folder} and {other.folder} cannot be merged: the stream {name!r} is not the same in both"
            )
    before, now = (one.document.get("images", {}) for one in (first, other))
    for structure in before.keys() & now.keys():
        if before[structure] != now[structure]:
            raise RepmodeError(
                f"{first.folder} and {other.folder} cannot be merged: the images of {structure}, or their split, are "
                "not the same in both"
            )
    formats = [_precision(one.folder) for one in (first, other)]
    if None not in formats and formats[0] != formats[1]:
        raise RepmodeError(
            f"{first.folder} and {other.folder} cannot be merged: training was in {formats[0]} and in {formats[1]}"
        )
    for title, entry in other.document["strategies"].items():
        same = first.document["strategies"].get(title, entry)
        if same.get("file_sha256") != entry.get("file_sha256"):
            raise RepmodeError(
                f"{first.folder} and {other.folder} cannot be merged: the file of the strategy {title} is not the "
                "same in both"
            )


def _precision(folder: Path) -> str | None:
    """Return what training.precision, which may be auto, came to."""
    path = folder / "environment.json"
    return read_json(path, "restore it").get("precision") if path.exists() else None


def _images(source: _Source) -> int | None:
    """Return how many images all streams of a run are limited to; where they differ in it, their names say so."""
    images = source.config.stream.images
    return None if isinstance(images, tuple) else images


def _units(source: _Source) -> list[Unit]:
    """Return what is finished, in the order of its figures."""
    units = dict.fromkeys((row.strategy, row.stream, row.seed) for row in source.results)
    return [unit for unit in units if unit in source.info.finished]


def _rows(results: ResultsTable, unit: Unit) -> list[Result]:
    return results.select(strategy=unit[0], stream=unit[1], seed=unit[2])


def _check_equal(
    unit: Unit, rows: Sequence[Result], before: Sequence[Result], source: _Source, other: _Source
) -> None:
    def quality(found: Sequence[Result]) -> dict[Any, str]:
        # As text, because NaN is not equal to itself.
        return {row.key: repr(row.value) for row in found if row.metric in HIGHER_IS_BETTER}

    old, new = quality(before), quality(rows)
    for key in {**old, **new}:
        if old.get(key) != new.get(key):
            title, stream, seed = unit
            raise RepmodeError(
                f"{title}{f', {stream}' if stream else ''}, seed {seed} is in {other.folder} and in {source.folder}, "
                f"with other figures ({key[-2]}, {key[-1]}: {old.get(key)} and {new.get(key)}): leave one of the two "
                "out"
            )


def _copy(source: Path, target: Path, rows: Sequence[Result]) -> None:
    target.mkdir(parents=True)
    for name in _FILES:
        if (source / name).is_file():
            shutil.copy2(source / name, target / name)
    if (source / "predictions").is_dir():
        # A file that a killed process left half-written is none of them.
        ignore = shutil.ignore_patterns(f"*{TEMPORARY_MARK}*")
        shutil.copytree(source / "predictions", target / "predictions", ignore=ignore)
    ResultsTable(rows).write(target / "results.csv")


def _config(sources: Sequence[_Source], out: Path) -> Config:
    """Return the first configuration with all strategies and seeds; its streams say what the first had."""
    strategies = {one.title: one for source in sources for one in source.config.strategies}
    seeds = dict.fromkeys(seed for source in sources for seed in source.config.seeds)
    return sources[0].config.model_copy(
        update={
            "name": re.sub(r"[^A-Za-z0-9._-]", "-", out.resolve().name).lstrip("._-") or "merged",
            "output": str(out.parent),
            "seeds": tuple(seeds),
            "strategies": tuple(strategies.values()),
        }
    )


def _describe(sources: Sequence[_Source], finished: Mapping[Unit, _Source]) -> dict[str, Any]:
    streams: dict[str, Any] = {}
    strategies: dict[str, dict[str, Any]] = {}
    labels: dict[str, int] = {}
    failed = []
    for source in sources:
        for name, experiences in source.info.streams.items():
            streams.setdefault(source.names[name], [list(names) for names in experiences])
            for structure in (structure for names in experiences for structure in names):
                labels.setdefault(structure, len(labels))
        for title, entry in source.document["strategies"].items():
            before = strategies.setdefault(title, dict(entry))
            found = [
                one for one in (before.get("bit_identical"), entry.get("bit_identical")) if one is not None
            ]
            before["bit_identical"] = all(found) if found else None
        for (title, stream, seed), message in source.info.failed.items():
            unit = (title, source.names[stream], seed)
            if unit not in finished:
                failed.append([*unit, message])
    infos = [source.info for source in sources]
    return {
        "version": 2,
        "merged": [str(source.folder) for source in sources],
        "streams": streams,
        "strategies": strategies,
        "seeds": list(dict.fromkeys(seed for info in infos for seed in info.seeds)),
        "steps": sources[0].config.training.steps,
        "images": {
            name: images for source in sources for name, images in source.document.get("images", {}).items()
        },
        "multi_net": next((info.multi_net for info in infos if info.multi_net is not None), None),
        "joint": next((info.joint for info in infos if info.joint is not None), None),
        "finished": [list(unit) for unit in finished],
        "failed": failed,
        "task_labels": labels,
    }
