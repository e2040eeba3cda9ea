"""A signature binds each part of a model to a person: swapped, removed, older and re-digested parts are refused."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from stored_model import another, make_model
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import ModelError, RepmodeError, UnknownStructureError
from repmode_cl.model import Model
from repmode_cl.store import signatures, statements
from repmode_cl.store.keys import fingerprint, make_key, raw_bytes, read_private_key, read_public_key
from repmode_cl.store.registry import Registry
from repmode_cl.store.signatures import sign_model, verify_signatures
from repmode_cl.store.verify import verify_model
from repmode_cl.store.verify_report import Level, VerifyReport
from repmode_cl.utils.atomic_files import TEMPORARY_MARK

FIXTURES = Path(__file__).parents[1] / "fixtures"

ADA, BEN = (Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in (1, 2))


def problems(path: Path, *keys: Ed25519PrivateKey, includes: str | None = None) -> str:
    public: list[Ed25519PublicKey] = [key.public_key() for key in keys or (ADA,)]
    return "; ".join(verify_signatures(path, public, includes=includes).problems)


@pytest.fixture(scope="module")
def made(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that Ada signed, which no test may change."""
    path = Path(shutil.copytree(stored, tmp_path_factory.mktemp("signed") / "model"))
    sign_model(path, ADA)
    return path


