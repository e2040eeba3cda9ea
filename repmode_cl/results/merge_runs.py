"""Merging of several runs of one configuration, made at different times or places, into one to report on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from repmode_cl.config import Config
from repmode_cl.config.diff import EXTENSION_KEYS, RESULT_NEUTRAL_KEYS, first_difference
from repmode_cl.config.load import dump_config, parse_recorded_config
from repmode_cl.errors import RepmodeError
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.results.gates import GATES
from repmode_cl.results.learning_curves import CURVE
from repmode_cl.results.results_table import Result, ResultsTable
from repmode_cl.results.run_info import RUN_FILE, RunInfo, read_run_info, write_run_info
from repmode_cl.results.trial_record import OUTCOME, Trial
from repmode_cl.utils.atomic_files import TEMPORARY_MARK, read_json, write_json, write_text

__all__ = ["merge_runs"]

#: What a run was computed with.
_ENVIRONMENT = "environment.json"

#: Files of a trial that are copied: all that tables and page are made of, and how it ended.
_FILES = ("results.csv", OUTCOME, CURVE, GATES)

#: A run's only stream: what arrives, and the images that each arrival is limited to.
_OnlyStream = tuple[tuple[tuple[str, ...], ...], int | None]


@dataclass(frozen=True)
class _Source:
    """A run to merge."""

    folder: Path
    info: RunInfo
    config: Config
    results: ResultsTable
    stream_names: Mapping[str, str]
    """Name of a stream in it -> name in the merged run."""

    def renamed(self, trial: Trial) -> Trial:
        """Return one of its trials as the merged run names it."""
        return trial._replace(stream=self.stream_names[trial.stream])


def merge_runs(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Merge runs into a folder that can be reported on as if they had been one.

    Parameters
    ----------
    folders
        Runs whose configurations differ in nothing that counts: seeds, strategies, streams, name and output may
        differ.
    out
        A folder that does not exist, is empty, or was merged before; one that was merged before is replaced.

    Returns
    -------
    Path
        `out`. It holds what tables and page are made of, and neither models nor checkpoints. Where the runs' only
        streams differ, each is named after its run's folder.

    Raises
    ------
    RepmodeError
        If a folder is no run, two differ in what counts (the message names the key), the same trial (strategy, stream,
        seed) has other figures in two of them, or `out` holds something else. Of a trial that is in several runs with
        the same figures the first is copied: seconds and memory may differ.
    """
    out = Path(out)
    _check_out(out, [Path(folder) for folder in folders])
    sources = _with_stream_names([_read(Path(folder)) for folder in folders])
    for first, other in combinations(sources, 2):
        _check_compatible(first, other)
    # In a temporary folder, so that what was there stays whole until the new run is.
    temporary = out.with_name(f"{out.name}{TEMPORARY_MARK}merged")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    results = ResultsTable()
    merged: dict[Trial, _Source] = {}
    for source in sources:
        for trial in _finished_trials(source):
            renamed = source.renamed(trial)
            rows = [row._replace(stream=renamed.stream) for row in _rows(source.results, trial)]
            if renamed in merged:
                _check_equal(renamed, rows, _rows(results, renamed), source, merged[renamed])
                continue
            merged[renamed] = source
            for row in rows:
                results.append(*row)
            _copy(source.folder / trial.folder, temporary / renamed.folder, rows)
    results.write(temporary / "results.csv")
    write_run_info(temporary, _merged_info(sources, merged))
    write_text(temporary / "config.yaml", dump_config(_merged_config(sources, out)))
    if environment := _merged_environment([_environment(source.folder) for source in sources]):
        write_json(temporary / _ENVIRONMENT, environment)
    if out.exists():
        shutil.rmtree(out)
    temporary.replace(out)
    return out


