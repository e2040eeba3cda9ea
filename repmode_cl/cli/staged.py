"""``repmode-cl pending``, ``accept`` and ``discard``: what waits in a model's ``pending/`` folder for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from repmode_cl.cli.common import ModelArgument

if TYPE_CHECKING:
    from repmode_cl.store import Pending

__all__ = ["accept", "discard", "pending"]

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A pending structure.")]


def pending(model: ModelArgument) -> None:
    """List additions under way, interrupted ones, and those that wait to be accepted.

    For example:

      repmode-cl pending model
    """
    from repmode_cl.store import Model
    from repmode_cl.store import pending as list_pending

    found = list_pending(Model.open(model))
    for one in found:
        typer.echo(f"{one.name}: {_said(one)}")
    if not found:
        typer.echo(f"{model}: nothing is pending")


def accept(model: ModelArgument, name: NameArgument) -> None:
    """Make a staged structure part of the model, after all checks that a pack has to pass.

    For example:

      repmode-cl accept model nucleolus
    """
    from repmode_cl.store import Model

    taken = Model.open(model).accept(name)
    entry = taken.entry
    typer.echo(f"{name}: {taken.status} to when it was staged ({taken.detail})")
    typer.echo(f"added {entry.parameters:,} parameters, {entry.bytes:,} bytes, digest {entry.digest[:8]}")
    typer.echo(f"model: {model}")


def discard(model: ModelArgument, name: NameArgument) -> None:
    """Remove a staged structure, or the training of an addition that was interrupted.

    For example:

      repmode-cl discard model nucleolus
    """
    from repmode_cl.store import Model

    gone = Model.open(model).discard(name)
    what = "what was staged" if gone.entry else "its unfinished training"
    typer.echo(f"{name}: {what} was removed; the model is as it was")


def _said(one: Pending) -> str:
    if one.problem:
        return one.problem
    if one.entry is None:
        return (
            "being added by a process now"
            if one.busy
            else "interrupted; the same add command goes on with it"
        )
    r2 = one.entry.metrics.get("r2")
    figure = f", R2 {r2:.3f}" if isinstance(r2, int | float) else ""
    asked = f" of at least {one.min_r2:g} asked for" if one.min_r2 is not None else ""
    to = "to replace the version in the model" if one.replace else "to be added"
    return f"staged {one.staged[:10]} {to}{figure}{asked}: {one.why}"
