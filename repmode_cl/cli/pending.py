"""``repmode-cl pending``, ``accept`` and ``discard``: what waits in a model's ``pending/`` folder for a person."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repmode_cl.cli.options import ModelArgument
from repmode_cl.cli.text import command, figure, printable
from repmode_cl.errors import counted

if TYPE_CHECKING:
    from repmode_cl.store import PendingStructure
    from repmode_cl.store.registry import Entry

__all__ = ["accept", "discard", "pending"]

#: What an unfinished training was asked for, and what it came to just before its commit; `add` writes both.
REQUEST, OUTCOME = "request.json", "outcome.json"

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A pending structure.")]


def pending(model: ModelArgument) -> None:
    """List additions under way, interrupted ones, and those that wait to be accepted.

    For example:

      repmode-cl pending model
    """
    from repmode_cl.model import Model
    from repmode_cl.store import pending as list_pending

    opened = Model.open(model)
    found = list_pending(opened)
    for one in found:
        typer.echo(f"{one.name}: {_said(one, model, opened.entries)}")
    if not found:
        typer.echo(f"{model}: nothing is pending")


def accept(model: ModelArgument, name: NameArgument) -> None:
    """Make a staged structure part of the model, after all checks that a pack has to pass.

    For example:

      repmode-cl accept model nucleolus
    """
    from repmode_cl.model import Model

    taken = Model.open(model).accept(name)
    entry = taken.entry
    typer.echo(f"{name}: {taken.status} to when it was staged ({printable(taken.detail)})")
    typer.echo(
        f"added {counted(entry.parameters, 'parameter')}, {entry.bytes:,} bytes, digest {entry.digest[:8]}"
    )
    typer.echo(f"model: {model}")


def discard(model: ModelArgument, name: NameArgument) -> None:
    """Remove a staged structure, or the training of an addition that was interrupted.

    For example:

      repmode-cl discard model nucleolus
    """
    from repmode_cl.model import Model

    gone = Model.open(model).discard(name)
    what = "what was staged" if gone.entry else "its unfinished training"
    typer.echo(f"{name}: {what} was removed; the model is as it was")


def _said(one: PendingStructure, model: Path, entries: Mapping[str, Entry]) -> str:
    """Say what is pending, whether the model could take it as it is now, and what to do."""
    gone = command("discard", model, one.name)
    if one.problem:
        return f"{printable(one.problem)}; {gone}"
    # Without a word of it, it is taken for `add`.
    replace = one.replace if one.entry is not None else _noted(one, REQUEST).get("replace") is True
    done = "replace" if replace else "add"
    if one.entry is None:
        again = command(done, model, "--structure", one.name)
        if one.busy:
            return f"a process is at work on {again} now"
        if one.busy is None:
            return f"begun by {again}; whether a process is at work on it now cannot be told: you may not write here"
        state = "interrupted" if one.busy is not None else "interrupted, or at work for somebody else"
        text = f"{state}; {again} with the same options as before goes on with it, {gone} removes it"
    else:
        again = command("accept", model, one.name)
        r2 = figure(one.entry.metrics.get("r2"))
        asked = f" of at least {figure(one.min_r2)} asked for" if one.min_r2 is not None else ""
        to = "to replace the version in the model" if replace else "to be added"
        text = (
            f"staged {printable(one.staged[:10])} {to}{f', R2 {r2}' if r2 else ''}{asked}: {printable(one.why)}; "
            f"{again} takes it, {gone} removes it"
        )
    active = entries.get(one.name)
    made = one.entry.digest if one.entry is not None else _noted(one, OUTCOME).get("digest")
    if active is not None and active.digest == made:
        return f"{text}; the model has exactly this version already: both only clear up"
    if active is not None and not replace:
        return (
            f"{text}; but the model has a {one.name!r} by now (version {active.digest[:8]}), which stays: "
            f"{command('remove', model, one.name)} first, then {again}; or {gone}"
        )
    if active is None and replace:
        return (
            f"{text}; but the model no longer has the version that it is to replace: "
            f"{command('rollback', model, 'NUMBER')} brings that back ({command('history', model)} has the number); "
            f"or {gone}"
        )
    return text


def _noted(one: PendingStructure, file: str) -> dict[str, Any]:
    """Return what an unfinished training left in its folder; nothing, if that is not to be had."""
    try:
        found = json.loads((one.folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
