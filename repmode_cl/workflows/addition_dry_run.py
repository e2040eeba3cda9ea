"""Dry run of adding a structure: images, problems, sizes, memory and time; nothing is written, nothing trained."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from repmode_cl.data.manifest import Manifest, Problem
from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.preprocessing.volume_cache import ContentDigests
from repmode_cl.data.split_record import TrainingRecords
from repmode_cl.data.splits import Assignment, assign_splits
from repmode_cl.data.validation.held_out import follow_records, learned_images, record_notes
from repmode_cl.data.validation.manifest_check import CheckOptions, Inspection, inspect_manifest
from repmode_cl.data.validation.split_check import split_problems
from repmode_cl.errors import ConfigError, ImageError, counted
from repmode_cl.model import Model
from repmode_cl.nn import RepModeUNet
from repmode_cl.nn.unet import checkpoint_activations
from repmode_cl.store.probe import probe_shape
from repmode_cl.store.staging import REQUEST
from repmode_cl.strategies.timing import time_training, windows_of_row
from repmode_cl.training import budget_of, has_checkpoint, masked_mse, refuse_distributed
from repmode_cl.training.activation_bytes import saved_bytes
from repmode_cl.training.budget import Budget
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.memory import available_memory, format_bytes, tensor_bytes
from repmode_cl.utils.progress import duration_text
from repmode_cl.workflows.addition_plan import (
    AdditionPlan,
    check_held_out,
    check_min_r2,
    check_not_staged,
    plan_addition,
)
from repmode_cl.workflows.options import AdditionOptions, TrainingOverrides
from repmode_cl.workflows.pending_training import CHECKPOINT
from repmode_cl.workflows.train_one_experience import check_same_request
from repmode_cl.workflows.training_settings import voxel_size_problems

__all__ = ["dry_run_add", "AddDryRun", "addition_file_bytes"]

#: Approximate bytes of a file's header: for each tensor, and for the record.
_TENSOR_HEADER, _RECORD = 86, 2600


def dry_run_add(
    model: str | Path | Model,
    structure: str,
    data: str | Path | Manifest,
    options: AdditionOptions,
    overrides: TrainingOverrides,
) -> AddDryRun:
    """Report what adding a structure would do.

    Parameters
    ----------
    model, structure, data
        As of `add_structure`.
    options, overrides
        Choices for the addition and its training; `stage` and `workers` are not used.

    Returns
    -------
    AddDryRun
        All images were read once, and two steps computed on noise; nothing was written.

    Raises
    ------
    ConfigError, ModelError, ManifestError
        As of `add_structure`, except for images that cannot be used: those are listed.
    """
    refuse_distributed("adding a structure")
    check_min_r2(options.min_r2)
    plan = plan_addition(model, structure, data, options, overrides)
    check_not_staged(plan.model, structure)
    check_same_request(plan.work / REQUEST, plan.request(), plan.title, plan.restart_hint)
    records = plan.records()
    splits = _splits(plan, records)
    problems, notes = _problems(plan, splits, records)
    images = Counter(splits[row.number] for row in plan.manifest.for_structure(structure))
    check_held_out(options.min_r2, structure, list(images))
    if has_checkpoint(plan.work / CHECKPOINT):
        notes.append(f"an interrupted training of {structure} is in {plan.work}: the same settings resume it")
    network = plan.network()
    parameters, size = _parameters(network, structure), addition_file_bytes(network, structure)
    step_seconds, window_seconds, memory = _measure(plan, network)
    budget = budget_of(plan.config.training, 1, max(1, images["train"]))
    seconds = _duration(plan, splits, budget, step_seconds, window_seconds)
    return AddDryRun(
        structure=structure,
        images={split: images[split] for split in ("train", "val", "test")},
        problems=tuple(problems),
        parameters=parameters,
        bytes=size,
        memory=memory,
        steps=budget.steps,
        step_seconds=step_seconds,
        seconds=seconds,
        notes=(*plan.notes, *notes),
        training=_training_text(plan),
    )


@dataclass(frozen=True)
class AddDryRun:
    """Result of a dry run of adding a structure.

    Attributes
    ----------
    structure
        Its name.
    images
        Images that train, validate and test.
    problems
        Errors of the images, as ``repmode-cl data check`` finds them.
    parameters
        Parameters that it would own, by kind: experts, gate rows, norms, resampling layers.
    bytes
        Approximate size of its file.
    memory
        Approximate bytes that a training step needs, in addition to the program itself.
    steps, step_seconds, seconds
        Of the training; a step was timed on noise. `seconds` includes validations.
    notes
        What a person should know about the split, and about an interrupted training.
    training
        Batch, patch, number format and device, in words.
    """

    structure: str
    images: dict[str, int]
    problems: tuple[Problem, ...]
    parameters: dict[str, int]
    bytes: int
    memory: int
    steps: int
    step_seconds: float
    seconds: float
    notes: tuple[str, ...]
    training: str

    @property
    def ok(self) -> bool:
        """True if the images have no problem."""
        return not self.problems

    @property
    def lines(self) -> tuple[str, ...]:
        """Everything in words."""
        images, problems = self.images, self.problems
        kinds = ", ".join(f"{kind} {number:,}" for kind, number in self.parameters.items() if number)
        return (
            f"{self.structure}: {counted(sum(images.values()), 'image')}: {images['train']} train, "
            f"{images['val']} validate, {images['test']} test",
            *(f"note: {note}" for note in self.notes),
            *(str(problem) for problem in problems),
            f"{counted(len(problems), 'problem') if problems else 'no problem'} in its images",
            f"it would train {sum(self.parameters.values()):,} numbers: {kinds}",
            f"its file would have about {format_bytes(self.bytes)}",
            f"a step needs about {format_bytes(self.memory)} of memory in addition to the program's own",
            f"{counted(self.steps, 'step')} of {self.training}, {self.step_seconds:.2g} s a step: about "
            f"{duration_text(self.seconds)} with validation, at most",
        )

    def __str__(self) -> str:
        return "\n".join([*self.lines, "nothing was written"])


def addition_file_bytes(network: RepModeUNet, structure: str) -> int:
    """Return the approximate size of an addition's file: tensors, references of its proof, header."""
    state = network.structure_state(structure)
    blocks = list(network.named_mode_blocks())
    z, y, x = probe_shape(network.architecture)
    references = 8 * (z * y * x + 2 * sum(block.c_out for _, block in blocks))
    header = _RECORD + _TENSOR_HEADER * (len(state) + len(blocks) + 1)
    return tensor_bytes(state.values()) + references + header


