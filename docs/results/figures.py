"""Draw the figures of this folder from its results.csv files: ``python docs/results/figures.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from repmode_cl.config import load_config
from repmode_cl.results import ResultsTable

HERE = Path(__file__).parent
#: Title of a strategy -> what the legend calls it, colour, dashes.
SHOWN = {
    "experts_frozen": ("experts frozen (ours)", "#0b6e75", "-"),
    "fine_tuning": ("fine-tuning", "#c0392b", "-"),
    "multi_head_decoder_k3": ("Multi-Head (decoder)", "#8e5ea2", "-"),
    "multi_net_k3": ("Multi-Net, kernel 3", "#6b7785", "--"),
}


def main() -> None:
    """Write ``twelve_structures.svg``: the base while others are learned, and what each structure comes to."""
    stream = load_config("twelve_structures").stream
    base, order = tuple(stream.base), tuple(stream.order or ())
    table = ResultsTable.read(HERE / "twelve_structures" / "results.csv")
    seeds = sorted({row.seed for row in table.select(strategy="experts_frozen")})
    steps = range(len(order) + 1)
    mpl.rcParams.update(
        {
            "font.size": 9,
            "svg.fonttype": "none",
            "svg.hashsalt": "repmode-cl",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(2, 3), layout="constrained")

    for title, (label, colour, dashes) in SHOWN.items():
        value = {
            (row.seed, row.step, row.structure): row.value
            for row in table.select(strategy=title, metric="r2")
        }
        held = np.array([[np.mean([value[s, k, n] for n in base]) for k in steps] for s in seeds])
        left.plot(steps, held.mean(0), dashes, color=colour, label=label)
        left.fill_between(steps, held.min(0), held.max(0), color=colour, alpha=0.15, linewidth=0)
        place = np.arange(len(order)) + 0.18 * (list(SHOWN).index(title) - 1.5)
        for when, marker in (("learned", "_"), ("final", "o")):
            found = [
                [value[s, steps[-1] if when == "final" else k + 1, n] for k, n in enumerate(order)]
                for s in seeds
            ]
            right.scatter(
                place, np.mean(found, 0), marker=marker, color=colour, s=60 if marker == "_" else 18
            )
    left.set(
        xlabel="structures added",
        ylabel="R2 on test fields",
        title="What becomes of the four base structures",
    )
    left.legend(frameon=False)
    right.set(
        title="The added structures: just after learning (bar) and in the end (dot)",
        ylabel="R2 on test fields",
    )
    right.set_xticks(range(len(order)), [name.replace("_", "\n") for name in order], fontsize=8)
    right.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    figure.savefig(HERE / "twelve_structures.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
