"""Measure what `--overlap` costs: processor time, R2 and seams of 0.5, 0.375 and 0.25.

``python docs/results/overlap.py WORK [--isl FOLDER] [--out docs/results/overlap]``

Simulates fields of cells in WORK, trains a small model there (minutes on one core), predicts held-out fields with each
overlap in turn, and writes ``fields.csv`` (each field) and ``summary.csv`` (means, and differences from 0.5 that are
paired by field). FOLDER is ``isl/testdata/condition_blue_sample`` of the repository google/in-silico-labeling: a second
model learns nuclei from the first rows of this real field and predicts its last quarter, which is measured in parts.
What is there already is used again.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from trust import write

from repmode_cl.config.load import parse_config
from repmode_cl.data.importers.isl import SIGNAL, read_isl, split_rows
from repmode_cl.data.manifest import write_manifest
from repmode_cl.data.phantom import simulate
from repmode_cl.data.preprocessing.normalisation import normalise
from repmode_cl.data.preprocessing.resampling import resample
from repmode_cl.data.readers import open_image
from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.inference.windows import WindowGrid
from repmode_cl.metrics import image_metrics
from repmode_cl.model import Model
from repmode_cl.workflows.train_base import train_base

OVERLAPS = (0.5, 0.375, 0.25)
STRUCTURES = ("dna", "cell_membrane", "mitochondria")
VOXEL, MODEL_VOXEL = (0.29, 0.29, 0.29), (0.58, 0.58, 0.58)
#: Seeds of the simulator: fields to train on, and fields to measure on.
TRAIN, MEASURED = 100, 400
FIELDS = 6
#: Parts of the real strip.
PARTS = 6
#: Each prediction is repeated, in turn with those of the other overlaps; the least processor time counts.
ROUNDS = 1

CONFIG = """
version: 1
name: overlap
seeds: [0]
data:
  manifest: {manifest}
  preprocessing: {{voxel_size: {voxel}, order: 1}}
stream: {{base: [{base}]}}
network: {{width: 8, depth: 3, experts: [conv3, conv1, avg3]}}
patch: {{size: {patch}, flips: {flips}}}
training:
  batch_size: {batch}
  steps: 400
  base_steps: 600
  learning_rate: 5.0e-3
  schedule: one_cycle
  validate_every: 100
strategies: [{{name: experts_frozen, setting: small}}]
"""

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A volume on a model's grid with its truth, both z-scored, measured in each of `parts` along x."""

    data: str
    field: int
    structure: str
    light: Volume
    target: Volume
    parts: int = 1


def simulated(work: Path) -> tuple[Model, Iterator[Case]]:
    """Return a model of simulated structures, and held-out fields."""
    path = work / "simulated"
    if not path.exists():
        manifest = simulate(
            work / "train", fields=20, structures=STRUCTURES, seed=TRAIN, shape=(32, 128, 128), workers=1
        )
        text = CONFIG.format(
            manifest=manifest.resolve(), voxel=list(MODEL_VOXEL), base=", ".join(STRUCTURES),
            patch=[8, 32, 32], flips="[z, y, x]", batch=8,
        )  # fmt: skip
        train_base(parse_config(text), path)

    def cases() -> Iterator[Case]:
        folder = work / "measured"
        simulate(folder, fields=FIELDS, structures=STRUCTURES, seed=MEASURED, shape=(48, 192, 192), workers=1)
        for number in range(FIELDS):
            with open_image(folder / f"field-{number:04d}.ome.tif") as image:
                light, *targets = (
                    normalise(resample(image.read(channel).astype(np.float32), VOXEL, MODEL_VOXEL))
                    for channel in range(1 + len(STRUCTURES))
                )
            for structure, target in zip(STRUCTURES, targets, strict=True):
                yield Case("simulated cells", number, structure, light, target)

    return Model.open(path), cases()


def real(work: Path, folder: Path) -> tuple[Model, Iterator[Case]]:
    """Return a model of the nuclei of a real field, and its strip that tests."""
    sample, stack, path = read_isl(folder, bin_pixels=2, columns=768), work / "isl.ome.tif", work / "isl"
    if not path.exists():
        sample.write(stack)
        rows = [row for row in sample.rows(stack).rows if row.structure == "nuclei"]
        write_manifest(work / "isl.csv", rows)
        text = CONFIG.format(
            manifest=(work / "isl.csv").resolve(), voxel="null", base="nuclei", patch=[8, 64, 64],
            flips="[y, x]", batch=4,
        )  # fmt: skip
        train_base(parse_config(text), path)

    def cases() -> Iterator[Case]:
        y = slice(*split_rows(sample.stack.shape[2], 32)["test"])
        light, target = (
            normalise(sample.stack[sample.channels.index(name)][:, y].astype(np.float32))
            for name in (SIGNAL, "nuclei")
        )
        yield Case("real nuclei", 0, "nuclei", light, target, PARTS)

    return Model.open(path), cases()


