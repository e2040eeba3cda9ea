"""Verdicts of structures as the commands tell them, with the command that trains on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repmode_cl.cli.text import printable
from repmode_cl.utils.command_text import command
from repmode_cl.verdict import VerdictLevel

if TYPE_CHECKING:
    from repmode_cl.store.registry import Entry

__all__ = ["verdict_line"]

_MOST_STEPS = 10**9


def verdict_line(
    entry: Entry,
    model: str | Path,
    *,
    base: int = 1,
    staged: bool = False,
    replace: bool = True,
    data: str | Path | None = None,
) -> str:
    """Return the verdict of a structure, what its learning curve says, and the command that trains on if it rises.

    Parameters
    ----------
    entry
        The structure as the model, or what is staged for it, records it.
    model
        The model's folder.
    base
        Number of structures of the model's base.
    staged
        Whether it waits to be accepted.
    replace
        For a staged one, whether it replaces a version that the model has.
    data
        Manifest that it was learned from; None takes the name that is recorded.
    """
    verdict = entry.verdict
    line = f"verdict of {entry.name}: {verdict.text}"
    if verdict.level is VerdictLevel.UNKNOWN:
        return f"{line}; {command('evaluate', model, '--data', 'MANIFEST.csv')} measures it on new images"
    line += f"; {verdict.curve_text}"
    if verdict.rises:
        line += f"; train on: {_longer(entry, model, base, staged, replace, data)}"
    elif verdict.rises is False and not verdict.useful:
        line += ", so that more images may help where more steps do not"
    return line


def _longer(
    entry: Entry, model: str | Path, base: int, staged: bool, replace: bool, data: str | Path | None
) -> str:
    """Return the commands that learn the structure with twice the steps."""
    training = entry.provenance.get("training")
    settings: Mapping[str, Any] = training if isinstance(training, Mapping) else {}
    epochs, steps = _doubled(settings.get("epochs")), _doubled(entry.provenance.get("steps"))
    if steps is None:
        steps = _doubled(settings.get("steps"))
    if entry.kind == "base":
        key = "epochs" if epochs else "base_steps" if base > 1 else "steps"
        value = epochs or steps or "STEPS"
        config = entry.provenance.get("config")
        # Its name is recorded, not its path, and one that is shipped may have the same name.
        named = f" ({printable(config)})" if isinstance(config, str) and config else ""
        return (
            f"{command('train', 'CONFIG', '--out', 'NEW', '--set', f'training.{key}={value}')}, with the configuration"
            f"{named} and the settings that trained it, makes a new model; the base of this one never changes"
        )
    amount = ("--epochs", epochs) if epochs else ("--steps", steps or "STEPS")
    manifest = entry.provenance.get("manifest")
    if data is None:
        data = printable(manifest) if isinstance(manifest, str) and manifest else "MANIFEST.csv"
    verb = "replace" if replace else "add"
    learn = command(verb, model, "--structure", entry.name, "--data", data, *map(str, amount))
    return f"{command('discard', model, entry.name)}, then {learn}" if staged else learn


def _doubled(number: object) -> int | None:
    """Return twice a recorded number of steps; None if it is none."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number <= _MOST_STEPS:
        return None
    return 2 * number
