"""What adding a structure would do, cost and stumble over; nothing is written and nothing trained."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repmode_cl.data.manifest import Manifest, Problem, Row
from repmode_cl.data.preprocessing.recipe import Recipe
from repmode_cl.data.preprocessing.volume_cache import ContentDigests
from repmode_cl.data.splits import Assignment, assign_splits
from repmode_cl.data.validation.manifest_check import Inspection, inspect_manifest
from repmode_cl.errors import ImageError
from repmode_cl.model import Model
from repmode_cl.nn import RepModeUNet
from repmode_cl.store.probe import probe_shape
from repmode_cl.strategies.timing import minutes_text, time_training, windows_of_row
from repmode_cl.training import budget_of, has_checkpoint, masked_mse, refuse_several
from repmode_cl.training.activation_bytes import saved_bytes
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.memory import format_bytes
from repmode_cl.workflows.addition_plan import (
    AdditionPlan,
    check_held_out,
    check_min_r2,
    check_not_staged,
    plan_addition,
)
from repmode_cl.workflows.pending_training import CHECKPOINT, REQUEST
from repmode_cl.workflows.train_one_experience import check_request
from repmode_cl.workflows.training_settings import voxel_problems

__all__ = ["AddDryRun", "dry_run_add", "file_bytes"]

#: Bytes that a file's header takes: for each tensor, and for the record, about.
_TENSOR_HEADER, _RECORD = 86, 2600


@dataclass(frozen=True)
class AddDryRun:
    """What adding a structure would come to.

    Attributes
    ----------
    structure
        Its name.
    images
        Images that train, validate and test.
    problems
        What is wrong with them, as ``repmode-cl data check`` finds it.
    parameters
        What it would own by kind: experts, gate rows, norms, resampling layers.
    bytes
        Size of its file, about.
    memory
        Bytes that a training step needs, besides the program itself, about.
    steps, step_seconds, seconds
        Of the training; a step was timed on noise. `seconds` counts validations too.
    notes
        What a person should know of the split, and of an interrupted training.
    lines
        All that in words.
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
    lines: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with the images."""
        return not self.problems

    def __str__(self) -> str:
        return "\n".join([*self.lines, "nothing was written"])


def dry_run_add(
    model: str | Path | Model,
    structure: str,
    data: str | Path | Manifest,
    *,
    min_r2: float | None = None,
    **options: Any,
) -> AddDryRun:
    """Say what `add_structure` would do with the same arguments.

    Parameters
    ----------
    model, structure, data, min_r2
        As of `add_structure`.
    **options
        As of `add_structure`, but for `stage` and `workers`.

    Returns
    -------
    AddDryRun
        All images were read once, and two steps computed on noise; nothing was written.

    Raises
    ------
    ConfigError, ModelError, ManifestError
        As of `add_structure`, but for images that cannot be used: those are listed.
    """
    refuse_several("adding a structure")
    check_min_r2(min_r2)
    addition = plan_addition(model, structure, data, **options)
    check_not_staged(addition.model, structure)
    check_request(addition.work / REQUEST, addition.request(), addition.what, addition.anew)
    config = addition.config
    preprocessing = config.data.preprocessing
    found = inspect_manifest(
        addition.manifest.path,
        patch=config.patch.size,
        depth=addition.model.architecture.depth,
        voxel_size=preprocessing.voxel_size,
        recipe=Recipe.of(preprocessing),
        structures=[structure],
    )
    wrong, warnings = voxel_problems(addition.model, addition.manifest, structure, force=addition.force)
    splits = _splits(addition)
    problems = [*found.errors, *_held_out_blank(found, splits), *wrong]
    rows = addition.manifest.for_structure(structure)
    count = Counter(splits[row.number] for row in rows)
    images = {split: count[split] for split in ("train", "val", "test")}
    check_held_out(min_r2, structure, list(count))
    budget = budget_of(config.training, 1, max(1, images["train"]))
    network = addition.network()
    parameters = _parameters(network, structure)
    size = file_bytes(network, structure)
    step, window, memory = _measure(addition, network)
    validations = -(-budget.steps // budget.validate_every)
    windows = _windows(addition, [row for row in rows if splits[row.number] != "train"])
    evaluated = sum(
        windows.get(row.number, 0) * {"val": validations, "test": 1}.get(splits[row.number], 0)
        for row in rows
    )
    seconds = budget.steps * step + evaluated * window
    if config.training.time_limit is not None:
        seconds = min(seconds, config.training.time_limit + evaluated * window)
    about = [*(note for note in splits.notes if note.startswith(f"{structure}:")), *warnings]
    if has_checkpoint(addition.work / CHECKPOINT):
        about.append(
            f"an interrupted training of {structure} is in {addition.work}: the same settings go on with it"
        )
    patch = " x ".join(str(n) for n in config.patch.size)
    lines = [
        f"{structure}: {_number(len(rows), 'image')}: {images['train']} train, {images['val']} validate, "
        f"{images['test']} test",
        *(f"note: {note}" for note in about),
        *(str(problem) for problem in problems),
        f"{_number(len(problems), 'problem') if problems else 'no problem'} in its images",
        f"it would train {sum(parameters.values()):,} numbers: "
        + ", ".join(f"{kind} {number:,}" for kind, number in parameters.items() if number),
        f"its file would have about {format_bytes(size)}",
        f"a step needs about {format_bytes(memory)} of memory besides the program's own",
        f"{_number(budget.steps, 'step')} of {_number(config.training.batch_size, 'patch', 'patches')} of {patch} "
        "voxels in "
        f"{addition.precision.format} on {resolve_device(config.training.device)}, {step:.2g} s a step: about "
        f"{minutes_text(seconds)} with validation, at most",
    ]
    return AddDryRun(
        structure, images, tuple(problems), parameters, size, memory, budget.steps, step, seconds, tuple(about),
        tuple(lines),
    )  # fmt: skip


def _held_out_blank(found: Inspection, splits: Assignment) -> list[Problem]:
    """Return constant targets that may be learned from, but whose rows, which name no split, would be held out."""
    message = "the target is constant, and its row would be in the split {}: nothing has an R2 on such an image; name "
    message += "its split train, or leave it out"
    return [
        Problem(one.row, one.column, message.format(splits[one.row]), kind="image")
        for one in found.warnings
        if one.kind == "constant" and one.column == "target" and splits[one.row] != "train"
    ]


def _number(count: int, one: str, more: str = "") -> str:
    return f"{count} {one if count == 1 else more or f'{one}s'}"


def _splits(addition: AdditionPlan) -> Assignment:
    """Return the splits that would be recorded, or are; what is recorded is read in a copy."""
    data = addition.config.data
    digests = ContentDigests(Path(str(data.cache)) / "contents.json")

    def content(path: Path) -> str:
        try:
            return digests.of(path)
        except OSError:
            return str(path)  # listed among the problems; here it counts as an image of its own

    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "splits.json"
        if (known := Path(str(data.cache)) / record.name).is_file():
            shutil.copyfile(known, record)
        return assign_splits(
            addition.manifest,
            seed=data.split_seed,
            test_fraction=data.test_fraction,
            val_fraction=data.val_fraction,
            record=record,
            digest=content,
        )


def _parameters(network: RepModeUNet, structure: str) -> dict[str, int]:
    """Return how many numbers the structure owns, by kind; running statistics belong to norms."""
    found = dict.fromkeys(("experts", "gate rows", "norms", "resampling layers"), 0)
    for name, tensor in network.structure_state(structure).items():
        if not tensor.is_floating_point():
            continue
        kind = (
            "experts"
            if ".expert." in name
            else "gate rows"
            if name.endswith(".gate")
            else "norms"
            if ".norm." in name
            else "resampling layers"
        )
        found[kind] += tensor.numel()
    return found


def file_bytes(network: RepModeUNet, structure: str) -> int:
    """Return about how large the file of an addition is: tensors, references of its proof, header."""
    state = network.structure_state(structure)
    blocks = list(network.named_mode_blocks())
    z, y, x = probe_shape(network.architecture)
    references = 8 * (z * y * x + 2 * sum(block.c_out for _, block in blocks))
    header = _RECORD + _TENSOR_HEADER * (len(state) + len(blocks) + 1)
    return _bytes(state.values()) + references + header


def _measure(addition: AdditionPlan, network: RepModeUNet) -> tuple[float, float, int]:
    """Return the seconds of a step and of a window, and the bytes that a step needs."""
    config, name = addition.config, addition.structure
    training, device = config.training, resolve_device(config.training.device)
    network.train_only([name])
    step, window = time_training(
        network, name, training, config.patch.size, addition.precision, device, repeats=1
    )
    network.train()
    x = torch.randn(training.batch_size // training.accumulate, 1, *config.patch.size, device=device)

    def loss() -> Tensor:
        with addition.precision.autocast():
            output = network(x, [name] * len(x))
        return masked_mse(output, x)

    held = [*network.parameters(), *network.buffers(), x]
    kept = saved_bytes(loss, held)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # Gradients, Adam's two moments, and the best state beside what is trained.
    return step, window, kept + _bytes(held) + 4 * _bytes(trained)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _windows(addition: AdditionPlan, rows: Sequence[Row]) -> dict[int, int]:
    """Return how many windows each row's image is predicted in; rows whose header cannot be read are left out."""
    found = {}
    for row in rows:
        with suppress(ImageError, OSError):  # listed among the problems
            found[row.number] = windows_of_row(addition.config, row)
    return found
