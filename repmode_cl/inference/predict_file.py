"""From an image file to files of predicted structures: what `repmode-cl predict` does.

The file is brought onto the model's voxel size and z-scored as in training, predicted in Gaussian windows
with each structure's fused network, and brought back onto the file's own grid; never more of it is in memory
than was allowed. There is one way for volumes of every size.
"""

from __future__ import annotations

import copy
import hashlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

import numpy as np
import torch

from repmode_cl.data.normalise import resampled_shape
from repmode_cl.data.readers import Region, open_image
from repmode_cl.devices import resolve_device
from repmode_cl.errors import ImageError, RepmodeError, UnknownStructureError
from repmode_cl.files import canonical_json
from repmode_cl.inference.batches import Network
from repmode_cl.inference.memory import (
    MemoryPlan,
    Needs,
    available_memory,
    format_bytes,
    parse_memory,
    plan_memory,
    resident_memory,
    tile_bytes,
)
from repmode_cl.inference.outputs import output_paths
from repmode_cl.inference.scratch import Scratch
from repmode_cl.inference.source import FileSource
from repmode_cl.inference.stream import Output, Stream, predict_stream
from repmode_cl.inference.windows import WindowGrid

if TYPE_CHECKING:
    from repmode_cl.store import Model

__all__ = ["PredictedFile", "predict_file"]

#: Bytes at either end of the input whose digest tells whether it is still the same file.
_SAMPLE = 1 << 16


@dataclass(frozen=True)
class PredictedFile:
    """What `predict_file` wrote, and how.

    Attributes
    ----------
    path
        OME-TIFF or ``.npy``: float32 (Z, Y, X) in z-score units.
    structure
        What it predicts.
    shape
        Voxels (Z, Y, X), those of the input.
    voxel_size
        um (z, y, x) of the input, or None where the file states none.
    grid
        Voxels (Z, Y, X) that the network saw.
    notes
        What a reader of the result should know: such as that an unknown voxel size was taken for the model's.
    seconds
        Wall time of this call, in which all structures were predicted together.
    """

    path: Path
    structure: str
    shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float] | None
    grid: tuple[int, int, int]
    notes: tuple[str, ...]
    seconds: float


class _Settings(TypedDict, total=False):
    """The keywords of `predict_file`, for its two signatures."""

    channel: str | int | None
    window: Sequence[int] | None
    overlap: float | None
    device: str
    scene: int | None
    t: int | None
    voxel_size: Sequence[float] | None
    memory: int | str | None
    restart: bool
    progress: Callable[[int, int], None] | None
    status: Callable[[str], None] | None
    stop_after_windows: int | None


@overload
def predict_file(
    model: Model | str | Path,
    structure: str,
    in_path: str | Path,
    out_path: str | Path,
    **settings: Unpack[_Settings],
) -> PredictedFile: ...


@overload
def predict_file(
    model: Model | str | Path,
    structure: list[str] | tuple[str, ...],
    in_path: str | Path,
    out_path: str | Path,
    **settings: Unpack[_Settings],
) -> list[PredictedFile]: ...


