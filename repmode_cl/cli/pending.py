"""``repmode-cl pending``, ``accept`` and ``discard``: structures in a model's ``pending/`` folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repmode_cl.cli.options import ModelArgument
from repmode_cl.cli.text import figure, printable
from repmode_cl.cli.verdicts import verdict_line
from repmode_cl.errors import RepmodeError, counted
from repmode_cl.utils.atomic_files import read_json
from repmode_cl.utils.command_text import command

if TYPE_CHECKING:
    from repmode_cl.model import Model
    from repmode_cl.store import PendingStructure
    from repmode_cl.store.registry import Entry

__all__ = ["accept", "discard", "pending"]

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A pending structure.")]


def pending(model: ModelArgument) -> None:
    """List additions under way, interrupted ones, and those that wait to be accepted.

    For example:

      repmode-cl pending model
    """
    from repmode_cl.model import Model
    from repmode_cl.store import list_pending

    opened = Model.open(model)
    structures = list_pending(opened)
    for structure in structures:
        typer.echo(f"{structure.name}: {_status(structure, model, opened)}")
        if structure.entry is not None:
            staged = verdict_line(structure.entry, model, staged=True, replace=structure.replace)
            typer.echo(f"  {staged}")
            if structure.replace and (active := opened.entries.get(structure.name)) is not None:
                typer.echo(f"  the version in the model: {active.verdict.text}")
        for line in _figures(structure, opened.entries.get(structure.name)):
            typer.echo(f"  {line}")
    if not structures:
        typer.echo(f"{model}: nothing is pending")


def accept(model: ModelArgument, name: NameArgument) -> None:
    """Make a staged structure part of the model, after all checks that a pack has to pass.

    For example:

      repmode-cl accept model nucleolus
    """
    from repmode_cl.model import Model

    result = Model.open(model).accept(name)
    entry = result.entry
    typer.echo(f"{name}: {result.status} to when it was staged ({printable(result.detail)})")
    typer.echo(
        f"added {counted(entry.parameters, 'parameter')}, {entry.bytes:,} bytes, digest {entry.digest[:8]}"
    )
    typer.echo(verdict_line(entry, model))
    typer.echo(f"model: {model}")


def discard(model: ModelArgument, name: NameArgument) -> None:
    """Remove a staged structure, or the training of an addition that was interrupted.

    For example:

      repmode-cl discard model nucleolus
    """
    from repmode_cl.model import Model

    discarded = Model.open(model).discard(name)
    kind = "what was staged" if discarded.entry else "its unfinished training"
    typer.echo(f"{name}: {kind} was removed; the model is as it was")


def _status(structure: PendingStructure, model: Path, opened: Model) -> str:
    """Return the state of a pending structure, whether the model can take it now, and the commands for it."""
    from repmode_cl.store.staging import OUTCOME, REQUEST, refusal
    from repmode_cl.training import has_checkpoint

    entries = opened.entries
    name, entry = structure.name, structure.entry
    discard_it = command("discard", model, name)
    if structure.foreign:
        return printable(structure.problem)
    if structure.problem:
        return f"{printable(structure.problem)}; {discard_it}"
    replace = structure.replace
    if entry is None:
        try:
            replace = _read_json(structure, REQUEST, discard_it).get("replace") is True
            digest = _read_json(structure, OUTCOME, discard_it).get("digest")
        except RepmodeError as error:
            return printable(str(error))
        next_step = command("replace" if replace else "add", model, "--structure", name)
        if structure.busy:
            return f"a process is at work on {next_step} now"
        if structure.busy is None:
            return (
                f"started by {next_step}; whether a process is at work on it now cannot be told: you may not write "
                "here"
            )
        if has_checkpoint(structure.folder / "checkpoint") or digest is not None:
            text = f"interrupted; {next_step} with the same options as before resumes it, {discard_it} removes it"
        else:
            text = (
                f"interrupted before it saved a step; {next_step} begins it, with the same options or others, "
                f"{discard_it} removes it"
            )
    else:
        next_step, digest = command("accept", model, name), entry.digest
        r2 = figure(entry.metrics.get("r2"))
        demanded = (
            f" of at least {figure(structure.min_r2)} asked for" if structure.min_r2 is not None else ""
        )
        aim = "to replace the version in the model" if replace else "to be added"
        text = (
            f"staged {printable(structure.staged[:10])} {aim}{f', R2 {r2}' if r2 else ''}{demanded}: "
            f"{printable(structure.why)}; {next_step} takes it, {discard_it} removes it"
        )
    active = entries.get(name)
    if active is not None and active.digest == digest:
        return f"{text}; the model has exactly this version already: both only clear up"
    if active is not None and not replace:
        return (
            f"{text}; but the model has a {name!r} by now (version {active.digest[:8]}), which stays: "
            f"{command('remove', model, name)} first, then {next_step}; or {discard_it}"
        )
    if problem := refusal(opened, structure):
        return f"{text}; but not as the model is now: {printable(problem)}"
    if active is None and replace and entry is not None:
        return f"{text}; the version that it was to replace was removed meanwhile: {next_step} adds it"
    if active is None and replace:
        return (
            f"{text}; but the model no longer has the version that it is to replace: "
            f"{command('rollback', model, 'NUMBER')} brings that back ({command('history', model)} has the number); "
            f"or {discard_it}"
        )
    return text


def _figures(structure: PendingStructure, active: Entry | None) -> list[str]:
    """Return the figures of a staged structure, beside those of the version that it is to replace."""
    entry = structure.entry
    if entry is None or structure.problem:
        return []
    before = active if structure.replace and active is not None and active.digest != entry.digest else None
    texts = []
    for key, title in (("r2", "R2"), ("pearson", "Pearson"), ("mse", "MSE")):
        now, then = figure(entry.metrics.get(key)), figure(before.metrics.get(key)) if before else ""
        if now or then:
            beside = f" (now in the model {then or 'none'})" if before else ""
            texts.append(f"{title} {now or 'none'}{beside}")
    beside = f" (now in the model {before.bytes:,})" if before else ""
    lines = [", ".join([*texts, f"{entry.bytes:,} bytes{beside}"])]
    if before is not None and texts:
        images = [one.provenance.get("images") for one in (entry, before)]
        if None in images or images[0] != images[1]:
            lines.append("measured on images that are not known to be the same: compare with care")
    return lines


def _read_json(structure: PendingStructure, file: str, discard_it: str) -> dict[str, Any]:
    """Return the content of a file of an unfinished training; empty if it is not there."""
    try:
        return read_json(structure.folder / file, f"{discard_it} removes the interrupted training")
    except FileNotFoundError:
        return {}
