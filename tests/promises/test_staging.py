"""Staged structures are not part of the model until a person accepts them, and are checked again then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store_operations
import torch
from stored_model import grown, liven
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import ModelError, RepmodeError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.store import list_pending, list_staged, make_candidate, stage, training_lock
from repmode_cl.store.staging import OUTCOME, REQUEST, open_with_staged
from repmode_cl.utils.atomic_files import write_json
from repmode_cl.utils.tensor_digests import json_digest


@pytest.fixture
def waiting(model_path: Path) -> Model:
    """Return a model for which golgi_apparatus is staged, and desmosome's training was interrupted."""
    store_operations.stage(model_path, "golgi_apparatus")
    model = Model.open(model_path)
    model.pending("desmosome").mkdir()
    (model.pending("desmosome") / "checkpoint").write_text("half")
    return model


def files(path: Path) -> dict[str, bytes]:
    """Return all files of a model except those in ``pending/`` and its lock."""
    found = {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return {str(name): data for name, data in found.items() if name.parts[0] not in ("pending", ".lock")}


def test_staging_does_not_change_the_model(model_path: Path) -> None:
    before = files(model_path)
    store_operations.stage(model_path, "golgi_apparatus")
    model = Model.open(model_path)
    assert files(model_path) == before
    assert "golgi_apparatus" not in model.structures
    [one] = list_staged(model)
    assert (one.name, one.why, one.replace, one.busy, one.problem) == (
        "golgi_apparatus", "asked for", False, False, "",
    )  # fmt: skip
    assert one.entry is not None
    assert one.entry.metrics == {"r2": 0.4}
    assert model.verify().bit_identical


def test_pending_lists_staged_and_interrupted_structures(waiting: Model) -> None:
    assert [(one.name, one.entry is None) for one in list_pending(waiting)] == [
        ("desmosome", True), ("golgi_apparatus", False),
    ]  # fmt: skip
    assert [one.name for one in list_staged(waiting)] == ["golgi_apparatus"]
    assert list_pending(Model.open(waiting.path))[0].busy is False
    with training_lock(waiting, "desmosome"):
        assert [one.busy for one in list_pending(waiting)] == [True, False]


def test_accepting_makes_it_part_of_the_model(waiting: Model) -> None:
    digest = list_staged(waiting)[0].entry.digest  # type: ignore[union-attr]
    taken = waiting.accept("golgi_apparatus")
    assert taken.status == "bit-identical"
    for model in (waiting, Model.open(waiting.path)):
        assert model.entries["golgi_apparatus"].digest == taken.entry.digest == digest
        assert model.history[-1].action == "accept"
    assert waiting.verify().bit_identical
    # Its training goes, that of another stays.
    assert [one.name for one in list_pending(waiting)] == ["desmosome"]


def test_accepting_replaces_a_structure_that_was_staged_for_that(model_path: Path) -> None:
    model = Model.open(model_path)
    model.remove("mitochondria")
    network = model.network(["nucleolus"])
    network.add_structure("tight_junction", AdditionSpec(expert="conv1"), seed=5)
    liven(network, ".own.tight_junction.")
    folder = model.pending("tight_junction")
    folder.mkdir(parents=True)
    candidate = make_candidate(model, "tight_junction", network, folder)
    stage(model, candidate, why="to see", replace=True, min_r2=0.5)
    assert list_staged(model)[0].min_r2 == 0.5
    before = model.entries["tight_junction"].digest
    model.accept("tight_junction")
    assert model.history[-1].earlier == before
    assert before in [entry.digest for entry in model.kept]


def stage_replacement(path: Path, name: str, **kind: Any) -> None:
    """Stage another version of a structure of the model; with ``sees="all"`` it needs the experts of all others."""
    model = Model.open(path)
    network = model.network([other for other in model.structures if other != name])
    network.add_structure(name, AdditionSpec(expert="conv1", **kind), seed=5)
    liven(network, f".own.{name}.")
    folder = model.pending(name)
    folder.mkdir(parents=True)
    stage(model, make_candidate(model, name, network, folder), why="to see", replace=True)


def test_what_sees_another_version_than_the_staged_one_is_not_predicted(model_path: Path) -> None:
    """Its own tensors are those that were stored, but it learned with the experts of another version."""
    store_operations.remove(model_path, "mitochondria")
    stage_replacement(model_path, "nucleolus")
    store_operations.add(model_path, "mitochondria", sees="all")
    model = Model.open(model_path)
    staged = open_with_staged(model, ["nucleolus"])
    volume = np.random.default_rng(0).standard_normal((8, 8, 8)).astype(np.float32)
    with pytest.raises(
        ModelError, match=r"'mitochondria' was learned with version .* which is staged and not"
    ):
        staged.fuse("mitochondria")
    for name in ("dna", "tight_junction", "nucleolus"):
        assert staged.fuse(name) is not None
    assert model.predict(volume, "mitochondria").shape == (8, 8, 8)
    # It cannot be accepted either, and that is said where it is listed.
    said = CliRunner().invoke(app, ["pending", str(model_path)]).output
    assert "but not as the model is now: 'nucleolus' cannot be replaced: mitochondria of" in said
    assert "needs its experts" in said


def test_a_staged_replacement_that_sees_later_structures_is_predicted(model_path: Path) -> None:
    store_operations.remove(model_path, "mitochondria")
    stage_replacement(model_path, "nucleolus", sees="all", needs=("tight_junction",))
    model = Model.open(model_path)
    staged = open_with_staged(model, ["nucleolus"])
    volume = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = staged.fuse("nucleolus")(volume)
    model.accept("nucleolus")
    assert torch.equal(model.fuse("nucleolus")(volume), expected)


def test_gc_keeps_the_versions_that_staged_structures_need(model_path: Path) -> None:
    store_operations.remove(model_path, "mitochondria")
    model = Model.open(model_path)
    needed = model.entries["nucleolus"]
    network = model.network()
    network.add_structure("golgi_apparatus", AdditionSpec(expert="conv1", sees="all"), seed=5)
    liven(network, ".own.golgi_apparatus.")
    folder = model.pending("golgi_apparatus")
    folder.mkdir(parents=True)
    stage(model, make_candidate(model, "golgi_apparatus", network, folder), why="to see")
    store_operations.replace(model_path, "nucleolus")
    number = len(Model.open(model_path).history) - 1

    for option in (["--dry-run"], []):
        done = CliRunner().invoke(app, ["gc", str(model_path), *option])
        assert (
            f"{needed.file}: nucleolus, an earlier version, stays: a staged structure needs it" in done.output
        )
    model = Model.open(model_path)
    assert [entry.digest for entry in model.kept] == [needed.digest]
    said = CliRunner().invoke(app, ["pending", str(model_path)]).output
    assert (
        f"roll the model back to where it had that version (`repmode-cl rollback {model_path} {number}`)"
        in said
    )
    model.rollback(number)
    model.accept("golgi_apparatus")
    assert model.verify().bit_identical
    # Nothing needs the other version any more.
    assert Model.open(model_path).gc().needed == ()
    assert Model.open(model_path).kept == ()


def test_a_folder_that_is_no_structure_keeps_nothing_else_from_being_listed(waiting: Model) -> None:
    (waiting.path / "pending" / "golgi (conflicted copy)").mkdir()
    said = CliRunner().invoke(app, ["pending", str(waiting.path)])
    assert said.exit_code == 0, said.output
    folder = waiting.path / "pending" / "golgi (conflicted copy)"
    foreign = f"{folder} is named as no structure can be: it is not used; move it out of the model"
    assert f"golgi (conflicted copy): {foreign}\n" in said.output
    assert "golgi_apparatus: staged" in said.output
    assert waiting.accept("golgi_apparatus").status == "bit-identical"


@pytest.mark.parametrize("collected", [False, True])
def test_a_staged_replacement_of_a_removed_structure_is_added(model_path: Path, collected: bool) -> None:
    store_operations.remove(model_path, "mitochondria")
    store_operations.stage(model_path, "nucleolus")
    model = Model.open(model_path)
    [one] = list_staged(model)
    before = model.entries["nucleolus"].digest
    assert one.replace
    assert one.entry is not None
    model.remove("nucleolus")
    if collected:
        model.gc()
    said = CliRunner().invoke(app, ["pending", str(model_path)]).output
    assert f"was removed meanwhile: `repmode-cl accept {model_path} nucleolus` adds it" in said
    done = CliRunner().invoke(app, ["accept", str(model_path), "nucleolus"])
    assert done.exit_code == 0, done.output
    model = Model.open(model_path)
    assert model.entries["nucleolus"].digest == one.entry.digest != before
    assert (model.history[-1].action, model.history[-1].earlier) == ("accept", None)
    assert [entry.digest for entry in model.kept if entry.name == "nucleolus"] == [before] * (not collected)
    assert model.verify().ok
    assert not list_pending(model)


@pytest.mark.parametrize(
    "values", [{"entry": {}}, {"entry": []}, {"why": None, "file": None}, {"min_r2": "x"}], ids=str
)
def test_a_record_that_no_program_wrote_is_a_problem_and_no_crash(
    waiting: Model, values: dict[str, object]
) -> None:
    path = waiting.pending("golgi_apparatus") / "staged.json"
    body = json.loads(path.read_text()) | values
    del body["checksum"]
    write_json(path, body | {"checksum": json_digest(body)})
    one = list_pending(waiting)[1]
    assert one.entry is None
    assert "it lacks what a staged structure has" in one.problem
    assert "discard 'golgi_apparatus'" in one.problem
    with pytest.raises(ModelError, match="lacks what a staged structure has"):
        waiting.accept("golgi_apparatus")


def test_discarding_removes_only_that_structure(waiting: Model) -> None:
    before = files(waiting.path)
    assert waiting.discard("golgi_apparatus").entry is not None
    assert waiting.discard("desmosome").entry is None
    assert not list_pending(waiting)
    assert files(waiting.path) == before
    with pytest.raises(ModelError, match="no pending 'desmosome': it has none"):
        waiting.discard("desmosome")


def test_a_structure_in_training_cannot_be_accepted_or_discarded(waiting: Model) -> None:
    with training_lock(waiting, "golgi_apparatus"), training_lock(waiting, "desmosome"):
        for act in (waiting.accept, waiting.discard):
            with pytest.raises(ModelError, match="another process is adding 'golgi_apparatus'"):
                act("golgi_apparatus")
    assert len(list_pending(waiting)) == 2
    waiting.accept("golgi_apparatus")


def test_a_structure_that_is_not_staged_cannot_be_accepted(waiting: Model) -> None:
    with pytest.raises(ModelError, match="its training is not finished"):
        waiting.accept("desmosome")
    with pytest.raises(ModelError, match=r"no pending 'golgi'.*desmosome, golgi_apparatus"):
        waiting.accept("golgi")
    with pytest.raises(RepmodeError, match="cannot be used"):
        waiting.discard("../structures")
    assert not (waiting.path / "pending" / "golgi.lock").exists()


@pytest.mark.parametrize("what", ["a bit of the pack", "a bit of the note", "another pack", "no pack"])
def test_a_damaged_staged_structure_is_refused(waiting: Model, what: str) -> None:
    folder = waiting.pending("golgi_apparatus")
    [pack] = folder.glob("*.safetensors")
    before = files(waiting.path)
    if what == "no pack":
        pack.unlink()
    elif what == "another pack":
        pack.write_bytes((waiting.path / waiting.entries["nucleolus"].file).read_bytes())
    else:
        file = pack if what.endswith("pack") else folder / "staged.json"
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
    with pytest.raises((ModelError, FileNotFoundError), match="golgi_apparatus"):
        waiting.accept("golgi_apparatus")
    assert files(waiting.path) == before
    assert len(list_pending(waiting)) == 2
    waiting.discard("golgi_apparatus")


def test_a_staged_file_cannot_lie_outside_its_folder(waiting: Model) -> None:
    """A forged ``staged.json`` with a valid checksum still names a file within its own folder."""
    from repmode_cl.utils.atomic_files import write_json
    from repmode_cl.utils.tensor_digests import json_digest

    note = waiting.pending("golgi_apparatus") / "staged.json"
    values = json.loads(note.read_text())
    values.pop("checksum")
    values["file"] = f"../../{waiting.entries['nucleolus'].file}"
    write_json(note, values | {"checksum": json_digest(values)})
    with pytest.raises((ModelError, FileNotFoundError)):
        waiting.accept("golgi_apparatus")


def test_a_changed_model_refuses_a_staged_structure(waiting: Model) -> None:
    other = Model.open(waiting.path)
    other.add("golgi_apparatus", grown(other, "golgi_apparatus"))
    with pytest.raises(ModelError, match="has 'golgi_apparatus' already"):
        waiting.accept("golgi_apparatus")
    assert len(list_staged(waiting)) == 1


def test_a_candidate_from_elsewhere_cannot_be_staged(waiting: Model, tmp_path: Path) -> None:
    candidate = make_candidate(waiting, "microtubule", grown(waiting, "microtubule"), tmp_path)
    with pytest.raises(ModelError, match="must lie in"):
        stage(waiting, candidate, why="no reason")


def test_the_commands(waiting: Model) -> None:
    def run(*arguments: object, code: int = 0) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == code, done.output
        return done.output

    output = run("pending", waiting.path)
    assert "golgi_apparatus: staged" in output
    assert f"R2 0.400: asked for; `repmode-cl accept {waiting.path} golgi_apparatus` takes it" in output
    begin = (
        f"`repmode-cl add {waiting.path} --structure desmosome` begins it, with the same options or others"
    )
    assert f"desmosome: interrupted before it saved a step; {begin}" in output
    assert "golgi_apparatus: bit-identical" in run("accept", waiting.path, "golgi_apparatus")
    assert "unfinished training was removed" in run("discard", waiting.path, "desmosome")
    assert "has no pending 'desmosome'" in run("discard", waiting.path, "desmosome", code=2)
    assert "nothing is pending" in run("pending", waiting.path)


def test_pending_names_the_commands_that_resume(model_path: Path) -> None:
    """Of `replace` too, with quotes where a path needs them, and if others changed the model meanwhile."""
    path = model_path.rename(model_path.with_name("my model"))

    def said() -> str:
        return CliRunner().invoke(app, ["pending", str(path)]).output

    model = Model.open(path)
    for name in ("mitochondria", "desmosome"):
        model.pending(name).mkdir(parents=True)
        replace = name == "mitochondria"
        (model.pending(name) / REQUEST).write_text(json.dumps({"replace": replace}))
    for name in ("mitochondria", "desmosome"):
        (model.pending(name) / "checkpoint").mkdir()
        (model.pending(name) / "checkpoint" / "latest.json").write_text("{}")
    assert f"mitochondria: interrupted; `repmode-cl replace '{path}' --structure mitochondria`" in said()
    assert f"desmosome: interrupted; `repmode-cl add '{path}' --structure desmosome`" in said()
    digest = store_operations.add(path, "desmosome")
    assert (
        f"by now (version {digest[:8]}), which stays: `repmode-cl remove '{path}' desmosome` first" in said()
    )
    (model.pending("desmosome") / OUTCOME).write_text(json.dumps({"digest": digest}))
    assert "has exactly this version already" in said()
    (model.pending("desmosome") / REQUEST).write_text('{"replace": fal')
    damaged = f"{model.pending('desmosome') / REQUEST}: cannot be read"
    assert damaged in said()
    assert f"`repmode-cl discard '{path}' desmosome` removes the interrupted training" in said()
    (model.pending("desmosome") / REQUEST).write_text('{"replace": false}')
    store_operations.remove(path, "mitochondria")
    assert "no longer has the version that it is to replace: `repmode-cl rollback" in said()
