"""A tiny untrained base, and helpers to add to it, shared by the tests of adding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from stored_model import liven
from tiny_run import BASE, PATCH

from repmode_cl.config import DataConfig, TrainingConfig
from repmode_cl.data.split_record import split_record
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet
from repmode_cl.strategies import StructureStrategy
from repmode_cl.workflows.add_structure import AddResult, add_structure
from repmode_cl.workflows.addition_dry_run import AddDryRun, dry_run_add
from repmode_cl.workflows.options import AdditionOptions, TrainingOverrides

TRAINING = TrainingConfig(
    batch_size=2,
    steps=6,
    learning_rate=0.02,
    schedule="one_cycle",
    validate_every=2,
    precision="float32",
    device="cpu",
)
ARCHITECTURE = Architecture(width=4, depth=1, experts=("conv3", "conv1", "avg3"))


class Interruption(Exception):  # noqa: N818 - it stands for a power cut
    """Exception that ends a training in the middle."""


def make_base(
    path: Path, *, recorded: bool = True, addition: Mapping[str, Any] | None = None, **training: Any
) -> Path:
    """Write a model of two base structures, as `train` would have written it.

    `recorded` says that it saw no image, and `addition` what its configuration named for additions.
    """
    network = RepModeUNet(ARCHITECTURE, BASE, seed=0)
    liven(network)
    settings = TRAINING.model_copy(update=training)
    Model.create(
        path,
        network.eval(),
        voxel_size=None,
        preprocessing={"order": 1},
        inference={"window": list(PATCH), "overlap": 0.5, "batch": 2},
        provenance={
            "training": settings.model_dump(mode="json"),
            "flips": True,
            "precision": "float32",
            **({} if addition is None else {"addition": dict(addition)}),
            **(split_record([], DataConfig().model_dump()) if recorded else {}),
        },
    )
    return path


def add_untrained(path: Path, name: str, spec: AdditionSpec | None = None, **how: Any) -> None:
    """Add a structure at once, as another process might."""
    model = Model.open(path)
    network = model.network([other for other in model.structures if other != name])
    network.add_structure(name, spec, seed=len(model.history))
    liven(network, f".own.{name}.")
    model.add(name, network, **how)


def added(path: Path, manifest: Path, name: str = "nucleolus", **options: Any) -> AddResult:
    return add_structure(path, name, manifest, **options)


def dry_run(path: Path, manifest: Path, name: str = "nucleolus", **options: Any) -> AddDryRun:
    """Dry-run the addition that `added` makes with the same arguments."""
    names = {field.name for field in fields(AdditionOptions)}
    addition = AdditionOptions(**{key: value for key, value in options.items() if key in names})
    overrides = TrainingOverrides(**{key: value for key, value in options.items() if key not in names})
    return dry_run_add(path, name, manifest, addition, overrides)


def cut_off(patch: pytest.MonkeyPatch, at: int) -> None:
    """Let every training end before step `at` is done."""
    step = StructureStrategy._train_step

    def interrupted(self: StructureStrategy, *args: Any, **kwargs: Any) -> None:
        if self.progress.step == at:
            raise Interruption
        step(self, *args, **kwargs)

    patch.setattr(StructureStrategy, "_train_step", interrupted)


def files_of(path: Path) -> Mapping[str, bytes]:
    """Return the content of every file of a model, but for locks."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.suffix != ".lock" and file.name != ".lock"
    }
