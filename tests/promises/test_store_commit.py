"""Candidates are made without the model's lock, and are committed to the model as it is by then, or not at all."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from stored_model import ARCHITECTURE, PARTS, another, grown, liven
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import ModelError, UnknownStructureError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, RepModeUNet
from repmode_cl.store import Candidate, list_pending, make_candidate, training_lock, verify_model
from repmode_cl.store import commit as commit_module
from repmode_cl.store import transaction as transaction_module
from repmode_cl.store.commit import commit
from repmode_cl.store.preconditions import check_name
from repmode_cl.store.registry import Registry
from repmode_cl.store.transaction import remove_leftovers_if_idle, write_lock
from repmode_cl.utils import locks as locks_module
from repmode_cl.utils.atomic_files import TEMPORARY_MARK, replacing


def contents(path: Path) -> dict[str, bytes]:
    """Return the files of a folder, except the lock's empty file."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name != ".lock"]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


@pytest.fixture
def candidate(model_path: Path, tmp_path: Path) -> Candidate:
    model = Model.open(model_path)
    return make_candidate(model, "desmosome", another(model, "desmosome", 0), tmp_path / "made")


# -- making ready, and committing ------------------------------------------------------------------------


def test_a_candidate_is_made_without_touching_the_model(model_path: Path, tmp_path: Path) -> None:
    before = contents(model_path)
    model = Model.open(model_path)
    (model_path / ".lock").unlink(missing_ok=True)
    made = make_candidate(
        model, "desmosome", another(model, "desmosome", 0), tmp_path / "made", metrics={"r2": 0.5}
    )
    assert contents(model_path) == before
    assert not (model_path / ".lock").exists()
    assert made.path == tmp_path / "made" / f"desmosome-{made.entry.digest[:8]}.safetensors"
    assert [file.name for file in made.path.parent.iterdir()] == [made.path.name]
    assert model.commit(made) == dataclasses.replace(made.entry, file=f"structures/{made.path.name}")
    assert contents(model_path)[f"structures/{made.path.name}"] == made.path.read_bytes()
    # What was there is there, byte for byte, but for the registry.
    after = contents(model_path)
    assert {name for name in before if before[name] != after[name]} == {"registry.json"}
    assert verify_model(model_path).bit_identical


def test_two_candidates_made_from_the_same_model_are_both_committed(model_path: Path, tmp_path: Path) -> None:
    first, second = Model.open(model_path), Model.open(model_path)
    one = make_candidate(first, "desmosome", grown(first, "desmosome", AdditionSpec(sees="all")), tmp_path)
    two = make_candidate(
        second, "golgi_apparatus", grown(second, "golgi_apparatus", AdditionSpec(sees="all")), tmp_path
    )
    commit(model_path, one, action="add")
    entry = second.commit(two)
    # It was trained without the other one, and does not see it.
    assert [need for need, _ in entry.needs] == ["nucleolus", "tight_junction", "mitochondria"]
    assert Model.open(model_path).structures[-2:] == ("desmosome", "golgi_apparatus")
    assert verify_model(model_path).bit_identical


def test_a_version_that_comes_back_uses_its_old_file(model_path: Path, candidate: Candidate) -> None:
    model = Model.open(model_path)
    model.commit(candidate)
    model.remove("desmosome")
    assert model.commit(candidate).file == f"structures/{candidate.path.name}"
    assert model.kept == ()
    # What was recorded of it stays with it, also where someone else finds other figures for the same tensors.
    before = model.entries["desmosome"]
    model.remove("desmosome")
    assert model.add("desmosome", another(model, "desmosome", 0), metrics={"r2": 0.5}) == before
    assert model.history[-1].metrics == before.metrics
    assert model.kept == ()
    assert model.gc().files == ()
    assert model.verify().bit_identical


# -- what is refused, with the model untouched -----------------------------------------------------------


def refused(path: Path, candidate: Candidate, message: str, **options: Any) -> None:
    before = contents(path)
    with pytest.raises(ModelError, match=message):
        commit(path, candidate, **{"action": "add", **options})
    assert contents(path) == before


