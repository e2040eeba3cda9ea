"""A run of figures whose differences are known: what the tests of tables and of their files share."""

from __future__ import annotations

from itertools import product

from repmode_cl.results import ResultsTable

STREAM = [["a"], ["b"], ["c"]]
KINDS = {
    "ours": "experts_frozen",
    "ours_50steps": "experts_frozen",
    "ours_20steps": "experts_frozen",
    "multi": "multi_net",
    "fine": "fine_tuning",
    "joint": "joint",
}
#: R2 of b and c, just after learning and at the end; of every strategy, before the seed's own luck.
LEVEL = {
    "ours": (0.50, 0.40),
    "ours_50steps": (0.46, 0.36),
    "ours_20steps": (0.40, 0.20),
    "multi": (0.45, 0.35),
    "fine": (0.30, 0.42),
    "joint": (0.55, 0.45),
}
STEPS = {"ours_50steps": 50, "ours_20steps": 20}


def luck(seed):
    return 0.01 * (-1) ** seed * (1 + seed)


def make(seeds=range(6), streams=("",), jitter=None):
    """Return a run in which all strategies share each seed's luck, so that differences are exact."""
    table = ResultsTable()
    for (title, (b, c)), seed, stream in product(LEVEL.items(), seeds, streams):
        own = luck(seed) + (0.0 if jitter is None else jitter(title, seed, stream))
        for step, values in enumerate([{"a": 0.8}, {"a": 0.8, "b": b}, {"a": 0.8, "b": b, "c": c}]):
            if title == "joint" and step < 2:
                continue
            for name, value in values.items():
                if title == "fine" and name == "b" and step == 2:
                    value = 0.1  # forgotten
                for metric, of in (("r2", value + own), ("mse", 1 - value - own)):
                    table.append(title, seed, step, name, metric, of, stream)
            structure = STREAM[step][0]
            steps = STEPS.get(title, 100)
            for metric, cost in (("steps", steps), ("cpu_seconds", steps / 10), ("train_seconds", 99.0)):
                table.append(title, seed, step, structure, metric, 500 if step == 0 else cost, stream)
    info = {
        "version": 2,
        "streams": dict.fromkeys(streams, STREAM),
        "strategies": {
            title: {"name": kind, "bit_identical": None, "options": {"name": kind, "steps": STEPS.get(title)}}
            for title, kind in KINDS.items()
        },
        "seeds": list(seeds),
        "multi_net": "multi",
        "joint": "joint",
        "finished": [[title, name, seed] for title in KINDS for name in streams for seed in seeds],
        "failed": [["fine", streams[0], 9, "out of memory"]],
    }
    return table, info


def by_second(rows):
    return {row["second"]: row for row in rows}
