"""``repmode-cl history``, ``remove``, ``rollback`` and ``gc``: the changes of a model, and undoing them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repmode_cl.cli.options import ModelArgument
from repmode_cl.cli.text import figure, printable, training_texts
from repmode_cl.errors import counted
from repmode_cl.utils.command_text import command
from repmode_cl.verdict import Verdict, structure_verdict

if TYPE_CHECKING:
    from repmode_cl.model import Model
    from repmode_cl.store import Change

__all__ = ["gc", "history", "remove", "rollback"]


def history(
    model: ModelArgument,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything recorded about each change, as JSON.")
    ] = False,
) -> None:
    """List every change of a model: time (UTC), kind, settings, data, and figures.

    A version is identified by the first digits of its digest, and is active, kept (rollback can bring it back) or
    deleted.

    For example:

      repmode-cl history model

      repmode-cl history model --json
    """
    from repmode_cl.model import Model

    opened = Model.open(model)
    if as_json:
        changes = [{**change.to_json(), "verdict": _verdicts(change)} for change in opened.history]
        typer.echo(json.dumps(changes, indent=2, sort_keys=True))
        return
    width = len(str(len(opened.history)))
    for change in opened.history:
        version = f" {change.digest[:8]}" if change.digest else ""
        typer.echo(
            printable(
                f"{change.number:{width}}  {change.time[:16].replace('T', ' ')}  {_kind(change)}{version}"
                f"{_version_state(opened, change)}"
            )
        )
        if details := "; ".join(filter(None, (_settings(change), _data(change), _figures(change)))):
            typer.echo(printable(f"{'':{width}}  {details}"))


def remove(
    model: ModelArgument,
    structure: Annotated[str, typer.Argument(metavar="NAME", help="An addition that no other one needs.")],
) -> None:
    """Remove a structure from a model; its file is kept until gc, so that it can come back.

    For example:

      repmode-cl remove model nucleolus
    """
    from repmode_cl.model import Model

    opened = Model.open(model)
    change = opened.remove(structure)
    typer.echo(f"{structure} (version {_short(change.earlier)}) is no longer in {model}")
    typer.echo(
        f"it is kept: {command('rollback', model, str(change.number - 1))} brings it back, {command('gc', model)} "
        "deletes it"
    )


def rollback(
    model: ModelArgument,
    number: Annotated[
        int,
        typer.Argument(
            metavar="NUMBER", help="Of the change after which the model was as it should be again."
        ),
    ],
) -> None:
    """Restore a model to its state after an earlier change; later versions are kept until gc.

    The history, which numbers the changes, only grows: rolling back is a change too, and can be rolled back.

    For example:

      repmode-cl rollback model 3
    """
    from repmode_cl.model import Model

    opened = Model.open(model)
    before = {(entry.name, entry.digest) for entry in opened.entries.values()}
    change = opened.rollback(number)
    if change is None:
        typer.echo(f"{model} is as it was after change {number}: nothing to do")
        return
    after = {(entry.name, entry.digest) for entry in opened.entries.values()}
    for name, digest in sorted(after - before):
        typer.echo(f"{name}: version {_short(digest)} is back")
    for name, digest in sorted(before - after):
        typer.echo(f"{name}: version {_short(digest)} is kept until gc")
    typer.echo(f"{model} is as it was after change {number}; this is change {change.number}")


def gc(
    model: ModelArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be deleted.")] = False,
) -> None:
    """Delete the earlier versions that a model keeps, and files of structures that no version has.

    Afterwards the model cannot be rolled back to changes that had them; the history still lists these.

    For example:

      repmode-cl gc model --dry-run
    """
    from repmode_cl.model import Model
    from repmode_cl.utils.number_format import count_text

    garbage = Model.open(model).gc(dry_run=dry_run)
    versions = {entry.file: entry for entry in garbage.versions}
    for file, size in garbage.files:
        entry = versions.get(file)
        origin = f"{entry.name}, an earlier version" if entry else "of no version"
        typer.echo(f"{file}: {origin}, {size:,} bytes")
    for entry in garbage.needed:
        typer.echo(f"{entry.file}: {entry.name}, an earlier version, stays: a staged structure needs it")
    done = "would be deleted from" if dry_run else "deleted from"
    typer.echo(f"{counted(len(garbage.files), 'file')}, {count_text(garbage.bytes, 'B')} {done} {model}")


def _short(digest: str | None) -> str:
    return (digest or "")[:8]


def _kind(change: Change) -> str:
    if change.action == "rollback":
        return f"rollback to {change.to}"
    return f"{change.action} {change.structure}" if change.structure else change.action


def _version_state(model: Model, change: Change) -> str:
    """Return the present state of the version that a change brought, after a comma."""
    if change.structure is None or change.digest is None:
        return ""
    key = (change.structure, change.digest)
    if key in {(entry.name, entry.digest) for entry in model.entries.values()}:
        return ", active"
    return ", kept" if key in {(entry.name, entry.digest) for entry in model.kept} else ", deleted"


def _data(change: Change) -> str:
    data = change.provenance.get("images")
    return f"data {data[:8]}" if isinstance(data, str) else ""


def _settings(change: Change) -> str:
    """Return the settings of a version, as far as they are recorded: ``conv3, 300 steps, rate 0.002, seed 0``."""
    if change.action == "gc":
        return f"deleted: {', '.join(_removed(change))}"
    settings = [change.spec.text] if change.spec else []
    structures = len(change.metrics) if change.action == "create" else 1
    return ", ".join(
        [*settings, *training_texts(change.provenance, structures, added=change.spec is not None)]
    )


def _removed(change: Change) -> list[str]:
    removed = change.provenance.get("removed", [])
    return [f"{one['structure']} {_short(one['digest'])}" for one in removed]  # written only by gc


def _verdicts(change: Change) -> dict[str, Any] | None:
    """Return the verdict of the version that a change brought; for a base, of each of its structures."""
    if change.action == "create":
        return {
            name: structure_verdict(name, figures, change.provenance).to_json()
            for name, figures in change.metrics.items()
            if isinstance(figures, Mapping)
        }
    verdict = _verdict(change)
    return None if verdict is None else verdict.to_json()


def _verdict(change: Change) -> Verdict | None:
    """Return the verdict of the addition that a change brought; None if it brought none."""
    if change.structure is None or change.digest is None:
        return None
    return structure_verdict(change.structure, change.metrics, change.provenance, recorded_images=True)


def _figures(change: Change) -> str:
    """Return R2 on held-out images as text, with its verdict; for a base, of each of its structures."""
    if change.action != "create":
        r2 = figure(change.metrics.get("r2"))
        verdict = _verdict(change)
        return f"R2 {r2} ({verdict.level})" if r2 and verdict is not None else ""
    listed = []
    for name, figures in change.metrics.items():
        r2 = figure(figures.get("r2")) if isinstance(figures, Mapping) else ""
        if r2:
            listed.append(f"{name} {r2} ({structure_verdict(name, figures, change.provenance).level})")
    return f"R2 {', '.join(listed)}" if listed else ""
