"""Measure two promises: that unlike images are noticed, and that intervals of 90 % hold 90 % of the voxels.

``python docs/results/trust.py WORK [--real FOLDER] [--out docs/results/trust]``

Simulates fields of cells in WORK, trains a small model there (minutes on one core), and writes ``unlike.csv`` and
``coverage.csv``. What is there already is used again. With FOLDER, real transmitted light (OME-TIFFs of the Allen
Institute for Cell Science, ``AICS-*.ome.tif``, brightfield in channel 0) is one more kind of unlike image; without it
that kind is left out.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from repmode_cl.config.load import parse_config
from repmode_cl.data.phantom import simulate
from repmode_cl.data.preprocessing.normalisation import normalise
from repmode_cl.data.preprocessing.resampling import resample
from repmode_cl.data.readers import open_image
from repmode_cl.inference.flips import with_spread
from repmode_cl.inference.intervals import LEVELS, calibrate, image_coverage, voxel_scores
from repmode_cl.inference.sliding_window import sliding_windows
from repmode_cl.inference.unlike import score_volume
from repmode_cl.model import Model

STRUCTURES = ("dna", "cell_membrane", "mitochondria")
SHAPE = (24, 96, 96)
VOXEL, MODEL_VOXEL = (0.29, 0.29, 0.29), (0.58, 0.58, 0.58)
#: Seeds of the simulator: images to train on, and images to measure on. Settings were chosen on those of seed 200.
TRAIN, MEASURED = 100, 300
IMAGES = 30
#: How a distance is computed was chosen on every third piece of the real images, too.
CHOSEN_ON = 3

CONFIG = """
version: 1
name: trust
seeds: [0]
data:
  manifest: {manifest}
  preprocessing: {{voxel_size: [0.58, 0.58, 0.58], order: 1}}
stream: {{base: [dna, cell_membrane, mitochondria]}}
network: {{width: 8, depth: 3, experts: [conv3, conv1, avg3]}}
patch: {{size: [8, 32, 32]}}
training:
  batch_size: 8
  steps: 150
  base_steps: 400
  learning_rate: 5.0e-3
  schedule: one_cycle
  validate_every: 100
strategies: [{{name: experts_frozen, setting: small}}]
"""

Volume = NDArray[np.float32]


def fields(folder: Path, seed: int, count: int) -> Iterator[dict[str, Volume]]:
    """Yield fields of cells: transmitted light (``light``) and the fluorescence of each structure."""
    simulate(folder, fields=count, structures=STRUCTURES, seed=seed, shape=SHAPE, workers=1)
    for number in range(count):
        with open_image(folder / f"field-{number:04d}.ome.tif") as image:
            names = ("light", *STRUCTURES)
            yield {name: image.read(channel).astype(np.float32) for channel, name in enumerate(names)}


def kinds(random: np.random.Generator) -> Mapping[str, Callable[[Mapping[str, Volume]], Volume]]:
    """Return what makes an unlike image of a field, by the name of the kind."""

    def poisson(field: Mapping[str, Volume]) -> Volume:
        return random.poisson(field["light"].mean(), SHAPE).astype(np.float32)

    def out_of_focus(field: Mapping[str, Volume]) -> Volume:
        return ndimage.gaussian_filter(field["light"], (1, 2, 2))

    def magnified(field: Mapping[str, Volume]) -> Volume:
        z, y, x = (slice(size // 2, size // 2 + size) for size in SHAPE)
        return ndimage.zoom(field["light"], 2, order=1)[z, y, x]

    return {
        "control: the same images, half as bright": lambda field: field["light"] / 2,
        "a: Poisson noise of the image's mean": poisson,
        "b: fluorescence of DNA": lambda field: field["dna"],
        "b: fluorescence of the membrane": lambda field: field["cell_membrane"],
        "c: out of focus (blurred by 1, 2, 2 voxels)": out_of_focus,
        "c: voxels half as large as stated": magnified,
        "c: voxels twice as large as stated": lambda field: ndimage.zoom(field["light"], 0.5, order=1),
        "c: contrast inverted": lambda field: 2 * field["light"].mean() - field["light"],
    }


def real_images(folder: Path) -> Iterator[tuple[Volume, tuple[float, ...]]]:
    """Yield real transmitted light and its voxel size, cut into pieces of the simulated fields' voxels."""
    for path in sorted(folder.glob("AICS-*.ome.tif")):
        with open_image(path) as image:
            light, voxel = image.read(0).astype(np.float32), image.voxel_size or VOXEL
        corners = [range(0, extent - size + 1, size) for extent, size in zip(light.shape, SHAPE, strict=True)]
        for z in corners[0]:
            for y in corners[1]:
                for x in corners[2]:
                    yield light[z : z + SHAPE[0], y : y + SHAPE[1], x : x + SHAPE[2]], voxel


