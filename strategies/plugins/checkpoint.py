"""Checkpoint of a strategy: network, optimiser, schedule, random states, best state and figures.

The format is `repmode_cl.training.checkpoint`'s: safetensors and JSON, the newest two kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.state import TrainingProgress
from repmode_cl.training import (
    capture,
    has_checkpoint,
    load_checkpoint,
    recall_precision,
    reinstate,
    save_checkpoint,
)

__all__ = ["StrategyCheckpoint"]


class StrategyCheckpoint:
    """Checkpoints of a strategy while it learns a stream.

    Parameters
    ----------
    folder
        Folder of the checkpoints.
    extra
        Called at each saving; returns additional JSON for the checkpoint, such as the figures so far.
    """

    def __init__(self, folder: Path, extra: Callable[[], Any] = lambda: None) -> None:
        self.folder = folder
        self._extra = extra

    def save(self, strategy: StructureStrategy) -> None:
        """Write the strategy's state; in the middle of an experience, the optimiser's and the best state too."""
        with strategy.outside_training():
            self._save(strategy)

    def _save(self, strategy: StructureStrategy) -> None:
        tensors = {f"network.{name}": tensor for name, tensor in strategy.model.state_dict().items()}
        own, values = strategy.extra_state()
        tensors |= {f"own.{name}": tensor for name, tensor in own.items()}
        state: dict[str, Any] = {
            "progress": asdict(strategy.progress),
            "precision": strategy.precision.format,
            "extra": self._extra(),
            "own": values,
            "seen": [
                [number, *key, count]
                for number, counts in strategy.trained_patches.items()
                for key, count in counts.items()
            ],
            "training": None,
            "best": None,
        }
        if strategy.progress.step:
            captured, state["training"] = capture(
                optimizer=strategy.optimizer, scheduler=strategy.scheduler, scaler=strategy.scaler
            )
            tensors |= captured
            tensors |= {f"best.{name}": tensor for name, tensor in strategy.selection.tensors.items()}
            if strategy.selection.tensors:
                state["best"] = [strategy.selection.step, strategy.selection.best]
        save_checkpoint(self.folder, tensors=tensors, state=state)

    def after_step(self, strategy: StructureStrategy) -> None:
        """Save between validations, where the configuration sets ``training.checkpoint_every``."""
        every, step = strategy.training_config.checkpoint_every, strategy.progress.step
        if every is not None and step % every == 0 and not strategy.budget.validates(step):
            self.save(strategy)

    def resume(self, strategy: StructureStrategy) -> Any:
        """Restore `strategy` from the last checkpoint, if there is one, and return its additional JSON (or None).

        The state of an unfinished experience is restored when its training starts: only then does its network exist.
        """
        if not has_checkpoint(self.folder):
            return None
        tensors, state = load_checkpoint(self.folder)

        def part(prefix: str) -> dict[str, Any]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        strategy.progress = TrainingProgress(**state["progress"])
        strategy.learned = set(range(strategy.progress.experience))
        if state.get("precision", strategy.precision.format) != strategy.precision.format:
            source = f"the checkpoint in {self.folder}"
            strategy.precision = recall_precision(state["precision"], strategy.device, source)
        for names in strategy.stream.experiences[: strategy.progress.experience]:
            if new := [name for name in names if name not in strategy.network.structures]:
                strategy.grow(new)
        for number, structure, image, count in state.get("seen", ()):
            strategy.trained_patches.setdefault(number, Counter())[structure, image] = count
        strategy.load_extra_state(part("own."), state.get("own", {}))
        if not strategy.progress.step:
            strategy.network.load_state_dict(part("network."))
            return state["extra"]

        def restore(strategy: StructureStrategy) -> None:
            strategy.network.load_state_dict(part("network."))
            reinstate(
                tensors,
                state["training"],
                optimizer=strategy.optimizer,
                scheduler=strategy.scheduler,
                scaler=strategy.scaler,
            )
            if state["best"] is not None:
                strategy.selection.load(part("best."), *state["best"])

        strategy.resume = restore
        return state["extra"]