@pytest.fixture
def signed(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def test_each_part_has_a_statement_and_an_addition_leaves_the_others(signed: Path) -> None:
    report = verify_signatures(signed, [ADA.public_key()])
    assert report.ok
    assert list(report.signed) == ["the model", "the base", "nucleolus", "tight_junction", "mitochondria"]
    statement = report.signed["mitochondria"].statement
    model = Model.open(signed)
    assert statement.values["digest"] == model.entries["mitochondria"].digest
    assert statement.values["base"] == model.base_digest
    needed = ("nucleolus", "tight_junction")
    assert statement.values["needs"] == [[name, model.entries[name].digest] for name in needed]
    assert sign_model(signed, BEN) == []  # nothing is left to sign
    before = {file.name: file.read_bytes() for file in (signed / "signatures").iterdir()}
    model.add("desmosome", another(model, "desmosome", 0))
    assert "desmosome" in problems(signed)
    assert "nobody signed it" in problems(signed)
    [one] = sign_model(signed, BEN)
    assert (one.statement.name, one.statement.number) == ("desmosome", 6)
    assert one.statement.values["previous"] == report.newest
    assert problems(signed, ADA, BEN) == ""
    assert {name: (signed / "signatures" / name).read_bytes() for name in before} == before
    # Who trusts only Ada learns whose the addition is.
    assert problems(signed, ADA) == (
        f"statement 6 (desmosome) is signed by the key {fingerprint(raw_bytes(BEN.public_key()))}, which is none of "
        "those given"
    )
    assert Model.open(signed).verify("tensors").ok


def rewrite(path: Path, registry: Registry) -> None:
    registry.write(path)


def test_swapped_names_are_found(signed: Path) -> None:
    """Each structure's file under the other's name, in a registry with a checksum that fits."""
    registry = Registry.read(signed)
    entries = {entry.name: entry for entry in registry.entries}
    one, other = entries["nucleolus"], entries["tight_junction"]
    swapped = {
        "nucleolus": replace(other, name="nucleolus"),
        "tight_junction": replace(one, name="tight_junction"),
    }
    rewrite(signed, replace(registry, entries=tuple(swapped.get(e.name, e) for e in registry.entries)))
    found = problems(signed)
    assert "nucleolus has the digest" in found
    assert "tight_junction has the digest" in found
    # Not even the files' names: without the digests the levels below see nothing.
    assert "the registry says something else of it than its signed file" in found


def test_a_removed_structure_is_found_until_its_removal_is_signed(signed: Path) -> None:
    # The last one, then one from the middle of the chain.
    for name in ("mitochondria", "nucleolus"):
        Model.open(signed).remove(name)
        assert problems(signed, ADA, BEN) == f"{name} is gone from the model, and nobody signed its removal"
        [one] = sign_model(signed, BEN, [name])
        assert one.statement.kind == "removal"
        assert problems(signed, ADA, BEN) == ""


def test_removed_statements_are_found(signed: Path) -> None:
    newest = verify_signatures(signed, [ADA.public_key()]).newest
    last = signed / "signatures" / "0005.json"
    kept = last.read_bytes()
    last.unlink()
    # The statement alone: the structure is then not signed.
    assert "mitochondria" in problems(signed)
    # Structure and statement: only who knows the newest statement can see it.
    Model.open(signed).remove("mitochondria")
    assert problems(signed) == ""
    assert "this is an older copy of the model" in problems(signed, includes=newest)
    last.write_bytes(kept)
    (signed / "signatures" / "0004.json").unlink()
    with pytest.raises(ModelError, match=r"0004.json is missing"):
        problems(signed)
    last.replace(signed / "signatures" / "0004.json")
    with pytest.raises(ModelError, match="does not follow the statement before it"):
        problems(signed)


def test_an_old_version_that_is_put_back_is_found(signed: Path, tmp_path: Path) -> None:
    model = Model.open(signed)
    old = Path(shutil.copytree(signed, tmp_path / "old"))
    model.add("mitochondria", another(model, "mitochondria", 5), replace=True)
    sign_model(signed, ADA)
    newest = verify_signatures(signed, [ADA.public_key()]).newest
    assert problems(signed, includes=newest[:12]) == ""
    # By the model's own means, and by the old registry with the old file.
    Model.open(signed).rollback(4)
    assert "mitochondria is the older version" in problems(signed)
    shutil.copy(old / "registry.json", signed / "registry.json")
    assert "of statement 5, and a later statement holds" in problems(signed)
    assert Model.open(signed).verify("tensors").ok  # digests see nothing wrong
    # The whole old directory is what was signed then; only a statement that was seen since tells.
    assert problems(old) == ""
    assert problems(old, includes=newest) == (
        f"there is no statement {newest}: this is an older copy of the model, or another model"
    )


@pytest.mark.parametrize("seen", ["", "0", "abcdef1", "ABCDEF12", "abcdefgh", "a" * 65, " 12345678"])
def test_what_is_no_digest_was_never_seen(signed: Path, seen: str) -> None:
    newest = verify_signatures(signed, [ADA.public_key()]).newest
    assert problems(signed, ADA, includes=newest[:8]) == problems(signed, ADA)
    for includes in {seen, newest[: len(seen)]} if len(seen) < 8 else {seen}:
        with pytest.raises(ModelError, match=r"the statement seen before is .*at least 8"):
            problems(signed, ADA, includes=includes)


def test_a_model_changed_together_with_its_digests_is_found(signed: Path, tmp_path: Path) -> None:
    model = Model.open(signed)
    own = model.entries["nucleolus"]
    # Another network of the same name and base, in a registry that fits it: what digests do not see.
    forged = Model.open(shutil.copytree(signed, tmp_path / "forged"))
    forged.remove("mitochondria")
    forged.add("nucleolus", another(forged, "nucleolus", 9), replace=True)
    assert forged.verify("tensors").ok
    assert f"and {own.digest[:8]} was signed (statement 3)" in problems(forged.path)
    signed_still = verify_signatures(forged.path, [ADA.public_key()]).signed
    assert list(signed_still) == ["the model", "the base", "tight_junction"]
    # Another base altogether, with the old signatures.
    other = make_model(tmp_path / "other")
    document = json.loads((other / "model.json").read_text())
    assert document["base"]["digest"] == model.base_digest
    document["inference"]["overlap"] = 0.25
    (other / "model.json").write_text(json.dumps(document))
    import hashlib

    digest = hashlib.sha256((other / "model.json").read_bytes()).hexdigest()
    rewrite(other, replace(Registry.read(other), model_sha256=digest))
    assert Model.open(other).verify("tensors").ok
    shutil.copytree(signed / "signatures", other / "signatures")
    assert "the model is not what statement 1 states" in problems(other)
    with pytest.raises(ModelError, match="the model is not what statement 1 states"):
        sign_model(other, BEN)


def test_figures_in_the_registry_are_those_of_the_signed_files(signed: Path) -> None:
    registry = Registry.read(signed)
    better = tuple(
        replace(entry, metrics={"r2": 0.99}) if entry.name == "nucleolus" else entry
        for entry in registry.entries
    )
    rewrite(signed, replace(registry, entries=better))
    assert "nucleolus: the registry says something else" in problems(signed)
    base = tuple(
        replace(entry, metrics={"r2": 0.99}) if entry.name == "dna" else entry for entry in registry.entries
    )
    rewrite(signed, replace(registry, entries=base))
    assert "the base is not what statement 2 states" in problems(signed)


@pytest.mark.parametrize("fixture", ["model-v1-live", "model-v2", "model-v3", "model-v4"])
def test_figures_of_models_of_every_format_are_signed(fixture: str, tmp_path: Path) -> None:
    """Files of the first format do not hold them: then they are in the statement."""
    path = Path(shutil.copytree(FIXTURES / fixture, tmp_path / "model"))
    sign_model(path, ADA)
    assert problems(path) == ""
    registry = Registry.read(path)
    added = [entry for entry in registry.entries if entry.kind == "addition"]
    assert added
    for entry in added:
        better = tuple(
            replace(one, metrics={"r2": 0.99}) if one.name == entry.name else one for one in registry.entries
        )
        rewrite(path, replace(registry, entries=better))
        assert entry.name in problems(path)
    rewrite(path, registry)
    assert problems(path) == ""


def test_a_statement_of_before_does_not_sign_the_figures_of_the_first_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(FIXTURES / "model-v1-live", tmp_path / "model"))
    with monkeypatch.context() as before:
        before.setattr(statements, "read_metadata", lambda file: {"entry": "as if it was there"})
        sign_model(path, ADA)
        names = [name for name in Model.open(path).entries if name not in Model.open(path).base_structures]
    for name in names:
        assert f"the figures of {name} are not signed" in problems(path)
    assert [one.statement.name for one in sign_model(path, ADA)] == names
    assert problems(path) == ""