class Scorer:
    """Scores of images: by the features of a model, and by their own mean and variance.

    Parameters
    ----------
    model
        The model.
    light
        Its training images, as they are in their files.
    """

    def __init__(self, model: Model, light: list[Volume]) -> None:
        self.model = model
        numbers = np.array([self._moments(image) for image in light])
        self.mean, self.deviation = numbers.mean(0), numbers.std(0)

    @staticmethod
    def _moments(image: Volume) -> tuple[float, float]:
        return float(image.mean()), float(image.var())

    def __call__(self, image: Volume, voxel: tuple[float, ...] = VOXEL) -> tuple[float, float, bool]:
        """Return both scores of an image, and whether it is beyond the limit."""
        volume = normalise(resample(image, voxel, MODEL_VOXEL))
        how = {key: self.model.inference[key] for key in ("window", "overlap")}
        statistics = self.model.entries["dna"].reliability.features
        own = score_volume(self.model.fused("dna"), volume, statistics, **how)
        baseline = np.abs((self._moments(image) - self.mean) / self.deviation)
        return own.score, float(np.sqrt((baseline**2).mean())), bool(own.unlike)


def auroc(like: list[float], unlike: list[float]) -> float:
    """Return the probability that an unlike image has the higher score."""
    found = stats.mannwhitneyu(unlike, like).statistic / (len(like) * len(unlike))
    return float(found)


def measure_unlike(
    scorer: Scorer, held_out: list[dict[str, Volume]], real: Path | None
) -> list[list[object]]:
    """Return the rows of ``unlike.csv``."""
    like = [scorer(field["light"]) for field in held_out]
    table: list[list[object]] = [_row("held-out images of the same kind", like, like)]
    for name, make in kinds(np.random.default_rng(0)).items():
        table.append(_row(name, [scorer(make(field)) for field in held_out], like))
    if real is not None and (images := list(real_images(real))):
        scores = [scorer(*image) for image in images]
        table.append(_row("d: real cells", scores, like))
        rest = [one for number, one in enumerate(scores) if number % CHOSEN_ON]
        table.append(_row("d: those of them on which nothing was chosen", rest, like))
    return table


def _row(
    name: str, scores: list[tuple[float, float, bool]], like: list[tuple[float, float, bool]]
) -> list[object]:
    own, baseline, beyond = zip(*scores, strict=True)
    own_like, baseline_like, _ = zip(*like, strict=True)
    return [
        name,
        len(scores),
        f"{auroc(own_like, own):.3f}",
        f"{auroc(baseline_like, baseline):.3f}",
        f"{np.median(own):.2f}",
        f"{np.mean(beyond):.2f}",
    ]


def measure_coverage(model: Model, held_out: list[dict[str, Volume]]) -> list[list[object]]:
    """Return the rows of ``coverage.csv``: calibrated on each half of the fields, tested on the other."""
    how = {"window": model.inference["window"], "overlap": model.inference["overlap"]}
    table: list[list[object]] = []
    for structure in STRUCTURES:
        networks = with_spread(model.fused(structure), tuple("zyx"))
        images = []
        for field in held_out:
            light, target = (
                normalise(resample(field[name], VOXEL, MODEL_VOXEL)) for name in ("light", structure)
            )
            images.append((*sliding_windows(networks, light, **how), target))
        halves = [images[:IMAGES], images[IMAGES:]]
        for number, (fit, test) in enumerate((halves, halves[::-1])):
            flat = [(p, np.zeros_like(s), t) for p, s, t in fit]
            by_flips, constant = (
                calibrate((voxel_scores(*image) for image in chosen), split="test", flips=tuple("zyx"))
                for chosen in (fit, flat)
            )
            for level in LEVELS:
                found = [image_coverage(*image, by_flips, level) for image in test]
                same = [image_coverage(p, np.zeros_like(s), t, constant, level) for p, s, t in test]
                coverage = [one.coverage for one in found]
                table.append(
                    [
                        structure,
                        "AB"[number],
                        len(fit),
                        len(test),
                        level,
                        f"{np.mean(coverage):.4f}",
                        f"{np.std(coverage, ddof=1):.4f}",
                        f"{min(coverage):.4f}",
                        f"{max(coverage):.4f}",
                        f"{np.mean([one.width for one in found]):.3f}",
                        f"{np.mean([one.coverage for one in same]):.4f}",
                        f"{np.mean([one.width for one in same]):.3f}",
                    ]
                )
    return table


def write(path: Path, header: str, table: list[list[object]]) -> None:
    """Write a table, and print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(table)
    print(path.read_text(encoding="utf-8"))


def main() -> None:
    """Simulate, train, measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    options = parser.parse_args()
    training = list(fields(options.work / "train", TRAIN, 20))
    path = options.work / "model"
    if not path.exists():
        from repmode_cl.workflows.train_base import train_base

        manifest = (options.work / "train" / "manifest.csv").resolve()
        train_base(parse_config(CONFIG.format(manifest=manifest)), path)
    model = Model.open(path)
    held_out = list(fields(options.work / "measured", MEASURED, 2 * IMAGES))
    scorer = Scorer(model, [field["light"] for field in training])
    write(
        options.out / "unlike.csv",
        "kind,images,auroc,auroc_of_mean_and_variance,median_score,share_beyond_the_limit",
        measure_unlike(scorer, held_out[:IMAGES], options.real),
    )
    write(
        options.out / "coverage.csv",
        "structure,half,calibrated_on,tested_on,level,coverage,deviation_over_fields,smallest,largest,width,"
        "constant_coverage,constant_width",
        measure_coverage(model, held_out),
    )


if __name__ == "__main__":
    main()