def _problems(
    plan: AdditionPlan, splits: Assignment, records: TrainingRecords
) -> tuple[list[Problem], list[str]]:
    """Return the errors of the images, and notes on splits and voxel sizes."""
    preprocessing = plan.config.data.preprocessing
    inspection = inspect_manifest(
        plan.manifest.path,
        CheckOptions(
            patch=plan.config.patch.size,
            depth=plan.model.architecture.depth,
            voxel_size=preprocessing.voxel_size,
            recipe=PreprocessingRecipe.of(preprocessing),
            structures=[plan.structure],
        ),
    )
    wrong_sizes, size_notes = voxel_size_problems(plan.model, plan.manifest, plan.structure, force=plan.force)
    split_notes = [note for note in splits.notes if note.startswith(f"{plan.structure}:")]
    problems = [*inspection.errors, *_constant_held_out(inspection, splits), *wrong_sizes]
    # Splits that are decided from groups are known only here.
    rows, digest = plan.manifest.for_structure(plan.structure), _digests(plan).of
    patch = plan.config.patch.size
    near = split_problems(rows, splits, patch=patch, preprocessing=preprocessing, digest=digest)
    problems += [problem for problem in near if problem not in inspection.errors]
    problems += learned_images(rows, splits, records, patch=patch, preprocessing=preprocessing, digest=digest)
    followed = follow_records(rows, records, digest)
    return problems, [*split_notes, *record_notes(rows, splits, records, followed), *size_notes]


def _digests(plan: AdditionPlan) -> ContentDigests:
    return ContentDigests(Path(str(plan.config.data.cache)) / "contents.json")


def _constant_held_out(inspection: Inspection, splits: Assignment) -> list[Problem]:
    """Return problems for constant targets that would be held out: without a split, such a row may only train."""
    message = (
        "the target is constant, and its row would be in the split {}: R2 is undefined on such an image; set its "
        "split to train, or leave the row out"
    )
    return [
        Problem(warning.row, warning.column, message.format(splits[warning.row]), kind="image")
        for warning in inspection.warnings
        if warning.kind == "constant" and warning.column == "target" and splits[warning.row] != "train"
    ]


def _splits(plan: AdditionPlan, records: TrainingRecords) -> Assignment:
    """Return the splits that would be recorded, or are recorded; the record is read in a copy."""
    data = plan.config.data
    cache = Path(str(data.cache))
    digests = _digests(plan)

    def content(path: Path) -> str:
        try:
            return digests.of(path)
        except OSError:
            return str(path)  # listed among the problems; here it counts as a separate image

    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "splits.json"
        if (recorded := cache / record.name).is_file():
            shutil.copyfile(recorded, record)
        return assign_splits(
            plan.manifest,
            seed=data.split_seed,
            test_fraction=data.test_fraction,
            val_fraction=data.val_fraction,
            record=record,
            earlier=follow_records(plan.manifest.rows, records, digests.of),
            digest=content,
        )


