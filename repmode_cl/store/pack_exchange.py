"""Export of added structures as packs, and import into models with the same base.

The metadata of a pack are checked against the model before its tensors are read. Then kernels, prediction and
references are computed again and compared with its proof, before the model is changed.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Literal

import torch

from repmode_cl.errors import ModelError, RepmodeError, UnknownStructureError
from repmode_cl.nn import RepModeUNet
from repmode_cl.store import record_files as records
from repmode_cl.store.candidate import Candidate
from repmode_cl.store.commit import commit, restore_structure_file
from repmode_cl.store.history import Action
from repmode_cl.store.load_network import find_missing_expert
from repmode_cl.store.pack_format import Pack, PackContents, read_pack, refuse_pack
from repmode_cl.store.preconditions import check_addition
from repmode_cl.store.probe import probe_shape, relative_difference
from repmode_cl.store.proof import FLOAT32_TOLERANCE, FLOAT64_TOLERANCE, Proof, prove
from repmode_cl.store.registry import Entry, Registry
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.atomic_files import replacing, sha256_file
from repmode_cl.utils.environment import describe_difference, with_threads
from repmode_cl.utils.safetensors_io import read_metadata

__all__ = ["ImportResult", "export_pack", "import_pack", "check_pack", "commit_pack"]

Agreement = Literal["bit-identical", "within tolerance"]


@dataclass(frozen=True)
class ImportResult:
    """A structure that became part of a model, and the result of checking its proof.

    Parameters
    ----------
    entry
        Its entry in the registry of the model.
    status
        ``bit-identical``: in the environment of its proof, its kernels and its prediction are the same bit for bit.
        ``within tolerance``: the environment is another one, and they differ from its float64 references by no more
        than that explains.
    detail
        In words: what was compared, and how the environments differ.
    restored
        The model had this very version, with a missing or damaged file, which was restored.
    """

    entry: Entry
    status: Agreement
    detail: str
    restored: bool = False


def export_pack(model: ModelSnapshot, name: str, file: str | Path) -> Path:
    """Write an added structure as a pack: one safetensors file for models with the same base.

    Parameters
    ----------
    model
        The model that has it.
    name
        One of its additions.
    file
        A path at which there is nothing yet.

    Returns
    -------
    Path
        The pack.

    Raises
    ------
    UnknownStructureError
        If the model does not have it.
    ModelError
        If it is part of the base, the model's file is damaged, or something is at `file` already.
    """
    file = Path(file)
    if name not in model.structures:
        raise UnknownStructureError(name, model.structures, f"the model {model.path}")
    entry = model.entries[name]
    if entry.kind == "base":
        added = [other for other in model.structures if other not in model.base_structures]
        raise ModelError(
            f"{name!r} is part of the base of {model.path}, which cannot be packed: send a copy of the model; "
            f"packs are made of additions ({', '.join(added) or 'it has none'})"
        )
    if file.exists():
        raise ModelError(f"{file} is there already: choose another name for the pack, or remove it")
    source = model.path / entry.file
    records.check_size(model.path, entry)
    with replacing(file) as temporary:
        shutil.copyfile(source, temporary)
        if sha256_file(temporary) != entry.sha256:
            raise ModelError(
                f"{source} ({name}) is damaged: its SHA-256 is not the one recorded; nothing was packed"
            )
        if read_metadata(temporary).get("version") == records.BARE_VERSION:
            # Written before files carried their entries: the same tensors, and the entry besides the record.
            state = records.read_structure(model.path, entry, model.base_digest)
            references = records.read_references(model.path, entry)
            proof = dataclasses.replace(entry.proof, references=references)
            entry = dataclasses.replace(entry, proof=proof)
            records.write_structure(temporary, state, entry, model.base_digest)
        # A pack that would be refused elsewhere is not handed out.
        read_pack(temporary).load()
    return file


def import_pack(model: ModelSnapshot, file: str | Path) -> ImportResult:
    """Add a structure from its pack, or restore the missing or damaged file of one.

    Where the model has the version already, active or kept, by the digest of its tensors, its recorded provenance,
    metrics and proof stay as they are, whatever the pack says.

    Parameters
    ----------
    model
        A model with the same base, and with the same versions of the additions that the structure needs.
    file
        A pack; it is only read.

    Returns
    -------
    ImportResult
        The new entry, and how its predictions agree with those in the model that it comes from.

    Raises
    ------
    ModelError
        If the pack is damaged, of an unknown version, for another base, needs a missing addition, has a name that is
        in use, or does not compute what it states. The model is then as it was.
    OSError
        If a file cannot be read or written.
    """
    pack = read_pack(file)
    registry, entry = Registry.read(model.path), pack.entry
    if pack.base == model.base_digest and entry.name in registry.names:
        active = registry.entry(entry.name)
        if (
            active.kind == "addition"
            and active.digest == entry.digest
            and not records.file_matches(model.path, active)
        ):
            checked = check_pack(model, pack)
            after = restore_structure_file(model.path, Candidate(pack.path, checked.entry))
            return dataclasses.replace(checked, entry=after.entry(entry.name), restored=True)
        if active.kind == "base":
            what = "as part of its base, and additions cannot have its name"
        elif active.digest == entry.digest:
            what = "exactly this version of it"
        else:
            what = "another version of it, which would have to be removed first"
        raise ModelError(
            f"{pack.path} is not imported: the model {model.path} has {entry.name!r} already, {what}"
        )
    return commit_pack(model, pack, action="import")


def commit_pack(model: ModelSnapshot, pack: Pack, *, action: Action, replace: bool = False) -> ImportResult:
    """Check a pack against a model in every way, and commit it.

    Parameters
    ----------
    model
        The model; its directory is read again, as it is on disk now.
    pack
        A pack of `read_pack`.
    action
        Action for the history.
    replace
        As for `commit`.

    Returns
    -------
    ImportResult
        As for `import_pack`.
    """
    check_addition(model.path, Registry.read(model.path), pack.entry.name, pack.entry.needs, replace=replace)
    checked = check_pack(model, pack)
    after = commit(model.path, Candidate(pack.path, checked.entry), action=action, replace=replace)
    return dataclasses.replace(checked, entry=after.entry(pack.entry.name))


def check_pack(model: ModelSnapshot, pack: Pack) -> ImportResult:
    """Check that a pack holds and computes what it states, with this model's base; nothing is written.

    Returns
    -------
    ImportResult
        The entry with the file's SHA-256, and the result of checking its proof.

    Raises
    ------
    ModelError
        See `import_pack`.
    """
    # Others may have changed the model since it was opened.
    model = ModelSnapshot.open(model.path)
    if pack.base != model.base_digest:
        raise ModelError(
            f"{pack.path} is not imported: {pack.entry.name!r} was made for the base {pack.base[:8]}, and {model.path} "
            f"has the base {model.base_digest[:8]}; a structure predicts only with the base that it was trained on"
        )
    network = _network_with_structure(model, pack)
    contents = pack.load()
    network.load_structure_state(pack.entry.name, contents.state)
    status, detail = _check_proof(pack, contents, network)
    return ImportResult(contents.entry, status, detail)


def _network_with_structure(model: ModelSnapshot, pack: Pack) -> RepModeUNet:
    """Return the model's network with the pack's structure added, not loaded; refuse tensors that do not fit it.

    The pack's data are not read for this, and no more memory is used than the model and the pack have bytes.
    """
    name, spec = pack.entry.name, pack.spec
    network = model.network(spec.needs)
    slots = pack.header.tensors
    try:
        if why := find_missing_expert(network, spec, slots):
            refuse_pack(pack.path, why)
        network.add_structure(name, spec)
        features = None if pack.entry.reliability is None else pack.entry.reliability.features
        if features is not None:
            features.check_network(network)
    except RepmodeError:
        raise
    except ValueError as error:
        raise ModelError(f"{pack.path} is refused: {error}") from error
    expected = {
        key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in network.structure_state(name).items()
    }
    prefix = f"{records.PROOF}{name}."
    expected[f"{prefix}prediction"] = (torch.float64, probe_shape(network.architecture))
    for block, mode_block in network.named_mode_blocks():
        expected[f"{prefix}kernels.{block}"] = (torch.float64, (2, mode_block.c_out))
    if missing := sorted(expected.keys() - slots.keys()):
        refuse_pack(pack.path, f"tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if extra := sorted(slots.keys() - expected.keys()):
        refuse_pack(
            pack.path, f"tensor {short(extra[0])} does not belong to the structure ({len(extra)} in all)"
        )
    for key, (dtype, shape) in expected.items():
        if (slots[key].dtype, slots[key].shape) != (dtype, shape):
            refuse_pack(
                pack.path,
                f"tensor {key!r} is {slots[key].dtype} {slots[key].shape}, needed is {dtype} {shape}",
            )
    return network.eval()


def _check_proof(pack: Pack, contents: PackContents, network: RepModeUNet) -> tuple[Agreement, str]:
    """Prove the structure again, and compare the result with the proof in the pack."""
    proof = pack.entry.proof
    with with_threads(int(proof.environment["threads"])):
        try:
            computed = prove(network, pack.entry.name)
        except ModelError as error:
            raise ModelError(f"{pack.path} is refused: {error}") from error
    difference = describe_difference(proof.environment, computed.environment)
    worst = max(
        relative_difference(value, contents.references[key]) for key, value in computed.references.items()
    )
    if not worst <= FLOAT64_TOLERANCE or not computed.float32_error <= FLOAT32_TOLERANCE:
        refuse_pack(
            pack.path,
            f"what it computes differs from the references in it by {worst:.1e} in float64 (allowed is "
            f"{FLOAT64_TOLERANCE:.0e}) and by {computed.float32_error:.1e} in float32 (allowed is "
            f"{FLOAT32_TOLERANCE:.0e})" + (f"; environment: {difference}" if difference else ""),
        )
    if computed.folded != proof.folded:
        refuse_pack(
            pack.path,
            f"it says that it predicts with {_norms_text(proof)} norms, and here {_norms_text(computed)} ones are "
            f"needed (folding them makes a difference of {computed.folding_error:.1e})",
        )
    if difference:
        return (
            "within tolerance",
            f"float64 to {worst:.1e}, float32 to {computed.float32_error:.1e}; other environment: {difference}",
        )
    if computed.kernel_digest != proof.kernel_digest or computed.prediction_digest != proof.prediction_digest:
        refuse_pack(
            pack.path, "its kernels or its prediction are not those that it states, in the same environment"
        )
    return "bit-identical", "kernels and prediction, in the environment that it was made in"


def _norms_text(proof: Proof) -> str:
    return "folded" if proof.folded else "unfolded"
