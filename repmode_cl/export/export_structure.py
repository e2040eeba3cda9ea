"""Export of one structure to a file: written aside, run by its own runtime, compared with the model, put in place."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from repmode_cl.errors import RepmodeError, UnknownStructureError
from repmode_cl.export.bioimageio_package import check_packable, write_package
from repmode_cl.export.description import Attribution
from repmode_cl.export.layers import ExportableNetwork, check_exportable
from repmode_cl.export.metadata import export_facts, facts_text
from repmode_cl.export.onnx_graph import make_onnx, save_onnx
from repmode_cl.export.parity import Parity, ParityCheck
from repmode_cl.export.runtimes import onnx_network, runtime_text, torch_network
from repmode_cl.export.torch_program import make_program, save_program
from repmode_cl.export.volumes import ParityVolume
from repmode_cl.inference.window_batches import Network
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.atomic_files import replacing

__all__ = ["SUFFIXES", "ExportFormat", "ExportedFile", "export_paths", "export_structure"]

ExportFormat = Literal["onnx", "torch", "bioimageio"]

#: Suffix of the files of each format.
SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "torch": ".pt2", "bioimageio": ".zip"}

_PLACEHOLDER = "{structure}"


@dataclass(frozen=True)
class ExportedFile:
    """A file that was exported.

    Attributes
    ----------
    path
        The file.
    structure
        Its structure.
    format
        Its format.
    parity
        Its differences from the model.
    """

    path: Path
    structure: str
    format: ExportFormat
    parity: Parity


def export_paths(
    out: str | Path, structures: Sequence[str], format_: ExportFormat | None
) -> tuple[tuple[Path, ...], ExportFormat]:
    """Return the file to write for each structure, and their format.

    Parameters
    ----------
    out
        For one structure a file; for several a folder, or a name with ``{structure}`` in it.
    structures
        Names.
    format_
        Format; None takes that of the suffix, and in a folder ONNX.

    Raises
    ------
    RepmodeError
        If the suffix is none of a format or of another one, several would go into one file, or a file is there.
    """
    text = str(out)
    suffix = Path(text).suffix.lower()
    known = {ending: name for name, ending in SUFFIXES.items()}
    folder = _PLACEHOLDER not in text and suffix not in known and (len(structures) > 1 or format_ is not None)
    if folder:
        chosen = format_ or "onnx"
        paths = tuple(Path(text) / f"{name}{SUFFIXES[chosen]}" for name in structures)
    else:
        if suffix not in known:
            raise RepmodeError(
                f"{out}: the suffix chooses the format, one of {', '.join(known)}; or give a folder and --format with "
                f"one of {', '.join(get_args(ExportFormat))}"
            )
        chosen = known[suffix]
        if format_ not in (None, chosen):
            raise RepmodeError(f"{out}: a {suffix} file is of the format {chosen}, not {format_}")
        if len(structures) > 1 and _PLACEHOLDER not in text:
            raise RepmodeError(
                f"{out}: each structure needs a file; give a folder, or a name with {_PLACEHOLDER} in it"
            )
        paths = tuple(Path(text.replace(_PLACEHOLDER, name)) for name in structures)
    for path in paths:
        if path.exists():
            raise RepmodeError(f"{path}: is there already; remove it, or give another name")
    return paths, chosen


def export_structure(
    model: ModelSnapshot,
    structure: str,
    out: Path,
    format_: ExportFormat,
    volume: ParityVolume,
    attribution: Attribution | None = None,
) -> ExportedFile:
    """Write the fused network of a structure as a file of another format.

    The file is written under a temporary name, loaded by its runtime, compared with the model on the probe and on
    `volume`, and only then renamed.

    Parameters
    ----------
    model
        The model.
    structure
        One of its structures.
    out
        The file to write.
    format_
        ``onnx``, ``torch``, or ``bioimageio``: a package that holds the ONNX file.
    volume
        Part of an image.
    attribution
        Authors and licence of a package, which other formats have no place for.

    Raises
    ------
    UnknownStructureError
        If the model does not have it.
    StructureError
        If its network cannot be fused.
    RepmodeError
        If a library is missing, the file differs from the model beyond the tolerance, or a package lacks authors or
        fails its test.
    """
    if format_ == "bioimageio":
        return _export_package(model, structure, out, volume, attribution or Attribution())
    if structure not in model.structures:
        raise UnknownStructureError(structure, model.structures, f"the model {model.path}")
    network = check_exportable(model.fused(structure))
    check = ParityCheck(model, structure, volume)
    make, save, load = _FORMATS[format_]
    runtime, depth = runtime_text(format_), model.architecture.depth
    with replacing(out) as temporary:
        artefact = make(network, structure)
        save(artefact, temporary, facts_text(export_facts(model, structure, None)))
        exported = load(temporary, depth)
        before = check.predict_probe(exported)
        parity = check.compare(exported, runtime)
        # Once more, with the result in it: the file that is kept has to be the one that was compared.
        save(artefact, temporary, facts_text(export_facts(model, structure, parity)))
        if not np.array_equal(before, check.predict_probe(load(temporary, depth))):
            raise RepmodeError(
                f"{structure} is not exported: {runtime} predicts one file differently each time; nothing was written"
            )
    return ExportedFile(out, structure, format_, parity)


def _export_package(
    model: ModelSnapshot, structure: str, out: Path, volume: ParityVolume, attribution: Attribution
) -> ExportedFile:
    check_packable(model, attribution)
    with tempfile.TemporaryDirectory() as folder, replacing(out) as temporary:
        file = Path(folder) / f"{structure}.onnx"
        parity = export_structure(model, structure, file, "onnx", volume).parity
        write_package(model, structure, file, temporary, parity, volume, attribution)
    return ExportedFile(out, structure, "bioimageio", parity)


_Maker = Callable[[ExportableNetwork, str], Any]
_Saver = Callable[[Any, Path, str], None]
_Loader = Callable[[Path, int], Network]
_FORMATS: dict[str, tuple[_Maker, _Saver, _Loader]] = {
    "onnx": (make_onnx, save_onnx, onnx_network),
    "torch": (make_program, save_program, torch_network),
}