def test_the_history_is_that_of_the_signed_versions(signed: Path) -> None:
    registry = Registry.read(signed)
    for name, found in (("nucleolus", "nucleolus: change 2 of the history"), (None, "the base: the history")):
        history = tuple(
            replace(change, metrics={"r2": 0.99}) if change.structure == name else change
            for change in registry.history
        )
        rewrite(signed, replace(registry, history=history))
        assert found in problems(signed)
    model = Model.open(signed)
    rewrite(signed, registry)
    model.remove("mitochondria")
    model.rollback(len(registry.history))
    sign_model(signed, ADA)
    assert problems(signed) == ""


def test_a_killed_or_present_writer_leaves_no_statement(signed: Path) -> None:
    """A temporary file of a statement is neither one that is missing nor one that was removed."""
    half = signed / "signatures" / f"0099{TEMPORARY_MARK}ab.json"
    half.write_text("{")
    assert problems(signed) == ""
    model = Model.open(signed)
    assert not half.exists()
    model.add("golgi", another(model, "golgi", 1))
    assert [one.statement.name for one in sign_model(signed, ADA)] == ["golgi"]
    assert problems(signed) == ""


def test_changed_statements_and_files_are_found(signed: Path) -> None:
    file = signed / "signatures" / "0003.json"
    values = json.loads(file.read_text())
    text = file.read_text()
    file.write_text(text.replace('"name": "nucleolus"', '"name": "nucleoli"'))
    with pytest.raises(ModelError, match="the signature does not fit the statement"):
        problems(signed)
    values["public_key"] = base64.b64encode(raw_bytes(BEN.public_key())).decode()
    file.write_text(json.dumps(values))
    with pytest.raises(ModelError, match="the signature does not fit the statement"):
        problems(signed)
    for broken in (
        "{",
        "[]",
        text.replace('"version": 1', '"version": 2'),
        text.replace('"needs"', '"need"'),
    ):
        file.write_text(broken)
        with pytest.raises(ModelError, match=r"0003.json"):
            problems(signed)
    file.write_text(text)
    structure = signed / Model.open(signed).entries["nucleolus"].file
    content = bytearray(structure.read_bytes())
    content[-1] ^= 1
    structure.write_bytes(content)
    assert "is not the file that was signed" in problems(signed)
    with pytest.raises(ModelError, match="nucleolus, mitochondria failed, and a damaged model is not signed"):
        sign_model(signed, ADA)


