"""``evaluation.json``, ``evaluation.csv`` and ``cells.csv``: figures of a model's structures on new images."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from repmode_cl.errors import RepmodeError
from repmode_cl.utils.atomic_files import write_json, write_text
from repmode_cl.verdict import HeldOutFigures, Verdict, held_out_evidence, judge

__all__ = [
    "EVALUATION",
    "CellValues",
    "ImageFigures",
    "ModelEvaluation",
    "StructureEvaluation",
    "read_evaluation",
    "write_evaluation",
]

#: File in an evaluation's folder: everything that the page shows.
EVALUATION = "evaluation.json"
_FORMAT, _VERSION = "repmode-cl evaluation", 1

#: Order of figures in tables; others come after them.
_ORDER = (
    *(
        "r2",
        "pearson",
        "mse",
        "mae",
        "psnr",
        "ssim",
        "microssim",
        "spectral_pcc",
        "fsc_xy",
        "fsc_z",
        "dice",
        "iou",
        "coverage",
        "interval_width",
    ),
    *("objects_truth", "objects_prediction", "size_truth", "size_prediction"),
)


def _figure_names(images: Iterable[ImageFigures]) -> list[str]:
    """Return the names of all figures that an image has, in the order of tables."""
    names = {name for image in images for name in image.figures}
    return [name for name in _ORDER if name in names] + sorted(names - set(_ORDER))


@dataclass(frozen=True)
class CellValues:
    """Features of the cells of one image, in the truth and in the prediction.

    Attributes
    ----------
    truth, prediction
        Feature -> one value for each cell, by increasing label.
    labels
        Label of each cell; empty in an evaluation of an earlier version, which did not keep them.
    """

    truth: Mapping[str, list[float]]
    prediction: Mapping[str, list[float]]
    labels: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(next(iter(self.truth.values()), []))


@dataclass(frozen=True)
class ImageFigures:
    """Figures of one image.

    Attributes
    ----------
    line
        Line of the manifest.
    image
        Name of the file of transmitted light, with the part of it that was used.
    group
        Group of images that are not independent of each other.
    figures
        By name; what is undefined for this image is left out.
    notes
        Why figures are missing.
    cells
        Features of its cells; None without labels.
    pictures
        Slices as a page shows them; None for most images.
    """

    line: int
    image: str
    group: str
    figures: Mapping[str, float]
    notes: tuple[str, ...] = ()
    cells: CellValues | None = None
    pictures: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ImageFigures:
        """Return what `to_json` wrote."""
        cells = value["cells"]
        return cls(
            **{
                **value,
                "notes": tuple(value["notes"]),
                "cells": None if cells is None else CellValues(**cells),
            }
        )


@dataclass(frozen=True)
class StructureEvaluation:
    """Figures of one structure.

    Attributes
    ----------
    structure, digest
        Its name, and the digest of the version that was evaluated.
    model_verdict
        Verdict of the model's own held-out figures, as text.
    images
        Figures of each image.
    correlations
        Correlation of each cell feature over all cells of all images; empty without labels.
    """

    structure: str
    digest: str
    model_verdict: str
    images: tuple[ImageFigures, ...]
    correlations: Mapping[str, float] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """Mean of each figure over the images that have it."""
        means = {}
        for name in _figure_names(self.images):
            values = [image.figures[name] for image in self.images if name in image.figures]
            means[name] = math.fsum(values) / len(values)
        return means

    @property
    def counts(self) -> dict[str, int]:
        """Number of images that have each figure."""
        names = _figure_names(self.images)
        return {name: sum(name in image.figures for image in self.images) for name in names}

    @property
    def cells(self) -> int:
        """Number of cells in all images."""
        return sum(len(image.cells) for image in self.images if image.cells is not None)

    @property
    def verdict(self) -> Verdict:
        """What these images say: learned nothing, weak or useful; unknown where R2 is undefined for one of them."""
        values = [image.figures["r2"] for image in self.images if "r2" in image.figures]
        if not values or len(values) < len(self.images):
            return judge(HeldOutFigures())
        evidence = held_out_evidence(values, [image.group for image in self.images])
        return judge(
            HeldOutFigures(
                r2=math.fsum(values) / len(values),
                images=len(values),
                groups=int(evidence["groups"]),
                standard_error=evidence.get("r2_standard_error"),
                split="new",
                pearson=self.means.get("pearson"),
            )
        )


@dataclass(frozen=True)
class ModelEvaluation:
    """Figures of a model's structures on new images.

    Attributes
    ----------
    model
        Name of its folder.
    manifest
        Name of the manifest.
    measures
        Measures besides the voxel metrics.
    structures
        Results, in the order of the model.
    settings
        Settings as the page shows them: (name, value).
    notes
        What a person should know: images that were left out, measures that are not installed.
    folder
        Its folder.
    """

    model: str
    manifest: str
    measures: tuple[str, ...]
    structures: tuple[StructureEvaluation, ...]
    settings: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path = field(default=Path(), compare=False)

    def __getitem__(self, structure: str) -> StructureEvaluation:
        """Return the result of one structure."""
        for one in self.structures:
            if one.structure == structure:
                return one
        raise KeyError(structure)

    @property
    def report(self) -> Path:
        """File of the page."""
        return self.folder / "report.html"

    @property
    def table(self) -> Path:
        """File of the table of images."""
        return self.folder / "evaluation.csv"

    def summary(self) -> dict[str, Any]:
        """Return the means, verdicts and correlations of every structure as JSON."""
        return {
            one.structure: {
                "digest": one.digest,
                "images": len(one.images),
                "verdict": one.verdict.to_json(),
                "model_verdict": one.model_verdict,
                "means": one.means,
                "images_with": one.counts,
                "cells": one.cells,
                "cell_correlations": dict(one.correlations),
            }
            for one in self.structures
        }


def write_evaluation(evaluation: ModelEvaluation) -> None:
    """Write ``evaluation.json``, ``evaluation.csv`` and, with labels, ``cells.csv`` into its folder."""
    images = [(one.structure, image) for one in evaluation.structures for image in one.images]
    names = _figure_names(image for _, image in images)
    rows = [
        [structure, image.line, image.image, image.group]
        + [repr(image.figures[name]) if name in image.figures else "" for name in names]
        + ["; ".join(image.notes)]
        for structure, image in images
    ]
    _write_csv(evaluation.table, ["structure", "line", "image", "group", *names, "notes"], rows)
    cells = [(structure, image, image.cells) for structure, image in images if image.cells is not None]
    if cells:
        features = list(cells[0][2].truth)
        columns = [f"{name}_{of}" for name in features for of in ("truth", "prediction")]
        rows = [
            [structure, image.line, label]
            + [repr(side[name][cell]) for name in features for side in (values.truth, values.prediction)]
            for structure, image, values in cells
            for cell, label in enumerate(values.labels)
        ]
        _write_csv(evaluation.folder / "cells.csv", ["structure", "line", "cell", *columns], rows)
    value = {
        "format": _FORMAT,
        "version": _VERSION,
        "summary": evaluation.summary(),  # for other programs: it follows from the rest
        **{key: item for key, item in asdict(evaluation).items() if key != "folder"},
    }
    write_json(evaluation.folder / EVALUATION, value)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _from_json(value: dict[str, Any], folder: Path) -> ModelEvaluation:
    if (value.pop("format"), value.pop("version")) != (_FORMAT, _VERSION):
        raise ValueError(f"this is no {_FORMAT} of version {_VERSION}")
    value.pop("summary")
    structures = tuple(
        StructureEvaluation(**{**one, "images": tuple(map(ImageFigures.from_json, one["images"]))})
        for one in value["structures"]
    )
    return ModelEvaluation(
        **{
            **value,
            "measures": tuple(value["measures"]),
            "structures": structures,
            "settings": tuple((name, text) for name, text in value["settings"]),
            "notes": tuple(value["notes"]),
            "folder": folder,
        }
    )


def read_evaluation(folder: str | Path) -> ModelEvaluation:
    """Read an evaluation's folder.

    Raises
    ------
    RepmodeError
        If it holds none, or one of another version.
    """
    path = Path(folder) / EVALUATION
    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8")), Path(folder))
    except FileNotFoundError:
        raise RepmodeError(f"{folder}: holds no finished evaluation ({EVALUATION} is missing)") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RepmodeError(
            f"{path}: cannot be read as an evaluation ({type(error).__name__}: {error}); `repmode-cl evaluate` with "
            "--restart makes it again"
        ) from error
