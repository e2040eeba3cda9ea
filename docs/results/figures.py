"""Draw the figures of this folder: ``python docs/results/figures.py [RUN]``.

Those of studies are drawn from their results.csv, the paper's Figure 6 from the gates.json of `table1`. Figure 7 needs
predictions, which are not in this folder: it is drawn where RUN, a run of `table1`, is given.
"""

from __future__ import annotations

import base64
import csv
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from repmode_cl.config import load_config
from repmode_cl.report.page.difference_boxes import side_by_side
from repmode_cl.results import ResultsTable
from repmode_cl.results.gates import GATES, read_gates
from repmode_cl.results.run_folder import read_run

HERE = Path(__file__).parent
#: Title of a strategy -> what the legend calls it, colour, dashes.
SHOWN = {
    "experts_frozen": ("experts frozen (ours)", "#0b6e75", "-"),
    "fine_tuning": ("fine-tuning", "#c0392b", "-"),
    "multi_head_decoder_k3": ("Multi-Head (decoder)", "#8e5ea2", "-"),
    "multi_net_k3": ("Multi-Net, kernel 3", "#6b7785", "--"),
}


#: Title of a strategy of the confirmations that never forgets -> what the legend calls it, colour, whether it starts
#: from the known structure that fits best. One copy of the plain base is in each of them.
NEVER_FORGET = {
    "experts_frozen_best": ("best (ours)", "#0b6e75", True),
    "experts_frozen_small": ("small (ours)", "#4fb3a9", True),
    "warm_copy_from_best": ("copy of RepMode's base", "#c0392b", True),
    "warm_copy_multi_head_last_k3": ("copy of the plain base", "#b9770e", False),
    "warm_copy_multi_head_last_k3_from_best": ("copy of the plain base", "#b9770e", True),
    "lora_k3_rank32_from_best": ("LoRA, rank 32", "#8e5ea2", True),
}

#: Study of the paper's tables -> the title of its panel.
PAPER_STUDIES = {
    "table1": "Table 1: all twelve at once",
    "table1_incremental": "its systems frozen, eight added",
    "table2": "Table 2: ablations",
}

#: Structures of the paper's Figure 6, and of its Figure 7.
GATES_SHOWN = ("cell_membrane", "mitochondria", "nucleolus", "nuclear_envelope")
COMPARED = ("microtubule", "actin_filament", "dna")

#: Gates of a whole run of `table1`.
GATES_FILE = HERE / "table1" / "seed_2" / GATES

#: Colour of each expert.
EXPERTS = {
    "conv5": "#0b6e75",
    "conv3": "#4fb3a9",
    "conv1": "#b7dfd8",
    "avg3": "#e0a458",
    "avg5": "#b9770e",
}


def main(run: str | None = None) -> None:
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
    draw_never_forget("never_forget_confirm", "never_forget.svg")
    draw_never_forget("never_forget_confirm_2", "never_forget_2.svg")
    draw_paper_tables()
    if (GATES_FILE).exists():
        draw_gates()
    if run is not None:
        draw_side_by_side(Path(run))


def draw_paper_tables() -> None:
    """Write ``paper_tables.svg``: R2 of every system of the paper's Tables 1 and 2, each seed, and in the paper."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained")
    for axis, (study, title) in zip(axes, PAPER_STUDIES.items(), strict=True):
        of_system: dict[str, dict[int, list[float]]] = {}
        for file in sorted((HERE / study).glob("seed_*/results.csv")):
            rows = ResultsTable.read(file).rows
            last = max(row.step for row in rows)
            for row in rows:
                if row.metric == "r2" and row.step == last:
                    of_system.setdefault(row.strategy, {}).setdefault(row.seed, []).append(row.value)
        seeds = {name: [float(np.mean(found)) for found in by.values()] for name, by in of_system.items()}
        ordered = sorted(seeds, key=lambda name: float(np.mean(seeds[name])))
        with (HERE / study / "paper.csv").open(encoding="utf-8", newline="") as file:
            paper = {row["strategy"]: row for row in csv.DictReader(file) if row["structure"] == "all"}
        for place, name in enumerate(ordered):
            ours = paper[name]["system"] in ("RepMode", "Original")
            colour = "#0b6e75" if ours else "#6b7785"
            axis.plot(seeds[name], [place] * len(seeds[name]), "|", color=colour, markersize=7)
            axis.plot(np.mean(seeds[name]), place, "o", color=colour, markersize=6)
            if study != "table1_incremental":
                axis.plot(float(paper[name]["paper_r2"]), place, "D", color="#b9770e", fillstyle="none")
        axis.set_yticks(range(len(ordered)), [_system_label(paper[name]) for name in ordered], fontsize=8)
        axis.set(title=title, xlabel="mean R2 of the twelve")
        axis.set_xlim(0, 0.5)
        axis.grid(alpha=0.25, axis="x")
    axes[0].legend(
        [plt.Line2D([], [], color="#b9770e", marker="D", linestyle="", fillstyle="none")],
        ["in the paper"],
        frameon=False,
        loc="upper left",
    )
    figure.savefig(HERE / "paper_tables.svg", metadata={"Date": None})


def _system_label(row: Mapping[str, str]) -> str:
    """Return the system's name in the paper, with its kernel or setting where there are two of it."""
    name, title = row["system"], row["strategy"]
    for part, label in (("_k3", ", 3"), ("_k5", ", 5"), ("_small", ", small"), ("_best", ", best")):
        if part in title:
            return name + label
    return name


