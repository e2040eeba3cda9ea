"""R2 and Pearson of a linear model on a manifest's test rows.

``python docs/results/linear_model.py MANIFEST.csv [STRUCTURE...]``

What a network must be better than. Features of a voxel: the prepared signal, and at five scales its Gaussian mean, its
local deviation, the magnitude of its gradient and its Laplacian; ridge regression on voxels of the rows that train, in
(z, y, x). Images keep their voxel size, as in the studies of real images.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from repmode_cl.config.schema import DataConfig, PreprocessingConfig
from repmode_cl.data.manifest import read_manifest
from repmode_cl.data.pipeline import prepared_samples
from repmode_cl.data.sample import Sample
from repmode_cl.metrics import image_metrics, mean_metrics

SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)
#: Voxels of each image that the model is fitted to, at most, and the weight of the penalty for each of them.
VOXELS, RIDGE = 200_000, 1e-3

Voxels = NDArray[np.float64]


def features(signal: Voxels) -> list[Voxels]:
    """Return features of every voxel, each a volume of the signal's shape."""
    found = [np.ones_like(signal), signal]
    for scale in SCALES:
        mean = ndimage.gaussian_filter(signal, scale)
        square = ndimage.gaussian_filter(signal * signal, scale)
        found += [
            mean,
            np.sqrt(np.maximum(square - mean * mean, 0)),
            ndimage.gaussian_gradient_magnitude(signal, scale),
            ndimage.gaussian_laplace(signal, scale),
        ]
    return found


def read(sample: Sample) -> tuple[Voxels, Voxels, NDArray[np.bool_]]:
    """Return features (voxels, features), target and mask of a sample, flat."""
    target = np.load(sample.target).astype(np.float64)
    mask = np.ones(target.shape, bool) if sample.mask is None else np.load(sample.mask)
    table = np.stack([one.ravel() for one in features(np.load(sample.signal).astype(np.float64))], axis=1)
    return table, target.ravel(), mask.ravel()


def fit(samples: Sequence[Sample]) -> Voxels:
    """Return the weight of each feature."""
    random = np.random.default_rng(0)
    tables, targets = [], []
    for sample in samples:
        table, target, mask = read(sample)
        inside = np.flatnonzero(mask)
        inside = random.permutation(inside)[:VOXELS]
        tables.append(table[inside])
        targets.append(target[inside])
    x, y = np.concatenate(tables), np.concatenate(targets)
    size = x.std(0)
    size[size == 0] = 1
    x = x / size
    weights: Voxels = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y) / size
    return weights


def main() -> None:
    """Print R2 and Pearson of each structure, means over the test images."""
    data = DataConfig(manifest=sys.argv[1], preprocessing=PreprocessingConfig(voxel_size=None))
    with tempfile.TemporaryDirectory() as folder:
        structures = sys.argv[2:] or read_manifest(sys.argv[1]).structures
        samples, _ = prepared_samples(data, Path(folder), structures=structures)
        print("structure,r2,pearson")
        for structure in structures:
            own = [sample for sample in samples if sample.structure == structure]
            weights = fit([sample for sample in own if sample.split == "train"])
            figures = []
            for sample in own:
                if sample.split == "test":
                    table, target, mask = read(sample)
                    figures.append(image_metrics((table @ weights)[mask], target[mask]))
            mean = mean_metrics(figures)
            print(f"{structure},{mean['r2']:.3f},{mean['pearson']:.3f}")


if __name__ == "__main__":
    main()
