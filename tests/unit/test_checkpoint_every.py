"""Between validations a strategy's state is saved as often as the configuration asks for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repmode_cl.config import TrainingConfig
from repmode_cl.strategies.plugins.checkpoint import StrategyCheckpoint
from repmode_cl.training import Budget


@pytest.mark.parametrize(
    ("every", "expected"),
    # Steps 6, 12 and 13 validate, which saves by itself.
    [(None, []), (1, [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]), (4, [4, 8]), (6, []), (20, [])],
)
def test_checkpoints_between_validations(
    every: int | None, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(
        StrategyCheckpoint, "save", lambda self, strategy: saved.append(strategy.progress.step)
    )
    checkpoint = StrategyCheckpoint(tmp_path)
    training = TrainingConfig(steps=13, checkpoint_every=every)
    for step in range(1, 14):
        strategy: Any = SimpleNamespace(
            training_config=training, progress=SimpleNamespace(step=step), budget=Budget(13, 6)
        )
        checkpoint.after_step(strategy)
    assert saved == expected
