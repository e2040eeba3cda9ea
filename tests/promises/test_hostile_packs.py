"""Hostile and damaged packs are refused with a reason, and the model does not change by one byte."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from forging import Change, Forgery, first, malicious_files, with_header
from stored_model import PARTS, base_network, grown
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import RepmodeError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, RepModeUNet
from repmode_cl.store import verify_model
from repmode_cl.store.registry import Registry

ZEROS = "0" * 64


@pytest.fixture(scope="module")
def target(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model without nucleolus, which no pack here may change."""
    path = Path(shutil.copytree(stored, tmp_path_factory.mktemp("target") / "model"))
    model = Model.open(path)
    model.remove("mitochondria")
    model.remove("nucleolus")
    return path


@pytest.fixture(scope="module")
def good(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pack that can be imported."""
    return Model.open(stored).export_pack("nucleolus", tmp_path_factory.mktemp("packs") / "good.safetensors")


def files(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def refused(target: Path, pack: Path) -> str:
    """Import a pack, see that it is refused and changes no byte of the model, and return why."""
    before = files(target)
    with pytest.raises(RepmodeError) as caught:
        Model.open(target).import_pack(pack)
    assert files(target) == before
    return str(caught.value)


# -- forgeries without contradictions: every digest was computed again ------------------------------------------------


def _set(part: str, value: float) -> Change:
    return lambda f: f.tensors[first(f, part)].view(-1)[:1].fill_(value)


def _replace(part: str, make: object) -> Change:
    return lambda f: f.tensors.__setitem__(first(f, part), make(f.tensors[first(f, part)]))  # type: ignore[operator]


def _nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


FORGERIES: dict[str, tuple[Change, str]] = {
    "a missing tensor": (lambda f: f.tensors.pop("head.gate"), "'head.gate' is missing"),
    "a missing reference": (lambda f: f.tensors.pop(first(f, "kernels.head")), r"kernels\.head' is missing"),
    "an extra tensor": (lambda f: f.tensors.update(extra=torch.zeros(3)), "'extra' does not belong"),
    "an extra reference": (
        lambda f: f.tensors.update({"proof.nucleolus.more": torch.zeros(3).double()}),
        "more' does not belong",
    ),
    "another's reference": (
        lambda f: f.tensors.update({"proof.dna.prediction": torch.zeros(3).double()}),
        "does not belong to 'nucleolus'",
    ),
    "a wrong shape": (_replace("head.gate", lambda t: t.T.contiguous()), r"'head.gate' is .*\(1, 4\), needed is"),
    "a flat shape": (_replace("expert.weight", lambda t: t.reshape(-1)), "expert.weight' is"),
    "a wrong type": (_replace("head.gate", lambda t: t.double()), "'head.gate' is torch.float64"),
    "half precision": (_replace("head.gate", lambda t: t.half()), "is of type 'F16'"),
    "a NaN": (_set("head.gate", float("nan")), "head.gate.* not finite"),
    "an infinity": (_set("norm.running_mean", float("inf")), "not finite"),
    "a NaN reference": (_set("proof.", float("nan")), "not finite"),
    "a negative variance": (_set("norm.running_var", -1.0), "predicts numbers that are not finite"),
    "weights that overflow": (_replace("head.expert.weight", lambda t: t * 0 + 3e38), "not finite"),
    "one weight changed": (_set("head.gate", 0.25), "differs from the references"),
    "one reference changed": (_set("proof.nucleolus.prediction", 0.25), "differs from the references"),
    "false kernels": (lambda f: f.entry["proof"].update(kernel_digest=ZEROS), "not those that it states"),
    "a false prediction": (
        lambda f: f.entry["proof"].update(prediction_digest=ZEROS),
        "not those that it states",
    ),
    "another base": (lambda f: f.record["facts"].update(base=ZEROS), "made for the base 00000000"),
    "an invalid base": (lambda f: f.record["facts"].update(base="x"), "does not state the base that it is for"),
    "an unknown version": (lambda f: setattr(f, "version", "3"), "format version '3'"),
    "an old version": (lambda f: setattr(f, "version", "1"), "earlier version"),
    "a version that is no number": (lambda f: setattr(f, "version", "two"), "format version 'two'"),
    "more metadata": (lambda f: f.more.update(note="hello"), "its metadata are not"),
    "a name in use": (lambda f: f.rename("tight_junction"), "has 'tight_junction' already"),
    "a name of the base": (lambda f: f.rename("dna"), "has 'dna' already"),
    "another's name": (lambda f: f.rename("desmosome"), ""),
    "an empty name": (lambda f: f.rename(""), "cannot be used"),
    "a reserved name": (lambda f: f.rename("update"), "is reserved"),
    "a path up": (lambda f: f.rename("../../evil"), "cannot be used"),
    "an absolute path": (lambda f: f.rename("/tmp/evil"), "cannot be used"),
    "a path down": (lambda f: f.rename("evil/evil"), "cannot be used"),
    "a Windows path": (lambda f: f.rename("c:\\evil"), "cannot be used"),
    "a name of many letters": (lambda f: f.rename("a" * 3000), "no name of a structure"),
    "a name that is a number": (lambda f: f.entry.update(name=5), "no name of a structure"),
    "a path it needs": (lambda f: f.needs(["../dna"], [ZEROS]), "cannot be used"),
    "a need that is not here": (lambda f: f.needs(["golgi_apparatus"], [ZEROS]), "which .* lacks"),
    "a need in another version": (lambda f: f.needs(["tight_junction"], [ZEROS]), "made with version 00000000"),
    "a need of the base": (lambda f: f.needs(["dna"], [f.record["facts"]["base"]]), "'dna'"),
    "a need of itself": (lambda f: f.needs(["nucleolus"], [ZEROS]), "needs of .* are inconsistent"),
    "a need twice": (lambda f: f.needs(["dna", "dna"], [ZEROS, ZEROS]), "needs of .* are inconsistent"),
    "contradicting needs": (lambda f: f.spec(sees="all", needs=["dna"]), "needs of .* are inconsistent"),
    "an unknown expert": (lambda f: f.spec(expert="conv9"), "'conv9' is no expert"),
    "a rank of billions": (lambda f: f.spec(expert="lowrank:4000000000"), "no expert of rank"),
    "a rank of many digits": (lambda f: f.spec(expert="lowrank:" + "9" * 9000), "no expert of rank"),
    "an invalid rank": (lambda f: f.spec(expert="lowrank:-1"), "no expert of rank"),
    "an unknown norm": (lambda f: f.spec(norm="shared"), "norm is own or base"),
    "a base structure": (lambda f: f.entry.update(kind="base"), "no addition"),
    "an unknown key": (lambda f: f.entry.update(colour="red"), "not what an entry"),
    "a key less": (lambda f: f.entry.pop("metrics"), "lacks what an entry has"),
    "metrics that are a list": (lambda f: f.entry.update(metrics=[1]), "no JSON object"),
    "a time of control characters": (lambda f: f.entry.update(created="\x1b[2J2026-01-01"), "its time is"),
    "a million threads": (
        lambda f: f.entry["proof"]["environment"].update(threads=10**6),
        "allowed are 1 to 1024",
    ),
    "an environment of control characters": (
        lambda f: f.entry["proof"]["environment"].update(torch="\x1b[2J"),
        "environment says",
    ),
    "an invalid digest": (lambda f: f.entry["proof"].update(kernel_digest="../x"), "digests is not 64 hexadecimal"),
    "a rate beyond all": (lambda f: f.entry["provenance"].update(learning_rate=10**400), "not finite, or too large"),
    "a figure beyond all": (lambda f: f.entry["metrics"].update(r2=10**400), "a finite number is needed"),
    "a figure that is a list": (lambda f: f.entry["metrics"].update(r2=[0.5]), "a finite number is needed"),
    "a figure that is true": (lambda f: f.entry["metrics"].update(r2=True), "a finite number is needed"),
    "an invalid digest of images": (lambda f: f.entry["provenance"].update(images="evil"), "no hexadecimal number"),
    "control characters within": (lambda f: f.entry["provenance"].update(a=[{"b\x1b[2J": 1}]), "control characters"),
    "a deep provenance": (lambda f: f.entry["provenance"].update(a=_nested(31)), "nested more than 32 deep"),
    "a very deep record": (lambda f: f.record.update(a=_nested(900)), "nested more than 32 deep|recursion"),
    "a huge provenance": (lambda f: f.entry["provenance"].update(a="a" * (1 << 18)), "allowed are 262,144"),
    "norms that it does not have": (
        lambda f: (
            f.entry["proof"].update(folding_error=0.5),
            f.entry["proof"]["environment"].update(torch="2.0"),  # elsewhere, where digests are not compared
        ),
        "predicts with unfolded norms, and here folded ones are needed",
    ),
    "a number beyond all": (lambda f: f.entry["proof"].update(float32_error=10**400), "lacks what an entry has"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGERIES)
def test_a_forged_pack_is_refused(target: Path, good: Path, tmp_path: Path, case: str) -> None:
    change, why = FORGERIES[case]
    forgery = Forgery.of(good)
    change(forgery)
    pack = forgery.write(tmp_path / "pack.safetensors")
    if case == "another's name":
        # What a name hides is no damage: the digest covers it, and the structure predicts what it states.
        assert (
            Model.open(shutil.copytree(target, tmp_path / "copy")).import_pack(pack).entry.name == "desmosome"
        )
        return
    message = refused(target, pack)
    assert re.search(why, message), message
    assert len(message) < 1000
    assert "\x1b" not in message


def test_provenance_with_control_characters_can_be_shown(model_path: Path) -> None:
    """A model may hold it from before packs were checked for it."""
    registry = Registry.read(model_path)
    change = dataclasses.replace(
        registry.history[-1],
        provenance={"images": "\x1b[2J", "steps": 10**400, "learning_rate": 10**400, "seed": "\x1b"},
        metrics={"r2": 10**400},
    )
    dataclasses.replace(registry, history=(*registry.history[:-1], change)).write(model_path)
    done = CliRunner().invoke(app, ["history", str(model_path)])
    assert done.exit_code == 0
    assert "add mitochondria" in done.output
    assert "\x1b" not in done.output


def test_a_structure_that_cannot_be_packed_is_not_stored(model_path: Path, tmp_path: Path) -> None:
    model = Model.open(model_path)
    network = grown(model, "desmosome")
    with pytest.raises(RepmodeError, match="'desmosome' cannot be stored: its metrics say"):
        model.add("desmosome", network, metrics={"r2": {"mean": 0.5}})
    # A name of a file may hold anything; it is shown as what it is.
    entry = model.add("desmosome", network, provenance={"notes": ["a\nb.tif"]})
    assert entry.provenance == {"notes": ["a\\nb.tif"]}
    model.export_pack("desmosome", tmp_path / "pack.safetensors")


def test_an_unchanged_forgery_is_imported(target: Path, good: Path, tmp_path: Path) -> None:
    """The other forgeries are not refused because of the way in which they are written."""
    pack = Forgery.of(good).write(tmp_path / "pack.safetensors")
    assert Model.open(shutil.copytree(target, tmp_path / "copy")).import_pack(pack).status == "bit-identical"


def test_a_pack_for_another_base_is_refused(target: Path, tmp_path: Path) -> None:
    network = RepModeUNet(base_network().architecture, ("dna", "cell_membrane"), seed=1)
    other = Model.create(tmp_path / "other", network.eval(), **PARTS)
    other.add("nucleolus", grown(other, "nucleolus"))
    pack = other.export_pack("nucleolus", tmp_path / "pack.safetensors")
    message = refused(target, pack)
    assert other.base_digest[:8] in message
    assert Model.open(target).base_digest[:8] in message
    # Nor does it help to say that it is for this one.
    forgery = Forgery.of(pack)
    forgery.record["facts"]["base"] = Model.open(target).base_digest
    assert "differs from the references" in refused(target, forgery.write(tmp_path / "forged.safetensors"))


# -- what contradicts itself -----------------------------------------------------------------------------------------


def test_a_digest_that_was_not_recomputed_is_found(target: Path, good: Path, tmp_path: Path) -> None:
    for part, why in {
        "head.gate": "its digest was computed from",
        "proof.": "references .* are not those",
    }.items():
        forgery = Forgery.of(good)
        forgery.honest = False
        forgery.tensors[first(forgery, part)] += 1
        assert re.search(why, refused(target, forgery.write(tmp_path / "pack")))
    forgery = Forgery.of(good)
    forgery.honest = False
    forgery.entry["parameters"] += 1
    assert "parameters" in refused(target, forgery.write(tmp_path / "pack"))
    forgery = Forgery.of(good)
    forgery.more["checksum"] = ZEROS
    assert "checksum" in refused(target, forgery.write(tmp_path / "pack"))


@pytest.mark.parametrize(("of_header", "of_data"), [(50, 30), pytest.param(150, 100, marks=pytest.mark.slow)])
def test_any_flipped_bit_is_found(
    target: Path, good: Path, tmp_path: Path, of_header: int, of_data: int
) -> None:
    data, rng = good.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    places = [
        *range(8),
        *rng.sample(range(8, header), of_header),
        *rng.sample(range(header, len(data)), of_data),
    ]
    pack = tmp_path / "pack"
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << rng.randrange(8)
        pack.write_bytes(changed)
        refused(target, pack)
    for place in (header - 1, header, len(data) - 1):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            pack.write_bytes(changed)
            refused(target, pack)


def test_a_pack_cut_short_or_too_long_is_refused(target: Path, good: Path, tmp_path: Path) -> None:
    data, rng = good.read_bytes(), random.Random(0)
    pack = tmp_path / "pack"
    for length in (0, 1, 7, 8, 9, 10, 100, len(data) - 1, *rng.sample(range(len(data)), 40)):
        pack.write_bytes(data[:length])
        refused(target, pack)
    pack.write_bytes(data + b"\0")
    assert "its header describes" in refused(target, pack)


HEADERS = {
    "no JSON": b"{hello}",
    "a list": b"[1, 2]",
    "no text": b"\xff\xfe\xfd",
    "a key twice": b'{"a": 1, "a": 2}',
    "metadata that are numbers": b'{"__metadata__": {"format": 1}}',
    "metadata that are a list": b'{"__metadata__": []}',
    "a tensor that is a number": b'{"a": 3}',
    "a tensor of objects": b'{"a": {"dtype": "object", "shape": [1], "data_offsets": [0, 8]}}',
    "a type that is a list": b'{"a": {"dtype": [], "shape": [1], "data_offsets": [0, 8]}}',
    "a negative size": b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
    "a huge shape": b'{"a": {"dtype": "F32", "shape": [4000000000, 4000000000], "data_offsets": [0, 8]}}',
    "a shape of truth": b'{"a": {"dtype": "F64", "shape": [true], "data_offsets": [0, 8]}}',
    "a shape of fractions": b'{"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}',
    "beyond the end": b'{"a": {"dtype": "F32", "shape": [200], "data_offsets": [0, 800]}}',
    "before the beginning": b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}',
    "a gap": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
    "an overlap": b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
    b'"b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
    "numbers that are none": b'{"a": NaN}',
    "very deep": b"[" * 200_000,
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_strange_header_is_refused(target: Path, tmp_path: Path, case: str) -> None:
    pack = tmp_path / "pack"
    pack.write_bytes(with_header(HEADERS[case], bytes(8)))
    assert len(refused(target, pack)) < 1000


def test_a_huge_header_is_not_read(target: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    for length in (1 << 63, (1 << 64) - 1, 10_000):
        pack.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(100))
        assert "cut short" in refused(target, pack)
    # As long as it says, and of no bytes on most disks.
    with pack.open("wb") as file:
        file.write((1 << 34).to_bytes(8, "little") + b"{}")
        file.truncate((1 << 34) + 100)
    assert "its header has 17,179,869,184 bytes, allowed are 16,777,216" in refused(target, pack)
    # The largest that is read.
    text = json.dumps({"__metadata__": {"format": "x" * ((1 << 24) - 40)}}).encode()
    pack.write_bytes(with_header(text))
    assert "it is no pack" in refused(target, pack)


@pytest.mark.parametrize("kind", ["plain", "zip", "old"])
def test_a_pickle_is_never_run(target: Path, model_path: Path, tmp_path: Path, kind: str) -> None:
    evil = malicious_files(tmp_path)[kind]
    refused(target, evil)
    # Nor where a file of the model was exchanged for one, padded to its size.
    file = model_path / Model.open(model_path).entries["nucleolus"].file
    file.write_bytes(evil.read_bytes().ljust(file.stat().st_size, b"\0")[: file.stat().st_size])
    with pytest.raises(RepmodeError, match=file.name):
        Model.open(model_path).network()
    assert not verify_model(model_path).ok
    assert not (tmp_path / "run").exists()


def test_a_folder_is_no_pack(target: Path, tmp_path: Path) -> None:
    assert "is a folder" in refused(target, tmp_path)
    with pytest.raises(FileNotFoundError):
        Model.open(target).import_pack(tmp_path / "nothing")


def test_false_needs_that_exist_in_the_model_are_refused(target: Path, good: Path, tmp_path: Path) -> None:
    """The needs exist in the model, but the tensors do not fit them."""
    active = Model.open(target).entries["tight_junction"].digest
    forgery = Forgery.of(good)
    forgery.needs(["tight_junction"], [active])
    assert "needed is" in refused(target, forgery.write(tmp_path / "pack"))
    assert AdditionSpec().sees == "own"