def _check_out(out: Path, folders: Sequence[Path]) -> None:
    if any(out.resolve() == folder.resolve() for folder in folders):
        raise RepmodeError(f"{out} is one of the runs to merge: name another folder with --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    path = out / RUN_FILE
    if not path.is_file() or "merged" not in read_json(path, "remove the folder, or name another one"):
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
    return _Source(
        folder, info, parse_recorded_config(text, str(path)), ResultsTable.read(folder / "results.csv"), {}
    )


def _with_stream_names(sources: list[_Source]) -> list[_Source]:
    """Name the runs' only streams after their folders where they differ: a name stands for one stream."""
    first: dict[_OnlyStream, Path] = {}
    for source in sources:
        if "" in source.info.streams:
            first.setdefault(_only_stream(source), source.folder.resolve())
    titles = dict(zip(first, _distinct_names(list(first.values())), strict=True))
    differ = len(first) > 1 or any("" not in source.info.streams for source in sources)
    renamed = []
    for source in sources:
        names = {name: name for name in source.info.streams}
        if "" in names and differ:
            names[""] = titles[_only_stream(source)]
        renamed.append(replace(source, stream_names=names))
    return renamed


def _only_stream(source: _Source) -> _OnlyStream:
    return source.info.streams[""], _image_limit(source)


def _distinct_names(folders: Sequence[Path]) -> list[str]:
    """Name folders by as many of their last parts as tell them apart."""
    most = max((len(folder.parts) for folder in folders), default=0)
    names: list[str] = []
    for parts in range(1, most + 1):
        joined = ("-".join(folder.parts[-parts:]).lower() for folder in folders)
        names = [re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "run" for name in joined]
        if len(set(names)) == len(names):
            break
    return names


def _check_compatible(first: _Source, other: _Source) -> None:
    refusal = f"{first.folder} and {other.folder} cannot be merged"
    # Which streams they have is compared by what arrives, not by how the configuration names it.
    difference = first_difference(
        first.config, other.config, RESULT_NEUTRAL_KEYS | EXTENSION_KEYS | {"stream"}
    )
    if difference is not None:
        raise RepmodeError(f"{refusal}: {difference}")
    streams = {
        first.stream_names[name]: (experiences, _image_limit(first))
        for name, experiences in first.info.streams.items()
    }
    for name, experiences in other.info.streams.items():
        stream = (experiences, _image_limit(other))
        if streams.get(other.stream_names[name], stream) != stream:
            raise RepmodeError(f"{refusal}: the stream {name!r} is not the same in both")
    for structure in first.info.images.keys() & other.info.images.keys():
        if first.info.images[structure] != other.info.images[structure]:
            raise RepmodeError(
                f"{refusal}: the images of {structure}, or their split, are not the same in both"
            )
    formats = [_precision(one.folder) for one in (first, other)]
    if None not in formats and formats[0] != formats[1]:
        raise RepmodeError(f"{refusal}: training was in {formats[0]} and in {formats[1]}")
    for title, digest in other.info.file_digests.items():
        if first.info.file_digests.get(title, digest) != digest:
            raise RepmodeError(f"{refusal}: the file of the strategy {title} is not the same in both")


def _precision(folder: Path) -> str | None:
    """Return the format that training.precision, which may be auto, was resolved to."""
    return _environment(folder).get("precision")


def _environment(folder: Path) -> dict[str, Any]:
    """Return what a run was computed with, which a copy of its results may lack."""
    path = folder / _ENVIRONMENT
    return read_json(path, "restore it") if path.exists() else {}


def _merged_environment(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the environment of all runs; where they differ in a value, it is a text with the value of each kind."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in environments for key in one):
        values = [one[key] for one in environments if key in one]
        if all(isinstance(value, Mapping) for value in values):
            merged[key] = _merged_environment(values)
        else:
            texts = dict.fromkeys(map(str, values))
            merged[key] = values[0] if len(texts) == 1 else "; ".join(texts)
    return merged


def _image_limit(source: _Source) -> int | None:
    """Return how many images all streams of a run are limited to; where they differ in it, their names say so."""
    images = source.config.stream.images
    return None if isinstance(images, tuple) else images


def _finished_trials(source: _Source) -> list[Trial]:
    """Return the finished trials, in the order of their figures."""
    trials = dict.fromkeys(Trial(row.strategy, row.stream, row.seed) for row in source.results)
    return [trial for trial in trials if trial in source.info.finished]


def _rows(results: ResultsTable, trial: Trial) -> list[Result]:
    return results.select(strategy=trial.title, stream=trial.stream, seed=trial.seed)


def _check_equal(
    trial: Trial, rows: Sequence[Result], before: Sequence[Result], source: _Source, other: _Source
) -> None:
    def quality(results: Sequence[Result]) -> dict[Any, str]:
        # As text, because NaN is not equal to itself.
        return {row.key: repr(row.value) for row in results if row.metric in HIGHER_IS_BETTER}

    old, new = quality(before), quality(rows)
    for key in {**old, **new}:
        if old.get(key) != new.get(key):
            stream = f", {trial.stream}" if trial.stream else ""
            raise RepmodeError(
                f"{trial.title}{stream}, seed {trial.seed} is in {other.folder} and in {source.folder}, "
                f"with other figures ({key[-2]}, {key[-1]}: {old.get(key)} and {new.get(key)}): leave one of the two "
                "out"
            )


def _copy(source: Path, target: Path, rows: Sequence[Result]) -> None:
    target.mkdir(parents=True)
    for name in _FILES:
        if (source / name).is_file():
            shutil.copy2(source / name, target / name)
    if (source / "predictions").is_dir():
        # Without the files that a killed process left half-written.
        ignore = shutil.ignore_patterns(f"*{TEMPORARY_MARK}*")
        shutil.copytree(source / "predictions", target / "predictions", ignore=ignore)
    ResultsTable(rows).write(target / "results.csv")


def _merged_config(sources: Sequence[_Source], out: Path) -> Config:
    """Return the first configuration with all strategies and seeds; its streams are those of the first."""
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


def _merged_info(sources: Sequence[_Source], finished: Collection[Trial]) -> RunInfo:
    streams: dict[str, tuple[tuple[str, ...], ...]] = {}
    failed: dict[Trial, str] = {}
    labels: dict[str, int] = {}
    for source in sources:
        for name, experiences in source.info.streams.items():
            streams.setdefault(source.stream_names[name], experiences)
            for structure in (structure for names in experiences for structure in names):
                labels.setdefault(structure, len(labels))
        for trial, message in source.info.failed.items():
            if source.renamed(trial) not in finished:
                failed[source.renamed(trial)] = message
    infos = [source.info for source in sources]
    titles = dict.fromkeys(title for info in infos for title in info.strategies)
    # Of a strategy in several runs, the first says what it is.
    first = {title: next(info for info in infos if title in info.strategies) for title in titles}
    return RunInfo(
        streams=streams,
        strategies={title: info.strategies[title] for title, info in first.items()},
        bit_identical={title: _all_identical(infos, title) for title in titles},
        seeds=tuple(dict.fromkeys(seed for info in infos for seed in info.seeds)),
        multi_net=next((info.multi_net for info in infos if info.multi_net is not None), None),
        finished=frozenset(finished),
        options={title: info.options[title] for title, info in first.items()},
        joint=next((info.joint for info in infos if info.joint is not None), None),
        failed=failed,
        steps=sources[0].config.training.steps,
        joint_titles=frozenset(title for title, info in first.items() if title in info.joint_titles),
        file_digests={title: info.file_digests.get(title) for title, info in first.items()},
        images={structure: digest for info in infos for structure, digest in info.images.items()},
        task_labels=labels,
        merged=tuple(str(source.folder) for source in sources),
        comparisons=infos[0].comparisons,
    )


def _all_identical(infos: Sequence[RunInfo], title: str) -> bool | None:
    """Return whether nothing changed in any run that checked the strategy; None where none did."""
    checked = [flag for info in infos if (flag := info.bit_identical.get(title)) is not None]
    return all(checked) if checked else None
