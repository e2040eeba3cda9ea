"""Gate weights by block: the share of each expert for each structure, as the page's bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from repmode_cl.report.page.chart_data import readable
from repmode_cl.report.page.svg import stacked_bar
from repmode_cl.results.run_folder import Run

__all__ = ["FRESH", "GateBars", "GateBlock", "GateCharts", "gate_charts", "shared_experts"]

#: Class of the colour of fresh experts, and what the legend calls them.
FRESH = ("efresh", "fresh expert of an addition")


@dataclass(frozen=True)
class GateBars:
    """The bars of one strategy in a block: (structure, its readable name, bar) for each structure."""

    strategy: str
    bars: tuple[tuple[str, str, Markup], ...]


@dataclass(frozen=True)
class GateBlock:
    """The bars of one block."""

    name: str
    strategies: tuple[GateBars, ...]


@dataclass(frozen=True)
class GateCharts:
    """Gate weights of a run.

    Attributes
    ----------
    blocks
        All blocks, in the order of the network.
    first
        One block of the encoder and one of the decoder, which the page shows first, as in the paper's Fig. 6.
    legend
        (class of the colour, name of the expert); fresh experts of additions share one colour.
    """

    blocks: tuple[GateBlock, ...]
    first: tuple[GateBlock, ...]
    legend: tuple[tuple[str, str], ...]


def gate_charts(run: Run) -> GateCharts | None:
    """Return the gate weights of a run; None where no strategy has any."""
    names = tuple(
        dict.fromkeys(block for of in run.gates.values() for blocks in of.values() for block in blocks)
    )
    if not names:
        return None
    styles = {expert: k for k, expert in enumerate(shared_experts(run))}
    blocks = {name: _block(run, name, styles) for name in names}
    first = []
    for part in ("enc", "dec"):
        in_part = [name for name in names if part in name.lower()]
        if in_part:
            first.append(blocks[in_part[len(in_part) // 2]])
    fresh = any(
        expert not in styles
        for of in run.gates.values()
        for of_blocks in of.values()
        for weights in of_blocks.values()
        for expert in weights
    )
    legend = [(f"e{k}", expert) for expert, k in styles.items()]
    return GateCharts(
        tuple(blocks.values()),
        tuple(first or [blocks[names[0]]]),
        tuple([*legend, FRESH] if fresh else legend),
    )


def _block(run: Run, block: str, styles: Mapping[str, int]) -> GateBlock:
    strategies = []
    for title in run.info.strategies:
        bars = tuple(
            (structure, readable(structure), stacked_bar(run.gates[title][structure][block], styles))
            for structure in run.info.structures
            if block in run.gates.get(title, {}).get(structure, {})
        )
        if bars:
            strategies.append(GateBars(title, bars))
    return GateBlock(block, tuple(strategies))


def shared_experts(run: Run) -> list[str]:
    """Return the experts of the base, in the order of their colours."""
    configured = run.config.get("network")
    names = configured.get("experts") if isinstance(configured, Mapping) else None
    base = run.info.experiences[0] if run.info.experiences else ()
    for of in run.gates.values():
        for structure in base:
            for weights in of.get(structure, {}).values():
                return list(weights)
    return [str(expert) for expert in names] if isinstance(names, list) else []
