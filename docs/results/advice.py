"""Agreement of `repmode-cl advise` with full runs, on simulated structures.

``python docs/results/advice.py MODEL MANIFEST.csv FOLDER [STEPS [BATCH]]``

For each structure of the manifest that the model lacks: the advice of short trainings, written to FOLDER/advice.csv,
and the rank correlation of its R2 with that of the full runs of the study `twelve_structures` (of the last step, mean
over seeds), where more images and steps, and another base, were used.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

from scipy.stats import spearmanr

from repmode_cl.data.manifest import read_manifest
from repmode_cl.model import Model
from repmode_cl.workflows.advise import Trial, advise
from repmode_cl.workflows.options import TrainingOverrides

STUDY = Path(__file__).parent / "twelve_structures" / "results.csv"
COLUMNS = (
    "structure",
    "full",
    "small",
    "best",
    "from_known",
    "began",
    "verdict",
    "setting",
    "init_from",
    "enough",
)


def full_runs() -> dict[str, float]:
    """Return each structure's R2 after the last step of the study, mean over its seeds."""
    with STUDY.open(encoding="utf-8", newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["strategy"] == "experts_frozen" and row["metric"] == "r2"
        ]
    last = max(int(row["step"]) for row in rows)
    found = defaultdict(list)
    for row in rows:
        if int(row["step"]) == last:
            found[row["structure"]].append(float(row["value"]))
    return {name: sum(values) / len(values) for name, values in found.items()}


def main(model: Path, manifest: Path, folder: Path, steps: int = 60, batch: int | None = None) -> None:
    """Advise on each structure, and print the table and the rank correlation."""
    full, known = full_runs(), Model.open(model).structures
    table = []
    for name in read_manifest(manifest).structures:
        if name in known or name not in full:
            continue
        overrides = TrainingOverrides(steps=steps, batch_size=batch, cache=folder / "cache")
        advice = advise(model, name, manifest, overrides, out=folder / name)
        small, best, warm = (
            advice.trials[Trial(*trial).key]  # type: ignore[arg-type]
            for trial in (
                ("small", advice.largest),
                ("best", advice.largest),
                ("small", advice.largest, "best"),
            )
        )
        table.append(
            {
                "structure": name,
                "full": f"{full[name]:.3f}",
                "small": f"{small.mean:.3f}",
                "best": f"{best.mean:.3f}",
                "from_known": f"{warm.mean:.3f}",
                "began": warm.began,
                "verdict": str(advice.verdict.level),
                "setting": advice.setting,
                "init_from": advice.init_from,
                "enough": None if advice.curve is None else advice.curve.enough(),
            }
        )
        print(table[-1], flush=True)
        with (folder / "advice.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    for column in ("small", "best", "from_known"):
        result = spearmanr([float(row["full"]) for row in table], [float(row[column]) for row in table])
        print(f"{column}: rank correlation {result.statistic:.2f} of {len(table)} structures")


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:4]), *(int(word) for word in sys.argv[4:6]))