def seams(volume: Volume, grid: WindowGrid) -> float:
    """Return the mean difference of neighbours across borders of windows (y and x), over that of all others."""
    across, others = [], []
    for axis in (1, 2):
        size, starts = grid.size[axis], grid.starts[axis]
        borders = set(starts) | {start + size for start in starts}
        is_border = np.array([place in borders for place in range(1, volume.shape[axis])])
        steps = np.moveaxis(np.abs(np.diff(volume, axis=axis)), axis, 0)
        across.append(steps[is_border].ravel())
        others.append(steps[~is_border].ravel())
    return float(np.concatenate(across).mean() / np.concatenate(others).mean())


def measure(model: Model, case: Case) -> Iterator[list[object]]:
    """Yield rows of ``fields.csv``."""
    network = model.fused(case.structure)
    how = {"window": model.inference["window"], "batch_size": int(model.inference["batch"])}
    seconds, volumes = defaultdict[float, list[float]](list), dict[float, Volume]()
    for _ in range(ROUNDS):
        for overlap in OVERLAPS:
            begun = time.process_time()
            volumes[overlap] = sliding_window(network, case.light, overlap=overlap, **how)
            seconds[overlap].append(time.process_time() - begun)
    edges = np.linspace(0, case.light.shape[2], case.parts + 1).round().astype(int)
    for overlap, volume in volumes.items():
        grid = WindowGrid(case.light.shape, model.inference["window"], overlap)
        for part, (a, b) in enumerate(pairwise(edges)):
            metrics = image_metrics(volume[:, :, a:b], case.target[:, :, a:b])
            yield [
                case.data,
                case.structure,
                case.field + part,
                overlap,
                len(grid),
                f"{min(seconds[overlap]) / case.parts:.3f}",
                # Over the variance of the whole, which is 1, so that the mean of equal parts is the R2 of the whole.
                f"{1 - metrics['mse']:.5f}",
                f"{metrics['pearson']:.5f}",
                f"{seams(volume, grid):.3f}",
                f"{seams(case.target, grid):.3f}",
            ]


def summary(rows: list[list[object]]) -> Iterator[list[object]]:
    """Yield rows of ``summary.csv``: of each data and structure, means over fields, and paired differences from 0.5."""
    groups: dict[tuple[object, object], dict[float, list[list[float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for data, structure, _, overlap, *numbers in rows:
        groups[data, structure][float(str(overlap))].append([float(str(number)) for number in numbers])
    for (data, structure), found in groups.items():
        reference = np.array(found[OVERLAPS[0]])
        for overlap, values in found.items():
            array = np.array(values)
            windows, seconds, r2, pearson, seam, of_target = array.mean(0)
            change = array[:, 2] - reference[:, 2]
            half = stats.t.ppf(0.975, len(change) - 1) * stats.sem(change)
            yield [
                data,
                structure,
                len(change),
                overlap,
                f"{windows:.0f}",
                f"{seconds / reference[:, 1].mean():.3f}",
                f"{r2:.4f}",
                f"{change.mean():+.4f}",
                f"{half:.4f}",
                f"{pearson:.4f}",
                f"{seam:.2f}",
                f"{of_target:.2f}",
            ]


def main() -> None:
    """Simulate, train, measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--isl", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    sources = [simulated(options.work)]
    if options.isl is not None:
        sources.append(real(options.work, options.isl))
    rows = [row for model, cases in sources for case in cases for row in measure(model, case)]
    write(
        options.out / "fields.csv",
        "data,structure,field,overlap,windows,processor_seconds,r2,pearson,seams,seams_of_target",
        rows,
    )
    write(
        options.out / "summary.csv",
        "data,structure,fields,overlap,windows,processor_time,r2,r2_change,r2_change_95,pearson,seams,seams_of_target",
        list(summary(rows)),
    )


if __name__ == "__main__":
    main()