def _parameters(network: RepModeUNet, structure: str) -> dict[str, int]:
    """Return how many numbers the structure owns, by kind; running statistics belong to norms."""
    counts = dict.fromkeys(("experts", "gate rows", "norms", "resampling layers"), 0)
    for name, tensor in network.structure_state(structure).items():
        if not tensor.is_floating_point():
            continue
        if ".expert." in name or name.endswith(".scale"):
            kind = "experts"
        elif name.endswith(".gate"):
            kind = "gate rows"
        else:
            kind = "norms" if ".norm." in name else "resampling layers"
        counts[kind] += tensor.numel()
    return counts


def _measure(plan: AdditionPlan, network: RepModeUNet) -> tuple[float, float, int]:
    """Return the seconds of a step and of a window, and the bytes that a step needs."""
    config, name = plan.config, plan.structure
    training, device = config.training, resolve_device(config.training.device)
    network.train_only([name])
    _refuse_too_large(plan, network)
    step_seconds, window_seconds = time_training(
        network, name, training, config.patch.size, plan.precision, device, repeats=1
    )
    network.train()
    patches = training.batch_size // training.accumulate
    activations = _activation_bytes(plan, network, patches, config.patch.size)
    return step_seconds, window_seconds, activations + _other_bytes(plan, network)


def _activation_bytes(plan: AdditionPlan, network: RepModeUNet, patches: int, size: Sequence[int]) -> int:
    """Return the bytes that a forward pass of noise keeps for the backward pass."""
    x = torch.randn(patches, 1, *size, device=resolve_device(plan.config.training.device))

    def loss() -> Tensor:
        with plan.precision.autocast():
            output = network(x, [plan.structure] * len(x))
        return masked_mse(output, x)

    return saved_bytes(loss, [*network.parameters(), *network.buffers(), x])


def _other_bytes(plan: AdditionPlan, network: RepModeUNet) -> int:
    """Return the bytes of a step besides its activations: network, patches, and what training keeps of weights."""
    training = plan.config.training
    patches = 4 * training.batch_size // training.accumulate * math.prod(plan.config.patch.size)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # Gradients, Adam's two moments, and a copy of the best state, each as large as what is trained.
    return tensor_bytes([*network.parameters(), *network.buffers()]) + patches + 4 * tensor_bytes(trained)


def _estimated_memory(plan: AdditionPlan, network: RepModeUNet) -> float:
    """Return about the bytes that a step needs, from two small patches: activations grow in proportion to voxels."""
    training, multiple = plan.config.training, 1 << network.depth
    network.to(resolve_device(training.device)).train()
    checkpoint_activations(network, training.activation_checkpointing)
    small = [2 * multiple] * 3
    first, second = (
        _activation_bytes(plan, network, 1, size) for size in (small, [*small[:2], 2 * small[2]])
    )
    # Axes are padded to multiples.
    voxels = math.prod(-(-extent // multiple) * multiple for extent in plan.config.patch.size)
    patches = training.batch_size // training.accumulate
    grown = (second - first) * (patches * voxels / math.prod(small) - 1)
    return first + grown + _other_bytes(plan, network)


def _refuse_too_large(plan: AdditionPlan, network: RepModeUNet) -> None:
    """Refuse a step that needs more memory than is free, before it takes it.

    Raises
    ------
    ConfigError
        With what it needs and what is free.
    """
    needed = _estimated_memory(plan, network)
    device = resolve_device(plan.config.training.device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if needed - tensor_bytes([*network.parameters(), *network.buffers()]) > free:
        raise ConfigError(
            f"a step of {_training_text(plan)} needs about {format_bytes(needed)} of memory, and {format_bytes(free)} "
            "are free: it was not computed; take smaller patches or batches (--patch, --batch-size), or another machine"
        )


def _duration(
    plan: AdditionPlan, splits: Assignment, budget: Budget, step_seconds: float, window_seconds: float
) -> float:
    """Return the seconds of training with its validations and the final test."""
    evaluations = {"val": -(-budget.steps // budget.validate_every), "test": 1}
    windows = 0
    for row in plan.manifest.for_structure(plan.structure):
        times = evaluations.get(splits[row.number], 0)
        if times:
            with suppress(ImageError, OSError):  # listed among the problems
                windows += times * windows_of_row(plan.config, row)
    training = budget.steps * step_seconds
    if plan.config.training.time_limit is not None:
        training = min(training, plan.config.training.time_limit)
    return training + windows * window_seconds


def _training_text(plan: AdditionPlan) -> str:
    batch = plan.config.training.batch_size
    patch = " x ".join(str(extent) for extent in plan.config.patch.size)
    device = resolve_device(plan.config.training.device)
    return f"{batch:,} {'patch' if batch == 1 else 'patches'} of {patch} voxels in {plan.precision.format} on {device}"
