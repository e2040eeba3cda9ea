"""``repmode-cl show`` and ``verify``: the structures of a model, and the proof that they are unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repmode_cl.cli.options import ReadModelArgument, console, fail
from repmode_cl.cli.text import figure, printable, training_texts
from repmode_cl.cli.verdicts import verdict_line
from repmode_cl.errors import RepmodeError, counted
from repmode_cl.utils.command_text import command

if TYPE_CHECKING:
    from repmode_cl.store import Change
    from repmode_cl.store.registry import Entry
    from repmode_cl.store.verify_report import ModelComparison

__all__ = ["show", "verify"]


class Level(StrEnum):
    """Depth of a check; each level includes the ones before."""

    files = "files"
    tensors = "tensors"
    kernels = "kernels"
    predictions = "predictions"


def show(model: ReadModelArgument) -> None:
    """List a model's structures and how each was added.

    R2 is of held-out images; that of an imported structure is its sender's figure. The lines below the table say what
    it is worth, and whether more steps may help.

    For example:

      repmode-cl show model
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
    from repmode_cl.data.voxel_size_check import trained_voxels, voxel_range_text
    from repmode_cl.model import Model
    from repmode_cl.store import list_pending
    from repmode_cl.utils.number_format import count_text

    opened = Model.open(model)
    shape = opened.architecture
    typer.echo(f"{model}: width {shape.width}, depth {shape.depth}, experts {', '.join(shape.experts)}")
    if shape.choice_texts:
        typer.echo(f"network: {', '.join(shape.choice_texts)}")
    if opened.voxel_size is not None:
        typer.echo(f"voxel size (z, y, x) in um: {' x '.join(f'{um:g}' for um in opened.voxel_size)}")
    provenance = opened.entries[opened.base_structures[0]].provenance
    seen = trained_voxels(provenance, None)
    if trained := voxel_range_text(seen):
        typer.echo(f"trained on images of voxels of {trained}")
    elif seen.recorded and opened.voxel_size is not None:
        typer.echo("no image that it was trained on states its voxels: each kept its own grid")
    if trained_with := training_texts(provenance, len(opened.base_structures), added=False):
        typer.echo(printable(f"the base was trained with {', '.join(trained_with)}"))
    if prepared := PreprocessingRecipe.from_json(opened.preprocessing).summary:
        typer.echo(f"images are prepared with {prepared}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("structure", "kind", "how", "R2", "parameters", "bytes", "digest", "stored"):
        table.add_column(
            heading,
            justify="right" if heading in ("R2", "parameters", "bytes") else "left",
            no_wrap=heading != "how",  # the one that may be long
        )
    for entry in opened.entries.values():
        base = entry.spec is None
        table.add_row(
            entry.name,
            entry.kind,
            "" if entry.spec is None else escape(printable(entry.spec.text)),
            _r2(entry, opened.history),
            # Base structures share one file: its size is listed once.
            "" if base and entry.name != opened.base_structures[0] else count_text(entry.parameters),
            "" if base and entry.name != opened.base_structures[0] else count_text(entry.bytes, "B"),
            entry.digest[:8],
            escape(printable(entry.created[:10])),
        )
    console().print(table)
    for entry in opened.entries.values():
        typer.echo(verdict_line(entry, model, base=len(opened.base_structures)))
    for entry in opened.entries.values():
        if not entry.proof.folded:
            typer.echo(f"{entry.name} is predicted with unfolded norms: folding would change it too much")
    for entry in opened.kept:
        typer.echo(
            f"earlier version: {entry.name} {entry.digest[:8]}, stored {printable(entry.created[:10])}"
        )
    running = {
        True: "being trained",
        False: "interrupted",
        None: "whether it is being trained cannot be told",
    }
    for structure in list_pending(opened):
        state = "staged" if structure.entry is not None else running[structure.busy]
        typer.echo(f"pending: {structure.name}, {printable(structure.problem) or state}")


def _r2(entry: Entry, history: Sequence[Change]) -> str:
    """Return R2 as recorded, marked if it was measured elsewhere, where it cannot be checked."""
    text = figure(entry.metrics.get("r2"))
    actions = [
        change.action for change in history if (change.structure, change.digest) == (entry.name, entry.digest)
    ]
    return f"{text} (imported)" if text and actions and actions[-1] == "import" else text


def verify(
    model: ReadModelArgument,
    level: Annotated[
        Level, typer.Option(help="Depth: the files, their tensors, fused kernels, or predictions.")
    ] = Level.predictions,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD",
            help="A copy or an older backup: prove that both hold and predict what they share identically. Or an "
            "exported .onnx file: prove that it holds and predicts what the model does.",
        ),
    ] = None,
    signed_by: Annotated[
        list[Path] | None,
        typer.Option(
            "--signed-by",
            metavar="KEY",
            help="Public key (a file) of a person you trust: every part must be signed by one; may be given again.",
        ),
    ] = None,
    includes: Annotated[
        str | None,
        typer.Option(
            metavar="STATEMENT",
            help="With --signed-by: digest of a statement seen before, without which this is an older copy.",
        ),
    ] = None,
) -> None:
    """Prove that a model is as it was stored; exit code 2 if not.

    Where the computing environment is that of the stored proof, predictions are compared bit for bit;
    elsewhere with a stated tolerance, and reported as such. With --against, the structures of two models are
    compared bit for bit, as computed here. With --signed-by, every part must have been signed by a person.

    For example:

      repmode-cl verify model

      repmode-cl verify model --signed-by ada.pem.pub

      repmode-cl verify model --against backup/model

      repmode-cl verify model --against nucleolus.onnx
    """
    if includes is not None and not signed_by:
        raise RepmodeError("--includes names a signed statement: give --signed-by KEY, too")
    from repmode_cl.store import verify_model
    from repmode_cl.store.hub import local_model

    model = local_model(model)
    exported = against if against is not None and against.suffix.lower() == ".onnx" else None
    other = None if against is None or exported is not None else local_model(against)
    report = verify_model(model, level.value, other)
    results = (*report.results, *report.earlier)
    width = max(len(result.structure) for result in results)
    for result in results:
        status = "FAILED" if not result.ok else result.status
        typer.echo(f"{result.structure:{width}}  {status}: {result.detail}", err=not result.ok)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    if report.comparison is not None:
        _print_model_comparison(report.comparison, width)
    failed = list(dict.fromkeys(result.structure for result in results if not result.ok))
    if failed:
        advice = "put the named files back from a copy of the model"
        # While an active structure is damaged, an earlier version may be needed to roll back to.
        if all(result.ok for result in report.results):
            kept = "the earlier version" if len(report.earlier) == 1 else "all earlier versions"
            advice += f"; or, if nobody needs to go back, {command('gc', model)} drops {kept}"
        fail(f"{model}: {', '.join(failed)} failed; {advice}")
    if report.comparison is not None and not report.comparison.ok:
        fail(f"{model} and {against} differ in {', '.join(report.comparison.different)}")
    if exported is not None:
        _verify_exported(model, exported)
    if signed_by:
        _verify_signatures(model, signed_by, includes)
    typer.echo(f"{model}: {counted(len(report.results), 'structure')} verified ({report.level})")


