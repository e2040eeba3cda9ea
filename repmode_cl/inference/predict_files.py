"""Many images through one model: names of their outputs, what became of each, and a table of it."""

from __future__ import annotations

import csv
import glob
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch

from repmode_cl.data.readers.location import as_location, is_url
from repmode_cl.errors import ImageError, RepmodeError, UnknownStructureError
from repmode_cl.inference.options import PredictedFile, Settings
from repmode_cl.inference.predict_file import predict_file, ready_networks
from repmode_cl.inference.provenance import input_name
from repmode_cl.inference.window_batches import Network
from repmode_cl.inference.writers import SUFFIXES, title_of
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.atomic_files import write_text
from repmode_cl.utils.devices import resolve_device

__all__ = [
    "COLUMNS",
    "ImageOutcome",
    "check_table",
    "expand_inputs",
    "output_names",
    "predict_many",
    "read_results",
    "write_results",
]

#: Of the table of results.
COLUMNS = ("input", "structure", "output", "status", "seconds", "mse", "mae", "r2", "pearson", "message")

_METRICS = ("mse", "mae", "r2", "pearson")


@dataclass(frozen=True)
class ImageOutcome:
    """What became of one image.

    Attributes
    ----------
    source
        The image.
    files
        What was predicted of it; empty if it failed.
    seconds
        Wall time.
    error
        Why it failed; None if it did not.
    """

    source: Path | str
    files: tuple[PredictedFile, ...] = ()
    seconds: float = 0.0
    error: str | None = None


def expand_inputs(inputs: Sequence[str | Path]) -> list[Path | str]:
    """Return the images that paths, patterns (``*``, ``?``, ``[...]``, ``**``) and URLs stand for, each once.

    Raises
    ------
    ImageError
        If a pattern fits no file.
    """
    found: dict[str, Path | str] = {}
    for one in inputs:
        text = str(one)
        # A file that is there is meant, whatever its name looks like.
        if is_url(text) or Path(text).exists() or not glob.has_magic(text):
            found.setdefault(text, as_location(text))
            continue
        fitting = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - a pattern may be absolute
        if not fitting:
            raise ImageError(f"{text}: no file fits this pattern")
        for path in fitting:
            found.setdefault(path, Path(path))
    return list(found.values())


def output_names(
    inputs: Sequence[Path | str], out: str | Path, structures: Sequence[str], *, stack: bool
) -> list[str]:
    """Return for each image the name of its outputs, in which ``{structure}`` may stand for each structure.

    Parameters
    ----------
    inputs
        Images.
    out
        A folder, whose files are ``<input>_<structure>.ome.tif`` (of a stack ``<input>_predicted.ome.tif``), or a name
        with ``{input}`` in it.
    structures
        Names.
    stack
        Whether one file takes them all.

    Raises
    ------
    RepmodeError
        If two images would be written to one file, or the name is that of a file and there are several images.
    """
    text = str(out)
    if "{input}" not in text:
        if Path(text).suffix.lower() in SUFFIXES:
            raise RepmodeError(
                f"{text}: several images need a file each; give a folder, or a name with {{input}} in it such as "
                f"{Path(text).with_name('{input}_' + Path(text).name)}"
            )
        text = str(Path(text) / ("{input}_predicted.ome.tif" if stack else "{input}_{structure}.ome.tif"))
    if len(structures) > 1 and not stack and "{structure}" not in text:
        raise RepmodeError(f"{text}: several structures need a file each; put {{structure}} into the name")
    names = [text.replace("{input}", title_of(Path(input_name(one)))) for one in inputs]
    taken: dict[str, Path | str] = {}
    for name, one in zip(names, inputs, strict=True):
        if name in taken:
            raise RepmodeError(
                f"{taken[name]} and {one} would both be written to {name}: predict them in two calls, with another "
                "--out"
            )
        taken[name] = one
    return names


