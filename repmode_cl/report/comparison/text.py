"""What a comparison says, in words and as a table: the terminal and the page show the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from repmode_cl.report.tables.number_format import count_text, seconds_text
from repmode_cl.results.comparison import (
    ADDING,
    FINE_TUNING,
    OWN_NETWORK,
    Comparison,
    MethodResult,
    PredictionChange,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["change_text", "damage_text", "findings", "metric_text", "render_terminal", "stored_text"]

#: R2 of few images: a smaller difference between two ways says nothing.
_LEVEL = 0.01


def metric_text(way: MethodResult, metric: str) -> str:
    """Return a figure with three digits; ``-`` where it does not exist."""
    return f"{way.metrics[metric]:.3f}" if metric in way.metrics else "-"


def stored_text(way: MethodResult) -> str:
    """Return what has to be stored besides the model: sizes of files."""
    return count_text(way.bytes, "B")


def change_text(change: PredictionChange) -> tuple[str, str]:
    """Return what became of one structure: the largest difference of a voxel, and how alike the predictions are."""
    if change.identical:
        return "0", "bit-identical"
    difference = "not finite" if change.max_difference is None else f"{change.max_difference:.3g}"
    return difference, f"R2 {_number(change.r2)}"


def damage_text(way: MethodResult) -> tuple[str, str]:
    """Return what became of the model's structures, as `change_text` does of the one that changed most."""
    if way.key == OWN_NETWORK:
        return "0", "not involved"
    if way.worst is None:
        return "0", "bit-identical"
    difference, likeness = change_text(way.worst)
    return difference, f"{likeness}, {_spoken(way.worst.structure)}"


def findings(comparison: Comparison) -> list[str]:
    """Return a sentence on each way, so that nobody has to know what the columns mean."""
    return [
        f"{way.title}: {_learned(way, comparison[ADDING])}; {_kept(way, comparison)}; {_to_store(way)}."
        for way in comparison.ways
    ]


def _learned(way: MethodResult, adding: MethodResult) -> str:
    if "r2" not in way.metrics:
        return "its predictions are no finite numbers"
    text = f"R2 {way.metrics['r2']:.3f}"
    if way is adding or "r2" not in adding.metrics:
        return text
    ahead = way.metrics["r2"] - adding.metrics["r2"]
    if abs(ahead) < _LEVEL:
        return f"{text}, level with adding"
    return f"{text}, {abs(ahead):.3f} {'above' if ahead > 0 else 'below'} adding"


def _kept(way: MethodResult, comparison: Comparison) -> str:
    if way.key == OWN_NETWORK:
        return "the model is not involved"
    count, worst = len(comparison.known), way.worst
    if worst is None:
        those = f"the {count} structures" if count > 1 else "the one structure"
        return f"{those} of the model predicted bit for bit as before"
    changed = sum(not change.identical for change in way.changes)
    those = f"{changed} of the {count}" if changed < count else f"all {count}" if count > 1 else "the one"
    of = "structures" if count > 1 else "structure"
    difference, likeness = change_text(worst)
    text = f"{those} {of} of the model predicted otherwise than before"
    text += f", {_spoken(worst.structure)} most of all ({likeness} against before, up to {difference} z-score units)"
    if way.lost is not None and abs(way.lost) >= _LEVEL:
        verb = "less" if way.lost > 0 else "more"
        text += f", and on average {abs(way.lost):.3f} R2 {verb} on images of their own"
    return text


def _to_store(way: MethodResult) -> str:
    if way.key == FINE_TUNING:
        return f"a second model of {stored_text(way)}, or one in place of the first"
    return f"{stored_text(way)} more to store"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _spoken(structure: str) -> str:
    return structure.replace("_", " ")


def render_terminal(comparison: Comparison) -> Table:
    """Return the table for a terminal: print it with a rich console."""
    from rich import box
    from rich.table import Table

    images = f"{comparison.images} {comparison.held_out} image{'s' if comparison.images > 1 else ''}"
    shown = Table(
        title=f"{comparison.structure}: {images}, {comparison.ways[0].steps} steps each",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="change: of the model's predictions, z-score units; R2 against before, 1 is unchanged\n"
        "stored: files besides the model",
        caption_justify="left",
    )
    shown.add_column("way", overflow="fold")
    for heading in ("R2", "Pearson", "MSE", "change", "training", "stored"):
        shown.add_column(heading, justify="right", overflow="fold")
    for way in comparison.ways:
        shown.add_row(*_cells(way))
    return shown


def _cells(way: MethodResult) -> Sequence[str]:
    # Broken here, because the terminal would break names to fit a long cell into 80 characters.
    change = "\n".join(damage_text(way)).replace(", ", "\n")
    figures = [metric_text(way, metric) for metric in ("r2", "pearson", "mse")]
    return way.title, *figures, change, seconds_text(way.seconds), stored_text(way)
