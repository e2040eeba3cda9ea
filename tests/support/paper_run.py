"""Run folders of the studies of the paper's tables, with figures that are known: nothing is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from synthetic_run import write_gates, write_volumes

from repmode_cl.config import load_config
from repmode_cl.data.pipeline import available_structures
from repmode_cl.report.page import build_report
from repmode_cl.results import ResultsTable
from repmode_cl.results.run_info import RunInfo, write_run_info
from repmode_cl.results.trial_record import Trial
from repmode_cl.scenarios import stream_variants

__all__ = ["of_few", "paper_page", "results_of", "run_info"]


def run_info(name: str, seeds: Sequence[int] = (0, 1)) -> RunInfo:
    """Return what run.json of a shipped study holds when all of it has ended."""
    config = load_config(name, [f"seeds=[{','.join(map(str, seeds))}]"])
    streams = stream_variants(config.stream, available_structures(config))
    info = RunInfo.of_run(
        config,
        {stream: variant.experiences for stream, variant in streams.items()},
        {},
        images={},
        file_digests={},
        joint_titles=[one.title for one in config.strategies if "joint" in (one.name, one.mode)],
        task_labels={},
    )
    return dataclasses.replace(info, finished=frozenset(info.trials))


def of_few(info: RunInfo, titles: Sequence[str] | None = None) -> RunInfo:
    """Return a run of three structures, and of some of its strategies."""
    kept = info.strategies if titles is None else {title: info.strategies[title] for title in titles}
    return dataclasses.replace(
        info,
        streams={"": (("dna", "nucleolus", "microtubule"),)},
        strategies=kept,
        options={title: info.options[title] for title in kept},
    )


def results_of(info: RunInfo, level: Mapping[str, float]) -> ResultsTable:
    """Return R2 of `level` plus the seed's luck for each structure, and errors that follow from it."""
    table, [groups] = ResultsTable(), info.streams.values()
    for title in info.strategies:
        for seed in info.seeds:
            for step in range(len(groups)):
                if title in info.joint_titles and step + 1 < len(groups):
                    continue
                for name in (name for names in groups[: step + 1] for name in names):
                    r2 = level[title] + 0.01 * seed
                    for metric, value in (("r2", r2), ("mse", 1 - r2), ("mae", 2 - r2)):
                        table.append(title, seed, step, name, metric, value)
    return table


def paper_page(folder: Path) -> Path:
    """Write the run of three systems of Table 1 on three structures, and return its page."""
    info = of_few(run_info("table1", (0,)), ["RepMode", "multi_net_k3", "dodnet_k3_joint"])
    level = {"RepMode": 0.5, "multi_net_k3": 0.4, "dodnet_k3_joint": 0.3}
    results_of(info, level).write(folder / "results.csv")
    write_run_info(folder, info)
    random = np.random.default_rng(0)
    for title in info.strategies:
        trial = folder / Trial(title, "", 0).folder
        (trial / "predictions").mkdir(parents=True)
        for name in info.structures:
            kind = "experts_frozen" if title == "RepMode" else "multi_net"
            write_volumes(trial / "predictions" / f"{name}.npz", name, kind, level[title], (6, 24, 20))
        if title == "RepMode":
            write_gates(trial / "gates.json", random, "joint", info.structures, info.structures)
    return build_report(folder)
