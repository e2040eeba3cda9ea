"""A benchmark's folder with random but plausible numbers: what the report's tests read, in tenths of a second."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from scipy.ndimage import gaussian_filter

from repmode_cl.results import ResultsTable
from repmode_cl.results.trial_record import Trial

__all__ = ["FOUR", "KINDS", "make_run", "write_gates", "write_volumes"]

EXPERTS = ["conv5", "conv3", "conv1", "avg3", "avg5"]
BLOCKS = ["encoder.0.0", "encoder.0.1", "encoder.1.0", "bottleneck.0", "decoder.1.0", "decoder.0.1"]
KINDS = {"experts_frozen": "experts_frozen", "fine_tuning": "fine_tuning", "multi_net_k3": "multi_net"}
FOUR = (("dna", "cell_membrane"), ("mitochondria",), ("nucleolus",))
ADDED = {"experts_frozen": 331_000, "multi_net": 362_000}
SPEED = {"experts_frozen": 50, "multi_net": 100}


def make_run(
    folder: Path,
    experiences: Sequence[Sequence[str]] = FOUR,
    seeds: Sequence[int] = (0, 1),
    shape: tuple[int, int, int] = (6, 24, 20),
    finished: bool = True,
    kinds: Mapping[str, str] = KINDS,
    streams: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> Path:
    """Write a run's folder: of one stream, `experiences`, in the first form of run.json, or of several `streams`."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    structures = [name for names in experiences for name in names]
    level = dict(zip(structures, np.linspace(0.78, 0.15, len(structures)), strict=True))
    results = ResultsTable()
    units = [(title, stream, seed) for title in kinds for stream in streams or [""] for seed in seeds]
    for title, stream, seed in units:
        steps = (streams or {"": experiences})[stream]
        place = folder / Trial(title, stream, seed).folder
        (place / "predictions").mkdir(parents=True)
        _results(results, rng, (title, stream, seed), kinds[title], steps, level)
        _curves(place / "learning.csv", rng, kinds[title], steps, level)
        if kinds[title] != "multi_net":
            write_gates(place / "gates.json", rng, kinds[title], structures, steps[0])
        if seed == seeds[0]:
            for name in structures:
                write_volumes(place / "predictions" / f"{name}.npz", name, kinds[title], level[name], shape)
    results.write(folder / "results.csv")
    done = [unit for unit in units if finished or unit[0] != "fine_tuning"]
    run = {
        "strategies": {
            title: {
                "name": kind,
                "bit_identical": {"experts_frozen": True, "fine_tuning": False}.get(kind),
                **({"options": _options(title, kind)} if streams else {}),
            }
            for title, kind in kinds.items()
        },
        "seeds": list(seeds),
        "multi_net": "multi_net_k3",
    }
    if streams:
        run |= {"version": 2, "streams": {name: [list(n) for n in steps] for name, steps in streams.items()}}
        run |= {"finished": [list(unit) for unit in done]}
    else:
        run |= {"experiences": [list(names) for names in experiences]}
        run |= {"finished": [[title, seed] for title, _, seed in done]}
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    config = {
        "name": "quickstart",
        "data": {"simulate": {"fields": 16, "shape": [32, 128, 128]}},
        "network": {"width": 8, "depth": 3, "experts": EXPERTS},
        "patch": {"size": [16, 64, 64]},
        "training": {
            "steps": 300,
            "base_steps": 500,
            "batch_size": 8,
            "learning_rate": 0.002,
            "schedule": "one_cycle",
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "environment.json").write_text(
        json.dumps({"torch": "2.15.0", "device": {"name": "cpu", "threads": 2}}), encoding="utf-8"
    )
    return folder


def _options(title: str, kind: str) -> dict[str, object]:
    """Return a section as a configuration has it; a title ends with its steps where it has fewer."""
    family, _, steps = title.rpartition("_")
    short = steps.endswith("steps")
    return {"name": kind, "kernel": family if short else title, "steps": int(steps[:-5]) if short else None}


def _results(results, rng, unit, kind, experiences, level):
    title, stream, seed = unit
    learned: dict[str, float] = {}
    for step, names in enumerate(experiences):
        for name in names:
            learned[name] = level[name] + rng.normal(scale=0.01) - (0.02 if kind == "multi_net" else 0.0)
        for name, value in learned.items():
            if kind == "fine_tuning" and name not in names:
                value = learned[name] = value - abs(rng.normal(0.25, 0.1))
            for metric, of in {
                "r2": value,
                "mse": 1 - value,
                "mae": 0.8 * (1 - value) ** 0.5,
                "pearson": max(value, 0.01) ** 0.5,
            }.items():
                results.append(title, seed, step, name, metric, of, stream)
        of = names[0] if len(names) == 1 else "base"
        added = ADDED.get(kind, 200)
        results.append(title, seed, step, of, "steps", _options(title, kind)["steps"] or 300, stream)
        results.append(title, seed, step, of, "train_seconds", rng.uniform(30, 50), stream)
        results.append(title, seed, step, of, "added_parameters", added if step else 1_930_000, stream)
        results.append(title, seed, step, of, "added_bytes", (added if step else 1_930_000) * 4, stream)
        results.append(title, seed, step, of, "peak_memory_bytes", 1.2e9, stream)


def _curves(path, rng, kind, experiences, level):
    lines = ["experience,structure,train_step,metric,value"]
    speed = SPEED.get(kind, 70)
    for step, names in enumerate(experiences):
        for name in names:
            for at in range(0, 301, 30):
                value = level[name] - (level[name] + 0.6) * np.exp(-at / speed) + rng.normal(scale=0.01)
                lines += [f"{step},{name},{at},r2,{value}", f"{step},{name},{at},mse,{1 - value}"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_gates(path, rng, kind, structures, base):
    """Write gates.json of random weights: fresh experts for what an addition learned."""
    gates = {}
    for name in structures:
        experts = EXPERTS + ([name] if kind == "experts_frozen" and name not in base else [])
        gates[name] = {
            block: dict(zip(experts, rng.dirichlet([8] * len(experts)).tolist(), strict=True))
            for block in BLOCKS
        }
    path.write_text(json.dumps(gates), encoding="utf-8")


def write_volumes(path, name, kind, level, shape):
    """Write the volumes of one test image, with a prediction as good as `level`."""
    rng = np.random.default_rng(len(name))
    target = gaussian_filter(rng.normal(size=shape), 2.5) > 0.02
    target = gaussian_filter(target.astype(float), 0.8) + rng.normal(scale=0.03, size=shape)
    target = (target - target.mean()) / target.std()
    signal = np.gradient(gaussian_filter(target, 1.5), axis=0) + rng.normal(scale=0.05, size=shape)
    blur = {"experts_frozen": 1.2, "multi_net": 1.6}.get(kind, 5.0)
    np.savez_compressed(
        path,
        signal=signal.astype(np.float16),
        target=target.astype(np.float16),
        prediction=(level + 0.2) * gaussian_filter(target, blur).astype(np.float16),
    )
