"""Benchmarks of two structures and one step each, and the strategies that they compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_run import changed, tiny

from repmode_cl.config import Config, StrategyConfig, StreamConfig

FINE, MULTI, OURS = (StrategyConfig(name=name) for name in ("fine_tuning", "multi_net", "experts_frozen"))


def small(manifest: Path, output: Path, *strategies: StrategyConfig, **stream: Any) -> Config:
    """Return a benchmark of two structures, one step each."""
    config = tiny(manifest, output)
    training = config.training.model_copy(update={"steps": 2, "base_steps": 2, "validate_every": 1})
    order = StreamConfig(**(stream or {"order": ("dna", "nucleolus")}))
    return changed(config, training=training, strategies=strategies, stream=order)
