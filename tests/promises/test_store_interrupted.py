"""A model directory survives a kill at any instant, and two processes that write to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stored_model import PARTS, base_network, grown

from repmode_cl.errors import ModelError
from repmode_cl.model import Model
from repmode_cl.store import verify_model
from repmode_cl.utils.atomic_files import TEMPORARY_MARK


def die_at(monkeypatch: pytest.MonkeyPatch, count: int, *, after: bool) -> None:
    """Let the `count`th replacing of a file be the last thing, before or after it happens."""
    replace, replaced = os.replace, 0

    def replacing(source: str, target: str) -> None:
        nonlocal replaced
        replaced += 1
        if replaced == count and not after:
            raise KeyboardInterrupt
        replace(source, target)
        if replaced == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replacing)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_add_leaves_the_old_model_or_the_new(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, after: bool
) -> None:
    model = Model.open(model_path)
    network = grown(model, "desmosome")
    with monkeypatch.context() as patch:
        die_at(patch, count, after=after)
        with pytest.raises(KeyboardInterrupt):
            model.add("desmosome", network)
    again = Model.open(model_path)
    report = again.verify()
    assert report.bit_identical
    done = count == 2 and after
    assert ("desmosome" in again.structures) == done
    if not done:
        assert bool(report.notes) == ((count, after) != (1, False))
        again.add("desmosome", network)
        assert not verify_model(model_path, "files").notes


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_killed_creation_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    with monkeypatch.context() as patch:
        die_at(patch, count, after=False)
        with pytest.raises(KeyboardInterrupt):
            Model.create(tmp_path, base_network(), **PARTS)
    with pytest.raises(ModelError, match="interrupted"):
        Model.open(tmp_path)
    assert Model.create(tmp_path, base_network(), **PARTS).structures == ("dna", "cell_membrane")


def test_the_next_write_removes_leftovers_but_not_pending_structures(model_path: Path) -> None:
    names = (f"registry{TEMPORARY_MARK}ab.json", f"structures/x{TEMPORARY_MARK}cd.safetensors")
    left = [model_path / name for name in names]
    model = Model.open(model_path)
    pending = model.pending("desmosome") / f"1{TEMPORARY_MARK}ef.json"
    pending.parent.mkdir(parents=True)
    for path in (*left, pending):
        path.write_text("half")
    model.add("desmosome", grown(model, "desmosome"))
    assert not any(path.exists() for path in left)
    assert pending.exists()


def test_two_processes_that_opened_the_same_model_can_both_add(model_path: Path) -> None:
    first, second = Model.open(model_path), Model.open(model_path)
    first.add("desmosome", grown(first, "desmosome"))
    second.add("golgi_apparatus", grown(second, "golgi_apparatus"))
    assert Model.open(model_path).structures[-2:] == ("desmosome", "golgi_apparatus")
    assert second.structures == Model.open(model_path).structures
