"""Prediction of one image file: from disk to disk, as `repmode-cl predict` does.

The image is brought onto the model's voxel size and z-scored as in training, predicted in Gaussian windows by each
structure's fused network, and brought back onto the file's own grid, within a limit of memory. Volumes of every size
take this path.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box
from repmode_cl.data.preprocessing.intensity_scales import Moments
from repmode_cl.data.preprocessing.normalisation import ZScore
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.readers import ImageReader, Region, open_image
from repmode_cl.data.readers.location import as_location
from repmode_cl.data.readers.region import number_of
from repmode_cl.data.readers.registry import refuse_folder
from repmode_cl.data.validation.absent_chunks import absent_chunks_note
from repmode_cl.data.voxel_size_check import check_voxel_size, trained_voxels
from repmode_cl.errors import ImageError, RepmodeError, UnknownStructureError
from repmode_cl.inference.identity import are_predicted, input_fingerprint, prediction_uuid
from repmode_cl.inference.options import PredictedFile, PredictionOptions, network_precision
from repmode_cl.inference.output_paths import output_paths
from repmode_cl.inference.prepare_volume import target_score
from repmode_cl.inference.preview import PreviewVolumes, preview_box, voxel_size_on_grid
from repmode_cl.inference.provenance import file_metadata, input_name
from repmode_cl.inference.raw_volume import RawVolume
from repmode_cl.inference.streaming.blocks import BlockPlan
from repmode_cl.inference.streaming.journal import PredictionJournal
from repmode_cl.inference.streaming.memory_plan import MemoryNeeds, MemoryPlan, plan_memory, tile_bytes
from repmode_cl.inference.streaming.outputs import Output
from repmode_cl.inference.streaming.run import (
    PreviewCall,
    StreamingJob,
    StreamingResult,
    WritingBeside,
    compute_streaming_job,
    write_streaming_job,
)
from repmode_cl.inference.trust_channels import (
    check_extra_channels,
    confidence_text,
    extra_channels,
    spread_key,
    unlike_key,
    window_networks,
)
from repmode_cl.inference.volume_source import FileSource, VolumeSource, copy_resampled, z_score_of
from repmode_cl.inference.window_batches import Network
from repmode_cl.inference.windows import WindowGrid, checked_window_grid
from repmode_cl.inference.writers.imagej import check_imagej
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.memory import available_memory, format_bytes, resident_memory

__all__ = [
    "predict_file",
    "ComputedPrediction",
    "FilePrediction",
    "FusedNetworks",
    "check_image_choice",
    "fused_network_on",
]

_VOXEL_SIZE_REMEDY = "State the right one with --voxel-size z,y,x"

#: Most names in a message.
_LISTED = 20


@overload
def predict_file(
    model: ModelSnapshot | str | Path,
    structure: str,
    in_path: str | Path,
    out_path: str | Path,
    options: PredictionOptions | None = None,
    **keywords: Any,
) -> PredictedFile: ...


@overload
def predict_file(
    model: ModelSnapshot | str | Path,
    structure: list[str] | tuple[str, ...],
    in_path: str | Path,
    out_path: str | Path,
    options: PredictionOptions | None = None,
    **keywords: Any,
) -> list[PredictedFile]: ...


def predict_file(
    model: ModelSnapshot | str | Path,
    structure: str | list[str] | tuple[str, ...],
    in_path: str | Path,
    out_path: str | Path,
    options: PredictionOptions | None = None,
    **keywords: Any,
) -> PredictedFile | list[PredictedFile]:
    """Predict one or several structures of an image file, from disk to disk in bounded memory.

    Interrupted at any instant, the same call continues from the last block of windows that was finished. Until it is
    whole, a prediction is a file ``<out>.part`` with a folder ``<out>.unfinished`` next to it, and nothing is
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
    options
        How to predict; None takes the defaults.
    keywords
        Fields of `PredictionOptions`, in place of those of `options`: ``channel="brightfield"``, ``stack=True``,
        ``memory="2GB"``, ...

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
        If an option is out of range, the memory or the disk is too small, or an unfinished prediction with other
        settings is there.
    TypeError
        If a keyword is no field of `PredictionOptions`.

    Notes
    -----
    Where the image is on the model's voxel size already (or one of them is unknown), the result is
    `sliding_window` of the normalised volume bit for bit. With resampling the two agree to 1e-5 of the largest
    value. An interrupted and a whole run give the same bytes, with the same number of threads.
    """
    options = dataclasses.replace(options or PredictionOptions(), **keywords)
    files = FilePrediction(model, structure, in_path, out_path, options).run()
    return files[0] if isinstance(structure, str) else files


@dataclass(frozen=True)
class _ImagePlan:
    """Decisions about an open image, made before any network is loaded.

    Attributes
    ----------
    image
        Open.
    source
        Its transmitted light, on the file's grid.
    targets
        For structures whose truth is known: its channel.
    target_scores
        Of the same structures: the z-score of the truth, where it is not its own.
    voxel_size
        um (z, y, x) of the image, or None.
    recipe
        How it is resampled and normalised.
    grid
        Windows on the model's grid.
    request
        Everything that decides a voxel, and where the result goes: JSON values.
    notes
        Remarks for a reader of the result.
    """

    image: ImageReader
    source: FileSource
    targets: Mapping[str, FileSource]
    target_scores: Mapping[str, ZScore]
    voxel_size: tuple[float, float, float] | None
    recipe: PreprocessingRecipe
    grid: WindowGrid
    request: Mapping[str, Any]
    notes: tuple[str, ...]


class ComputedPrediction(AbstractContextManager["ComputedPrediction"]):
    """A prediction whose windows are all computed, and whose files are still to be written; a context manager.

    It may be written by another thread than the one that computed it.

    Parameters
    ----------
    write
        Writes the files and returns their records: called with what takes the name of each stage, and what says whether
        to stop.
    held
        Closed at the end: the image and the journal.
    memory, disk
        Most bytes that writing takes.
    """

    def __init__(
        self,
        write: Callable[[Callable[[str], None], Callable[[], bool]], list[PredictedFile]],
        held: ExitStack,
        memory: int = 0,
        disk: int = 0,
    ) -> None:
        self.memory, self.disk = memory, disk
        self._write, self._held = write, held

    def write(
        self, status: Callable[[str], None] | None = None, stopped: Callable[[], bool] = lambda: False
    ) -> list[PredictedFile]:
        """Write the files, and return a record for each structure.

        Parameters
        ----------
        status
            Called with a few words at the beginning of each file.
        stopped
            Asked again and again; True ends the writing by a `PredictionStopped`, and the same call continues it.
        """
        return self._write(status or (lambda stage: None), stopped)

    def __exit__(self, *error: object) -> None:
        """Close the image, and unlock the outputs."""
        self._held.close()


class FilePrediction:
    """The prediction of one image: planned, then run.

    All that can be refused is refused while planning, before a network is loaded and hours are spent.

    Parameters
    ----------
    model, structure, in_path, out_path, options
        As of `predict_file`.

    Raises
    ------
    RepmodeError
        See `predict_file`.
    """

    def __init__(
        self,
        model: ModelSnapshot | str | Path,
        structure: str | list[str] | tuple[str, ...],
        in_path: str | Path,
        out_path: str | Path,
        options: PredictionOptions,
    ) -> None:
        self._started = time.perf_counter()
        several = not isinstance(structure, str)
        refuse_folder(as_location(in_path))
        self.structures = (structure,) if isinstance(structure, str) else tuple(structure)
        self.in_path = as_location(in_path)
        self.options = options
        self.paths = output_paths(
            out_path,
            self.structures,
            self.in_path,
            several=several,
            stack=options.stack,
            imagej=options.imagej,
        )
        # The structures in each file.
        groups = [self.structures] if options.stack else [(name,) for name in self.structures]
        self._contents = dict(zip(self.paths, groups, strict=True))
        self.device = resolve_device(options.device)
        self.precision = network_precision(options.precision, self.device)
        self.model = model if isinstance(model, ModelSnapshot) else ModelSnapshot.open(model)
        for name in self.structures:
            if name not in self.model.structures:
                raise self.model.unknown_structure(name)
        for name in options.targets or {}:
            if name not in self.structures:
                raise UnknownStructureError(name, self.structures, "a target is named for it, and this call")
        check_extra_channels(self.model, self.structures, self.paths, options)

    def run(self) -> list[PredictedFile]:
        """Predict the image and write its outputs; with `keep`, only where they are not there already."""
        with self.compute() as computed:
            return computed.write(self.options.status)

    def compute(self, beside: WritingBeside | None = None) -> ComputedPrediction:
        """Predict the image, and leave the writing of its outputs to the caller.

        Parameters
        ----------
        beside
            What is written meanwhile; it is waited for where both do not fit into the memory or on the disk.
        """
        with ExitStack() as stack:
            image = stack.enter_context(open_image(self.in_path, scene=self.options.scene, t=self.options.t))
            plan = self._plan(image)
            if self.options.keep and self._is_done(plan):
                self._preview_existing(plan)
                files = self._files(plan, StreamingResult(), existed=True)
                return ComputedPrediction(lambda status, stopped: files, stack.pop_all())
            networks = self.options.networks
            if networks is None:
                networks = FusedNetworks(self.model, self.device, self.precision)
            networks = {name: networks[name] for name in self.structures}
            journal = stack.enter_context(
                PredictionJournal(self.paths[0], plan.request, restart=self.options.restart)
            )
            with self._about_image(journal):
                plan, job, result = self._predict(plan, networks, journal, beside)

            def write(status: Callable[[str], None], stopped: Callable[[], bool]) -> list[PredictedFile]:
                with self._about_image(journal):
                    write_streaming_job(job, journal, result, status=status, stopped=stopped)
                return self._files(plan, result)

            return ComputedPrediction(write, stack.pop_all(), job.writing_memory, job.writing_disk)

    @contextmanager
    def _about_image(self, journal: PredictionJournal) -> Iterator[None]:
        """Name the image in errors about it, and keep no journal without progress."""
        try:
            yield
        except RepmodeError as error:
            if not journal.has_progress:
                journal.discard()  # nothing is lost, and the mistake would only come again
            if isinstance(error, ImageError) and str(self.in_path) not in str(error):
                raise ImageError(f"{self.in_path}: {error}") from error
            raise

    def check(self) -> tuple[str, ...]:
        """Refuse what can be refused before a network is loaded, and return the notes; nothing is written.

        Raises
        ------
        RepmodeError
            As of `run`, as far as the image's header, one voxel and the model's records tell.
        """
        with open_image(self.in_path, scene=self.options.scene, t=self.options.t) as image:
            return self._plan(image).notes

    def light_moments(self) -> Moments:
        """Return mean and deviation of the image's light on the model's grid, as it is before its z-score.

        Raises
        ------
        RepmodeError
            As of `check`, or if a voxel is not finite.
        """
        with (
            open_image(self.in_path, scene=self.options.scene, t=self.options.t) as image,
            ExitStack() as stack,
        ):
            plan = self._plan(image)
            source: VolumeSource = plan.source
            if plan.grid.shape != source.shape:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                volume = stack.enter_context(RawVolume(Path(folder) / "light", plan.grid.shape))
                recipe, resident = plan.recipe, resident_memory()
                memory = self.options.memory or resident + available_memory() // 2
                copy_resampled(
                    source, volume, recipe.order, tile_bytes(memory, resident), anti_alias=recipe.anti_alias
                )
                source = volume
            try:
                score = z_score_of(source, empty="keep")
            except ImageError as error:
                raise ImageError(f"{self.in_path}: {error}") from error
            return Moments(math.prod(source.shape), score.mean, score.deviation)

    def survey(self) -> tuple[dict[Path, str], list[PredictedFile]]:
        """Return the UUID of each output, and the records of the outputs as if they were there; predict nothing.

        Raises
        ------
        RepmodeError
            If the image cannot be predicted.
        """
        with open_image(self.in_path, scene=self.options.scene, t=self.options.t) as image:
            plan = self._plan(image)
        return self._uuids(plan), self._files(plan, StreamingResult(), existed=True)

    # -- planning -------------------------------------------------------------------------------------------

    def _plan(self, image: ImageReader) -> _ImagePlan:
        """Choose channels, voxel size and windows, and refuse an image that cannot be predicted."""
        options, model = self.options, self.model
        check_image_choice(image, options, model.architecture.smallest_size)
        voxel_size = image.voxel_size if options.voxel_size is None else options.voxel_size
        channel = image.channel_index(options.channel)
        target_channels = {name: image.channel_index(one) for name, one in (options.targets or {}).items()}
        # One voxel, so that a missing scene or time point is reported before anything is made.
        image.read(channel, Region((0, 1), (0, 1), (0, 1)), scene=options.scene, t=options.t)
        notes = (*self._voxel_size_notes(voxel_size), *self._absent_notes(image, channel))
        recipe = PreprocessingRecipe.from_json(model.preprocessing)
        if options.light is not None:
            if not recipe.data_set:
                raise RepmodeError(
                    f"{model.path}: each image is z-scored by itself, as in training: leave out the mean and deviation "
                    "of the light; a model with normalise: data_set takes them"
                )
            recipe = dataclasses.replace(recipe, light=options.light)
        window = model.inference["window"] if options.window is None else options.window
        overlap = float(model.inference["overlap"] if options.overlap is None else options.overlap)
        try:
            grid_shape = recipe.grid(image.shape, voxel_size, model.voxel_size, remedy=_VOXEL_SIZE_REMEDY)
            smallest = model.architecture.smallest_size
            grid = checked_window_grid(image.shape, grid_shape, window, overlap, smallest)
        except ImageError as error:
            raise ImageError(f"{self.in_path}: {error}") from error
        # Resampling makes float32, also of a volume that has the model's voxel size.
        dtype = None if model.voxel_size is None or voxel_size is None else np.float32
        request = {
            "input": {
                "path": str(self.in_path if isinstance(self.in_path, str) else self.in_path.absolute()),
                **input_fingerprint(self.in_path),
            },
            "channel": channel,
            "scene": _recorded_scene(image, options.scene),
            "time": options.t,
            "voxel size": voxel_size,
            "outputs": [str(path.absolute()) for path in self.paths],
            "structures": {name: model.entries[name].digest for name in self.structures},
            "window": tuple(int(size) for size in window),
            "overlap": overlap,
            "preprocessing": recipe.to_json(),
            "grid": grid.shape,
            "rescale": None if options.rescale is None else str(options.rescale),
            "stack": options.stack,
            "targets": target_channels,
            "device": self.device.type,
            "torch": torch.__version__,
        }
        if (weights := model.inference.get("weights", "floored")) != "floored":
            request["weights"] = weights
        # Only where they are wanted: other predictions keep the identity that they had.
        if self.precision != "float32":
            request["precision"] = self.precision
        request |= {key: True for key in ("confidence", "unlike_map") if getattr(options, key)}
        if pending := sorted(model.staged & set(self.structures)):
            request["pending"] = pending
        if options.imagej:
            request["imagej"] = True
            itemsize = np.dtype("float32" if options.rescale is None else options.rescale.dtype).itemsize
            for path, names in self._contents.items():
                further = sum(len(extra_channels(model, name, options)) for name in names)
                channels = len(names) + options.stack + further
                check_imagej(path, math.prod(image.shape) * channels * itemsize)
        return _ImagePlan(
            image=image,
            source=FileSource(image, channel, options.scene, options.t, dtype),
            targets={
                name: FileSource(image, one, options.scene, options.t, dtype)
                for name, one in target_channels.items()
            },
            target_scores={
                name: score for name in target_channels if (score := target_score(model, name)) is not None
            },
            voxel_size=voxel_size,
            recipe=recipe,
            grid=grid,
            request=request,
            notes=notes,
        )

    def _voxel_size_notes(self, voxel_size: Sequence[float] | None) -> tuple[str, ...]:
        """Compare the image's voxel size with those that each structure was trained on."""
        notes = [
            check_voxel_size(
                voxel_size,
                trained_voxels(self.model.entries[name].provenance, self.model.voxel_size),
                str(self.in_path),
                self.options.force,
            )
            for name in self.structures
        ]
        return tuple(dict.fromkeys(note for note in notes if note is not None))

    def _absent_notes(self, image: ImageReader, channel: int) -> tuple[str, ...]:
        """Return a note on parts of the image that are not there: of an interrupted copy they are blank."""
        note = absent_chunks_note(self.in_path, *image.absent_parts(channel, None, self.options.t))
        return () if note is None else (note,)

    def _is_done(self, plan: _ImagePlan) -> bool:
        """Tell whether every output is there already, and its figures at hand where truth is given."""
        uuids, measured = self._uuids(plan), self.options.measured
        if measured is not None:
            wanted = {
                (uuids[path], name)
                for path, names in self._contents.items()
                for name in names
                if name in plan.targets
            }
            if not wanted <= measured:
                return False
        return are_predicted(uuids, self.in_path)

    def _uuids(self, plan: _ImagePlan) -> dict[Path, str]:
        return {path: prediction_uuid(plan.request, names) for path, names in self._contents.items()}

    def _preview_existing(self, plan: _ImagePlan) -> None:
        """Hand to the preview what the files that are there already hold, on the image's grid."""
        if self.options.preview is None:
            return
        rescale = self.options.rescale
        box = preview_box(plan.image.shape)
        region = Region(*((part.start, part.stop) for part in box))
        predictions, confidence = {}, {}
        for path, names in self._contents.items():
            with open_image(path) as image:
                for number, name in enumerate(names, 1 if self.options.stack else 0):
                    values = image.read(number, region).astype(np.float32)
                    if rescale is not None:
                        values = values * ((rescale.high - rescale.low) / rescale.top) + rescale.low
                    predictions[name] = values.astype(np.float32, copy=False)
                    if self.options.confidence:
                        confidence[name] = image.read(
                            image.channel_index(f"{name} confidence"), region
                        ).astype(np.float32)
        light = plan.source.read(box).astype(np.float32)
        self._preview(plan, box, light, predictions, confidence, existed=True)

    def _preview_call(self, plan: _ImagePlan) -> PreviewCall | None:
        """Return what takes a part on the network's grid to the caller's preview."""
        if self.options.preview is None:
            return None

        def show(box: Box, light: NDArray[np.float32], results: Mapping[str, NDArray[np.float32]]) -> None:
            half_widths = {
                name: one.convert(results[one.key]).astype(np.float32, copy=False)
                for name in self.structures
                for one in extra_channels(self.model, name, self.options)
                if one.key == spread_key(name)
            }
            predictions = {name: results[name] for name in self.structures}
            self._preview(plan, box, light, predictions, half_widths)

        return show

    def _preview(
        self,
        plan: _ImagePlan,
        box: Box,
        light: NDArray[np.float32],
        predictions: Mapping[str, NDArray[np.float32]],
        confidence: Mapping[str, NDArray[np.float32]],
        *,
        existed: bool = False,
    ) -> None:
        """Hand a box, the light in it and its predictions to the caller's preview."""
        if self.options.preview is None:
            return
        grid = plan.image.shape if existed else plan.grid.shape
        self.options.preview(
            PreviewVolumes(
                source=input_name(self.in_path),
                light=light,
                predictions=predictions,
                confidence=confidence,
                voxel_size=voxel_size_on_grid(plan.voxel_size, plan.image.shape, grid),
                box=box,
                grid=grid,
                scene=self.options.scene,
                t=self.options.t,
                notes=plan.notes,
                existed=existed,
            )
        )

    # -- running --------------------------------------------------------------------------------------------

    def _predict(
        self,
        plan: _ImagePlan,
        networks: Mapping[str, Network],
        journal: PredictionJournal,
        beside: WritingBeside | None,
    ) -> tuple[_ImagePlan, StreamingJob, StreamingResult]:
        """Predict block by block within the memory, from where the journal ends."""
        cluster = self.options.cluster
        memory, needs = self._memory_needs(plan)
        if beside is not None:
            if self._least_memory(plan, journal, needs) + beside.memory > memory:
                # Fewer windows at once would change last bits.
                beside.wait()
                memory, needs = self._memory_needs(plan)
            else:
                memory -= beside.memory
        memory_plan = self._memory_plan(plan, journal, memory, needs)
        batch = int(self.model.inference["batch"])
        if memory_plan.batch < batch:
            note = (
                f"a memory of {format_bytes(memory)} holds {memory_plan.batch} windows at once instead of the "
                f"model's {batch}: last bits may differ"
            )
            plan = dataclasses.replace(plan, notes=(*plan.notes, note))
        confidence = self.options.confidence
        windowed = window_networks(self.model, networks, self.device, confidence=confidence)
        apart: Mapping[str, Network] = {}
        if self.options.preview is not None:
            apart = window_networks(self.model, networks, self.device, confidence=confidence).networks
        job = StreamingJob(
            source=plan.source,
            grid=plan.grid,
            recipe=plan.recipe,
            networks=windowed.networks,
            outputs=self._outputs(plan),
            device=self.device,
            plan=memory_plan,
            tile_bytes=tile_bytes(memory, needs.resident),
            targets=plan.targets,
            target_scores=plan.target_scores,
            weights=self.model.inference.get("weights", "floored"),
            scores=windowed.scores,
            statistics=windowed.statistics,
            unlike_maps={name: unlike_key(name) for name in self.structures if self.options.unlike_map},
            preview=self._preview_call(plan),
            preview_networks=apart,
            elsewhere=None
            if cluster is None
            else partial(
                cluster.windows,
                self.model,
                self.structures,
                self.device,
                precision=self.precision,
                confidence=self.options.confidence,
            ),
        )
        try:
            result = compute_streaming_job(job, journal, self.options, beside)
        except torch.OutOfMemoryError as error:
            raise RepmodeError(
                f"the device {self.device} has too little memory for {memory_plan.batch} windows of "
                f"{' x '.join(str(extent) for extent in plan.grid.size)} voxels; take a smaller window, or the CPU"
            ) from error
        return plan, job, result

    def _memory_needs(self, plan: _ImagePlan) -> tuple[int, MemoryNeeds]:
        """Return the memory that may be taken, and what decides how much is."""
        resident = resident_memory()
        memory, cluster = self.options.memory, self.options.cluster
        if memory is None:
            memory = resident + available_memory() // 2
            if cluster is not None:
                memory = min(memory, cluster.memory())
        architecture = self.model.architecture
        needs = MemoryNeeds(
            width=architecture.width,
            depth=architecture.depth,
            structures=len(self.structures) * (2 if self.options.confidence else 1),
            itemsize=plan.image.dtype.itemsize,
            on_cpu=self.device.type == "cpu",
            resident=resident,
        )
        return memory, needs

    def _least_memory(self, plan: _ImagePlan, journal: PredictionJournal, needs: MemoryNeeds) -> int:
        """Return the least memory that the whole batch of windows takes, or what an earlier call chose."""
        if (earlier := _earlier_plan(journal)) is not None:
            return needs.total(earlier.blocks(plan.grid), earlier.batch)
        return needs.total(BlockPlan(plan.grid), int(self.model.inference["batch"]))

    def _memory_plan(
        self, plan: _ImagePlan, journal: PredictionJournal, memory: int, needs: MemoryNeeds
    ) -> MemoryPlan:
        """Return the memory plan that an earlier call chose, or a new one, which the journal then holds."""
        memory_plan = _earlier_plan(journal)
        if memory_plan is None:
            memory_plan = plan_memory(memory, plan.grid, int(self.model.inference["batch"]), needs)
            journal.save(plan=dataclasses.asdict(memory_plan))
            return memory_plan
        try:
            needs.check(memory, memory_plan.blocks(plan.grid), memory_plan.batch)
        except RepmodeError as error:
            raise RepmodeError(
                f"{error}; or give --restart (restart=True) to start over with fewer windows at once"
            ) from None
        return memory_plan

    def _outputs(self, plan: _ImagePlan) -> list[Output]:
        """Describe the files to write."""
        light = dataclasses.replace(plan.source, dtype=None) if self.options.stack else None
        rescale = self.options.rescale
        outputs = []
        for path, names in self._contents.items():
            metadata = file_metadata(path, names, self.model, plan.image, plan.request, rescale, plan.notes)
            extra = [one for name in names for one in extra_channels(self.model, name, self.options)]
            metadata = dataclasses.replace(
                metadata, channels=(*metadata.channels, *(one.metadata for one in extra))
            )
            results = (*names, *(one.key for one in extra))
            conversions = {one.key: one.convert for one in extra}
            outputs.append(Output(path, metadata, results, rescale, light, conversions, self.options.imagej))
        return outputs

    def _files(
        self, plan: _ImagePlan, result: StreamingResult, *, existed: bool = False
    ) -> list[PredictedFile]:
        """Return the record of each structure's file."""
        rescale, uuids = self.options.rescale, self._uuids(plan)
        seconds = time.perf_counter() - self._started
        return [
            PredictedFile(
                path=path,
                structure=name,
                shape=plan.image.shape,
                voxel_size=plan.voxel_size,
                grid=plan.grid.shape,
                notes=plan.notes,
                seconds=seconds,
                values="z-score units" if rescale is None else rescale.meaning,
                metrics=result.metrics.get(name),
                existed=existed,
                verdict=self.model.entries[name].verdict,
                unlike=result.unlike.get(name),
                confidence=confidence_text(self.model, name) if self.options.confidence else "",
                uuid=uuids[path],
            )
            for path, names in self._contents.items()
            for name in names
        ]


