"""``repmode-cl show``, ``verify`` and ``predict``: what a model holds, whether unchanged, what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repmode_cl.cli.common import (
    DeviceOption,
    ModelArgument,
    console,
    continue_with,
    fail,
    size,
    sizes_in_um,
    spec_text,
)
from repmode_cl.cli.plain import command, count, figure, printable
from repmode_cl.errors import RepmodeError

if TYPE_CHECKING:
    from repmode_cl.store import Change
    from repmode_cl.store.registry import Entry
    from repmode_cl.store.verified import Comparison

__all__ = ["predict", "show", "verify"]


class Level(StrEnum):
    """How deep a check goes; each level includes the ones before."""

    files = "files"
    tensors = "tensors"
    kernels = "kernels"
    predictions = "predictions"


def show(model: ModelArgument) -> None:
    """List a model's structures and how each was added.

    R2 is of held-out images; that of an imported structure is what its sender says.

    For example:

      repmode-cl show model
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from repmode_cl.report.texts import count_text
    from repmode_cl.store import Model, pending

    opened = Model.open(model)
    shape = opened.architecture
    typer.echo(f"{model}: width {shape.width}, depth {shape.depth}, experts {', '.join(shape.experts)}")
    if opened.voxel_size is not None:
        typer.echo(f"voxel size (z, y, x) in um: {' x '.join(f'{um:g}' for um in opened.voxel_size)}")
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
            "" if entry.spec is None else escape(printable(spec_text(entry.spec))),
            _r2(entry, opened.history),
            # Base structures share one file: what it weighs is said once.
            "" if base and entry.name != opened.base_structures[0] else count_text(entry.parameters),
            "" if base and entry.name != opened.base_structures[0] else count_text(entry.bytes, "B"),
            entry.digest[:8],
            escape(printable(entry.created[:10])),
        )
    console().print(table)
    for entry in opened.entries.values():
        if not entry.proof.folded:
            typer.echo(f"{entry.name} is predicted with unfolded norms: folding would change it too much")
    for entry in opened.kept:
        typer.echo(
            f"earlier version: {entry.name} {entry.digest[:8]}, stored {printable(entry.created[:10])}"
        )
    for one in pending(opened):
        running = {
            True: "being trained",
            False: "interrupted",
            None: "whether it is being trained cannot be told",
        }
        state = "staged" if one.entry is not None else running[one.busy]
        typer.echo(f"pending: {one.name}, {printable(one.problem) or state}")


def _r2(entry: Entry, history: Sequence[Change]) -> str:
    """Return R2 as recorded, and whether it was measured elsewhere: nobody here can tell if it is true."""
    text = figure(entry.metrics.get("r2"))
    came = [
        change.action for change in history if (change.structure, change.digest) == (entry.name, entry.digest)
    ]
    return f"{text} (imported)" if text and came and came[-1] == "import" else text


def verify(
    model: ModelArgument,
    level: Annotated[
        Level, typer.Option(help="How deep: the files, their tensors, fused kernels, or predictions.")
    ] = Level.predictions,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD",
            help="A copy or an older backup: prove that both hold and predict what they share identically.",
        ),
    ] = None,
) -> None:
    """Prove that a model is what was stored; exit code 2 if not.

    Where the computing environment is that of the stored proof, predictions are compared bit for bit;
    elsewhere with a stated tolerance, and reported as such. With --against, the structures of two models are
    compared bit for bit, as computed here.

    For example:

      repmode-cl verify model

      repmode-cl verify model --against backup/model
    """
    from repmode_cl.store import verify_model

    report = verify_model(model, level.value, against)
    results = (*report.results, *report.earlier)
    width = max(len(result.structure) for result in results)
    for result in results:
        status = "FAILED" if not result.ok else result.status
        typer.echo(f"{result.structure:{width}}  {status}: {result.detail}", err=not result.ok)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    if report.comparison is not None:
        _tell_comparison(report.comparison, width)
    failed = list(dict.fromkeys(result.structure for result in results if not result.ok))
    if failed:
        advice = "put the named files back from a copy of the model"
        # With an active structure damaged, an earlier version is perhaps what can be rolled back to.
        if all(result.ok for result in report.results):
            kept = "the earlier version" if len(report.earlier) == 1 else "all earlier versions"
            advice += f"; or, if nobody needs to go back, {command('gc', model)} drops {kept}"
        fail(f"{model}: {', '.join(failed)} failed; {advice}")
    if report.comparison is not None and not report.comparison.ok:
        fail(f"{model} and {against} differ in {', '.join(report.comparison.different)}")
    typer.echo(f"{model}: {count(len(report.results), 'structure')} verified ({report.level})")


