"""A tiny model to compare with, and an interruption of its comparison."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from stored_model import liven
from tiny_run import BASE, PATCH
from tiny_strategies import ARCHITECTURE

from repmode_cl.config import DataConfig
from repmode_cl.data.split_record import split_record
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, RepModeUNet
from repmode_cl.strategies import StructureStrategy

KNOWN, NEW = (*BASE, "mitochondria"), "nucleolus"
SETTINGS: dict[str, Any] = {"steps": 4, "batch_size": 2, "device": "cpu", "precision": "float32", "seed": 3}


class Interruption(Exception):  # noqa: N818 - it stands for a power cut
    """Interruption in the middle of a comparison."""


def make_model(path: Path, *additions: tuple[str, AdditionSpec]) -> Path:
    network = RepModeUNet(ARCHITECTURE, BASE, seed=0)
    for name, spec in additions:
        network.add_structure(name, spec, seed=1)
    liven(network)
    Model.create(
        path,
        network,
        voxel_size=None,
        preprocessing={"order": 1},
        inference={"window": list(PATCH), "overlap": 0.5, "batch": 2},
        provenance={
            "training": {"steps": 9, "learning_rate": 0.02, "schedule": "one_cycle"},
            "addition": {"learning_rate": 0.03},
            **split_record([], DataConfig().model_dump()),
        },
    )
    return path


def cut_off(patch: pytest.MonkeyPatch, kind: str, at: int) -> Counter[str]:
    """Let the training of a strategy end before step `at` is done (never: -1), and count all steps that are made."""
    steps: Counter[str] = Counter()
    train = StructureStrategy._train_step

    def counted(self: StructureStrategy, *args: Any, **kwargs: Any) -> None:
        if type(self).__name__ == kind and self.progress.step == at:
            raise Interruption
        steps[type(self).__name__] += 1
        train(self, *args, **kwargs)

    patch.setattr(StructureStrategy, "_train_step", counted)
    return steps