def predict_file(
    model: Model | str | Path,
    structure: str | list[str] | tuple[str, ...],
    in_path: str | Path,
    out_path: str | Path,
    *,
    channel: str | int | None = None,
    window: Sequence[int] | None = None,
    overlap: float | None = None,
    device: str = "auto",
    scene: int | None = None,
    t: int | None = None,
    voxel_size: Sequence[float] | None = None,
    memory: int | str | None = None,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
    status: Callable[[str], None] | None = None,
    stop_after_windows: int | None = None,
) -> PredictedFile | list[PredictedFile]:
    """Predict one or several structures of an image file, from disk to disk in bounded memory.

    Interrupted at any instant, the same call goes on from the last block of windows that was finished. Until it is
    whole, a prediction is a file ``<out>.part`` with a folder ``<out>.unfinished`` beside it, and nothing is
    under its own name.

    Parameters
    ----------
    model
        A model, or its folder.
    structure
        Name of one of its structures, or several to predict in one pass over the data.
    in_path
        An image file with a transmitted-light channel.
    out_path
        OME-TIFF (``.tif``) or raw array (``.npy``) to write: float32 in z-score units, on the grid and (in TIFF) with
        the voxel size of the input. For several structures a folder, or a name with ``{structure}`` in it.
    channel
        Name or number (from 0) of the transmitted-light channel; None where the file has one channel.
    window, overlap
        Voxels (z, y, x) of a window on the model's grid, and the part its neighbour repeats (in [0, 1)); None
        takes the model's.
    device
        ``auto`` (cuda where there is one, else cpu), ``cpu``, ``cuda`` or ``cuda:N``.
    scene, t
        Which of several scenes or time points.
    voxel_size
        um (z, y, x) of the input, where the file states none or a wrong one.
    memory
        Most that this process may hold, in bytes or as ``"2GB"``; None is what it holds now and half of what
        the system has to give. Where the model's batch of windows does not fit, fewer are computed at once, and a
        note says so.
    restart
        Discard an unfinished prediction of this output, also one with other settings.
    progress
        Called with the number of windows done and their total.
    status
        Called with a few words at the beginning of each stage.
    stop_after_windows
        Raise `repmode_cl.inference.stream.PredictionStopped` after so many windows of this call: for measurements
        and tests.

    Returns
    -------
    PredictedFile or list[PredictedFile]
        One for each structure; no list where `structure` is a name.

    Raises
    ------
    UnknownStructureError
        If the model has no such structure.
    ModelError
        If the model is missing or damaged.
    ImageError
        If the image cannot be read, is constant or not finite, or `out_path` is the input or no TIFF or .npy.
    RepmodeError
        If the memory or the disk is too small, or an unfinished prediction with other settings is there.

    Notes
    -----
    Where the image is on the model's voxel size already (or one of them is unknown), the result is
    `sliding_window` of the normalised volume bit for bit. With resampling the two agree to 1e-5 of the largest
    value. An interrupted and a whole run give the same bytes, with the same number of threads.
    """
    started = time.perf_counter()
    in_path = Path(in_path)
    names = (structure,) if isinstance(structure, str) else tuple(structure)
    # All that can be refused is refused before the network is loaded and hours are spent.
    paths = output_paths(out_path, names, in_path, several=not isinstance(structure, str))
    if overlap is not None and not 0 <= overlap < 1:
        raise RepmodeError(f"overlap {overlap}: a number from 0 to below 1 is needed")
    allowed = None if memory is None else parse_memory(memory)
    chosen = resolve_device(device)
    if isinstance(model, (str, Path)):
        from repmode_cl.store import Model

        model = Model.open(model)
    for name in names:
        if name not in model.structures:
            raise UnknownStructureError(name, model.structures, f"the model {model.path}")

    with open_image(in_path, scene=scene) as image:
        known = image.voxel_size if voxel_size is None else _micrometres(voxel_size)
        number = image.channel_index(channel)
        # One voxel, so that a missing scene or time point is told before anything is made.
        image.read(number, Region((0, 1), (0, 1), (0, 1)), scene=scene, t=t)
        notes = []
        if model.voxel_size is not None and known is None:
            notes.append(
                f"{in_path.name} states no voxel size: it was taken to be the model's, {_um(model.voxel_size)}"
            )
        grid_shape, source = image.shape, FileSource(image, number, scene, t)
        try:
            if model.voxel_size is not None and known is not None:
                grid_shape = resampled_shape(image.shape, known, model.voxel_size)
                # Resampling makes float32, also of a volume that has the model's voxel size.
                source = FileSource(image, number, scene, t, np.float32)
        except ImageError as error:
            raise ImageError(f"{in_path}: {error}") from error
        size = _three(window if window is not None else model.inference["window"])
        grid = WindowGrid(grid_shape, size, float(model.inference["overlap"] if overlap is None else overlap))
        order = int(model.preprocessing.get("order", 1))
        call = {
            "input": {"path": str(in_path.absolute()), **_content(in_path)},
            "channel": number,
            "scene": scene,
            "time": t,
            "voxel size": known,
            "outputs": [str(path.absolute()) for path in paths],
            "structures": {name: model.entries[name].digest for name in names},
            "window": size,
            "overlap": overlap if overlap is not None else model.inference["overlap"],
            "order": order,
            "grid": grid.shape,
            "device": chosen.type,
            "torch": torch.__version__,
        }
        networks = _networks(model, names, chosen)
        resident = resident_memory()
        needs = Needs(
            model.architecture.width,
            model.architecture.depth,
            len(names),
            image.dtype.itemsize,
            chosen.type == "cpu",
            resident,
        )
        allowed = resident + available_memory() // 2 if allowed is None else allowed
        with Scratch(paths[0], call, restart=restart) as scratch:
            try:
                plan = _plan(scratch, allowed, grid, int(model.inference["batch"]), needs)
                if plan.batch < model.inference["batch"]:
                    notes.append(
                        f"a memory of {format_bytes(allowed)} holds {plan.batch} windows at once instead of the "
                        f"model's {model.inference['batch']}: last bits may differ"
                    )
                stream = Stream(
                    source,
                    grid,
                    order,
                    networks,
                    {
                        name: Output(path, known, _description(name, in_path), _uuid(call, name))
                        for name, path in zip(names, paths, strict=True)
                    },
                    chosen,
                    plan,
                    tile_bytes(allowed, resident),
                )
                predict_stream(
                    stream, scratch, progress=progress, status=status, stop_after=stop_after_windows
                )
            except RepmodeError as error:
                if not scratch.worth_keeping:
                    scratch.discard()  # nothing is lost, and the mistake would only come again
                if isinstance(error, ImageError) and str(in_path) not in str(error):
                    raise ImageError(f"{in_path}: {error}") from error
                raise
            except torch.OutOfMemoryError as error:
                raise RepmodeError(
                    f"the device {chosen} has too little memory for {plan.batch} windows of {_times(grid.size)} "
                    "voxels; take a smaller window, or the CPU"
                ) from error
        seconds = time.perf_counter() - started
        done = [
            PredictedFile(path, name, image.shape, known, grid.shape, tuple(notes), seconds)
            for name, path in zip(names, paths, strict=True)
        ]
    return done[0] if isinstance(structure, str) else done


