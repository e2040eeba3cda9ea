"""Random streams by name, and random fields made of them.

Everything random in a field draws from its own stream, named after what it makes. So the mitochondria of field 3 are
the same with and without the Golgi, and whatever process computes them.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from scipy import fft

__all__ = ["Floats", "Streams", "smooth_noise"]

Floats = NDArray[np.float32]


class Streams:
    """The random streams of one field.

    Parameters
    ----------
    seed
        Seed of the whole simulation.
    index
        Number of the field.
    """

    def __init__(self, seed: int, index: int) -> None:
        self._prefix = f"phantom/{seed}/{index}/"

    def __call__(self, name: str) -> np.random.Generator:
        """Return a fresh generator at the start of the stream called `name`."""
        digest = hashlib.sha256((self._prefix + name).encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], voxel: tuple[float, ...], scale: float
) -> Floats:
    """Return a Gaussian random field of mean 0 and standard deviation 1.

    Made in the Fourier domain: unlike a filter its cost does not grow with `scale`, and unlike a matrix
    product its rounding does not depend on a thread count. It is periodic, which the margin around a field
    hides.

    Parameters
    ----------
    rng
        Where the randomness comes from.
    shape, voxel
        Size in voxels and voxel size in um, axis by axis.
    scale
        Standard deviation in um of the Gaussian that white noise is smoothed with.
    """
    spectrum = fft.rfftn(rng.standard_normal(shape, dtype=np.float32))
    for axis, (size, step) in enumerate(zip(shape, voxel, strict=True)):
        last = axis == len(shape) - 1
        frequency = (np.fft.rfftfreq(size, step) if last else np.fft.fftfreq(size, step)).astype(np.float32)
        window = np.exp(-2.0 * (np.pi * scale * frequency) ** 2).astype(np.float32)
        spectrum *= window.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    noise = fft.irfftn(spectrum, s=shape).astype(np.float32)
    noise -= noise.mean()
    spread = float(noise.std())
    return np.asarray(noise / spread if spread > 0 else noise, dtype=np.float32)
