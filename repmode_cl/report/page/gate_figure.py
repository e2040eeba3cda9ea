"""Gate weights of all blocks at once: for each structure a chart of stacked columns, one for each block.

After the paper's Fig. 6, which shows two blocks: here all of them stand in the order of the network, so that a change
from the encoder to the decoder is seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from repmode_cl.report.page.chart_data import readable
from repmode_cl.report.page.gate_weights import FRESH, shared_experts
from repmode_cl.results.run_folder import Run

__all__ = ["GateFigure", "gate_figures", "stacked_columns"]

_WIDTH, _HEIGHT = 270, 128
_LEFT, _RIGHT, _TOP, _BOTTOM = 28, 2, 6, 20

#: Room between two parts of the network, in columns.
_GAP = 0.6

#: First word of a block's name -> what stands below its columns.
_PARTS = {"encoder": "encoder", "bottleneck": "mid", "decoder": "decoder", "head": "out"}

#: Expert -> its share of a block.
Weights = Mapping[str, float]


@dataclass(frozen=True)
class GateFigure:
    """The charts of one strategy: (structure, its readable name, chart) for each structure."""

    strategy: str
    charts: tuple[tuple[str, str, Markup], ...]


def gate_figures(run: Run) -> tuple[GateFigure, ...]:
    """Return the charts of each strategy that has gates, in the order of the run."""
    styles = {expert: k for k, expert in enumerate(shared_experts(run))}
    figures = []
    for title in run.info.strategies:
        of_strategy = run.gates.get(title, {})
        charts = tuple(
            (name, readable(name), stacked_columns(of_strategy[name], styles, readable(name)))
            for name in run.info.structures
            if of_strategy.get(name)
        )
        if charts:
            figures.append(GateFigure(title, charts))
    return tuple(figures)


def stacked_columns(blocks: Mapping[str, Weights], styles: Mapping[str, int], of: str) -> Markup:
    """Draw the share of each expert in each block.

    Parameters
    ----------
    blocks
        Block -> expert -> mean gate weight, in the order of the network.
    styles
        Expert -> number of its colour; those that have none are fresh experts of additions.
    of
        Whose gates they are, for a screen reader.
    """
    parts = [name.partition(".")[0] for name in blocks]
    changes = [0.0, *itertools.accumulate(_GAP * (a != b) for a, b in itertools.pairwise(parts))]
    unit = (_WIDTH - _LEFT - _RIGHT) / (len(blocks) + changes[-1])
    lefts = [_LEFT + unit * (place + gap) for place, gap in enumerate(changes)]
    bottom = _HEIGHT - _BOTTOM
    out = [
        f'<svg class="gate-figure" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(_description(blocks, of))}">'
    ]
    for share in (0, 50, 100):
        y = bottom - (bottom - _TOP) * share / 100
        out.append(f'<line class="grid" x1="{_LEFT - 3}" x2="{_WIDTH - _RIGHT}" y1="{y:g}" y2="{y:g}"/>')
        out.append(f'<text x="{_LEFT - 6}" y="{y + 3.5:g}" text-anchor="end">{share}</text>')
    for expert, columns in _stacked(blocks).items():
        kind = f"e{styles[expert]}" if expert in styles else FRESH[0]
        path = "".join(
            f"M{lefts[place]:.1f} {bottom - (bottom - _TOP) * (below + share):.1f}h{0.92 * unit:.1f}"
            f"v{(bottom - _TOP) * share:.1f}h-{0.92 * unit:.1f}z"
            for place, below, share in columns
        )
        shares = [100 * share for _, _, share in columns]
        tip = f"{expert}: {min(shares):.0f} to {max(shares):.0f} %"
        out.append(f'<path class="{kind}" d="{path}"><title>{escape(tip)}</title></path>')
    for part, group in itertools.groupby(range(len(parts)), key=parts.__getitem__):
        places = list(group)
        middle = (lefts[places[0]] + lefts[places[-1]] + 0.92 * unit) / 2
        # A word that is wider than its columns would run into the next.
        word = _PARTS.get(part, part)
        if 5.6 * len(word) <= unit * (len(places) + _GAP):
            out.append(f'<text x="{middle:.1f}" y="{bottom + 14}" text-anchor="middle">{escape(word)}</text>')
    out.append("</svg>")
    return Markup("".join(out))  # every text in it is escaped above


def _stacked(blocks: Mapping[str, Weights]) -> dict[str, list[tuple[int, float, float]]]:
    """Return for each expert (number of the block, share below it, its share)."""
    columns: dict[str, list[tuple[int, float, float]]] = {}
    for place, weights in enumerate(blocks.values()):
        total, below = math.fsum(weights.values()) or 1.0, 0.0
        for expert, weight in weights.items():
            columns.setdefault(expert, []).append((place, below, weight / total))
            below += weight / total
    return columns


def _description(blocks: Mapping[str, Weights], of: str) -> str:
    largest: Sequence[str] = [max(weights, key=weights.__getitem__) for weights in blocks.values()]
    listed = ", ".join(f"{block} {expert}" for block, expert in zip(blocks, largest, strict=True))
    return f"share of each expert in each block for {of}; the largest are {listed}"