def _earlier_plan(journal: PredictionJournal) -> MemoryPlan | None:
    """Return the memory plan that an interrupted call chose."""
    earlier = journal.state.get("plan")
    return None if earlier is None else MemoryPlan(**{key: int(value) for key, value in earlier.items()})


def check_image_choice(image: ImageReader, options: PredictionOptions, smallest: int) -> None:
    """Refuse an image without depth, or whose channel, scene or time point has to be named first.

    Parameters
    ----------
    image
        Open.
    options
        ``channel``, ``scene`` and ``t``.
    smallest
        Fewest planes that the network takes.

    Raises
    ------
    ImageError
        Naming the options that choose.
    """
    if options.scene is None and len(image.scenes) > 1:
        raise ImageError(
            f"{image.path}: holds {len(image.scenes)} scenes; give one of {_choices('--scene', image.scenes)}"
        )
    if image.shape[0] == 1 and image.times > 1:
        raise ImageError(
            f"{image.path}: holds {image.times} time points of one plane each, and the model predicts Z-stacks; "
            "if these are the planes of one stack, save it with its planes as Z"
        )
    if image.shape[0] == 1:
        raise ImageError(
            f"{image.path}: is a 2D image (one plane), and the model predicts Z-stacks of at least "
            f"{smallest} planes"
        )
    if options.t is None and image.times > 1:
        raise ImageError(
            f"{image.path}: holds {image.times} time points; give one of --t 0 to --t {image.times - 1}"
        )
    if options.channel is None and image.n_channels > 1:
        raise ImageError(
            f"{image.path}: holds {image.n_channels} channels; give that of transmitted light, one of "
            f"{_choices('--channel', image.channel_names)}"
        )