def _plan(scratch: Scratch, memory: int, grid: WindowGrid, batch: int, needs: Needs) -> MemoryPlan:
    """Return the plan that an earlier call chose, or a new one, written down."""
    earlier = scratch.journal.get("plan")
    if earlier is None:
        plan = plan_memory(memory, grid, batch, needs)
        scratch.save(plan={"batch": plan.batch, "rows": plan.rows, "columns": plan.columns})
        return plan
    plan = MemoryPlan(int(earlier["batch"]), int(earlier["rows"]), int(earlier["columns"]))
    try:
        needs.check(memory, plan.blocks(grid), plan.batch)
    except RepmodeError as error:
        raise RepmodeError(
            f"{error}; or give --restart (restart=True) to begin anew with less at once"
        ) from None
    return plan


def _networks(model: Model, names: Sequence[str], device: torch.device) -> Mapping[str, Network]:
    networks: dict[str, Network] = {}
    for name in names:
        network = model.fused(name)
        if device.type != "cpu":
            # The model keeps what it fused, on the CPU.
            network = copy.deepcopy(network).to(device)
        networks[name] = network
        # Loads what a first convolution loads, so that memory is counted with it.
        with torch.no_grad():
            network(torch.zeros((1, 1, *(1 << model.architecture.depth,) * 3), device=device))
    return networks


def _content(path: Path) -> dict[str, Any]:
    """Return what tells whether a file is still the same, without reading all of it."""
    stat, digest = path.stat(), hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLE))
        file.seek(max(0, stat.st_size - _SAMPLE))
        digest.update(file.read(_SAMPLE))
    return {"bytes": stat.st_size, "changed": stat.st_mtime_ns, "sample": digest.hexdigest()}


def _uuid(call: Mapping[str, Any], name: str) -> str:
    """Return a name for the prediction itself: the same for the same voxels, wherever they are written."""
    content = {key: value for key, value in call.items() if key not in ("outputs", "structures")}
    content["input"] = {key: call["input"][key] for key in ("bytes", "sample")}
    text = canonical_json({**content, "structure": name, "digest": call["structures"][name]})
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, text)}"


def _description(name: str, in_path: Path) -> str:
    return f"{name} predicted by repmode-cl from {in_path.name}, in z-score units"


def _micrometres(size: Sequence[float]) -> tuple[float, float, float]:
    if len(size) != 3 or not all(0 < float(one) < float("inf") for one in size):
        raise RepmodeError(f"voxel size {tuple(size)}: three positive numbers in um (z, y, x) are needed")
    z, y, x = (float(one) for one in size)
    return z, y, x


def _three(window: Sequence[int]) -> tuple[int, int, int]:
    if len(window) != 3 or any(int(size) < 1 for size in window):
        raise RepmodeError(f"window {tuple(window)}: three positive whole numbers (z, y, x) are needed")
    z, y, x = (int(size) for size in window)
    return z, y, x


def _um(voxel_size: Sequence[float]) -> str:
    return " x ".join(f"{size:g}" for size in voxel_size) + " um (z, y, x)"


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(str(size) for size in sizes)
