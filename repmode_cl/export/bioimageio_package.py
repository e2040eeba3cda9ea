"""Packages for bioimage.io: an ONNX file with test tensors, a cover and a description, tested by bioimageio.core.

The description has the format of the `bioimageio.spec` that the installed bioimageio.core pins. Preprocessing, voxel
size, and a halo for prediction in blocks are stated as far as that format can.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from repmode_cl.data.preprocessing.intensity_scales import recorded_target
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.errors import RepmodeError, did_you_mean
from repmode_cl.export.description import (
    METHOD,
    Attribution,
    figures_of,
    limits_of,
    training_data_text,
)
from repmode_cl.export.libraries import export_library
from repmode_cl.export.metadata import export_facts
from repmode_cl.export.onnx_graph import OPSET
from repmode_cl.export.parity import Parity
from repmode_cl.export.volumes import ParityVolume
from repmode_cl.inference.writers.image_metadata import software
from repmode_cl.nn.unet import pad_to_multiple
from repmode_cl.store.snapshot import ModelSnapshot

__all__ = ["BlockSize", "block_sizes", "check_packable", "write_package"]

#: Pixels of the edge of each half of the cover.
_COVER = 256
#: Added to the deviation in z-scoring, because the format wants a number above 0.
_EPSILON = 1e-12
#: Words of bioimage.io's own lists.
_TAGS = (
    "3d",
    "transmission-light-microscopy",
    "fluorescence-light-microscopy",
    "cells",
    "unet",
    "in-silico-labeling",
)


@dataclass(frozen=True)
class BlockSize:
    """Sizes of one axis of a block: ``least + n * step``, of whose prediction `halo` voxels are cut off at each end."""

    least: int
    step: int
    halo: int

    def size_for(self, extent: int, most: int) -> int:
        """Return the largest size within an extent and `most`, or the least one where that is larger."""
        return self.least + max(0, (min(extent, most) - self.least) // self.step) * self.step


def block_sizes(window: Sequence[int], overlap: float, depth: int) -> tuple[BlockSize, ...]:
    """Return the sizes of blocks (z, y, x) that keep of each what a sliding window mostly keeps.

    Windows that overlap by a part p are trusted in their middle 1 - p; so p / 2 of a block at each end is its halo. The
    least block is the smallest one that is more than its halos; of volumes of at least a window, blocks of a window's
    size are best.

    Parameters
    ----------
    window
        Voxels (z, y, x) of the model's windows.
    overlap
        Part that windows share.
    depth
        Of the network: sizes are multiples of 2^depth.
    """
    step = 1 << depth
    halos = [int(size * overlap / 2) for size in window]
    return tuple(BlockSize((2 * halo // step + 1) * step, step, halo) for halo in halos)


def check_packable(model: ModelSnapshot, attribution: Attribution) -> None:
    """Refuse, before anything is computed, what a package cannot state or must state.

    Raises
    ------
    RepmodeError
        If nobody is named as author, no licence is or one that the format does not know, the model's normalisation has
        no counterpart in the format, or bioimageio.core is not installed.
    """
    missing = [
        option
        for option, value in (("--author", attribution.authors), ("--licence", attribution.licence))
        if not value
    ]
    if missing:
        raise RepmodeError(
            f"a bioimage.io package names its authors and its licence: give {' and '.join(missing)}, such as "
            "--author 'Ada Lovelace (University of London)' --licence CC-BY-4.0"
        )
    recipe = PreprocessingRecipe.from_json(model.preprocessing)
    if recipe.percentiles is not None:
        raise RepmodeError(
            f"{model.path}: images are z-scored by the voxels between percentiles "
            f"{recipe.percentiles[0]:g} and {recipe.percentiles[1]:g}, for which bioimage.io's format has no "
            "preprocessing; export it as .onnx, and prepare images as the file's metadata say"
        )
    export_library("bioimageio.core", "a bioimage.io package")
    _spdx_identifier(attribution.licence)


def write_package(
    model: ModelSnapshot,
    structure: str,
    onnx_file: Path,
    out: Path,
    parity: Parity,
    volume: ParityVolume,
    attribution: Attribution,
) -> None:
    """Write a package and have bioimageio.core test it.

    Parameters
    ----------
    model, structure
        What is packaged.
    onnx_file
        Its ONNX file, in a folder that may be written to.
    out
        The ``.zip`` to write.
    parity
        Differences that were found between that file and the model; its tolerance goes into the package.
    volume
        Source of test tensors and cover.
    attribution
        Authors, licence, citations.

    Raises
    ------
    RepmodeError
        If the description is refused by bioimageio.spec, or the package fails the test of bioimageio.core.
    """
    spec = export_library("bioimageio.spec", "a bioimage.io package")
    attribution = dataclasses.replace(attribution, licence=_spdx_identifier(attribution.licence))
    core = export_library("bioimageio.core", "a bioimage.io package")
    folder = onnx_file.parent
    blocks = block_sizes(
        [int(size) for size in model.inference["window"]],
        float(model.inference["overlap"]),
        model.architecture.depth,
    )
    light = _test_volume(volume, blocks, [int(size) for size in model.inference["window"]])
    prediction = _predict(model, structure, light)
    np.save(folder / "test_input.npy", light[None, None])
    np.save(folder / "test_output.npy", prediction[None, None])
    _write_cover(folder / "cover.png", light, prediction)
    (folder / "README.md").write_text(_documentation(model, structure, parity, attribution), encoding="utf-8")
    tolerance = parity.tolerance * float(np.abs(prediction).max())
    # The format bounds the tolerance of a test by the largest value, of which it wants one above 0.
    if not tolerance <= 0.01 * float(prediction.max()):
        raise RepmodeError(
            f"{structure} is not packaged: its largest predicted value in {volume.name} is {prediction.max():.3g}, so "
            "that nothing could be tested; choose an --image in which the structure shows"
        )
    with _files_closed():
        try:
            facts = export_facts(model, structure, parity)
            spec.save_bioimageio_package(
                _describe(model, structure, onnx_file, blocks, tolerance, facts, attribution), output_path=out
            )
        except ValueError as error:
            raise RepmodeError(
                f"{structure} is not packaged: bioimageio.spec refuses it: {_reasons(error)}"
            ) from error
        summary = core.test_model(out, weight_format="onnx")
    if summary.status != "passed":
        problems = "; ".join(
            f"{detail.name}: {entry.msg}" for detail in summary.details for entry in detail.errors
        )
        raise RepmodeError(
            f"{structure} is not packaged: the test of bioimageio.core {core.__version__} says {summary.status}: "
            f"{problems}"
        )


def _spdx_identifier(licence: str | None) -> str:
    """Return a licence as SPDX spells it, whatever its case.

    Raises
    ------
    RepmodeError
        If bioimageio.spec does not know it.
    """
    # Imported here, because it is not always installed.
    from bioimageio.spec.utils import get_spdx_licenses

    known = {entry["licenseId"].casefold(): entry["licenseId"] for entry in get_spdx_licenses()["licenses"]}
    name = (licence or "").strip()
    if name.casefold() not in known:
        raise RepmodeError(
            f"--licence {name!r}: no identifier of SPDX that bioimage.io knows{did_you_mean(name, known.values())}; "
            "give one of https://spdx.org/licenses, such as CC-BY-4.0, MIT or BSD-3-Clause"
        )
    return str(known[name.casefold()])


def _reasons(error: ValueError) -> str:
    """Return why a description is refused; pydantic's own text may be all that would be allowed."""
    if not isinstance(error, ValidationError):
        return str(error)
    reasons = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return "; ".join(textwrap.shorten(reason, 200, placeholder=" ...") for reason in dict.fromkeys(reasons))


