"""Prediction of many images with one model: names of their outputs, outcome of each, and a CSV table."""

from __future__ import annotations

import csv
import dataclasses
import glob
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from repmode_cl.data.readers.location import as_location, is_url
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.inference.options import PredictedFile, PredictionOptions
from repmode_cl.inference.predict_file import FilePrediction, FusedNetworks
from repmode_cl.inference.provenance import input_name
from repmode_cl.inference.writers import SUFFIXES, title_of
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.atomic_files import write_text
from repmode_cl.utils.devices import resolve_device

__all__ = [
    "predict_files",
    "ImageOutcome",
    "expand_inputs",
    "output_names",
    "TABLE_COLUMNS",
    "check_prediction_table",
    "read_prediction_table",
    "write_prediction_table",
]

#: Columns of the table of results.
TABLE_COLUMNS = (
    "input",
    "structure",
    "output",
    "status",
    "seconds",
    "mse",
    "mae",
    "r2",
    "pearson",
    "message",
    "verdict",
    "unlike",
    "unlike_score",
    "unlike_limit",
)

#: Columns of tables of the first version, with which those of all versions begin.
_FIRST_COLUMNS = TABLE_COLUMNS[:10]

_METRICS = ("mse", "mae", "r2", "pearson")
_UNLIKE = ("unlike", "unlike_score", "unlike_limit")


@dataclass(frozen=True)
class ImageOutcome:
    """Outcome of one image.

    Attributes
    ----------
    source
        The image.
    files
        Its predictions; empty if it failed.
    seconds
        Wall time.
    error
        Reason of its failure; None if it did not fail.
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
    images: dict[str, Path | str] = {}
    for pattern in inputs:
        text = str(pattern)
        # An existing file is no pattern, whatever its name looks like.
        if is_url(text) or Path(text).exists() or not glob.has_magic(text):
            images.setdefault(text, as_location(text))
            continue
        matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - a pattern may be absolute
        if not matches:
            raise ImageError(f"{text}: no file fits this pattern")
        for path in matches:
            images.setdefault(path, Path(path))
    return list(images.values())


def output_names(
    inputs: Sequence[Path | str],
    out: str | Path,
    structures: Sequence[str],
    *,
    stack: bool,
    imagej: bool = False,
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
        Whether one file holds all of them.
    imagej
        Whether files are ImageJ hyperstacks, whose names end in ``.tif``.

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
        suffix = ".tif" if imagej else ".ome.tif"
        text = str(Path(text) / (("{input}_predicted" if stack else "{input}_{structure}") + suffix))
    if len(structures) > 1 and not stack and "{structure}" not in text:
        raise RepmodeError(f"{text}: several structures need a file each; put {{structure}} into the name")
    names = [text.replace("{input}", title_of(Path(input_name(image)))) for image in inputs]
    images: dict[str, Path | str] = {}
    for name, image in zip(names, inputs, strict=True):
        if name in images:
            raise RepmodeError(
                f"{images[name]} and {image} would both be written to {name}: predict them in two calls, with another "
                "--out"
            )
        images[name] = image
    return names


def predict_files(
    model: ModelSnapshot,
    structure: str | list[str] | tuple[str, ...],
    inputs: Sequence[Path | str],
    outputs: Sequence[str | Path],
    options: PredictionOptions,
    *,
    keep_going: bool = False,
    table: Path | None = None,
    done: Callable[[ImageOutcome], None] | None = None,
) -> list[ImageOutcome]:
    """Predict images one after another with networks that are made once.

    With `options.keep`, images that an earlier call predicted with the same settings are not predicted again (unless
    `options.restart` is given, or metrics are wanted that `table` does not have): the same call continues where one
    ended.

    Parameters
    ----------
    model
        The model.
    structure
        Name of one of its structures, or several: `outputs` are then folders, or have ``{structure}`` in them.
    inputs, outputs
        Images, and the name of each one's outputs (`output_names`).
    options
        How to predict.
    keep_going
        Continue with the others after an image that cannot be predicted.
    table
        A CSV file for the results (`TABLE_COLUMNS`), written again after each image; None writes none.
    done
        Called after each image.

    Returns
    -------
    list[ImageOutcome]
        One for each image.

    Raises
    ------
    RepmodeError
        That of the first image that cannot be predicted, unless `keep_going`; if `table` would replace something
        else (`check_prediction_table`).
    """
    names = [structure] if isinstance(structure, str) else list(structure)
    for name in names:
        if name not in model.structures:
            raise model.unknown_structure(name)
    networks = FusedNetworks(model, resolve_device(options.device))
    keep = options.keep and not options.restart
    earlier: Mapping[tuple[str, str], Mapping[str, str]] = {}
    if table is not None:
        check_prediction_table(table)
        earlier = read_prediction_table(table)
    outcomes: list[ImageOutcome] = []
    for source, output in zip(inputs, outputs, strict=True):
        started = time.perf_counter()
        has_metrics = all(
            (str(source), name) in earlier and earlier[str(source), name]["mse"]
            for name in options.targets or {}
        )
        image_options = dataclasses.replace(options, networks=networks, keep=keep and has_metrics)
        try:
            files = FilePrediction(model, structure, source, output, image_options).run()
            outcome = ImageOutcome(source, tuple(files), time.perf_counter() - started)
        except (RepmodeError, OSError) as error:
            if not keep_going:
                raise
            outcome = ImageOutcome(source, (), time.perf_counter() - started, _message(error))
        outcomes.append(outcome)
        if table is not None:
            write_prediction_table(table, outcomes, names, earlier)
        if done is not None:
            done(outcome)
    return outcomes


def _message(error: RepmodeError | OSError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def check_prediction_table(table: Path) -> None:
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
        header = file.readline(1000).strip()
    first = ",".join(_FIRST_COLUMNS).encode()
    if header and header != first and not header.startswith(first + b","):
        raise RepmodeError(
            f"{table}: is no table of results, and is not replaced; give another name, or remove it"
        )


def read_prediction_table(table: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Return the predicted rows of an earlier table, by input and structure; none if it is no such table."""
    try:
        rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    except (OSError, ValueError, csv.Error):
        return {}
    return {
        (row["input"], row["structure"]): row
        for row in rows
        if set(_FIRST_COLUMNS) <= set(row) and row["status"] in ("predicted", "already there")
    }


