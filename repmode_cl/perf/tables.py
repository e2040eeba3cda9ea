"""Tables of a measurement for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

__all__ = ["tables_of"]


def tables_of(section: str, found: Any) -> Iterator[Table | str]:
    """Yield the tables of one section, and lines of text between them.

    Parameters
    ----------
    section
        One of `repmode_cl.perf.settings.SECTIONS`.
    found
        What `run_perf` found of it; None where it could not be measured.
    """
    if found is not None:
        yield from _TABLES[section](found)


def _check(found: Sequence[Mapping[str, Any]]) -> Iterator[Table | str]:
    title = "Against the CPU in float64: difference relative to the norm"
    table = _table(title, "network", "precision", "output", "allowed", "gradients", "allowed")
    for row in found:
        keys = ("output", "output_tolerance", "gradients", "gradients_tolerance")
        table.add_row(row["label"], row["precision"], *(f"{row[key]:.2g}" for key in keys))
    yield table


def _training(found: Mapping[str, Any]) -> Iterator[Table | str]:
    for precision, rows in found.items():
        yield _times(f"Training step, {precision}", rows)


def _inference(found: Mapping[str, Any]) -> Iterator[Table | str]:
    for precision, rows in found["windows"].items():
        yield _times(f"Prediction of a batch of windows, {precision}", rows)
    yield _times(f"Prediction of {_size(found['volume']['volume'])} voxels", found["volume"]["rows"])


def _kernel3(found: Mapping[str, Any]) -> Iterator[Table | str]:
    for precision, rows in found["training"].items():
        yield _times(f"Training step of networks of kernel 3, {precision}", rows)
    for precision, rows in found["prediction"].items():
        yield _times(f"Prediction of a batch of windows by networks of kernel 3, {precision}", rows)


def _times(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(title, "", "median", "ratio", "quartiles", "rounds")
    for row in rows:
        low, high = row["quartiles"] or (None, None)
        table.add_row(
            row["label"],
            row["failure"] or _seconds(row["median"]),
            _ratio(row["ratio"]),
            "" if low is None else f"{_ratio(low)} to {_ratio(high)}",
            str(len(row["seconds"])),
        )
    return table


def _memory(found: Mapping[str, Any]) -> Iterator[Table | str]:
    kinds = {
        "gpu": "peak on the GPU",
        "resident": "peak, resident",
        "tensors": "peak, tensors",
        "saved": "kept for backward",
        "parameters": "parameters",
        "gradients": "gradients",
        "optimizer": "optimiser",
    }
    for precision, section in found.items():
        shown = {k: text for k, text in kinds.items() if any(row[k] is not None for row in section["rows"])}
        table = _table(f"Memory of a training step, {precision}", "", *shown.values())
        for row in section["rows"]:
            figures = [_bytes(row[kind]) for kind in shown]
            if row["failure"]:
                figures[0] = figures[0] or row["failure"]
            table.add_row(row["label"], *figures)
        yield table
        for one in section["promises"]:
            yield (
                f"{kinds[one['peak']]}: ours with one structure takes {_bytes(one['above'])} more than the plain "
                f"network; the experts, their gradients and optimiser state, plus 10%, are {_bytes(one['limit'])}: "
                f"{'kept' if one['kept'] else 'NOT KEPT'}"
            )


def _loading(found: Mapping[str, Any]) -> Iterator[Table | str]:
    title = f"Loading from volumes of {_size(found['volume'])} voxels"
    table = _table(title, "workers", "patches/s", "of the step's appetite", "first batch")
    for row in found["rows"]:
        table.add_row(
            str(row["workers"]),
            f"{row['median']:.0f}",
            f"{row['ratio']:.1f}",
            _seconds(row["until_first_batch"]),
        )
    yield table
    yield f"a training step consumes {found['appetite']:.1f} patches/s"


def _scaling(found: Mapping[str, Any]) -> Iterator[Table | str]:
    table = _table(
        f"Volumes in windows of {_size(found['window'])}", "volume", "windows", "per window", "ratio"
    )
    for row in found["rows"]:
        table.add_row(
            f"{row['label']} ({_size(row['voxels'])})",
            str(row["windows"]),
            row["failure"] or _seconds(row["per_window"]),
            _ratio(row["per_window_ratio"]),
        )
    yield table


def _startup(found: Sequence[Mapping[str, Any]]) -> Iterator[Table | str]:
    table = _table("Start-up", "", "median", "fastest", "slowest")
    for row in found:
        took = row["seconds"]
        table.add_row(
            row["label"], row["failure"] or _seconds(row["median"]), _seconds(min(took)), _seconds(max(took))
        )
    yield table


def _profile(found: Mapping[str, Any]) -> Iterator[Table | str]:
    for precision, section in found.items():
        variants = section["variants"]
        table = _table(
            f"Milliseconds of a training step by operator, {precision}", "operator", *variants.values()
        )
        for row in section["rows"]:
            table.add_row(row["operator"], *(f"{row[name]:.2f}" for name in variants))
        table.add_row("all operators", *(f"{section['total'][name]:.2f}" for name in variants))
        yield table


_TABLES: dict[str, Callable[[Any], Iterator[Table | str]]] = {
    "check": _check,
    "training": _training,
    "inference": _inference,
    "kernel3": _kernel3,
    "memory": _memory,
    "loading": _loading,
    "scaling": _scaling,
    "startup": _startup,
    "profile": _profile,
}


def _table(title: str, first: str, *rest: str) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column(first, no_wrap=True)
    for heading in rest:
        table.add_column(heading, justify="right")
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _bytes(value: int | None) -> str:
    if value is None:
        return ""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def _size(sizes: Sequence[int]) -> str:
    return " x ".join(str(size) for size in sizes)
