"""A whole benchmark: every strategy with every seed on one stream, one results.csv, one report."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from repmode_cl.scenarios import experience_names, prepared_samples
from repmode_cl.strategies.estimate import DryRun, estimate
from repmode_cl.strategies.run import StrategyRun

from repmode_cl.config import Config
from repmode_cl.config.loading import dump_config
from repmode_cl.data.manifest import read_manifest
from repmode_cl.devices import resolve_device
from repmode_cl.errors import ConfigError
from repmode_cl.evaluation.results import ResultsTable
from repmode_cl.files import write_json, write_text
from repmode_cl.report import build_report
from repmode_cl.store.environment import environment_fingerprint
from repmode_cl.structures import TWELVE_STRUCTURES
from repmode_cl.training import Precision, recall_precision, refuse_several, resolve_precision

__all__ = ["run_benchmark"]


def run_benchmark(
    config: Config, *, resume: bool = False, dry_run: bool = False, workers: int = 1
) -> Path | DryRun:
    """Run a benchmark, or say what it would do.

    Parameters
    ----------
    config
        What to run.
    resume
        Go on with a run of the same configuration that was interrupted; what is finished is kept.
    dry_run
        Run nothing; return what would run and about how long.
    workers
        Processes that simulate and prepare images.

    Returns
    -------
    Path or DryRun
        The run's folder, which holds ``results.csv`` and ``report.html``.

    Raises
    ------
    ConfigError
        If the folder holds a run already and `resume` is not given, or one of another configuration.
    """
    known = (
        TWELVE_STRUCTURES
        if config.data.manifest is None
        else read_manifest(Path(config.data.manifest)).structures
    )
    if config.data.manifest is None:
        known = (*known, *_foreign(config))
    experiences = experience_names(config.stream, known)
    if dry_run:
        return estimate(config, experiences)
    refuse_several("a benchmark")
    folder = Path(config.output) / config.name
    info = _open_run(config, folder, experiences, resume=resume)
    structures = [name for names in experiences for name in names]
    samples, notes = prepared_samples(config.data, folder, structures=structures, workers=workers)
    if notes:
        write_text(folder / "notes.txt", "\n".join(notes) + "\n")
    precision = _environment(config, folder)
    results = (
        ResultsTable.read(folder / "results.csv") if (folder / "results.csv").exists() else ResultsTable()
    )
    for seed in config.seeds:
        for options in config.strategies:
            if [options.title, seed] in info["finished"]:
                continue
            run = StrategyRun(config, options, seed, samples, experiences, folder, precision)
            rows = run.run()
            results.drop(run.title, seed)
            for row in rows:
                results.append(*row)
            results.write(folder / "results.csv")
            _finish(info, run.title, seed, run.bit_identical)
            write_json(folder / "run.json", info)
            build_report(folder)  # after each, so that a long benchmark can be watched
    return folder


def _foreign(config: Config) -> tuple[str, ...]:
    """Return structures of the stream that the simulator does not know; it names the problem itself."""
    names = (*config.stream.base, *(config.stream.order or ()))
    return tuple(name for name in names if name not in TWELVE_STRUCTURES)


def _open_run(
    config: Config, folder: Path, experiences: tuple[tuple[str, ...], ...], *, resume: bool
) -> dict[str, Any]:
    text = dump_config(config)
    path = folder / "run.json"
    if path.exists():
        if not resume:
            raise ConfigError(
                f"{folder} holds a run already: continue it with --resume, or choose another name or output "
                "(--set name=NAME), or remove the folder"
            )
        _same_config((folder / "config.yaml").read_text(encoding="utf-8"), text, folder)
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return info
    multi_net = next((options.title for options in config.strategies if options.name == "multi_net"), None)
    info = {
        "experiences": [list(names) for names in experiences],
        "strategies": {s.title: {"name": s.name, "bit_identical": None} for s in config.strategies},
        "seeds": list(config.seeds),
        "multi_net": multi_net,
        "finished": [],
        "task_labels": {n: label for label, n in enumerate(name for names in experiences for name in names)},
    }
    write_text(folder / "config.yaml", text)
    write_json(path, info)
    return info


def _same_config(before: str, now: str, folder: Path) -> None:
    """Refuse to resume with another configuration, naming the first key that differs."""
    if before == now:
        return
    import yaml

    old, new = _flat(yaml.safe_load(before)), _flat(yaml.safe_load(now))
    free = {"training.loader_workers"}  # changes no result
    key = next((key for key in sorted({*old, *new} - free) if old.get(key) != new.get(key)), None)
    if key is None:
        return
    raise ConfigError(
        f"{folder} was begun with another configuration: {key} was {old.get(key)!r} and is {new.get(key)!r} now; "
        "resume with the same, or choose another name"
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted keys and values; a list of plain values, or an empty one, is a value itself."""
    if isinstance(value, Mapping) and value:
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = [(str(place), item) for place, item in enumerate(value)]
    else:
        return {prefix.removesuffix("."): value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flat(item, f"{prefix}{key}.")
    return flat


def _finish(info: dict[str, Any], title: str, seed: int, bit_identical: bool | None) -> None:
    info["finished"].append([title, seed])
    entry = info["strategies"][title]
    if bit_identical is not None:  # of all seeds: one that is not spoils it
        entry["bit_identical"] = bit_identical and entry["bit_identical"] is not False


def _environment(config: Config, folder: Path) -> Precision:
    """Write down what figures depend on besides the configuration, and return the run's precision.

    A resumed run keeps the precision that it began with, so that all its strategies are trained alike.
    """
    device = resolve_device(config.training.device)
    path = folder / "environment.json"
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))["precision"]
        precision = recall_precision(stored, device, f"the run {folder}")
    else:
        precision = resolve_precision(config.training.precision, device)
    write_json(
        path,
        {
            **environment_fingerprint(
                device=device, window=config.patch.size, batch=config.inference.batch_size
            ),
            "precision": precision.format,
            "python": platform.python_version(),
            "packages": {
                name: version(name)
                for name in ("repmode-cl", "torch", "avalanche-lib", "numpy", "scipy", "tifffile")
            },
        },
    )
    return precision