@contextmanager
def _files_closed() -> Iterator[None]:
    """Close what bioimageio.spec leaves open: a file that is open cannot be renamed everywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            gc.collect()


def _test_volume(
    volume: ParityVolume, blocks: Sequence[BlockSize], window: Sequence[int]
) -> NDArray[np.float32]:
    """Return the middle of a volume, of a size that blocks may have; where it is too small it is mirrored."""
    values = volume.intensities
    sizes = [
        block.size_for(extent, most) for block, extent, most in zip(blocks, values.shape, window, strict=True)
    ]
    missing = [max(0, size - extent) for size, extent in zip(sizes, values.shape, strict=True)]
    values = np.pad(values, [(short // 2, short - short // 2) for short in missing], mode="symmetric")
    starts = [(extent - size) // 2 for size, extent in zip(sizes, values.shape, strict=True)]
    middle = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    return np.ascontiguousarray(values[middle], np.float32)


def _predict(model: ModelSnapshot, structure: str, light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the model's prediction of a volume as one window, z-scored as the package does."""
    import torch

    mean, deviation = PreprocessingRecipe.from_json(model.preprocessing).light or (
        float(light.mean(dtype=np.float64)),
        float(light.std(dtype=np.float64)),
    )
    x = torch.from_numpy(((light.astype(np.float64) - mean) / (deviation + _EPSILON)).astype(np.float32))
    padded, crop = pad_to_multiple(x[None, None], model.architecture.depth)
    if crop is not None:
        raise ValueError(f"a block of {tuple(light.shape)} voxels is no multiple of 2^depth")
    with torch.no_grad():
        result: NDArray[np.float32] = model.fused(structure)(padded)[0, 0].numpy()
    return result