def _verify_signatures(model: Path, keys: Sequence[Path], includes: str | None) -> None:
    from repmode_cl.store.keys import read_public_key
    from repmode_cl.store.signatures import verify_signatures

    report = verify_signatures(model, [read_public_key(key) for key in keys], includes=includes)
    for name, one in report.signed.items():
        time = one.statement.values["time"]
        typer.echo(f"{name}: statement {one.statement.number} of {printable(time)}, signed by {one.signer}")
    for problem in report.problems:
        typer.echo(f"NOT SIGNED: {printable(problem)}", err=True)
    if not report.ok:
        fail(f"{model} is not what the given keys signed")
    typer.echo(
        f"newest statement: {report.newest} (an older copy of the model lacks it: --includes checks that)"
    )


def _verify_exported(model: Path, file: Path) -> None:
    from repmode_cl.export.verify_onnx import verify_onnx
    from repmode_cl.model import Model

    comparison = verify_onnx(Model.open(model), file)
    if not comparison.ok:
        fail(f"{file}: {comparison.structure} differs from {model}: {printable(comparison.problem)}")
    typer.echo(f"against {file}:")
    typer.echo(f"{comparison.structure}  {comparison.detail}")


def _print_model_comparison(comparison: ModelComparison, width: int) -> None:
    typer.echo(f"against {comparison.path}:")
    for name, detail in comparison.same.items():
        typer.echo(f"{name:{width}}  {detail}")
    for name, detail in comparison.different.items():
        typer.echo(f"{name:{width}}  DIFFERS: {detail}", err=True)
    for name in comparison.only_here:
        typer.echo(f"{name:{width}}  only here")
    for name in comparison.only_there:
        typer.echo(f"{name:{width}}  only in {comparison.path}")