def test_a_candidate_that_changed_is_refused(model_path: Path, candidate: Candidate) -> None:
    whole = candidate.path.read_bytes()
    candidate.path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(model_path, candidate, "is damaged: its SHA-256")
    place = whole.index(b"created")
    candidate.path.write_bytes(whole[:place] + b"C" + whole[place + 1 :])
    refused(model_path, candidate, "is damaged")
    candidate.path.write_bytes(whole[:100])
    refused(model_path, candidate, "damaged|cut short")
    candidate.path.unlink()
    refused(model_path, candidate, "is missing")


def test_a_candidate_for_another_base_is_refused(
    model_path: Path, candidate: Candidate, tmp_path: Path
) -> None:
    network = RepModeUNet(ARCHITECTURE, ("dna", "cell_membrane"), seed=9)
    liven(network)
    other = Model.create(tmp_path / "other", network.eval(), **PARTS)
    refused(other.path, candidate, "another base")
    with pytest.raises(ModelError, match="in the base"):
        make_candidate(other, "desmosome", another(Model.open(model_path), "desmosome", 0), tmp_path)


def test_a_candidate_that_came_too_late_is_refused(
    model_path: Path, candidate: Candidate, tmp_path: Path
) -> None:
    model = Model.open(model_path)
    seeing = grown(model, "golgi_apparatus", AdditionSpec(sees="all"))
    late = make_candidate(model, "golgi_apparatus", seeing, tmp_path / "late")
    model.commit(candidate)
    refused(model_path, candidate, "has 'desmosome' already")
    refused(model_path, candidate, "exactly this version", replace=True)
    model.add("mitochondria", another(model, "mitochondria", 5), replace=True)
    needed = Model.open(model_path).kept[0]
    refused(
        model_path, late, rf"made with version {needed.digest[:8]} of 'mitochondria'.*roll the model back"
    )
    model.remove("mitochondria")
    refused(model_path, late, "needs 'mitochondria', which .* lacks")
    # A network with what was removed is still one of this model: the version is kept.
    assert (
        make_candidate(model, "golgi_apparatus", seeing, tmp_path / "again").entry.digest == late.entry.digest
    )
    with pytest.raises(UnknownStructureError):
        commit(model_path, late, action="replace", replace=True)


def test_a_name_of_the_base_is_refused_with_that_reason(model_path: Path) -> None:
    with pytest.raises(ModelError, match="has 'dna' already, as part of its base"):
        check_name(model_path, Registry.read(model_path), "dna", replace=False)


def test_verify_notes_a_file_of_no_version(model_path: Path) -> None:
    model = Model.open(model_path)
    (model_path / "structures" / "thesis.safetensors").write_text("mine")
    (model_path / "structures" / f"desmosome-{'0' * 8}.safetensors").write_text("mine")
    notes = model.verify("files").notes
    assert [note.split("; ")[1] for note in notes] == ["`gc` deletes it", "nor did a model name it so"]
    assert [file for file, _ in model.gc().files] == [f"structures/desmosome-{'0' * 8}.safetensors"]


def test_numbers_that_are_not_finite_are_refused(model_path: Path) -> None:
    model = Model.open(model_path)
    network = another(model, "desmosome", 0)
    name = next(name for name in network.owned_names("desmosome") if name.endswith("running_var"))
    network.state_dict()[name][0] = torch.inf  # predicts finite numbers all the same
    with pytest.raises(ModelError, match=r"running_var.*its training diverged"):
        model.add("desmosome", network)


def test_a_folder_that_is_no_model_is_not_touched(tmp_path: Path, candidate: Candidate) -> None:
    with pytest.raises(ModelError, match=r"registry\.json is missing"):
        commit(tmp_path / "none", candidate, action="add")
    assert not (tmp_path / "none").exists()


# -- the lock --------------------------------------------------------------------------------------------