def write_prediction_table(
    table: Path,
    outcomes: Sequence[ImageOutcome],
    structures: Sequence[str],
    earlier: Mapping[tuple[str, str], Mapping[str, str]],
) -> None:
    """Write the outcomes of images as CSV, one row for each image and structure, whole or not at all.

    Parameters
    ----------
    table
        The file.
    outcomes
        Of the images so far.
    structures
        Their names.
    earlier
        Rows of an earlier call: figures of its predictions are copied from there.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, TABLE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for outcome in outcomes:
        files = {file.structure: file for file in outcome.files}
        for name in structures:
            row: dict[str, object] = {"input": str(outcome.source), "structure": name}
            file = files.get(name)
            if file is None:
                row |= {"output": "", "status": "failed", "message": outcome.error}
            else:
                status = "already there" if file.existed else "predicted"
                notes = "; ".join(file.notes + file.trust_notes)
                row |= {"output": str(file.path), "status": status, "message": notes}
                row["verdict"] = "" if file.verdict is None else str(file.verdict.level)
                figures: Mapping[str, object] = {**(file.metrics or {}), **_unlike_columns(file)}
                if file.existed:
                    figures = earlier.get((str(outcome.source), name), {})
                row |= {column: figures.get(column, "") for column in (*_METRICS, *_UNLIKE)}
            row["seconds"] = f"{outcome.seconds:.2f}"
            writer.writerow(row)
    write_text(table, text.getvalue())


def _unlike_columns(file: PredictedFile) -> dict[str, object]:
    """Return the columns on how unlike the training images an image is: yes, no, or unknown."""
    score = file.unlike
    if score is None:
        return {"unlike": "unknown"}
    answer = {None: "unknown", True: "yes", False: "no"}[score.unlike]
    limit = "" if score.limit is None else f"{score.limit:.4g}"
    return {"unlike": answer, "unlike_score": f"{score.score:.4g}", "unlike_limit": limit}
