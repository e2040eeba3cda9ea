"""``repmode-cl add`` and ``replace``: one more structure, or a better one, for a model that keeps all others."""

from __future__ import annotations

import functools
import re
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repmode_cl.cli.options import (
    DeviceOption,
    ForceOption,
    ModelArgument,
    WorkersOption,
    continue_with,
    fail,
    size,
)
from repmode_cl.errors import RepmodeError

if TYPE_CHECKING:
    from repmode_cl.workflows.add_structure import AddResult
    from repmode_cl.workflows.initialisation import Initialisation

__all__ = ["AS_BASE", "Copy", "Precision", "Sees", "add", "replace"]

AS_BASE = "as the base was trained with, by default."

#: Exit code where a structure was trained, but did not reach what was demanded of it.
BELOW = 3

_UNITS = {"": 60.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0}


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
    structure: Annotated[str, typer.Option(metavar="NAME", help="Name of the structure.")],
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
    init_from: Annotated[
        str,
        typer.Option(
            metavar="none|best|NAME",
            help="What it starts from: chance, a known structure, or the one that fits the images best.",
        ),
    ] = "none",
    steps: Annotated[int | None, typer.Option(min=1, help=f"Optimiser steps; {AS_BASE}")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images, in place of steps.")
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Most minutes of training, validation not counted; or 45s, 30m, 1.5h."
        ),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many validations without an improvement.")
    ] = None,
    min_r2: Annotated[
        float | None,
        typer.Option(
            help="R2 on held-out images without which it does not become part of the model: it is staged, and "
            f"the exit code is {BELOW}."
        ),
    ] = None,
    stage: Annotated[
        bool, typer.Option("--stage", help="Leave it pending, for a person to take with accept.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what would be trained, what it costs, and what is wrong."),
    ] = False,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Largest learning rate; by default that of `experts_frozen` in the base's configuration."
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help=f"Patches a step; {AS_BASE}")] = None,
    patch: Annotated[str | None, typer.Option(metavar="Z,Y,X", help=f"Voxels of a patch; {AS_BASE}")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of new weights and of crops.")] = 0,
    device: DeviceOption = "auto",
    precision: Annotated[Precision, typer.Option(help="Number format of training.")] = Precision.auto,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where prepared images are kept; by default in the model until it is done."
        ),
    ] = None,
    workers: WorkersOption = None,
    loader_workers: Annotated[
        int, typer.Option(min=0, max=256, help="Processes that cut patches ahead; 0 cuts them in this one.")
    ] = 0,
    force: ForceOption = False,
) -> None:
    """Add a structure to a model and forget none.

    What the model already predicts does not change by one bit. Interrupted, the same command continues.

    For example:

      repmode-cl add model --structure nucleolus --data new.csv

      repmode-cl add model --structure dna --data new.csv --expert lowrank:4 --time-limit 2h --min-r2 0.4
    """
    options = {key: value for key, value in locals().items() if key != "ctx"}
    _add(ctx, replace=False, **options)


@functools.wraps(add, assigned=("__annotations__",))
def replace(ctx: typer.Context, **options: Any) -> None:
    """Train another version of an added structure.

    No other structure may need its experts. The version so far is kept until gc; rollback brings it back.
    Interrupted, the same command continues.

    For example:

      repmode-cl replace model --structure nucleolus --data more.csv --init-from nucleolus
    """
    _add(ctx, replace=True, **options)


def _add(
    ctx: typer.Context,
    *,
    replace: bool,
    model: Path,
    structure: str,
    data: Path,
    expert: str,
    sees: Sees,
    norm: Copy,
    resampling: Copy,
    time_limit: str | None,
    min_r2: float | None,
    stage: bool,
    dry_run: bool,
    patch: str | None,
    precision: Precision,
    workers: int | None,
    **options: Any,
) -> None:
    from repmode_cl.structures import check_structure_name

    check_structure_name(structure)
    options |= {
        "patch": size(patch, "--patch"),
        "time_limit": _seconds(time_limit, "--time-limit"),
        "precision": precision.value,
        "replace": replace,
    }
    _check(options, expert, min_r2)
    continue_with(ctx)
    from repmode_cl.nn import AdditionSpec

    options["spec"] = AdditionSpec(
        expert=expert, sees=sees.value, norm=norm.value, resampling=resampling.value
    )
    if dry_run:
        from repmode_cl.workflows.addition_dry_run import dry_run_add

        found = dry_run_add(model, structure, data, min_r2=min_r2, **options)
        typer.echo(str(found))
        if not found.ok:
            count = len(found.problems)
            fail(f"{data}: {count} problem{'s' * (count > 1)} in the images of {structure}")
        return
    from repmode_cl.utils.process_pool import workers_here
    from repmode_cl.workflows.add_structure import add_structure

    result = add_structure(
        model, structure, data, min_r2=min_r2, stage=stage, workers=workers or workers_here(), **options
    )
    _tell(result, replace=replace)
    if not result.reached:
        raise typer.Exit(BELOW)


