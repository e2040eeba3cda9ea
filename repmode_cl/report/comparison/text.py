"""Text and terminal table of a comparison; its page shows the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from repmode_cl.results.comparison import (
    ADDING,
    FINE_TUNING,
    OWN_NETWORK,
    Comparison,
    MethodResult,
    PredictionChange,
)
from repmode_cl.utils.number_format import DIVERGED, count_text, number, r2_text, seconds_text

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "change_text",
    "damage_text",
    "findings",
    "likeness_text",
    "lost_text",
    "metric_text",
    "render_terminal",
    "stored_text",
    "verdict_lines",
]

#: R2 of few images: a smaller difference between two methods says nothing, and a smaller R2 is as good as none.
_LEVEL = 0.01


def metric_text(method: MethodResult, metric: str) -> str:
    """Return a figure with three digits; ``-`` where it does not exist, and words for an R2 far below 0."""
    if metric not in method.metrics:
        return "-"
    value = method.metrics[metric]
    if metric == "mse" and value >= 1000:
        return f"{value:.2g}"
    return _ascii(r2_text(value) if metric == "r2" else number(value, 3))


def stored_text(method: MethodResult) -> str:
    """Return what has to be stored besides the model: sizes of files."""
    return count_text(method.bytes, "B")


def change_text(change: PredictionChange) -> tuple[str, str]:
    """Return what became of one structure: the largest difference of a voxel, and how alike the predictions are."""
    if change.identical:
        return "0", "bit-identical"
    if change.max_difference is None:
        return "not finite", "no longer finite"
    return f"{change.max_difference:.3g}", likeness_text(change)


def likeness_text(change: PredictionChange) -> str:
    """Return how alike predictions after and before are; in words where no number says it."""
    if change.r2 is None:
        return "no longer finite" if change.max_difference is None else "constant before"
    return "R2 below 0" if change.r2 < 0 else f"R2 {change.r2:.3f}"


def damage_text(method: MethodResult) -> tuple[str, str]:
    """Return what became of the model's structures, as `change_text` does of the one that changed most."""
    if method.key == OWN_NETWORK:
        return "0", "not involved"
    if method.worst is None:
        return "0", "bit-identical"
    difference, likeness = change_text(method.worst)
    return difference, f"{likeness}, {_spoken(method.worst.structure)}"


def findings(comparison: Comparison) -> list[str]:
    """Return a sentence on each method, for readers who do not know the columns, and one where none learned."""
    lines = [
        f"{method.title}: {_learned(method, comparison[ADDING])}; {_kept(method, comparison)}; {_to_store(method)}."
        for method in comparison.methods
    ]
    reached = [method.metrics["r2"] for method in comparison.methods if "r2" in method.metrics]
    if all(r2 < _LEVEL for r2 in reached):
        best = f": R2 on held-out images is at most {_ascii(r2_text(max(reached)))}" if reached else ""
        lines.append(
            f"None of the three has learned {_spoken(comparison.structure)} yet{best}; 0 is predicting the mean. "
            "Give more steps or images before choosing one."
        )
    return lines


def verdict_lines(comparison: Comparison) -> list[str]:
    """Return the verdict of each method, and what its learning curve says about more steps."""
    verdicts = [(method.title, comparison.verdict(method)) for method in comparison.methods]
    return [f"{title}: {verdict.text}; {verdict.curve_text}." for title, verdict in verdicts]


def _learned(method: MethodResult, adding: MethodResult) -> str:
    if "r2" not in method.metrics:
        return "its predictions are no finite numbers"
    own, of_adding = method.metrics["r2"], adding.metrics.get("r2")
    text = f"R2 {_ascii(r2_text(own))}"
    if method is adding or of_adding is None or max(own, of_adding) < DIVERGED:
        return text
    ahead = own - of_adding
    if abs(ahead) < _LEVEL:
        return f"{text}, level with adding"
    # A distance to a number that says nothing says nothing.
    distance = f"{abs(ahead):.3f} " if min(own, of_adding) >= DIVERGED else ""
    return f"{text}, {distance}{'above' if ahead > 0 else 'below'} adding"


def _kept(method: MethodResult, comparison: Comparison) -> str:
    if method.key == OWN_NETWORK:
        return "the model is not involved"
    count, worst = len(comparison.known), method.worst
    if worst is None:
        those = f"the {count} structures" if count > 1 else "the one structure"
        return f"{those} of the model predicted bit for bit as before"
    changed = sum(not change.identical for change in method.changes)
    those = f"{changed} of the {count}" if changed < count else f"all {count}" if count > 1 else "the one"
    of = "structures" if count > 1 else "structure"
    text = (
        f"{those} {of} of the model predicted otherwise than before, {_spoken(worst.structure)} most of all"
    )
    difference, likeness = change_text(worst)
    if worst.max_difference is None:
        text += " (no finite numbers any more)"
    elif worst.r2 is None:
        text += f" (its prediction before was constant, changed by up to {difference} z-score units)"
    else:
        text += f" ({likeness} against before, up to {difference} z-score units)"
    if method.lost is not None and abs(method.lost) >= _LEVEL:
        verb = "less" if method.lost > 0 else "more"
        text += f", and on average {lost_text(abs(method.lost))} R2 {verb} on images of their own"
    return text


def lost_text(value: float) -> str:
    """Return an R2 that was lost; 1 is all of a perfect prediction, so that more is no number to compare."""
    return "more than 1" if value > 1 else number(value, 3)


def _to_store(method: MethodResult) -> str:
    if method.key == FINE_TUNING:
        return f"a second model of {stored_text(method)}, or one in place of the first"
    return f"{stored_text(method)} more to store"


def _ascii(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-")


def _spoken(structure: str) -> str:
    return structure.replace("_", " ")


def render_terminal(comparison: Comparison) -> Table:
    """Return the table for a terminal: print it with a rich console."""
    from rich import box
    from rich.table import Table

    held_out = {"val": "validation"}.get(comparison.held_out, comparison.held_out)
    images = f"{comparison.images} {held_out} image{'s' if comparison.images > 1 else ''}"
    table = Table(
        title=f"{comparison.structure}: {images}, {comparison.methods[0].steps} steps each",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="change: of the model's predictions, z-score units, and R2 against before\n"
        "(1 is unchanged, 0 nothing left)\n"
        "stored: files besides the model",
        caption_justify="left",
    )
    table.add_column("method", overflow="fold")
    for heading in ("R2", "Pearson", "MSE", "change", "training", "stored"):
        table.add_column(heading, justify="right", overflow="fold")
    for method in comparison.methods:
        table.add_row(*_cells(method))
    return table


def _cells(method: MethodResult) -> Sequence[str]:
    # Broken here, because the terminal would break names to fit a long cell into 80 characters.
    change = "\n".join(damage_text(method)).replace(", ", "\n")
    figures = [metric_text(method, metric) for metric in ("r2", "pearson", "mse")]
    return method.title, *figures, change, seconds_text(method.seconds), stored_text(method)