def _recorded_scene(image: ImageReader, scene: int | str | None) -> int | str | None:
    """Return what identifies a prediction's scene: a name, or for what looks like a number the scene's own number."""
    if scene is None or not str(scene).isdecimal():
        return scene
    return image.scene_index(scene)


def _choices(option: str, names: Sequence[str]) -> str:
    """Write an option with each of `names`, or its number where another has the same name or it has none.

    One whose number is the name of another is left out: nothing that a user could type means it.
    """
    values = [
        text
        for number, name in enumerate(names)
        for text in [name if name and names.count(name) == 1 else str(number)]
        if number_of(text, names) == number
    ]
    listed = [f"{option} {shlex.quote(value)}" for value in values[:_LISTED]]
    return ", ".join(listed) + (", ..." if len(values) > _LISTED else "")


class FusedNetworks(dict[str, Network]):
    """Fused networks of a model's structures on one device, each made when it is first used.

    Parameters
    ----------
    model
        The model.
    device
        Device of the networks.
    precision
        ``float32`` or ``bfloat16``.

    Raises
    ------
    ModelError
        If a file of the model is missing or damaged; when the network is first used.
    """

    def __init__(self, model: ModelSnapshot, device: torch.device, precision: str = "float32") -> None:
        super().__init__()
        self._model, self._device, self._precision = model, device, precision

    def __missing__(self, name: str) -> Network:
        network = fused_network_on(self._model, name, self._device, self._precision)
        # Loads what a first convolution loads, so that memory is counted with it.
        with torch.no_grad():
            network(torch.zeros((1, 1, *(1 << self._model.architecture.depth,) * 3), device=self._device))
        self[name] = network
        return network


def fused_network_on(
    model: ModelSnapshot, structure: str, device: torch.device, precision: str = "float32"
) -> Network:
    """Return the fused network of a structure on a device; that of the CPU in float32 is the model's own."""
    network = model.fused(structure)
    if device.type == "cpu" and precision == "float32":
        return network
    # The model keeps what it fused.
    network = copy.deepcopy(network).to(device)
    if precision == "bfloat16":
        network.to(torch.bfloat16)
        # Only the network is in bfloat16: windows are cut and blended in float32.
        network.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(torch.bfloat16),))
        network.register_forward_hook(lambda _, inputs, output: output.to(torch.float32))
    return network