def _describe(
    model: ModelSnapshot,
    structure: str,
    onnx_file: Path,
    blocks: Sequence[BlockSize],
    tolerance: float,
    facts: dict[str, Any],
    attribution: Attribution,
) -> Any:
    """Return a ``ModelDescr`` of bioimageio.spec's newest format."""
    import bioimageio.spec.model.v0_5 as v0_5

    folder, entry = onnx_file.parent, model.entries[structure]
    scales = model.voxel_size or (1.0, 1.0, 1.0)
    unit = None if model.voxel_size is None else "micrometer"
    space = list(zip("zyx", blocks, scales, strict=True))
    light = v0_5.TensorId("transmitted_light")

    def output_axis(name: str, block: BlockSize, scale: float) -> Any:
        size = v0_5.SizeReference(tensor_id=light, axis_id=v0_5.AxisId(name))
        common = {"id": v0_5.AxisId(name), "unit": unit, "scale": scale, "size": size}
        if block.halo:
            return v0_5.SpaceOutputAxisWithHalo(**common, halo=block.halo)
        return v0_5.SpaceOutputAxis(**common)

    given = PreprocessingRecipe.from_json(model.preprocessing).light
    if given is None:
        z_score = v0_5.ZeroMeanUnitVarianceDescr(
            kwargs=v0_5.ZeroMeanUnitVarianceKwargs(
                axes=[v0_5.AxisId(name) for name in ("channel", "z", "y", "x")], eps=_EPSILON
            )
        )
    else:
        z_score = v0_5.FixedZeroMeanUnitVarianceDescr(
            kwargs=v0_5.FixedZeroMeanUnitVarianceKwargs(mean=given[0], std=given[1])
        )
    title = structure.replace("_", " ")
    description = (
        f"Predicts the fluorescence of {title} in three dimensions from a transmitted-light stack, in z-scores. A "
        "RepMode U-Net whose experts are fused into one plain network."
    )
    return v0_5.ModelDescr(
        name=f"{title} from transmitted light (RepMode)",
        description=description,
        authors=[
            v0_5.Author(name=person.name, affiliation=person.affiliation) for person in attribution.authors
        ],
        license=attribution.licence,
        cite=[
            v0_5.CiteEntry(text=one.text, doi=one.doi, url=one.url)
            for one in (*attribution.citations, METHOD)
        ],
        documentation=v0_5.FileDescr(source=folder / "README.md"),
        covers=[v0_5.FileDescr(source=folder / "cover.png")],
        tags=[
            "3d",
            "transmission-light-microscopy",
            "fluorescence-light-microscopy",
            "cells",
            "unet",
            "in-silico-labeling",
        ],
        inputs=[
            v0_5.InputTensorDescr(
                id=light,
                description="Transmitted light, intensities of the camera",
                axes=[
                    v0_5.BatchAxis(),
                    v0_5.ChannelAxis(channel_names=["transmitted_light"]),
                    *(
                        v0_5.SpaceInputAxis(
                            id=v0_5.AxisId(name),
                            unit=unit,
                            scale=scale,
                            size=v0_5.ParameterizedSize(min=block.least, step=block.step),
                            concatenable=True,
                        )
                        for name, block, scale in space
                    ),
                ],
                data=v0_5.IntervalOrRatioDataDescr(type="float32"),
                preprocessing=[z_score],
                test_tensor=v0_5.FileDescr(source=folder / "test_input.npy"),
            )
        ],
        outputs=[
            v0_5.OutputTensorDescr(
                id=v0_5.TensorId("prediction"),
                description=f"Fluorescence of {title}, in z-scores",
                axes=[
                    v0_5.BatchAxis(),
                    v0_5.ChannelAxis(channel_names=[structure]),
                    *(output_axis(name, block, scale) for name, block, scale in space),
                ],
                data=v0_5.IntervalOrRatioDataDescr(type="float32"),
                test_tensor=v0_5.FileDescr(source=folder / "test_output.npy"),
            )
        ],
        parent=v0_5.LinkedModel(id=v0_5.ModelId(f"repmode-cl/base-{model.base_digest}")),
        training_data=v0_5.DatasetDescr(
            name=f"Training images of {title}",
            description=training_data_text(model, entry, attribution)[:1024],
        ),
        weights=v0_5.WeightsDescr(
            onnx=v0_5.OnnxWeightsDescr(
                source=onnx_file,
                opset_version=OPSET,
                comment=f"Exported by {software()} from the structure {entry.digest}",
            )
        ),
        config=v0_5.Config(
            bioimageio=v0_5.BioimageioConfig(
                reproducibility_tolerance=[
                    v0_5.ReproducibilityTolerance(
                        relative_tolerance=0.0,
                        absolute_tolerance=tolerance,
                        mismatched_elements_per_million=0,
                    )
                ],
                architecture_type="3D U-Net",
                modality="transmission-light microscopy",
                target_structure=[structure],
                task="in-silico labeling",
            ),
            repmode_cl=facts,
        ),
    )