def predict_many(
    model: ModelSnapshot,
    structures: Sequence[str],
    inputs: Sequence[Path | str],
    outputs: Sequence[str | Path],
    *,
    several: bool = True,
    keep_going: bool = False,
    table: Path | None = None,
    done: Callable[[ImageOutcome], None] | None = None,
    **settings: Unpack[Settings],
) -> list[ImageOutcome]:
    """Predict images one after another with networks that are made once.

    With `keep`, what an earlier call predicted of the same images with the same settings is left alone (unless
    `restart` is given, or figures are wanted that `table` does not have): the same call goes on where one ended.

    Parameters
    ----------
    model, structures
        What predicts what.
    inputs, outputs
        Images, and the name of each one's outputs (`output_names`).
    several
        Whether several structures were asked for, even if it comes to one: `outputs` are then folders, or have
        ``{structure}`` in them.
    keep_going
        Go on with the others after an image that cannot be predicted.
    table
        A CSV file for the results (`COLUMNS`), written anew after each image; None writes none.
    done
        Called after each image.
    settings
        As of `predict_file`.

    Returns
    -------
    list[Outcome]
        One for each image.

    Raises
    ------
    RepmodeError
        That of the first image that cannot be predicted, unless `keep_going`; if `table` would replace something
        else (`check_table`).
    """
    names = list(structures)
    for name in names:
        if name not in model.structures:
            raise UnknownStructureError(name, model.structures, f"the model {model.path}")
    settings = {**settings, "networks": _Ready(model, resolve_device(settings.get("device", "auto")))}
    keep = settings.get("keep", False) and not settings.get("restart", False)
    figures = settings.get("targets") or {}
    if table is not None:
        check_table(table)
    earlier = read_results(table) if table is not None else {}
    found: list[ImageOutcome] = []
    for source, output in zip(inputs, outputs, strict=True):
        started = time.perf_counter()
        settings["keep"] = keep and all((str(source), name) in earlier for name in figures)
        try:
            files: tuple[PredictedFile, ...]
            if several or settings.get("stack"):
                files = tuple(predict_file(model, names, source, output, **settings))
            else:
                files = (predict_file(model, names[0], source, output, **settings),)
            outcome = ImageOutcome(source, files, time.perf_counter() - started)
        except (RepmodeError, OSError) as error:
            if not keep_going:
                raise
            outcome = ImageOutcome(source, (), time.perf_counter() - started, _said(error))
        found.append(outcome)
        if table is not None:
            write_results(table, found, names, [str(one) for one in outputs], earlier)
        if done is not None:
            done(outcome)
    return found


def check_table(table: Path) -> None:
    """Refuse a name at which a table of results would replace something else.

    Raises
    ------
    RepmodeError
        If it does not end in .csv, is a folder, or a file that is no table of results is there.
    """
    if table.suffix.lower() != ".csv":
        raise RepmodeError(f"{table}: a table of results ends in .csv")
    if table.is_dir():
        raise RepmodeError(f"{table}: is a folder; give the name of a file")
    if not table.exists():
        return
    with table.open("rb") as file:
        first = file.readline(1000).strip()
    if first and first != ",".join(COLUMNS).encode():
        raise RepmodeError(
            f"{table}: a file that is no table of results, which is not written over; give another name, or remove it"
        )


class _Ready(dict[str, Network]):
    """Networks that are made when they are first asked for, and kept: what is there already needs none."""

    def __init__(self, model: ModelSnapshot, device: torch.device) -> None:
        super().__init__()
        self._model, self._device = model, device

    def __missing__(self, name: str) -> Network:
        self.update(ready_networks(self._model, [name], self._device))
        return self[name]


def _said(error: RepmodeError | OSError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def write_results(
    table: Path,
    outcomes: Sequence[ImageOutcome],
    structures: Sequence[str],
    outputs: Sequence[str],
    earlier: Mapping[tuple[str, str], Mapping[str, str]],
) -> None:
    """Write what became of images as CSV, one row for each image and structure, whole or not at all.

    Parameters
    ----------
    table
        The file.
    outcomes
        Of the images so far.
    structures, outputs
        What was asked for.
    earlier
        Rows of an earlier call: figures of what it predicted are taken from there.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for outcome, output in zip(outcomes, outputs, strict=False):
        files = {file.structure: file for file in outcome.files}
        for name in structures:
            row: dict[str, object] = {"input": str(outcome.source), "structure": name}
            before = earlier.get((str(outcome.source), name), {})
            file = files.get(name)
            if file is None:
                row |= {
                    "output": output.replace("{structure}", name),
                    "status": "failed",
                    "message": outcome.error,
                }
            else:
                status = "already there" if file.existed else "predicted"
                row |= {"output": str(file.path), "status": status, "message": "; ".join(file.notes)}
                metrics: Mapping[str, object] = before if file.existed else file.metrics or {}
                row |= {metric: metrics.get(metric, "") for metric in _METRICS}
            row["seconds"] = f"{outcome.seconds:.2f}"
            writer.writerow(row)
    write_text(table, text.getvalue())


def read_results(table: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Return the rows of an earlier table that have figures, by input and structure; none if it is no such table."""
    try:
        rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    except (OSError, ValueError, csv.Error):
        return {}
    return {
        (row["input"], row["structure"]): row
        for row in rows
        if set(COLUMNS) <= set(row) and row["status"] in ("predicted", "already there") and row["mse"]
    }
