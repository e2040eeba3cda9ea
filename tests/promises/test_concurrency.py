"""Processes at work on one model at once: each change gets in or fails cleanly, and readers see a whole model."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from killing import Outcome
from victims import Harness, temporary

from repmode_cl.model import Model
from repmode_cl.store import verify_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that kills")

Call = tuple[object, ...]


def at_once(harness: Harness, model: Path, *calls: Call) -> list[Outcome]:
    """Let processes loose on a model in the same instant, and wait for all."""
    gate = model.with_name(f"{model.name}.gate")
    pids = [harness.crew.start(str(name), model, *values, after=gate) for name, *values in calls]
    gate.touch()
    outcomes = [harness.crew.wait(pid) for pid in pids]
    assert all(outcome.signal == 0 and outcome.clean for outcome in outcomes), outcomes
    assert not temporary(model)
    report = verify_model(model)
    assert report.ok, report
    assert report.bit_identical, report
    return outcomes


def two_names(harness: Harness) -> None:
    model = harness.copy(harness.stored)
    outcomes = at_once(
        harness, model, ("add", "desmosome", "conv1", "all"), ("add", "golgi_apparatus", "lowrank:1")
    )
    assert not any(outcome.error for outcome in outcomes), outcomes
    opened = Model.open(model)
    assert set(opened.structures[-2:]) == {"desmosome", "golgi_apparatus"}
    assert opened.entries["desmosome"].digest == outcomes[0].result
    assert [change.number for change in opened.history] == list(range(1, len(opened.history) + 1))
    shutil.rmtree(model)


def one_name(harness: Harness) -> None:
    model = harness.copy(harness.stored)
    first, second = at_once(harness, model, ("add", "desmosome"), ("add", "desmosome", "conv3"))
    assert bool(first.error) != bool(second.error)
    assert "has 'desmosome' already" in first.error + second.error
    assert Model.open(model).entries["desmosome"].digest == (first.result or second.result)
    shutil.rmtree(model)


def readers(harness: Harness) -> None:
    model = harness.copy(harness.victim("replace").template)
    *changes, verified, predicted = at_once(
        harness,
        model,
        ("replace", "tight_junction"),
        ("add", "desmosome"),
        ("verify",),
        ("predict", "nucleolus"),
    )
    assert not any(change.error for change in changes), changes
    assert verified.result is True, verified
    assert predicted.result == harness.crew.run("predict", model, "nucleolus").result
    shutil.rmtree(model)


@pytest.mark.parametrize("what", [two_names, one_name, pytest.param(readers, marks=pytest.mark.slow)])
def test_two_at_once(harness: Harness, what: object) -> None:
    for _ in range(3):
        what(harness)  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize("what", [two_names, one_name, readers])
def test_two_at_once_many_times(harness: Harness, what: object) -> None:
    for _ in range(30):
        what(harness)  # type: ignore[operator]


def test_one_pack_is_imported_once(harness: Harness) -> None:
    model = harness.copy(harness.victim("import_pack").template)
    outcomes = at_once(harness, model, *[("import_pack", harness.pack)] * 3)
    assert sorted(bool(outcome.error) for outcome in outcomes) == [False, True, True]
    assert all("already" in outcome.error for outcome in outcomes if outcome.error)


@pytest.mark.slow
def test_what_is_staged_is_accepted_or_discarded(harness: Harness) -> None:
    for _ in range(3):
        model = harness.copy(harness.victim("accept").template)
        accepted, discarded = at_once(
            harness, model, ("accept", "golgi_apparatus"), ("discard", "golgi_apparatus")
        )
        assert bool(accepted.error) != bool(discarded.error), (accepted, discarded)
        assert ("golgi_apparatus" in Model.open(model).structures) == (not accepted.error)
        assert not (model / "pending" / "golgi_apparatus").exists()


@pytest.mark.slow
def test_a_crowd(harness: Harness) -> None:
    rng = random.Random(0)
    for _ in range(10):
        model = harness.copy(harness.victim("rollback").template)
        calls: list[Call] = [
            ("add", "desmosome"),
            ("add", "microtubule", "conv1", "all"),
            ("replace", "tight_junction"),
            ("remove", "nucleolus"),
            ("rollback", 3),
            ("gc",),
            ("import_pack", harness.pack),
            ("accept", "golgi_apparatus"),
            ("verify",),
            ("verify",),
        ]
        outcomes = at_once(harness, model, *rng.sample(calls, len(calls)))
        assert all(outcome.result is not False for outcome in outcomes), outcomes
        shutil.rmtree(model)