def _check(options: dict[str, Any], expert: str, min_r2: float | None) -> None:
    """Refuse what can be told to be wrong before torch is imported."""
    rate = options["learning_rate"]
    if rate is not None and not 0 < rate < float("inf"):
        raise RepmodeError(f"--learning-rate {rate}: a positive number is needed")
    if options["steps"] is not None and options["epochs"] is not None:
        raise RepmodeError("give either --steps or --epochs, not both")
    if min_r2 is not None and not float("-inf") < min_r2 <= 1:
        raise RepmodeError(
            f"--min-r2 {min_r2}: a number of at most 1 is needed, which a perfect prediction has"
        )
    from repmode_cl.config.field_types import check_expert

    if expert != "none":
        try:
            check_expert(expert)
        except ValueError as error:
            raise RepmodeError(f"--expert {error}, or none") from error


def _seconds(text: str | None, option: str) -> float | None:
    """Read ``90`` (minutes), ``1.5h``, ``30m`` or ``45s`` as seconds.

    Raises
    ------
    RepmodeError
        If it is no positive duration.
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(h|min|m|s|)\s*", text.lower())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds < float("inf"):
        raise RepmodeError(f"{option} {text!r}: give minutes such as 90, or a time such as 45s, 30m or 1.5h")
    return seconds


def _tell(result: AddResult, *, replace: bool) -> None:
    """Print what came of it: figures on held-out images, cost, and the proof that nothing else changed."""
    for note in result.notes:
        typer.echo(f"note: {note}")
    _tell_beginning(result.structure, result.init)
    if result.metrics:
        figures = ", ".join(f"{key} {value:.3f}" for key, value in result.metrics.items())
        typer.echo(f"{result.structure} on the {result.held_out} images: {figures}")
    else:
        typer.echo(f"{result.structure}: no image was held out, so how well it is predicted is not known")
    done = "staged" if result.staged else "replaced" if replace else "added"
    typer.echo(
        f"{done} {result.structure}: {result.parameters:,} parameters, {result.bytes:,} bytes, "
        f"{result.seconds:.0f} s of training; it ended after {result.stopped}"
    )
    for name, same in result.unchanged.items():
        typer.echo(f"{name}: {'bit-identical to before' if same else 'CHANGED'}")
    for one in result.verified.results:
        if one.structure not in result.unchanged and not result.staged:
            typer.echo(f"{one.structure}: {one.status}, as it was stored")
    typer.echo(f"model: {result.model.path}")
    if result.staged:
        place = shlex.join([str(result.model.path), result.structure])
        typer.echo(
            f"{'' if result.reached else 'what was demanded is not reached; '}the model is as it was: "
            f"`repmode-cl accept {place}` takes {result.structure}{'' if result.reached else ' all the same'}, "
            f"`repmode-cl discard {place}` removes it"
        )


def _tell_beginning(structure: str, init: Initialisation) -> None:
    """Print what it began from, with the figures of all that were measured."""
    if init.structure is None:
        return
    typer.echo(f"on {init.patches} training patches, before training:")
    for known, figures in sorted(init.figures.items(), key=lambda pair: pair[1].get("mse", float("inf"))):
        typer.echo(f"  {known}: {_figures(figures)}{', begun from' if known == init.structure else ''}")
    typer.echo(f"  {structure} at step 0: {_figures(init.step_0)} (taken over: {', '.join(init.taken)})")


def _figures(figures: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.3f}" for key, value in figures.items()) or "not finite"
