"""``repmode-cl add``: one more structure for a model that keeps every prediction it made."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repmode_cl.cli.common import DeviceOption, ModelArgument, WorkersOption, continue_with, size

if TYPE_CHECKING:
    from repmode_cl.strategies import AddResult

__all__ = ["add"]

AS_BASE = "as the base was trained with, by default."


class Sees(StrEnum):
    """Which experts the structure's gates weigh."""

    own = "own"
    all = "all"


class Copy(StrEnum):
    """Whose layers the structure uses."""

    own = "own"
    base = "base"


class Precision(StrEnum):
    """Number format that training computes in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def add(
    ctx: typer.Context,
    model: ModelArgument,
    structure: Annotated[str, typer.Option(metavar="NAME", help="Name of the new structure.")],
    data: Annotated[Path, typer.Option(metavar="MANIFEST", help="A CSV of image pairs.")],
    expert: Annotated[
        str,
        typer.Option(help="Fresh expert of each block: conv1, conv3, conv5, avg3, avg5, lowrank:R or none."),
    ] = "conv3",
    sees: Annotated[
        Sees, typer.Option(help="Experts it weighs: base and own, or those of all earlier additions too.")
    ] = Sees.own,
    norm: Annotated[Copy, typer.Option(help="Batch norms: own copies, or the base's, frozen.")] = Copy.own,
    resampling: Annotated[
        Copy, typer.Option(help="Down and up layers: own copies, or the base's, frozen.")
    ] = Copy.own,
    steps: Annotated[int | None, typer.Option(min=1, help=f"Optimiser steps; {AS_BASE}")] = None,
    learning_rate: Annotated[float | None, typer.Option(help=f"Largest learning rate; {AS_BASE}")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help=f"Patches a step; {AS_BASE}")] = None,
    patch: Annotated[str | None, typer.Option(metavar="Z,Y,X", help=f"Voxels of a patch; {AS_BASE}")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of new weights and of crops.")] = 0,
    device: DeviceOption = "auto",
    precision: Annotated[Precision, typer.Option(help="Number format of training.")] = Precision.auto,
    workers: WorkersOption = None,
    loader_workers: Annotated[
        int, typer.Option(min=0, max=256, help="Processes that cut patches ahead; 0 cuts them in this one.")
    ] = 0,
) -> None:
    """Add a structure to a model and forget none.

    What the model already predicts does not change by one bit.

    For example:

      repmode-cl add model --structure nucleolus --data new.csv

      repmode-cl add model --structure dna --data new.csv --expert lowrank:4
    """
    from repmode_cl.errors import RepmodeError
    from repmode_cl.processes import workers_here
    from repmode_cl.structures import check_structure_name

    check_structure_name(structure)
    patch_size = size(patch, "--patch")
    if learning_rate is not None and not 0 < learning_rate < float("inf"):
        raise RepmodeError(f"--learning-rate {learning_rate}: a positive number is needed")
    _check_expert(expert)
    continue_with(ctx, "the same command: what was trained is kept in the model's pending folder")
    from repmode_cl.nn import AdditionSpec
    from repmode_cl.strategies import add_structure

    result = add_structure(
        model,
        structure,
        data,
        spec=AdditionSpec(expert=expert, sees=sees.value, norm=norm.value, resampling=resampling.value),
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        patch=patch_size,
        seed=seed,
        device=device,
        precision=precision.value,
        workers=workers or workers_here(),
        loader_workers=loader_workers,
    )
    _tell(result)


def _tell(result: AddResult) -> None:
    """Print what came of it: figures on held-out images, cost, and the proof that nothing else changed."""
    for note in result.notes:
        typer.echo(f"note: {note}")
    if result.metrics:
        figures = ", ".join(f"{key} {value:.3f}" for key, value in result.metrics.items())
        typer.echo(f"{result.structure} on the {result.held_out} images: {figures}")
    else:
        typer.echo(f"{result.structure}: no image was held out, so how well it is predicted is not known")
    typer.echo(
        f"added {result.parameters:,} parameters, {result.bytes:,} bytes, {result.seconds:.0f} s of training"
    )
    for one in result.verified.results:
        if one.structure != result.structure:
            typer.echo(f"{one.structure}: {one.status}, unchanged")
    typer.echo(f"model: {result.model.path}")


def _check_expert(expert: str) -> None:
    from repmode_cl.config.schema import check_expert
    from repmode_cl.errors import RepmodeError

    if expert != "none":
        try:
            check_expert(expert)
        except ValueError as error:
            raise RepmodeError(f"--expert {error}, or none") from error
