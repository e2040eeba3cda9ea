"""Staged structures are not part of the model until a person accepts them, and are checked again then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import store_operations
from stored_model import grown, liven
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import ModelError, RepmodeError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.store import list_pending, list_staged, make_candidate, stage, training_lock
from repmode_cl.store.staging import OUTCOME, REQUEST
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
    assert f"desmosome: interrupted; `repmode-cl add {waiting.path} --structure desmosome` with" in output
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
    assert f"mitochondria: interrupted; `repmode-cl replace '{path}' --structure mitochondria`" in said()
    assert f"desmosome: interrupted; `repmode-cl add '{path}' --structure desmosome`" in said()
    digest = store_operations.add(path, "desmosome")
    assert (
        f"by now (version {digest[:8]}), which stays: `repmode-cl remove '{path}' desmosome` first" in said()
    )
    (model.pending("desmosome") / OUTCOME).write_text(json.dumps({"digest": digest}))
    assert "has exactly this version already" in said()
    store_operations.remove(path, "mitochondria")
    assert "no longer has the version that it is to replace: `repmode-cl rollback" in said()