def _tell_comparison(comparison: Comparison, width: int) -> None:
    typer.echo(f"against {comparison.path}:")
    for name, what in comparison.same.items():
        typer.echo(f"{name:{width}}  {what}")
    for name, how in comparison.different.items():
        typer.echo(f"{name:{width}}  DIFFERS: {how}", err=True)
    for name in comparison.only_here:
        typer.echo(f"{name:{width}}  only here")
    for name in comparison.only_there:
        typer.echo(f"{name:{width}}  only in {comparison.path}")


def predict(
    ctx: typer.Context,
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(metavar="IN", help="An image file with transmitted light.")],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="OME-TIFF or .npy to write; for several structures a folder, or a name with {structure} in it.",
        ),
    ],
    structure: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Structure to predict; may be given again."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Predict all structures of the model.")] = False,
    channel: Annotated[
        str | None, typer.Option(help="Name or number (from 0) of the transmitted-light channel.")
    ] = None,
    window: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Voxels of a window; the model's by default.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(help="Part that windows share, 0 to below 1; the model's by default.")
    ] = None,
    scene: Annotated[int | None, typer.Option(min=0, help="Which of several scenes.")] = None,
    t: Annotated[int | None, typer.Option("--time", min=0, help="Which of several time points.")] = None,
    voxel_size: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="Voxel size in um, where the file states none or a wrong one."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Most to hold in memory, such as 2GB; by default half of what is free."
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what an interrupted prediction left.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Predict one or several structures of an image file of any size.

    The result has the input's grid and voxel size, float32 in z-score units. Interrupted, the same command
    continues.

    For example:

      repmode-cl predict model --structure nucleolus cells.ome.tif nucleolus.ome.tif

      repmode-cl predict model --structure dna in.tif out.npy --memory 2GB

      repmode-cl predict model --all in.tif predictions
    """
    if every == bool(structure):
        raise RepmodeError("give --structure NAME (once or more often) or --all, which structures to predict")
    window_size = size(window, "--window")
    micrometres = sizes_in_um(voxel_size, "--voxel-size")
    from repmode_cl.inference.predict_file import PredictedFile, predict_file
    from repmode_cl.progress import task
    from repmode_cl.store import Model

    continue_with(ctx, without=["--restart"])
    several = every or len(structure or []) > 1
    opened = Model.open(model) if every else model
    names = list(opened.structures) if isinstance(opened, Model) else list(structure or [])
    what = names[0] if not several else f"{len(names)} structures"
    with task(f"Predicting {what}") as bar:
        found: PredictedFile | list[PredictedFile] = predict_file(
            opened,
            names if several else names[0],
            image,
            out,
            channel=int(channel) if channel is not None and channel.isdecimal() else channel,
            window=window_size,
            overlap=overlap,
            device=device,
            scene=scene,
            t=t,
            voxel_size=micrometres,
            memory=memory,
            restart=restart,
            progress=lambda count, total: bar.update(completed=count, total=total),
            status=lambda stage: bar.update(description=f"{stage} {image.name}"),
        )
    done = found if isinstance(found, list) else [found]
    for note in done[0].notes:
        typer.echo(f"note: {note}", err=True)
    voxels = " x ".join(str(extent) for extent in done[0].shape)
    for one in done:
        typer.echo(
            f"{one.path}: {one.structure}, {voxels} voxels (z, y, x), z-score units, in {one.seconds:.1f} s"
        )