def _documentation(model: ModelSnapshot, structure: str, parity: Parity, attribution: Attribution) -> str:
    entry, title = model.entries[structure], structure.replace("_", " ")
    figures = figures_of(entry.metrics)
    listed = ", ".join(f"{name} {value:.3f}" for name, value in figures.items()) or "none are recorded"
    voxels = (
        "The voxel size is not known; use images like those of the training."
        if model.voxel_size is None
        else "Images must have voxels of "
        f"{' x '.join(f'{size:g}' for size in model.voxel_size)} um (z, y, x): this package does not resample, "
        "`repmode-cl predict` does."
    )
    given = PreprocessingRecipe.from_json(model.preprocessing).light
    z_scored = (
        "z-scored over the whole image"
        if given is None
        else f"z-scored by the mean {given[0]:.6g} and the deviation {given[1]:.6g} of the training images"
    )
    scale = recorded_target(entry.provenance, structure)
    truth = (
        "z-score that too"
        if scale is None
        else f"z-score that by the mean {scale[0]:.6g} and the deviation {scale[1]:.6g}"
    )
    window = " x ".join(str(size) for size in model.inference["window"])
    limits = "\n".join(f"- {limit}" for limit in limits_of(model))
    return f"""# {title} from transmitted light

A network that predicts the fluorescence of {title} from a transmitted-light stack. The input's intensities are
{z_scored}, and the output is in z-scores. {voxels}

Predict large images in blocks of {window} voxels (z, y, x), the size of the training's windows, with the halo that the
description states. `repmode-cl predict` blends windows with Gaussian weights instead, so that the two differ where
blocks meet.

## Training data

{training_data_text(model, entry, attribution)}

## Validation

Verdict: {entry.verdict.text}. Figures on held-out images: {listed}.

To validate it on other images, predict stacks with known fluorescence, {truth},
and compare voxel by voxel (R2 is 1 minus the mean squared error over the variance of the truth).

Run by {parity.runtime}, this network differed from the model by at most {max(parity.probe, parity.image):.1e} of the
largest value; {parity.tolerance:.1e} is the tolerance of its test.

## Limits

{limits}

## Origin

Structure `{structure}`, digest `{entry.digest}`, of the base `{model.base_digest}`; exported by {software()}.
"""


def _write_cover(path: Path, light: NDArray[np.float32], prediction: NDArray[np.float32]) -> None:
    """Write a PNG of the middle plane: transmitted light on the left, the prediction on the right."""
    cover = Image.new("L", (2 * _COVER, _COVER))
    for place, volume in enumerate((light, prediction)):
        plane = volume[len(volume) // 2]
        low, high = (float(limit) for limit in np.percentile(plane, (0.5, 99.5)))
        grey = np.clip((plane - low) / (high - low if high > low else 1.0), 0, 1) * 255
        picture = Image.fromarray(grey.astype(np.uint8))
        scale = _COVER / max(picture.size)
        size = (math.ceil(picture.width * scale), math.ceil(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        cover.paste(picture, (place * _COVER + (_COVER - size[0]) // 2, (_COVER - size[1]) // 2))
    cover.save(path)