def test_one_signs_only_what_one_names(model_path: Path) -> None:
    with pytest.raises(
        ModelError, match="not signed are also the model, the base, tight_junction, mitochondria"
    ):
        sign_model(model_path, ADA, ["nucleolus"])
    assert not (model_path / "signatures").exists()
    assert "is not signed" in problems(model_path)
    with pytest.raises(UnknownStructureError, match="did you mean 'nucleolus'"):
        sign_model(model_path, ADA, ["nucleolis"])


def test_a_change_during_the_check_is_not_signed(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Path, level: Level) -> VerifyReport:
        report = verify_model(path, level)
        Model.open(path).remove("mitochondria")
        return report

    monkeypatch.setattr(signatures, "verify_model", slow)
    with pytest.raises(ModelError, match="changed while it was checked"):
        sign_model(model_path, ADA)
    assert not (model_path / "signatures").exists()


def test_keys_are_read_in_both_formats_and_others_refused(tmp_path: Path) -> None:
    public = make_key(tmp_path / "ada.pem")
    assert public == tmp_path / "ada.pem.pub"
    if sys.platform != "win32":
        assert (tmp_path / "ada.pem").stat().st_mode & 0o777 == 0o600
    key = read_private_key(tmp_path / "ada.pem")
    assert raw_bytes(key.public_key()) == raw_bytes(read_public_key(public))
    with pytest.raises(RepmodeError, match="is there already"):
        make_key(tmp_path / "ada.pem")
    ssh, pem = serialization.Encoding.OpenSSH, serialization.Encoding.PEM
    (tmp_path / "id.pub").write_bytes(key.public_key().public_bytes(ssh, serialization.PublicFormat.OpenSSH))
    assert raw_bytes(read_public_key(tmp_path / "id.pub")) == raw_bytes(key.public_key())
    secret = serialization.BestAvailableEncryption(b"secret")
    (tmp_path / "locked").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, secret))
    assert (
        read_private_key(tmp_path / "locked", lambda: "secret").private_bytes_raw() == key.private_bytes_raw()
    )
    with pytest.raises(RepmodeError, match="is encrypted"):
        read_private_key(tmp_path / "locked")
    with pytest.raises(RepmodeError, match="no private key that can be read"):
        read_private_key(tmp_path / "locked", lambda: "wrong")
    with pytest.raises(RepmodeError, match="is a private key"):
        read_public_key(tmp_path / "ada.pem")
    other = generate_private_key(SECP256R1())
    plain = serialization.NoEncryption()
    (tmp_path / "ec.pem").write_bytes(other.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    with pytest.raises(RepmodeError, match="a key of another kind"):
        read_private_key(tmp_path / "ec.pem")
    with pytest.raises(RepmodeError, match="no such key file"):
        read_public_key(tmp_path / "nobody.pub")


def test_the_commands_sign_and_verify(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "ada.pem"
    # A mistake makes no key, which would be in the way of the corrected command.
    wrong = CliRunner().invoke(app, ["sign", str(tmp_path), "--key", str(key), "--new-key"])
    assert wrong.exit_code == 2
    assert not key.exists()
    done = CliRunner().invoke(app, ["sign", str(model_path), "--key", str(key), "--new-key"])
    assert done.exit_code == 0, done.output
    assert done.output.count("signed by ed25519:") == 5
    words = ["verify", str(model_path), "--level", "files", "--signed-by", f"{key}.pub"]
    good = CliRunner().invoke(app, words)
    assert good.exit_code == 0, good.output
    assert "nucleolus: statement 3" in good.output
    newest = good.output.split("newest statement: ")[1].split()[0]
    assert CliRunner().invoke(app, [*words, "--includes", newest]).exit_code == 0
    assert CliRunner().invoke(app, [*words, "--includes", "0" * 64]).exit_code == 2
    stranger = make_key(tmp_path / "eve.pem")
    bad = CliRunner().invoke(app, [*words[:-1], str(stranger)])
    assert bad.exit_code == 2
    assert "is not what the given keys signed" in bad.output
    assert CliRunner().invoke(app, ["verify", str(model_path), "--includes", newest]).exit_code == 2
    monkeypatch.setitem(sys.modules, "cryptography", None)
    missing = CliRunner().invoke(app, words)
    assert missing.exit_code == 2
    assert "signing needs cryptography: pip install" in missing.output
