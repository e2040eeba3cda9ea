"""From an image file to files of predicted structures: what `repmode-cl predict` does.

The file is brought onto the model's voxel size and z-scored as in training, predicted in Gaussian windows
with each structure's fused network, and brought back onto the file's own grid; never more of it is in memory
than was allowed. There is one way for volumes of every size.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Unpack, overload

import numpy as np
import torch

from repmode_cl.data.preprocessing.recipe import Recipe
from repmode_cl.data.readers import Region, open_image
from repmode_cl.data.readers.location import as_location
from repmode_cl.data.voxel_size_check import check_voxel_size, trained_voxels
from repmode_cl.errors import ImageError, RepmodeError, UnknownStructureError
from repmode_cl.inference.identity import content_of, is_there, micrometres, three_sizes, uuid_of, window_grid
from repmode_cl.inference.options import PredictedFile, Settings
from repmode_cl.inference.output_paths import output_paths
from repmode_cl.inference.provenance import picture_of
from repmode_cl.inference.rescale import Rescale
from repmode_cl.inference.streaming.finish import Output
from repmode_cl.inference.streaming.journal import PredictionJournal
from repmode_cl.inference.streaming.memory_plan import MemoryPlan, Needs, plan_memory, tile_bytes
from repmode_cl.inference.streaming.run import StreamingJob, predict_stream
from repmode_cl.inference.volume_source import FileSource
from repmode_cl.inference.window_batches import Network
from repmode_cl.inference.windows import WindowGrid
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.memory import available_memory, format_bytes, parse_memory, resident_memory

__all__ = ["predict_file", "ready_networks"]


@overload
def predict_file(
    model: ModelSnapshot | str | Path,
    structure: str,
    in_path: str | Path,
    out_path: str | Path,
    **settings: Unpack[Settings],
) -> PredictedFile: ...


@overload
def predict_file(
    model: ModelSnapshot | str | Path,
    structure: list[str] | tuple[str, ...],
    in_path: str | Path,
    out_path: str | Path,
    **settings: Unpack[Settings],
) -> list[PredictedFile]: ...


def predict_file(
    model: ModelSnapshot | str | Path,
    structure: str | list[str] | tuple[str, ...],
    in_path: str | Path,
    out_path: str | Path,
    *,
    channel: str | int | None = None,
    window: Sequence[int] | None = None,
    overlap: float | None = None,
    device: str = "auto",
    scene: int | str | None = None,
    t: int | None = None,
    voxel_size: Sequence[float] | None = None,
    force: bool = False,
    rescale: Rescale | str | None = None,
    stack: bool = False,
    targets: Mapping[str, str | int] | None = None,
    memory: int | str | None = None,
    restart: bool = False,
    keep: bool = False,
    networks: Mapping[str, Network] | None = None,
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
        An image with a transmitted-light channel: a file, a folder (OME-Zarr), or the URL of one.
    out_path
        OME-TIFF (``.tif``), OME-Zarr (``.zarr``) or raw array (``.npy``) to write, on the grid and (but in an array)
        with the voxel size of the input. For several structures a folder, or a name with ``{structure}`` in it.
    channel
        Name or number (from 0) of the transmitted-light channel; None where the file has one channel.
    window, overlap
        Voxels (z, y, x) of a window on the model's grid, and the part its neighbour repeats (in [0, 1)); None
        takes the model's.
    device
        ``auto`` (cuda where there is one, else cpu), ``cpu``, ``cuda`` or ``cuda:N``.
    scene, t
        Which of several scenes (by number or name) or time points.
    voxel_size
        um (z, y, x) of the input, where the file states none or a wrong one.
    force
        Go on where the voxel size is missing or far from those the model was trained on, with a note.
    rescale
        A range of z-scores to map onto the numbers of a type, such as ``"-2:8:uint8"``; None leaves z-scores as
        float32.
    stack
        Write one file with the transmitted light and all structures as its channels.
    targets
        Channels of the input (name or number) with the truth of structures, to compare with.
    memory
        Most that this process may hold, in bytes or as ``"2GB"``; None is what it holds now and half of what
        the system has to give. Where the model's batch of windows does not fit, fewer are computed at once, and a
        note says so.
    restart
        Discard an unfinished prediction of this output, also one with other settings.
    keep
        Leave alone what was predicted already, by the same model from the same image with the same settings.
    networks
        Those of the structures on `device`, if they are at hand (`ready_networks`).
    progress
        Called with the number of windows done and their total.
    status
        Called with a few words at the beginning of each stage.
    stop_after_windows
        Raise `PredictionStopped` (of `streaming.run`) after so many windows of this call: for measurements
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
        If the image cannot be read, is constant or not finite, its voxel size is missing or far from the model's,
        or `out_path` is the input or of no format that is written.
    RepmodeError
        If the memory or the disk is too small, or an unfinished prediction with other settings is there.

    Notes
    -----
    Where the image is on the model's voxel size already (or one of them is unknown), the result is
    `sliding_window` of the normalised volume bit for bit. With resampling the two agree to 1e-5 of the largest
    value. An interrupted and a whole run give the same bytes, with the same number of threads.
    """
    started = time.perf_counter()
    in_path = as_location(in_path)
    names = (structure,) if isinstance(structure, str) else tuple(structure)
    # All that can be refused is refused before the network is loaded and hours are spent.
    paths = output_paths(out_path, names, in_path, several=not isinstance(structure, str), stack=stack)
    if overlap is not None and not 0 <= overlap < 1:
        raise RepmodeError(f"overlap {overlap}: a number from 0 to below 1 is needed")
    scale = Rescale.parse(rescale) if isinstance(rescale, str) else rescale
    allowed = None if memory is None else parse_memory(memory)
    chosen = resolve_device(device)
    if isinstance(model, (str, Path)):
        model = ModelSnapshot.open(model)
    for name in names:
        if name not in model.structures:
            raise UnknownStructureError(name, model.structures, f"the model {model.path}")
    for name in targets or {}:
        if name not in names:
            raise UnknownStructureError(name, names, "a target is named for it, and this call")
    recipe = Recipe.from_json(model.preprocessing)

    with open_image(in_path, scene=scene, t=t) as image:
        known = image.voxel_size if voxel_size is None else micrometres(voxel_size)
        number = image.channel_index(channel)
        truth = {name: image.channel_index(one) for name, one in (targets or {}).items()}
        # One voxel, so that a missing scene or time point is told before anything is made.
        image.read(number, Region((0, 1), (0, 1), (0, 1)), scene=scene, t=t)
        notes = _voxel_notes(model, names, known, str(in_path), force)
        raw = FileSource(image, number, scene, t)
        size = three_sizes(window if window is not None else model.inference["window"])
        part = float(model.inference["overlap"] if overlap is None else overlap)
        try:
            grid_shape = recipe.grid(image.shape, known, model.voxel_size)
            grid = window_grid(image.shape, grid_shape, size, part, model.architecture.smallest_size)
        except ImageError as error:
            raise ImageError(f"{in_path}: {error}") from error
        # Resampling makes float32, also of a volume that has the model's voxel size.
        on_its_own = model.voxel_size is None or known is None
        source = raw if on_its_own else FileSource(image, number, scene, t, np.float32)
        call = {
            "input": {
                "path": str(in_path if isinstance(in_path, str) else in_path.absolute()),
                **content_of(in_path),
            },
            "channel": number,
            "scene": scene,
            "time": t,
            "voxel size": known,
            "outputs": [str(path.absolute()) for path in paths],
            "structures": {name: model.entries[name].digest for name in names},
            "window": size,
            "overlap": part,
            "preprocessing": recipe.to_json(),
            "grid": grid.shape,
            "rescale": None if scale is None else str(scale),
            "stack": stack,
            "targets": truth,
            "device": chosen.type,
            "torch": torch.__version__,
        }
        shown = [names] if stack else [(name,) for name in names]
        uuids = [uuid_of(call, group) for group in shown]

        def found(
            metrics: Mapping[str, Mapping[str, float]], *, existed: bool = False
        ) -> list[PredictedFile]:
            seconds = time.perf_counter() - started
            said = "z-score units" if scale is None else scale.meaning
            return [
                PredictedFile(
                    path,
                    name,
                    image.shape,
                    known,
                    grid.shape,
                    tuple(notes),
                    seconds,
                    said,
                    metrics.get(name),
                    existed,
                )
                for path, group in zip(paths, shown, strict=True)
                for name in group
            ]

        if keep and all(is_there(path, uuid, in_path) for path, uuid in zip(paths, uuids, strict=True)):
            done = found({}, existed=True)
            return done[0] if isinstance(structure, str) else done
        ready = (
            ready_networks(model, names, chosen)
            if networks is None
            else {name: networks[name] for name in names}
        )
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
        with PredictionJournal(paths[0], call, restart=restart) as scratch:
            try:
                plan = _plan(scratch, allowed, grid, int(model.inference["batch"]), needs)
                if plan.batch < model.inference["batch"]:
                    notes.append(
                        f"a memory of {format_bytes(allowed)} holds {plan.batch} windows at once instead of the "
                        f"model's {model.inference['batch']}: last bits may differ"
                    )
                outputs = [
                    Output(
                        path,
                        picture_of(path, model, group, image, call, scale, own, light=stack, notes=notes),
                        tuple(group),
                        scale,
                        raw if stack else None,
                    )
                    for path, group, own in zip(paths, shown, uuids, strict=True)
                ]
                stream = StreamingJob(
                    source,
                    grid,
                    recipe,
                    ready,
                    outputs,
                    chosen,
                    plan,
                    tile_bytes(allowed, resident),
                    {name: FileSource(image, place, scene, t, source.dtype) for name, place in truth.items()},
                )
                metrics = predict_stream(
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
                    f"the device {chosen} has too little memory for {plan.batch} windows of "
                    f"{' x '.join(str(extent) for extent in grid.size)} voxels; take a smaller window, or the CPU"
                ) from error
        done = found(metrics)
    return done[0] if isinstance(structure, str) else done


def _voxel_notes(
    model: ModelSnapshot, names: Sequence[str], known: Sequence[float] | None, where: str, force: bool
) -> list[str]:
    """Compare the image's voxel size with those that each structure was trained on."""
    found = [
        check_voxel_size(
            known, trained_voxels(model.entries[name].provenance, model.voxel_size), where, force
        )
        for name in names
    ]
    return list(dict.fromkeys(note for note in found if note is not None))


def _plan(scratch: PredictionJournal, memory: int, grid: WindowGrid, batch: int, needs: Needs) -> MemoryPlan:
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


def ready_networks(model: ModelSnapshot, names: Sequence[str], device: torch.device) -> dict[str, Network]:
    """Return the fused network of each structure on `device`.

    Raises
    ------
    ModelError
        If a file of the model is missing or damaged.
    """
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
