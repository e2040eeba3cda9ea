"""Every change of a model is recorded and can be rolled back, until gc deletes the versions of earlier states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_model import another, grown, liven
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.store import Candidate, make_candidate, verify_model
from repmode_cl.utils.atomic_files import sha256_file

ADDITIONS = ("nucleolus", "tight_junction", "mitochondria")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((9, 12, 10)).astype(np.float32)


def state(model: Model) -> tuple[tuple[str, str], ...]:
    return tuple((entry.name, entry.digest) for entry in model.entries.values())


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def with_desmosome(path: Path) -> Model:
    model = Model.open(path)
    figures = {
        "provenance": {
            "seed": 7,
            "training": {"learning_rate": 0.002},
            "addition": {"learning_rate": 0.01},
            "images": "abcdef" * 8,
        },
        "metrics": {"r2": 0.25},
    }
    model.add("desmosome", another(model, "desmosome", 0), **figures)
    return model


# -- replace, remove, roll back --------------------------------------------------------------------------


def test_a_replaced_version_is_kept_and_can_be_rolled_back(model_path: Path, image: np.ndarray) -> None:
    model = with_desmosome(model_path)
    first = model.entries["desmosome"]
    before = {name: model.predict(image, name).tobytes() for name in model.structures}
    second = model.add("desmosome", another(model, "desmosome", 1), metrics={"r2": 0.5}, replace=True)
    assert second.digest != first.digest
    assert model.kept == Model.open(model_path).kept == (first,)
    assert (model_path / first.file).is_file()
    change = model.history[-1]
    assert (change.action, change.structure, change.digest) == ("replace", "desmosome", second.digest)
    assert (change.earlier, change.metrics) == (first.digest, {"r2": 0.5})
    after = {name: model.predict(image, name).tobytes() for name in model.structures}
    assert {name for name in before if before[name] != after[name]} == {"desmosome"}

    rolled = model.rollback(change.number - 1)
    assert rolled is not None
    assert (rolled.action, rolled.to) == ("rollback", change.number - 1)
    assert model.entries["desmosome"] == first
    assert model.kept == (second,)
    assert {name: model.predict(image, name).tobytes() for name in model.structures} == before
    assert Model.open(model_path).verify().bit_identical
    # Rolling back is a change too, and there is nothing to do twice.
    assert model.rollback(rolled.number) is None
    assert model.rollback(change.number) is not None
    assert model.entries["desmosome"] == second


def test_a_removed_structure_can_be_rolled_back(model_path: Path, image: np.ndarray) -> None:
    model = Model.open(model_path)
    before = state(model)
    entry, prediction = model.entries["mitochondria"], model.predict(image, "mitochondria")
    change = model.remove("mitochondria")
    assert (change.action, change.structure, change.earlier) == ("remove", "mitochondria", entry.digest)
    assert Model.open(model_path).structures == ("dna", "cell_membrane", "nucleolus", "tight_junction")
    with pytest.raises(UnknownStructureError):
        model.predict(image, "mitochondria")
    assert verify_model(model_path).bit_identical
    model.rollback(change.number - 1)
    assert state(model) == before
    assert Model.open(model_path).predict(image, "mitochondria").tobytes() == prediction.tobytes()


def test_a_structure_that_another_needs_cannot_be_removed(model_path: Path) -> None:
    model = Model.open(model_path)
    for name in ("nucleolus", "tight_junction"):
        with pytest.raises(
            ModelError, match=rf"'{name}' cannot be removed: mitochondria of .* needs its experts"
        ):
            model.remove(name)
        with pytest.raises(ModelError, match=rf"'{name}' cannot be replaced: mitochondria"):
            model.add(name, another(model, name, 1), replace=True)
    with pytest.raises(ModelError, match="part of the base"):
        model.remove("dna")
    with pytest.raises(UnknownStructureError, match="did you mean 'nucleolus'"):
        model.remove("nucleoli")
    with pytest.raises(UnknownStructureError):
        model.add("desmosome", grown(model, "desmosome"), replace=True)
    with pytest.raises(ModelError, match="exactly this version of 'mitochondria'"):
        model.add("mitochondria", model.network(), replace=True)
    assert len(Model.open(model_path).history) == 4
    # From the last to the first, nothing is in the way.
    for name in reversed(ADDITIONS):
        model.remove(name)
    assert Model.open(model_path).structures == ("dna", "cell_membrane")


def test_versions_deleted_by_gc_cannot_be_rolled_back(model_path: Path) -> None:
    model = with_desmosome(model_path)
    first = model.entries["desmosome"]
    model.add("desmosome", another(model, "desmosome", 1), replace=True)
    (model_path / "structures" / "mine.safetensors").write_text("not a structure's")
    orphan = model_path / "structures" / f"golgi_apparatus-{'0' * 8}.safetensors"
    orphan.write_bytes(b"left by a killed process")
    (model_path / "pending" / "golgi_apparatus").mkdir(parents=True)
    would = model.gc(dry_run=True)
    assert (model_path / first.file).is_file()
    assert Model.open(model_path).kept == (first,)
    done = model.gc()
    assert done == would
    assert done.versions == (first,)
    assert {file for file, _ in done.files} == {first.file, f"structures/{orphan.name}"}
    assert done.bytes == first.bytes + 24
    assert not (model_path / first.file).exists()
    assert not orphan.exists()
    assert (model_path / "structures" / "mine.safetensors").exists()
    assert (model_path / "pending" / "golgi_apparatus").is_dir()
    assert model.kept == ()
    assert model.history[-1].provenance["removed"][0]["digest"] == first.digest
    assert verify_model(model_path).bit_identical
    with pytest.raises(ModelError, match=rf"change 5: desmosome \({first.digest[:8]}\) was deleted by gc"):
        model.rollback(5)
    with pytest.raises(ModelError, match="no change 9: the history has changes 1 to 7"):
        model.rollback(9)
    with pytest.raises(ModelError, match="no change 0"):
        model.rollback(0)
    assert model.rollback(4) is not None
    # What it was made of still stands in the history.
    assert model.history[4].provenance["images"] == "abcdef" * 8
    assert model.history[4].metrics == {"r2": 0.25}
    assert model.history[4].spec == AdditionSpec(expert="conv1")


def test_gc_ignores_files_that_are_gone_already(model_path: Path) -> None:
    model = Model.open(model_path)
    assert model.gc().files == ()
    assert len(model.history) == 4  # nothing happened, and nothing is written down


def test_rolling_back_needs_the_files(model_path: Path) -> None:
    model = Model.open(model_path)
    file = model_path / model.entries["mitochondria"].file
    model.remove("mitochondria")
    before, whole = (model_path / "registry.json").read_bytes(), file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelError, match=rf"{file.name} \(mitochondria\) is damaged"):
        model.rollback(4)
    file.unlink()
    with pytest.raises(ModelError, match=rf"{file.name} is missing \(mitochondria\)"):
        model.rollback(4)
    assert (model_path / "registry.json").read_bytes() == before
    assert "mitochondria" not in Model.open(model_path).structures


# -- any sequence of changes -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def candidates(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Candidate]]:
    """Return versions of three structures: two of `first`, one of `second`, one of `third`, which needs these."""
    model, folder = Model.open(stored), tmp_path_factory.mktemp("candidates")
    network = model.network([])
    found = {}
    for name, spec in {
        "first": AdditionSpec(expert="conv1"),
        "second": AdditionSpec(expert="conv1"),
        "third": AdditionSpec(expert="conv1", sees="all"),
    }.items():
        network.add_structure(name, spec, seed=1)
        liven(network, f".own.{name}.")
        found[name] = [make_candidate(model, name, network, folder)]
    found["first"].append(make_candidate(model, "first", another(model, "first", 2), folder))
    return found


OPERATIONS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(["first", "second", "third"]), st.integers(0, 1)),
    st.tuples(st.just("remove"), st.sampled_from(["first", "second", "third"]), st.just(0)),
    st.tuples(st.just("rollback"), st.just(""), st.integers(1, 12)),
    st.tuples(st.just("gc"), st.just(""), st.just(0)),
)


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(operations=st.lists(OPERATIONS, min_size=4, max_size=14))
def test_any_sequence_of_changes_keeps_the_promises(
    stored: Path,
    candidates: dict[str, list[Candidate]],
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[tuple[str, str, int]],
) -> None:
    path = Path(shutil.copytree(stored, tmp_path_factory.mktemp("changes") / "model"))
    model = Model.open(path)
    states = [model.state_after(number) for number in range(1, 5)]
    there: set[tuple[str, str]] = set(states[-1])
    for what, name, number in operations:
        active, made = dict(states[-1]), len(states)
        if what == "add":
            candidate = candidates[name][number % len(candidates[name])]
            entry = candidate.entry
            needs_met = all(active.get(need) == digest for need, digest in entry.needs)
            same = active.get(name) == entry.digest
            free = not (name == "first" and "third" in active)
            if same or not needs_met or (name in active and not free):
                with pytest.raises(ModelError):
                    model.commit(candidate, action="replace", replace=name in active)
            else:
                model.commit(candidate, action="add", replace=name in active)
                active.pop(name, None)
                states.append((*active.items(), (name, entry.digest)))
                there.add((name, entry.digest))
        elif what == "remove":
            needed = name in ("first", "second") and "third" in active
            if needed or name not in active:
                with pytest.raises((ModelError, UnknownStructureError)):
                    model.remove(name)
            else:
                model.remove(name)
                del active[name]
                states.append(tuple(active.items()))
        elif what == "gc":
            there = set(active.items())
            if model.gc().versions:
                states.append(states[-1])
        elif number > made or not set(states[number - 1]) <= there:
            with pytest.raises(ModelError):
                model.rollback(number)
        elif model.rollback(number):
            states.append(states[number - 1])
        _check(Model.open(path), states, there)
    assert verify_model(path, "tensors").ok
    model.gc()
    files = {f"structures/{file.name}" for file in (path / "structures").iterdir()}
    assert files == {entry.file for entry in model.entries.values() if entry.kind == "addition"}


def _check(model: Model, states: list[tuple[tuple[str, str], ...]], there: set[tuple[str, str]]) -> None:
    """The model is in the last state, knows all earlier ones, and has each version's file, as it was written."""
    assert state(model) == states[-1]
    assert [model.state_after(change.number) for change in model.history] == states
    versions = [*model.entries.values(), *model.kept]
    assert sorted((entry.name, entry.digest) for entry in versions) == sorted(there)
    for entry in versions:
        assert sha256_file(model.path / entry.file) == entry.sha256


