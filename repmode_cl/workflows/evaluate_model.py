"""Evaluate the structures of a model on new images with ground truth; the model is not changed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from repmode_cl.config.schema import PreprocessingConfig
from repmode_cl.data.manifest import Manifest, Row, as_written, read_manifest
from repmode_cl.data.patches.dataset import VolumeDataset
from repmode_cl.data.pipeline import check_cache
from repmode_cl.data.preprocessing.prepare import prepare, voxel_size_of
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.preprocessing.volume_cache import ContentDigests
from repmode_cl.data.readers import open_image
from repmode_cl.data.sample import Sample, digest_of
from repmode_cl.data.validation.held_out import learned_images
from repmode_cl.data.validation.problem_groups import lines_text
from repmode_cl.errors import ConfigError, ImageError, ManifestError, RepmodeError, UnknownStructureError
from repmode_cl.evaluation.image_quality import ImagePair, available_measures, check_measures, measure_image
from repmode_cl.evaluation.segmentation import cell_features, feature_correlations, foreground
from repmode_cl.inference.flips import with_spread
from repmode_cl.inference.intervals import image_coverage
from repmode_cl.inference.predict_file import fused_network_on
from repmode_cl.inference.prepare_volume import target_scales
from repmode_cl.inference.sliding_window import sliding_window, sliding_windows
from repmode_cl.inference.trust_channels import calibration_of, confidence_text
from repmode_cl.metrics import image_metrics
from repmode_cl.model import Model
from repmode_cl.report.evaluation.page import build_evaluation, picture_values
from repmode_cl.results.evaluation import (
    EVALUATION,
    CellValues,
    ImageFigures,
    ModelEvaluation,
    StructureEvaluation,
    read_evaluation,
    write_evaluation,
)
from repmode_cl.results.predictions import Prediction
from repmode_cl.structures import check_structure_name
from repmode_cl.utils.atomic_files import write_json
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.extras import install_command
from repmode_cl.utils.progress import task
from repmode_cl.workflows.comparison_folder import exclusive_comparison
from repmode_cl.workflows.measured_images import record_measured, refuse_other_images
from repmode_cl.workflows.options import EvaluationOptions
from repmode_cl.workflows.training_settings import base_patch, refuse_voxel_sizes

__all__ = ["evaluate_model"]

#: Folder, in that of an evaluation, with the figures of each image that is done.
_IMAGES = "images"
#: Images of each structure that the page shows pictures of.
_PICTURES = 3

_Labels = NDArray[np.int64]


def evaluate_model(
    model: str | Path | Model, data: str | Path | Manifest, options: EvaluationOptions | None = None
) -> ModelEvaluation:
    """Measure how well a model predicts new images whose truth is known.

    Each image is prepared and predicted as in training: on the model's voxel size, z-scored, in Gaussian windows.
    Images that the structure, what it needs, or the base has learned from are left out, as a note says.

    Parameters
    ----------
    model
        A model directory.
    data
        Manifest of image pairs; its splits are not used.
    options
        None takes the defaults.

    Returns
    -------
    ModelEvaluation
        Figures of each structure and image, and what was written: ``report.html``, ``evaluation.json``,
        ``evaluation.csv`` and, with labels, ``cells.csv``.

    Notes
    -----
    The figures of each image are stored as soon as it is done: after an interruption the same call continues.

    Raises
    ------
    UnknownStructureError
        If the model has no such structure.
    ManifestError
        If the manifest has no row of it, an image cannot be used, or all were learned from.
    ImageError
        If labels do not show the voxels of their image.
    ModelError
        If intervals are to be measured, and a structure has no calibration.
    RepmodeError
        If a measure is unknown, its package is not installed, or a choice for the segmentation is of no use.
    ConfigError
        If the folder holds something else, or figures of images that changed since.
    """
    options = options or EvaluationOptions()
    opened = Model.open(model.path if isinstance(model, Model) else model)
    manifest = data if isinstance(data, Manifest) else read_manifest(Path(data))
    _check_segmentation(options)
    structures, notes = _chosen_structures(opened, manifest, options.structures)
    if options.measures is None:
        measures, missing = available_measures()
        if missing:
            notes.append(f"not computed: {', '.join(missing)} ({install_command('quality')})")
    else:
        measures = check_measures(options.measures)
    manifest = replace(manifest, rows=tuple(row for row in manifest.rows if row.structure in structures))
    manifest = _with_labels(manifest, options.labels)
    _refuse_unused(options, measures)
    if any(row.labels is not None for row in manifest.rows) and "segmentation" not in measures:
        raise RepmodeError(
            "labels are given, and the area of a cell is that of its segmentation: add segmentation to --measures"
        )
    folder = (
        options.out if options.out is not None else Path("runs") / f"evaluate-{opened.path.resolve().name}"
    )
    if opened.path.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(f"{folder} lies in the model, which is not changed: give another folder with --out")
    for name in structures:
        notes += refuse_voxel_sizes(opened, manifest, name, force=options.force)
        if options.confidence:
            notes.append(f"intervals of {name}: {confidence_text(opened, name)}")
    request = _request(opened, manifest, structures, measures, options)
    with exclusive_comparison(folder, request, restart=options.restart, kind="evaluation"):
        if (folder / EVALUATION).exists():
            refuse_other_images(folder, manifest.rows, "an evaluation", options.cache, options.workers)
        else:
            run = EvaluationRun(opened, manifest, structures, measures, folder, options)
            write_evaluation(run.run(notes))
            if options.cache is None:
                shutil.rmtree(folder / "cache", ignore_errors=True)
            shutil.rmtree(folder / _IMAGES, ignore_errors=True)
        build_evaluation(folder)  # also after an update of this software
        return read_evaluation(folder)


def _check_segmentation(options: EvaluationOptions) -> None:
    if options.threshold is not None and not math.isfinite(options.threshold):
        raise RepmodeError(f"--threshold {options.threshold}: a finite z-score is needed, such as 1.0")
    if options.min_size < 1:
        raise RepmodeError(f"--min-size {options.min_size}: at least 1 voxel is needed")


def _refuse_unused(options: EvaluationOptions, measures: Sequence[str]) -> None:
    """Refuse choices for a segmentation where nothing is segmented."""
    if "segmentation" in measures:
        return
    for name, value in (("threshold", options.threshold), ("min_size", options.min_size)):
        if value != getattr(EvaluationOptions, name):
            raise RepmodeError(
                f"--{name.replace('_', '-')} {value:g} is of the segmentation, which is not among the measures "
                f"({', '.join(measures) or 'none'}): add segmentation to --measures, or leave the option out"
            )


def _chosen_structures(
    model: Model, manifest: Manifest, asked: Sequence[str]
) -> tuple[tuple[str, ...], list[str]]:
    """Return the structures to evaluate, in the order of the model, and a note on those that it lacks."""
    for name in asked:
        check_structure_name(name)
        if name not in model.structures:
            raise UnknownStructureError(name, model.structures, f"the model {model.path}")
        if name not in manifest.structures:
            raise UnknownStructureError(name, manifest.structures, f"the manifest {manifest.path}")
    if asked:
        return tuple(name for name in model.structures if name in asked), []
    shared = tuple(name for name in model.structures if name in manifest.structures)
    if not shared:
        raise ManifestError(
            f"{manifest.path} has rows of {', '.join(manifest.structures)}, and {model.path} predicts "
            f"{', '.join(model.structures)}: none is in both"
        )
    foreign = [name for name in manifest.structures if name not in model.structures]
    return shared, [f"not in the model, so not evaluated: {', '.join(foreign)}"] if foreign else []


def _with_labels(manifest: Manifest, folder: Path | None) -> Manifest:
    """Return the manifest with the labels of a folder, where there is one: named as the images of transmitted light.

    Raises
    ------
    ManifestError
        If a row has labels already, or the folder has none, or several, of its image.
    """
    if folder is None:
        return manifest
    if not folder.is_dir():
        raise ManifestError(
            f"--labels {folder}: is no folder; give one with an image of labels for each image"
        )
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        by_stem.setdefault(_stem(path), []).append(path)
    rows = []
    for row in manifest.rows:
        found = by_stem.get(_stem(row.signal), [])
        if row.labels is not None:
            raise ManifestError(
                f"{manifest.path}, line {row.number}: names labels, and --labels is given: give one"
            )
        if len(found) != 1:
            listed = ", ".join(path.name for path in found) or "none"
            raise ManifestError(
                f"{manifest.path}, line {row.number}: {folder} must have one image of labels called "
                f"{_stem(row.signal)}.*, found: {listed}"
            )
        rows.append(replace(row, labels=found[0]))
    return replace(manifest, rows=tuple(rows))


def _stem(path: Path) -> str:
    """Return a file's name without its suffixes, such as ``.ome.tif``."""
    name = path.name
    for suffix in (".ome.tiff", ".ome.tif", ".ome.zarr"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def _request(
    model: Model,
    manifest: Manifest,
    structures: Sequence[str],
    measures: Sequence[str],
    options: EvaluationOptions,
) -> dict[str, Any]:
    """Return all that decides the figures: an evaluation is continued only with the same."""
    rows = [f"{row}, labels {row.labels}, {row.labels_channel}" for row in manifest.rows]
    return {
        "model": {name: model.entries[name].digest for name in structures},
        "rows": digest_of(*rows).hex(),
        "measures": list(measures),
        "threshold": options.threshold,
        "min_size": options.min_size,
        "confidence": options.confidence,
    }


class EvaluationRun:
    """One evaluation under way: each image is predicted, measured, and written down before the next.

    Parameters
    ----------
    model, manifest
        The model, and the rows to evaluate.
    structures, measures
        What is evaluated, and by which measures besides the voxel metrics.
    folder
        Where it is written.
    options
        How to segment, the device, and where prepared images are kept.
    """

    def __init__(
        self,
        model: Model,
        manifest: Manifest,
        structures: Sequence[str],
        measures: Sequence[str],
        folder: Path,
        options: EvaluationOptions,
    ) -> None:
        self.model = model
        self.manifest = manifest
        self.structures = structures
        self.measures = measures
        self.folder = folder
        self.options = options
        self.device = resolve_device(options.device)
        self.preprocessing = PreprocessingConfig(
            voxel_size=model.voxel_size,
            **PreprocessingRecipe.from_json(model.preprocessing).to_settings(),
            targets=target_scales(model, structures),
        )

    def run(self, notes: Sequence[str]) -> ModelEvaluation:
        """Predict and measure every image."""
        cache = check_cache(self.options.cache if self.options.cache is not None else self.folder / "cache")
        cache.mkdir(parents=True, exist_ok=True)
        digests = ContentDigests(cache / "contents.json")
        rows, left_out = self._new_rows(digests)
        samples = prepare(
            replace(self.manifest, rows=rows),
            {row.number: "test" for row in rows},
            self.preprocessing,
            cache,
            workers=self.options.workers,
        )
        record_measured(self.folder, self.manifest.rows, digests, self.options.workers)
        by_line = {row.number: row for row in rows}
        structures = []
        with task("evaluating", total=len(samples)) as bar:
            for name in self.structures:
                own = [sample for sample in samples if sample.structure == name]
                bar.update(description=f"evaluating {name}")
                images = []
                for position, sample in enumerate(own):
                    row = by_line[sample.row]
                    labels = "" if row.labels is None else digests.of(row.labels)
                    images.append(self._image(sample, row, labels, pictured=position < _PICTURES))
                    bar.advance()
                structures.append(self._structure(name, images))
        return ModelEvaluation(
            model=self.model.path.resolve().name,
            manifest=self.manifest.path.name,
            measures=tuple(self.measures),
            structures=tuple(structures),
            settings=self._settings(),
            notes=(*notes, *left_out),
            folder=self.folder,
        )

    def _new_rows(self, digests: ContentDigests) -> tuple[tuple[Row, ...], list[str]]:
        """Return the rows whose images the model has not learned from, and notes on the others."""
        splits = {row.number: "test" for row in self.manifest.rows}
        rows: list[Row] = []
        notes: list[str] = []
        for name in self.structures:
            own = self.manifest.for_structure(name)
            records = self.model.training_records([name])
            try:
                problems = learned_images(
                    own,
                    splits,
                    records,
                    patch=base_patch(self.model),
                    preprocessing=self.preprocessing,
                    digest=digests.of,
                )
            except OSError as error:
                raise ManifestError(f"{self.manifest.path}: {error.filename}: {error.strerror}") from error
            learned = sorted({problem.row for problem in problems})
            kept = [row for row in own if row.number not in learned]
            if learned:
                notes.append(
                    f"{name} is not evaluated on {lines_text(learned)}: the model learned from there, or from what "
                    "lies near, so that figures would be better than on an unseen image"
                )
            if not kept:
                raise ManifestError(
                    f"{self.manifest.path}: every image of {name!r} was learned from, or lies near one that was: "
                    "give images that the model has not seen"
                )
            if records.unrecorded:
                notes.append(
                    f"which images {' and '.join(records.unrecorded)} learned from is not recorded: figures of {name} "
                    "on them would be too good"
                )
            rows += kept
        digests.save()
        order = {row.number: place for place, row in enumerate(self.manifest.rows)}
        return tuple(sorted(rows, key=lambda row: order[row.number])), list(dict.fromkeys(notes))

    def _image(self, sample: Sample, row: Row, labels: str, *, pictured: bool) -> ImageFigures:
        """Return the figures of one image: those of an earlier call, or new ones, which are stored.

        `labels` is the digest of the file of labels, empty without one.
        """
        path = self.folder / _IMAGES / f"{sample.structure}-line{sample.row}.json"
        content = (*sample.content, *([labels] if labels else []))
        key = digest_of(*content, self.model.entries[sample.structure].digest).hex()
        if path.exists():
            earlier = json.loads(path.read_text(encoding="utf-8"))
            if earlier["key"] == key:
                return ImageFigures.from_json(earlier["image"])
        try:
            found = self._measure(sample, row, pictured=pictured)
        except ImageError as error:
            raise ImageError(f"{self.manifest.path}, line {row.number}: {error}") from error
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"key": key, "image": found.to_json()})
        return found

    def _measure(self, sample: Sample, row: Row, *, pictured: bool) -> ImageFigures:
        signal, target = VolumeDataset([sample])[0]
        truth = target[0].numpy()
        mask = target[1].numpy() > 0 if len(target) > 1 else None
        # Read first: what does not fit is found before minutes of predicting.
        labels = None if row.labels is None else _read_labels(row, sample.shape)
        intervals: dict[str, float] = {}
        if self.options.confidence:
            calibration = calibration_of(self.model, sample.structure)
            prediction, spread = self._predict_flipped(sample.structure, signal[0], calibration.flips)
            found = image_coverage(prediction, spread, truth, calibration, mask=mask)
            intervals = {"coverage": found.coverage, "interval_width": found.width}
        else:
            prediction = self._predict(sample.structure, signal[0])
        metrics = image_metrics(prediction, truth, mask)
        figures = {name: value for name, value in metrics.items() if math.isfinite(value)}
        pair = ImagePair(
            prediction,
            truth,
            mask,
            self._grid(sample, row),
            self.options.threshold,
            self.options.min_size,
        )
        measured = measure_image(pair, self.measures)
        return ImageFigures(
            line=row.number,
            image=row.signal.name + (f" [{row.region}]" if row.region is not None else ""),
            group=sample.group,
            figures={**figures, **measured.figures, **intervals},
            notes=measured.notes,
            cells=None if labels is None else _cell_values(pair, labels),
            pictures=picture_values(Prediction(signal[0].numpy(), truth, prediction)) if pictured else None,
        )

    def _grid(self, sample: Sample, row: Row) -> tuple[float, float, float] | None:
        """Return the voxel size of an image as it is prepared; None if it is not known."""
        if self.model.voxel_size is None:
            return voxel_size_of(row)
        if sample.voxel_size is None:
            return None
        recipe = PreprocessingRecipe.from_json(self.model.preprocessing)
        z, y, x = recipe.target_voxel(sample.voxel_size, self.model.voxel_size)
        return z, y, x

    def _predict(self, structure: str, volume: torch.Tensor) -> NDArray[np.float32]:
        network = fused_network_on(self.model, structure, self.device)  # the model keeps the last one
        return sliding_window(network, volume, **self._windows())

    def _predict_flipped(
        self, structure: str, volume: torch.Tensor, flips: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        """Return the prediction, with the bits of `_predict`, and the spread of those of flipped windows."""
        network = fused_network_on(self.model, structure, self.device)
        return sliding_windows(with_spread(network, flips), volume, **self._windows())

    def _windows(self) -> dict[str, Any]:
        settings = self.model.inference
        return {
            "window": tuple(settings["window"]),
            "overlap": settings["overlap"],
            "batch_size": settings["batch"],
            "device": self.device,
            "weights": settings.get("weights", "floored"),
        }

    def _structure(self, name: str, images: Sequence[ImageFigures]) -> StructureEvaluation:
        entry = self.model.entries[name]
        cells = [image.cells for image in images if image.cells is not None]
        correlations: Mapping[str, float] = {}
        if cells:
            sides = [
                {key: [value for one in cells for value in getattr(one, side)[key]] for key in cells[0].truth}
                for side in ("truth", "prediction")
            ]
            correlations = feature_correlations(*sides)
        return StructureEvaluation(name, entry.digest, entry.verdict.text, tuple(images), correlations)

    def _settings(self) -> tuple[tuple[str, str], ...]:
        threshold = self.options.threshold
        grid, times = self.model.voxel_size, " \N{MULTIPLICATION SIGN} "
        return (
            ("model", self.model.path.resolve().name),
            ("images", self.manifest.path.name),
            (
                "voxels (z, y, x)",
                "their own"
                if grid is None
                else f"{times.join(f'{um:g}' for um in grid)} µm; their own where no size is stated",
            ),
            ("threshold", "Otsu, of each" if threshold is None else f"{threshold:g} z-score units"),
            ("smallest object", f"{self.options.min_size} voxels"),
        )


def _cell_values(pair: ImagePair, labels: _Labels) -> CellValues:
    """Return the features of each cell, in the truth and in the prediction, each with its own segmentation."""
    truth, prediction = (
        cell_features(volume, foreground(volume, pair.mask, pair.threshold), labels)
        for volume in (pair.truth, pair.prediction)
    )
    return CellValues(truth, prediction, [int(label) for label in np.unique(labels) if label])


def _read_labels(row: Row, shape: tuple[int, int, int]) -> _Labels:
    """Return the labels of a row on the model's grid.

    Raises
    ------
    ImageError
        If they are no whole numbers, or do not show the voxels of the target.
    """
    assert row.labels is not None
    with (
        open_image(row.target, scene=as_written(row.scene), t=row.t) as target,
        open_image(row.labels, scene=_only(row.labels, row.scene), t=_only_time(row.labels, row.t)) as image,
    ):
        if image.shape != target.shape:
            raise ImageError(
                f"labels {row.labels.name} have {image.shape} voxels (z, y, x), {row.target.name} has {target.shape}: "
                "they must show the same voxels"
            )
        channel = image.channel_index(as_written(row.labels_channel))
        values = image.read(
            channel, row.region, scene=_only(row.labels, row.scene), t=_only_time(row.labels, row.t)
        )
    if values.dtype.kind not in "bui":
        if not np.array_equal(values, np.round(values)):
            raise ImageError(f"labels {row.labels.name} hold {values.dtype} numbers that are not whole")
        values = values.astype(np.int64)
    # The nearest voxel: a mean of two labels would be a third cell.
    index = [
        np.minimum(((np.arange(size) + 0.5) * own / size).astype(np.int64), own - 1)
        for size, own in zip(shape, values.shape, strict=True)
    ]
    return values[np.ix_(*index)].astype(np.int64)


def _only(path: Path, scene: int | str | None) -> str | None:
    """Return the scene of labels: that of the row, if the file has several."""
    with open_image(path) as image:
        return as_written(scene) if len(image.scenes) > 1 else None


def _only_time(path: Path, t: int | None) -> int | None:
    """Return the time point of labels: that of the row, if the file has several."""
    with open_image(path) as image:
        return t if image.times > 1 else None
