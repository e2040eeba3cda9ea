"""Time of a training step: ours, the plain networks, and what others would write."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from repmode_cl.perf.settings import PerfSettings
from repmode_cl.perf.timing_rounds import Lazily, alternate, rows_of
from repmode_cl.perf.workloads import Batch, Networks, Step, Variant, timed_variants, training_variants
from repmode_cl.training.precision import Precision
from repmode_cl.utils.progress import task

__all__ = ["measure_training", "time_steps"]


def measure_training(
    settings: PerfSettings,
    networks: Networks,
    precision: Precision,
    seconds: float | None = None,
    *,
    only: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Time one optimiser step of each variant.

    Parameters
    ----------
    settings
        Sizes and rounds.
    networks
        Where the variants are.
    precision
        In which number format.
    seconds
        Time within which rounds may begin.
    only
        Names of the variants, the first being the reference; None takes those that are to be timed.

    Returns
    -------
    list of dict
        A `TimingRow` for each variant, as JSON.
    """
    variants = (
        [v for v in training_variants(settings) if v.name in only] if only else timed_variants(settings)
    )
    return time_steps(settings, networks, precision, variants, f"Training step, {precision.format}", seconds)


def time_steps(
    settings: PerfSettings,
    networks: Networks,
    precision: Precision,
    variants: Sequence[Variant],
    title: str,
    seconds: float | None = None,
) -> list[dict[str, Any]]:
    """Time one optimiser step of each of `variants`, the first being the reference.

    Parameters
    ----------
    settings, networks, precision, seconds
        As of `measure_training`.
    variants
        What is timed.
    title
        Text of the progress bar.
    """
    device = networks.device
    batch = Batch(settings, device)
    steps = {variant.name: Lazily(partial(Step, networks, variant, batch, precision)) for variant in variants}
    total = (settings.repeats + 1) * len(steps)
    with task(title, total) as bar:
        timings = alternate(
            steps, rounds=settings.repeats, seed=settings.seed, device=device, seconds=seconds, bar=bar
        )
    return [row.to_json() for row in rows_of(timings, {v.name: v.label for v in variants}, variants[0].name)]
