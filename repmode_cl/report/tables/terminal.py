"""Tables for a terminal of 80 characters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from repmode_cl.utils.number_format import (
    count_text,
    difference_text,
    forgetting_text,
    number_text,
    p_text,
    seconds_text,
    title_text,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["render_budgets", "render_comparisons", "render_planned", "render_strategies", "summary_lines"]


def render_strategies(table: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """Return the table for a terminal: print it with a rich console.

    Parameters
    ----------
    table
        Rows of `strategy_table`.
    title
        A line above it.
    """
    multi_net = next((row["multi_net_all"] for row in table if row["improvement_r2"] is not None), None)
    output = _table(
        title,
        "added: per structure after the base"
        + (f"; ±: 95% interval over {_units(table)}" if any(row["seeds"] > 1 for row in table) else "")
        + _seeds_line(table)
        + ("" if multi_net is None else f"\nMulti-Net: {multi_net}"),
    )

    def number(key: str, digits: int, sign: bool = False) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: number_text(row[key], row[f"{key}_ci"], digits, sign)

    # Without MSE, which says for z-scored targets what R2 says: the rest has to fit into 80 characters.
    columns: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("R2\n(all)", number("final_r2", 3)),
        ("R2\n(added)", number("added_r2", 3)),
        ("Pearson\n(all)", number("final_pearson", 3)),
        ("forgetting\n(R2)", forgetting_text),
        ("vs Multi-\nNet, %", number("improvement_r2", 1, sign=True)),
        ("params\nadded", lambda row: count_text(row["added_parameters"])),
        ("seconds\nadded", lambda row: number_text(row["added_seconds"], None, 0)),
    ]
    # A column that nothing stands in says nothing.
    columns = [column for column in columns if any(column[1](row) != "-" for row in table)]
    output.add_column("strategy", overflow="fold")
    for heading, _ in columns:
        output.add_column(heading, justify="right", overflow="fold")
    for row in table:
        note = "" if row["seeds"] else " (unfinished)"
        # Broken here, because the terminal would break names and words to fit a long cell into 80 characters.
        cells = [text(row).replace(" ±", "\n±").replace(" (", "\n(") for _, text in columns]
        output.add_row(f"{title_text(row)}{note}", *cells)
    return output


def summary_lines(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one plain line per finished strategy, for logs and narrow terminals."""
    lines = []
    for row in table:
        if row["seeds"]:
            forgot = "" if row["forgetting_r2"] is None else f", forgetting {forgetting_text(row)}"
            final = number_text(row["final_r2"], row["final_r2_ci"], 3)
            lines.append(f"{row['strategy']}: R2 {final}{forgot}")
    return lines


def render_comparisons(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """Return the rows of `comparison_table` for a terminal.

    Parameters
    ----------
    rows
        Rows of one call, so that they share metric and correction.
    title
        A line above them.
    """
    of = max((row["pairs"] for row in rows), default=0)
    one_reference = len({row["first"] for row in rows}) == 1
    output = _table(
        title,
        f"difference: paired by {'seed and order' if _has_orders(rows) else 'seed'}, mean over structures; above 0\n"
        + (f"{rows[0]['first']} is better" if one_reference else "the first is better")
        + f"; [ ]: 95% bootstrap over {_units(rows)}\n"
        + (
            "p: sign-flip test over seeds"
            + (", or that bootstrap if larger\n" if _has_orders(rows) else "; ")
        )
        + f"Holm: corrected for {of} comparisons\n"
        + "verdict: of each comparison by itself",
    )
    structures = {row["structure"] for row in rows}
    output.add_column("against" if one_reference else "pair", overflow="fold")
    if len(structures) > 1:
        output.add_column("structure", overflow="fold")
    units = "seeds x\norders" if _has_orders(rows) else "seeds"
    for heading in ("difference", "p", "Holm", f"{units}\n(needed)"):
        output.add_column(heading, justify="right")
    output.add_column("verdict", overflow="fold")
    for row in rows:
        pair = row["second"] if one_reference else f"{row['first']}\n{row['second']}"
        cells = [row["structure"]] if len(structures) > 1 else []
        needed = "-" if row["seeds_needed"] is None else str(row["seeds_needed"])
        output.add_row(
            pair,
            *cells,
            difference_text(row).replace(" [", "\n\\["),  # escaped: rich's markup has brackets too
            p_text(row["p"]),
            p_text(row["p_holm"]),
            (f"{row['seeds']}x{row['orders']}" if row["orders"] > 1 else f"{row['seeds']}") + f" ({needed})",
            row["verdict"],
        )
    return output


def render_planned(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the rows of `planned_table` for a terminal."""
    tested = sum(row["kind"] == "ahead" for row in rows)
    output = _table(
        "planned comparisons",
        "R2 of the structures after the base; [ ]: 95% bootstrap over seeds\n"
        f"Holm: corrected for the {tested} planned claims of being ahead; not lower: by the interval",
    )
    output.add_column("claim", overflow="fold")
    for heading in ("difference", "Holm", "bytes", "seconds", "seeds"):
        output.add_column(heading, justify="right")
    output.add_column("verdict", overflow="fold")
    for row in rows:
        shares = ("-" if row[key] is None else f"{row[key]:.0%}" for key in ("bytes_share", "seconds_share"))
        output.add_row(
            row["claim"],
            difference_text(row).replace(" [", "\n\\["),
            "-" if row["p_holm"] is None else p_text(row["p_holm"]),
            *shares,
            str(row["seeds"]),
            row["verdict"],
        )
    return output


def render_budgets(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """Return the rows of `budget_table` that average over structures, for a terminal."""
    output = _table(
        title,
        "smallest budget whose mean just after learning reaches Multi-Net's\n"
        + (
            f"{rows[0]['target']:.3f} ({rows[0]['multi_net']}); per added structure\n"
            f"seconds: {rows[0]['clock']} time"
            if rows
            else ""
        ),
    )
    output.add_column("strategy", overflow="fold")
    for heading in ("steps", "of Multi-\nNet's", "seconds", "of Multi-\nNet's"):
        output.add_column(heading, justify="right")
    output.add_column("tried (steps: value)", overflow="fold")
    for row in rows:
        output.add_row(
            row["family"],
            "none" if row["steps"] is None else f"{row['steps']:.0f}",
            _percent(row["steps_share"]),
            seconds_text(row["seconds"]),
            _percent(row["seconds_share"]),
            row["tried"],
        )
    return output


def _has_orders(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(row["orders"] > 1 for row in rows)


def _units(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what intervals are over."""
    return "seeds and orders" if _has_orders(rows) else "seeds"


def _seeds_line(table: Sequence[Mapping[str, Any]]) -> str:
    """Return a line on how many seeds the rows average over, and which have other numbers than most."""
    numbers = [row["seeds"] for row in table if row["seeds"]]
    if not numbers or max(numbers) == 1:
        return ""
    usual = max(sorted(set(numbers), reverse=True), key=numbers.count)
    others = [f"{row['strategy']} {row['seeds']}" for row in table if row["seeds"] not in (0, usual)]
    return "\n" + "; ".join([f"seeds: {usual}", *others])


def _table(title: str | None, caption: str) -> Table:
    from rich import box
    from rich.table import Table

    # Escaped: in rich's markup square brackets are a style.
    return Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=caption.replace("[", r"\["),
        caption_justify="left",
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
