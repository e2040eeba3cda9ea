"""Which experts each structure asks for: gate weights by block, for the page's bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from repmode_cl.report.page.chart_data import spoken
from repmode_cl.report.page.svg import stacked_bar
from repmode_cl.results.run_folder import Run

__all__ = ["GateBlock", "Gates", "gates_of"]

_FRESH = ("efresh", "fresh expert of an addition")


@dataclass(frozen=True)
class GateBlock:
    """The bars of one block: for each strategy (title, ((structure, its spoken name, bar), ...))."""

    name: str
    strategies: tuple[tuple[str, tuple[tuple[str, str, Markup], ...]], ...]


@dataclass(frozen=True)
class Gates:
    """Gate weights of a run.

    Attributes
    ----------
    blocks
        Names of all blocks, in the order of the network.
    first
        One block of the encoder and one of the decoder, drawn, as in the paper's Fig. 6.
    legend
        (class of the colour, name of the expert); fresh experts of additions share one colour.
    data
        Everything, for the page's script: strategy -> structure -> block -> shares in per cent, in the order of
        ``experts``; what is beyond those is a fresh expert.
    """

    blocks: tuple[str, ...]
    first: tuple[GateBlock, ...]
    legend: tuple[tuple[str, str], ...]
    data: Mapping[str, Any]


def gates_of(run: Run) -> Gates | None:
    """Return the gate weights of a run; None where no strategy has any."""
    names = tuple(
        dict.fromkeys(block for of in run.gates.values() for blocks in of.values() for block in blocks)
    )
    if not names:
        return None
    shared = _shared_experts(run)
    styles = {expert: k for k, expert in enumerate(shared)}
    chosen = []
    for part in ("enc", "dec"):
        inside = [name for name in names if part in name.lower()]
        if inside:
            chosen.append(inside[len(inside) // 2])
    order = {name: k for k, name in enumerate(run.info.structures)}
    data: dict[str, dict[str, dict[str, list[float]]]] = {}
    fresh = False
    for title in run.info.strategies:
        for structure in sorted(run.gates.get(title, {}), key=lambda name: order.get(name, len(order))):
            for block, weights in run.gates[title][structure].items():
                total = sum(weights.values()) or 1.0
                kept = [weights.get(expert, 0.0) for expert in shared]
                others = [weight for expert, weight in weights.items() if expert not in styles]
                fresh = fresh or bool(others)
                data.setdefault(title, {}).setdefault(structure, {})[block] = [
                    round(100.0 * weight / total, 1) for weight in (*kept, *others)
                ]
    legend = [(f"e{k}", expert) for expert, k in styles.items()]
    return Gates(
        names,
        tuple(_drawn(run, name, styles) for name in (chosen or names[:1])),
        tuple([*legend, _FRESH] if fresh else legend),
        {"experts": shared, "shares": data},
    )


def _drawn(run: Run, block: str, styles: Mapping[str, int]) -> GateBlock:
    return GateBlock(
        block,
        tuple(
            (
                title,
                tuple(
                    (structure, spoken(structure), stacked_bar(run.gates[title][structure][block], styles))
                    for structure in run.info.structures
                    if block in run.gates[title].get(structure, {})
                ),
            )
            for title in run.info.strategies
            if title in run.gates
        ),
    )


def _shared_experts(run: Run) -> list[str]:
    configured = run.config.get("network")
    named = configured.get("experts") if isinstance(configured, Mapping) else None
    base = run.info.experiences[0] if run.info.experiences else ()
    for of in run.gates.values():
        for structure in base:
            for weights in of.get(structure, {}).values():
                return list(weights)
    return [str(expert) for expert in named] if isinstance(named, list) else []