# -- the commands ----------------------------------------------------------------------------------------


def test_the_history_commands(model_path: Path) -> None:
    model = with_desmosome(model_path)
    first = model.entries["desmosome"].digest[:8]
    second = model.add("desmosome", another(model, "desmosome", 1), replace=True).digest[:8]
    code, out = run("history", model_path)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("1  20")
    assert f"add desmosome {first}, kept" in out
    assert f"replace desmosome {second}, active" in out
    assert "conv1, rate 0.01, seed 7; data abcdefab; R2 0.250" in out
    assert "R2 dna 0.700" in out
    listed = json.loads(run("history", model_path, "--json")[1])
    assert [one["number"] for one in listed] == [1, 2, 3, 4, 5, 6]
    assert listed[4]["provenance"]["seed"] == 7

    code, out = run("remove", model_path, "nucleolus")
    assert code == 2
    assert "mitochondria" in out
    code, out = run("remove", model_path, "desmosome")
    assert code == 0
    assert f"rollback {model_path} 6" in out
    code, out = run("rollback", model_path, "5")
    assert code == 0
    assert f"desmosome: version {first} is back" in out
    assert run("rollback", model_path, "5")[1].rstrip().endswith("nothing to do")
    code, out = run("gc", model_path, "--dry-run")
    assert code == 0
    assert "would be deleted" in out
    assert second in out
    code, out = run("gc", model_path)
    assert code == 0
    assert out.startswith(f"structures/desmosome-{second}.safetensors: desmosome, an earlier version")
    assert f"replace desmosome {second}, deleted" in run("history", model_path)[1]
    code, out = run("rollback", model_path, "6")
    assert code == 2
    assert f"desmosome ({second}) was deleted by gc" in out
    assert Model.open(model_path).entries["desmosome"].digest[:8] == first
    assert verify_model(model_path).bit_identical