def draw_gates() -> None:
    """Write ``paper_figure_6.svg``: share of each expert in each block, mean over channels, for four structures."""
    gates = read_gates(GATES_FILE)
    figure, axes = plt.subplots(1, len(GATES_SHOWN), figsize=(11, 3.2), sharey=True, layout="constrained")
    for axis, name in zip(axes, GATES_SHOWN, strict=True):
        blocks = gates[name]
        below = np.zeros(len(blocks))
        for expert, colour in EXPERTS.items():
            share = np.array([weights[expert] for weights in blocks.values()])
            axis.bar(range(len(blocks)), share, 0.9, bottom=below, color=colour, label=expert)
            below += share
        axis.set(title=name.replace("_", " "), xlabel="block", ylim=(0, 1), xlim=(-0.6, len(blocks) - 0.4))
        axis.set_xticks(range(len(blocks)), list(blocks), rotation=90, fontsize=7)
    axes[0].set_ylabel("gate weight")
    axes[-1].legend(frameon=False, bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.savefig(HERE / "paper_figure_6.svg", metadata={"Date": None})


def draw_side_by_side(folder: Path) -> None:
    """Write ``paper_figure_7.png``: three structures as the best rival and ours predict them, differences boxed."""
    compared = side_by_side(read_run(folder))
    if compared is None:
        raise SystemExit(f"{folder}: no run that repeats a table of the paper, or without predictions")
    shown = {one.structure: one for one in compared.structures}
    columns = len(next(iter(shown.values())).panels)
    figure, axes = plt.subplots(len(COMPARED), columns, figsize=(9, 7), layout="constrained")
    for row, name in zip(axes, COMPARED, strict=True):
        for axis, panel in zip(row, shown[name].panels, strict=True):
            png = base64.b64decode(panel.uri.partition(",")[2])
            axis.imshow(plt.imread(io.BytesIO(png), format="png"), cmap="gray", interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(f"{panel.title}\n{panel.note}", fontsize=8)
            for box in shown[name].boxes if panel.boxed else ():
                square = plt.Rectangle(
                    (box.x - 0.5, box.y - 0.5), box.side, box.side, fill=False, color="#f2c14e", linewidth=1.4
                )
                axis.add_patch(square)
                axis.text(box.x + 1, box.y + 1, box.name, color="#f2c14e", va="top", fontsize=8)
        row[0].set_ylabel(name.replace("_", " "))
    figure.savefig(HERE / "paper_figure_7.png", dpi=110, metadata={"Software": None})


def draw_never_forget(study: str, name: str) -> None:
    """Write the file `name`: R2 of the eight added structures against what each of them costs, over the seeds."""
    files = sorted((HERE / study).glob("*/results.csv"))
    rows = [row for file in files for row in ResultsTable.read(file).rows]
    added = tuple(load_config(study).stream.order or ())
    final = [row for row in rows if row.metric == "r2" and row.structure in added and row.step == len(added)]
    together = [row.value for row in final if row.strategy == "joint"]
    present = {
        title: shown for title, shown in NEVER_FORGET.items() if any(r.strategy == title for r in final)
    }
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), sharey=True, layout="constrained")
    for axis, metric, what, unit in (
        (axes[0], "added_bytes", "MB of an added structure", 1e6),
        (axes[1], "cpu_seconds", "processor seconds to add one", 1.0),
    ):
        for title, (label, colour, warm) in present.items():
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
                label=label,
            )
        if together:
            mean = float(np.mean(together))
            axis.axhline(mean, color="0.5", linestyle="--", linewidth=1, label="all twelve at once")
        axis.margins(x=0.1)
        axis.set_xlabel(what)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("R2 of the eight added, in the end")
    axes[1].legend(frameon=False, bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.savefig(HERE / name, metadata={"Date": None})


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
    main(*sys.argv[1:])
