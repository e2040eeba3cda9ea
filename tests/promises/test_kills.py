"""A process that changes a model can die at any line, by SIGKILL: the model is the old one or the new one."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator

import pytest
from killing import every_state, steps_to_die_at
from victims import CASES, CHANGES, Harness, state, temporary

from repmode_cl.errors import ModelError
from repmode_cl.model import Model
from repmode_cl.store import verify_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that kills")


@pytest.fixture(scope="module", autouse=True)
def table(harness: Harness) -> Iterator[None]:
    """Print who was killed, once all were (shown with ``-s``)."""
    yield
    harness.show()


@pytest.mark.parametrize("operation", CHANGES)
def test_a_killed_process_loses_nothing(harness: Harness, operation: str) -> None:
    victim = harness.victim(operation)
    for step in random.Random(operation).sample(every_state(victim.lines), 2):
        harness.kill(victim, die_at=step)


@pytest.mark.slow
@pytest.mark.parametrize("operation", CASES)
def test_many_killed_processes_lose_nothing(harness: Harness, operation: str) -> None:
    victim = harness.victim(operation)
    # Every state that the disk goes through, and then anywhere.
    for step in (*every_state(victim.lines), *steps_to_die_at(victim.lines, 14, seed=len(operation))):
        harness.kill(victim, die_at=step)
    rng = random.Random(operation)
    for _ in range(6):
        harness.kill(victim, delay=rng.uniform(0, victim.seconds))


def _create(harness: Harness, count: int) -> None:
    """Let processes die over a new model: it is there, or can be made there."""
    whole = harness.folder / f"new-{count}"
    lines = harness.crew.run("create", whole, trace=True).lines
    before = state(whole)
    for number, step in enumerate(steps_to_die_at(lines, count, seed=count)):
        model = whole.with_name(f"{whole.name}-{number}")
        assert harness.crew.run("create", model, die_at=step).signal == signal.SIGKILL
        if not (model / "registry.json").exists():
            if model.exists():
                with pytest.raises(ModelError, match="its creation was interrupted"):
                    Model.open(model)
            assert not harness.crew.run("create", model).error
        assert state(model) == before
        assert verify_model(model).bit_identical
        assert not temporary(model)


def test_a_killed_creation_can_be_repeated(harness: Harness) -> None:
    _create(harness, 2)


@pytest.mark.slow
def test_many_killed_creations_can_be_repeated(harness: Harness) -> None:
    _create(harness, 20)


@pytest.mark.slow
@pytest.mark.parametrize("operation", CHANGES)
def test_who_clears_up_after_the_dead_may_die_too(harness: Harness, operation: str) -> None:
    victim = harness.victim(operation)
    for first, second in zip(*(steps_to_die_at(victim.lines, 5, seed=seed) for seed in (5, 6)), strict=True):
        harness.kill(victim, die_at=first, again=second)
