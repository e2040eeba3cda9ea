"""``repmode-cl compare``: adding a structure, fine-tuning, or an own network; asked before anything is changed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repmode_cl.cli.add import AS_BASE, Copy, Precision, Sees
from repmode_cl.cli.options import (
    DeviceOption,
    ForceOption,
    ModelArgument,
    WorkersOption,
    console,
    continue_with,
    size,
)

if TYPE_CHECKING:
    from repmode_cl.results.comparison import Comparison

__all__ = ["compare"]


class Kernel(StrEnum):
    """Edge of a plain network's kernels."""

    three = "3"
    five = "5"


def compare(
    ctx: typer.Context,
    model: ModelArgument,
    structure: Annotated[str, typer.Option(metavar="NAME", help="Name of the structure to learn.")],
    data: Annotated[Path, typer.Option(metavar="MANIFEST", help="A CSV of image pairs.")],
    steps: Annotated[int | None, typer.Option(min=1, help=f"Optimiser steps of each way; {AS_BASE}")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images of each way, in place of steps.")
    ] = None,
    kernel: Annotated[Kernel, typer.Option(help="Kernel size of the network of its own.")] = Kernel.three,
    expert: Annotated[
        str, typer.Option(help="The addition: conv1, conv3, conv5, avg3, avg5, lowrank:R or none.")
    ] = "conv3",
    sees: Annotated[
        Sees, typer.Option(help="The addition: base and own experts, or those of all earlier additions too.")
    ] = Sees.own,
    norm: Annotated[
        Copy, typer.Option(help="The addition's batch norms: own copies, or the base's, frozen.")
    ] = Copy.own,
    resampling: Annotated[
        Copy, typer.Option(help="Its down and up layers: own copies, or the base's, frozen.")
    ] = Copy.own,
    init_from: Annotated[
        str,
        typer.Option(metavar="none|best|NAME", help="What the addition starts from, as of `add`."),
    ] = "none",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where to keep it; runs/compare-NAME by default.", show_default=False
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew in a folder that holds a comparison.")
    ] = False,
    learning_rate: Annotated[
        float | None, typer.Option(help="Largest learning rate of adding; as `add` chooses it, by default.")
    ] = None,
    fine_tuning_rate: Annotated[
        float | None, typer.Option(help="Largest learning rate of fine-tuning; the base's by default.")
    ] = None,
    network_rate: Annotated[
        float | None,
        typer.Option(help="Largest learning rate of the own network; that of adding by default."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help=f"Patches a step; {AS_BASE}")] = None,
    patch: Annotated[str | None, typer.Option(metavar="Z,Y,X", help=f"Voxels of a patch; {AS_BASE}")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of new weights and of crops.")] = 0,
    device: DeviceOption = "auto",
    precision: Annotated[Precision, typer.Option(help="Number format of training.")] = Precision.auto,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep prepared images here; else they are removed at the end."),
    ] = None,
    workers: WorkersOption = None,
    loader_workers: Annotated[
        int, typer.Option(min=0, max=256, help="Processes that cut patches ahead; 0 cuts them in this one.")
    ] = 0,
    force: ForceOption = False,
) -> None:
    """Compare adding, fine-tuning and a network of its own.

    On the same images for as many steps: how well each learns the structure, what it does to those that the model
    knows, what it costs. Ends with a table and a page. The model is not touched.

    For example:

      repmode-cl compare model --structure nucleolus --data new.csv

      repmode-cl compare model --structure dna --data new.csv --steps 300
    """
    from repmode_cl.config.field_types import check_expert
    from repmode_cl.errors import RepmodeError
    from repmode_cl.structures import check_structure_name
    from repmode_cl.utils.process_pool import workers_here

    check_structure_name(structure)
    patch_size = size(patch, "--patch")
    if steps is not None and epochs is not None:
        raise RepmodeError("give either --steps or --epochs, not both")
    rates = {
        "--learning-rate": learning_rate,
        "--fine-tuning-rate": fine_tuning_rate,
        "--network-rate": network_rate,
    }
    for option, rate in rates.items():
        if rate is not None and not 0 < rate < float("inf"):
            raise RepmodeError(f"{option} {rate}: a positive number is needed")
    if expert != "none":
        try:
            check_expert(expert)
        except ValueError as error:
            raise RepmodeError(f"--expert {error}, or none") from error
    continue_with(ctx, without=("--restart",))
    from repmode_cl.nn import AdditionSpec
    from repmode_cl.workflows.compare_structure import compare_structure

    comparison = compare_structure(
        model,
        structure,
        data,
        out=out,
        restart=restart,
        spec=AdditionSpec(expert=expert, sees=sees.value, norm=norm.value, resampling=resampling.value),
        init_from=init_from,
        kernel=5 if kernel is Kernel.five else 3,
        steps=steps,
        epochs=epochs,
        learning_rate=learning_rate,
        fine_tuning_rate=fine_tuning_rate,
        network_rate=network_rate,
        batch_size=batch_size,
        patch=patch_size,
        seed=seed,
        device=device,
        precision=precision.value,
        cache=cache,
        workers=workers or workers_here(),
        loader_workers=loader_workers,
        force=force,
    )
    _tell(comparison)


def _tell(comparison: Comparison) -> None:
    """Print the table, a sentence on each way, and where the page is."""
    from repmode_cl.report.comparison.text import findings, render_terminal

    for note in comparison.notes:
        typer.echo(f"note: {note}")
    console().print(render_terminal(comparison))
    for line in findings(comparison):
        typer.echo(line)
    typer.echo(f"report: {comparison.report}")
