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


#: Title of a strategy of `never_forget_confirm` that never forgets -> what the legend calls it, colour, whether it
#: starts from the known structure that fits best.
NEVER_FORGET = {
    "experts_frozen_best": ("best (ours)", "#0b6e75", True),
    "experts_frozen_small": ("small (ours)", "#4fb3a9", True),
    "warm_copy_from_best": ("copy of RepMode's base", "#c0392b", True),
    "warm_copy_multi_head_last_k3": ("copy of the plain base", "#b9770e", False),
    "lora_k3_rank32_from_best": ("LoRA, rank 32", "#8e5ea2", True),
}


def main() -> None:
    """Write the figures."""
    mpl.rcParams.update(
        {
            "font.size": 9,
            "svg.fonttype": "none",
            "svg.hashsalt": "repmode-cl",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    draw_twelve_structures()
    draw_never_forget()


def draw_never_forget() -> None:
    """Write ``never_forget.svg``: R2 of the eight added structures against what each of them costs, over the seeds."""
    files = sorted((HERE / "never_forget_confirm").glob("*/results.csv"))
    rows = [row for file in files for row in ResultsTable.read(file).rows]
    added = tuple(load_config("never_forget_confirm").stream.order or ())
    final = [row for row in rows if row.metric == "r2" and row.structure in added and row.step == len(added)]
    together = np.mean([row.value for row in final if row.strategy == "joint"])
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), sharey=True, layout="constrained")
    for axis, metric, label, unit in (
        (axes[0], "added_bytes", "MB of an added structure", 1e6),
        (axes[1], "cpu_seconds", "processor seconds to add one", 1.0),
    ):
        for title, (name, colour, warm) in NEVER_FORGET.items():
            paid = [
                r.value for r in rows if r.strategy == title and r.metric == metric and r.structure in added
            ]
            by_seed: dict[int, list[float]] = {}
            for row in final:
                if row.strategy == title:
                    by_seed.setdefault(row.seed, []).append(row.value)
            means = [float(np.mean(values)) for values in by_seed.values()]
            axis.errorbar(
                np.mean(paid) / unit,
                np.mean(means),
                yerr=np.std(means, ddof=1) if len(means) > 1 else 0,
                fmt="o",
                color=colour,
                markerfacecolor=colour if warm else "white",
                markersize=8,
                capsize=3,
                label=name,
            )
        axis.axhline(together, color="0.5", linestyle="--", linewidth=1, label="all twelve at once")
        axis.margins(x=0.1)
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("R2 of the eight added, in the end")
    axes[1].legend(frameon=False, bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.savefig(HERE / "never_forget.svg", metadata={"Date": None})


def draw_twelve_structures() -> None:
    """Write ``twelve_structures.svg``: the base while others are learned, and what each structure comes to."""
    stream = load_config("twelve_structures").stream
    base, order = tuple(stream.base), tuple(stream.order or ())
    table = ResultsTable.read(HERE / "twelve_structures" / "results.csv")
    seeds = sorted({row.seed for row in table.select(strategy="experts_frozen")})
    steps = range(len(order) + 1)
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