def test_the_process_that_holds_the_lock_is_named(
    model_path: Path, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction_module, "LOCK_SECONDS", 0.1)
    with (
        write_lock(model_path),
        pytest.raises(ModelError, match=r"locked for 0 s by process \d+ on .*, since 20"),
    ):
        commit(model_path, candidate, action="add")
    assert not list(model_path.glob(f"*{TEMPORARY_MARK}*"))
    with FileLock(model_path / ".lock"), pytest.raises(ModelError, match="by another process"):
        Model.open(model_path).remove("mitochondria")
    # Reading needs no lock.
    with write_lock(model_path):
        assert verify_model(model_path, "files").ok


def test_a_file_system_whose_locks_do_not_work_is_detected(
    model_path: Path, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = commit_module._unused_file_name

    def meanwhile(registry: Registry, entry: Any) -> str:
        others = [one for one in registry.entries if one.name != "mitochondria"]
        registry.with_change("remove", others, registry.kept, structure="mitochondria").write(model_path)
        return place(registry, entry)

    monkeypatch.setattr(commit_module, "_unused_file_name", meanwhile)
    with pytest.raises(ModelError, match="locks do not work on this file system"):
        commit(model_path, candidate, action="add")
    assert Model.open(model_path).structures == ("dna", "cell_membrane", "nucleolus", "tight_junction")


# -- temporary files -------------------------------------------------------------------------------------


@pytest.fixture
def left(model_path: Path) -> list[Path]:
    """Return leftovers of killed processes: three files of the model, and one of a running training."""
    names = (
        "registry{}.json",
        "structures/x{}.safetensors",
        ".lock{}holder",
        "pending/desmosome/state{}.json",
    )
    files = [model_path / name.format(TEMPORARY_MARK) for name in names]
    files[-1].parent.mkdir(parents=True)
    for file in files:
        file.write_text("half")
    return files


@pytest.mark.parametrize("how", ["open", "write"])
def test_leftovers_of_killed_writers_are_removed_by_the_next_command(
    model_path: Path, left: list[Path], how: str
) -> None:
    if how == "open":
        Model.open(model_path)
    else:
        with write_lock(model_path):
            pass
    assert [file.exists() for file in left] == [False, False, False, True]


def test_leftovers_of_a_killed_discard_are_removed_by_the_next_change(model_path: Path) -> None:
    folder = model_path / "pending" / ".discarded-00"
    folder.mkdir(parents=True)
    (folder / "checkpoint").write_text("half")
    Model.open(model_path).remove("mitochondria")
    assert not folder.exists()


@pytest.mark.parametrize(
    "error", [NotImplementedError("flock"), PermissionError(errno.EACCES, "Permission denied")]
)
def test_without_locks_it_is_unknown_whether_a_process_is_at_work(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model = Model.open(model_path)
    with training_lock(model, "desmosome"):
        model.pending("desmosome").mkdir()

    class Refusing:
        def __init__(self, *arguments: object, **options: object) -> None: ...

        def acquire(self) -> None:
            raise error

        __enter__ = acquire

        def __exit__(self, *arguments: object) -> None: ...

    monkeypatch.setattr(locks_module, "FileLock", Refusing)
    assert [one.busy for one in list_pending(model)] == [None]
    for command in ("show", "pending"):
        output = CliRunner().invoke(app, [command, str(model_path)]).output
        assert "cannot be told" in output
        assert "interrupted" not in output
    expected = "file system without locks" if isinstance(error, NotImplementedError) else "Permission denied"
    with pytest.raises((ModelError, PermissionError), match=expected):
        model.discard("desmosome")


def test_leftovers_stay_while_another_process_writes_or_in_a_read_only_model(
    model_path: Path, left: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FileLock(model_path / ".lock"):
        Model.open(model_path)
        assert all(file.exists() for file in left)
    with monkeypatch.context() as patch:
        patch.setattr(transaction_module.os, "access", lambda *arguments: False)
        remove_leftovers_if_idle(model_path)
        assert all(file.exists() for file in left)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", _refuse)
        remove_leftovers_if_idle(model_path)
    assert all(file.exists() for file in left)
    remove_leftovers_if_idle(model_path / "none")
    assert not (model_path / "none").exists()


def _refuse(*arguments: object, **options: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device.*it\.json"), replacing(tmp_path / "it.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
