"""Fit of a signal to its target: a measure of showing the same cells, and of the shift between the two.

Transmitted light and fluorescence look different, so they are not compared as they are. Several features of the
signal (brightness, contrast, change with focus) are fitted to the target by least squares, and the share of the
target's variance that they explain, R2, measures how well the two fit. Fourier transforms give it for every shift of
one against the other. Far shifts show what chance explains. A maximum away from the origin shows a misregistration. A
better R2 with another image's signal shows a mix-up of files.

Signal and target that were exchanged show in the skewness of their brightness: transmitted light is about as often
brighter as darker than its surroundings, fluorescence is bright on a dark ground. Whether the target explains the
signal better than the reverse does not tell: for real lamin B1, where every pair is right, it does so in six pairs of
six.

scikit-image's `phase_cross_correlation` was tried in place of this, with each feature against the target. It gives the
best shift, but not what chance gives. Of 48 simulated pairs that lie well it shifts 17; here none is called shifted. Of
the same pairs shifted, its shift is right within two voxels for 22; here the maximum is for 29, and the 12 of them that
are called shifted are all right. It would also bring 50 MB of packages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter

__all__ = [
    "PairFit",
    "SignalFeatures",
    "brightness_skewness",
    "explained_variance",
    "fit_pair",
    "look_swapped",
    "prepare_target",
    "signal_features",
]

#: Most voxels (z, y, x) that are compared; larger volumes are reduced by whole factors.
MOST = (32, 128, 128)
#: Deviation (voxels) of the window in which contrast is taken, and of what counts as background.
_CONTRAST, _COARSE, _BACKGROUND = 1.5, 2.0, 12.0
#: Factors by which a maximum away from the origin must exceed the best of the far shifts, and the R2 of the files as
#: they are, to be called a shift. Of 480 simulated pairs that are registered none is called shifted then; of as many
#: shifted ones 210 are, 202 of them within two voxels of the truth. With 1.5, chance does it in one of a hundred.
_CLEAR_OF_CHANCE, _CLEAR_OF_UNSHIFTED = 1.75, 1.5
#: By chance alone the best near shift beats the best far one about every third time, but hardly by so much.
_RELATED_NEARBY = 1.5
#: Quantile of far shifts that counts as chance.
_CHANCE_QUANTILE = 0.99
#: Skewness up to which an image may be transmitted light, and by how much more that of fluorescence must be skewed. Of
#: 14 real fields and 48 simulated pairs of transmitted light the signals have -0.8 to 0.7 and the targets 0.9 to 5.5:
#: none is called swapped, and of the same pairs swapped all 14 and 47 of 48 are. Where both are fluorescence (24 real
#: pairs, 3.0 to 23 each) neither is called swapped.
_TRANSMITTED_SKEWNESS, _SKEWER = 0.75, 0.6


@dataclass(frozen=True)
class SignalFeatures:
    """A signal's features, fine ones and those with blurred ones besides, each set orthonormal: (F, Z, Y, X).

    `factors` (z, y, x) are what they were reduced by.
    """

    sets: tuple[NDArray[np.float32], ...]
    factors: tuple[int, int, int]


@dataclass(frozen=True)
class PairFit:
    """Fit of the two images of a row.

    Attributes
    ----------
    r2
        Share of the target's variance that the signal explains, as the files are.
    chance
        What 99 of 100 far shifts stay below.
    best
        The largest share at any near shift.
    limit
        The largest at any far one.
    shift
        Shift of `best`, (z, y, x) in voxels of the file: the distance of the target from its place by the signal.
    feature_set
        Number of the set of features that was used: the one with the clearest maximum.
    """

    r2: float
    chance: float
    best: float
    limit: float
    shift: tuple[int, int, int]
    feature_set: int

    @property
    def related(self) -> bool:
        """True if the images fit better than by chance, as they are or slightly shifted."""
        return self.r2 > self.chance or self.best > _RELATED_NEARBY * self.limit

    @property
    def strength(self) -> float:
        """R2 of the unshifted images as a multiple of chance; values up to about 1 mean nothing."""
        return self.r2 / max(self.chance, 1e-30)

    @property
    def shifted(self) -> bool:
        """True if the images fit clearly better shifted within the plane than as they are, and than far off.

        Shifts along z only are not reported: blur differs above and below focus, so that registered images have a
        maximum in another plane as often as others do.
        """
        clear = self.best > _CLEAR_OF_CHANCE * self.limit and self.best > _CLEAR_OF_UNSHIFTED * self.r2
        return clear and max(map(abs, self.shift[1:])) > 1


def factors_for(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the whole factors by which a volume is reduced."""
    z, y, x = (math.ceil(size / most) for size, most in zip(shape, MOST, strict=True))
    return z, y, x


def _reduce(volume: NDArray[Any], factors: tuple[int, int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return mean and variance of blocks."""
    sizes = [size // factor for size, factor in zip(volume.shape, factors, strict=True)]
    cut = volume[tuple(slice(0, size * factor) for size, factor in zip(sizes, factors, strict=True))]
    shape = [part for pair in zip(sizes, factors, strict=True) for part in pair]
    blocks = cut.astype(np.float32).reshape(shape)
    return blocks.mean(axis=(1, 3, 5)), blocks.var(axis=(1, 3, 5))


def _flatten(volume: NDArray[Any]) -> NDArray[np.float32]:
    """Remove slow changes: uneven light in one image fits uneven light in the other."""
    background = [min(_BACKGROUND, size / 4) for size in volume.shape]
    flat = volume - gaussian_filter(volume, background)
    return np.asarray(flat - flat.mean(), np.float32)


def signal_features(volume: NDArray[Any]) -> SignalFeatures:
    """Return the features of a signal (Z, Y, X)."""
    factors = factors_for(volume.shape)
    mean, variance = _reduce(volume, factors)
    mean = mean - mean.mean()
    spread = gaussian_filter(mean**2 + variance, _CONTRAST) - gaussian_filter(mean, _CONTRAST) ** 2
    contrast = np.sqrt(np.maximum(spread, 0.0))
    fine = [mean, contrast]
    if mean.shape[0] > 2:
        focus = np.gradient(mean, axis=0)
        fine += [focus, np.gradient(focus, axis=0)]
    coarse = [gaussian_filter(one, _COARSE) for one in fine]
    return SignalFeatures((_orthonormal(fine), _orthonormal(fine + coarse)), factors)


def _orthonormal(volumes: list[NDArray[Any]]) -> NDArray[np.float32]:
    """Return features without background, orthonormal by the eigenvectors of their covariance; repeated ones go."""
    features = np.stack([_flatten(one) for one in volumes])
    matrix = features.reshape(len(features), -1).astype(np.float64)
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    significant = values > 1e-9 * max(float(values[-1]), 1e-300)
    matrix = (vectors[:, significant] / np.sqrt(values[significant])).T @ matrix
    return np.asarray(matrix, np.float32).reshape(-1, *features.shape[1:])


def prepare_target(volume: NDArray[Any]) -> NDArray[np.float32]:
    """Return a target (Z, Y, X) to compare features with: reduced, flattened, of norm 1."""
    reduced, _ = _reduce(volume, factors_for(volume.shape))
    flat = _flatten(reduced)
    # A few very bright spots would decide everything.
    low, high = np.percentile(flat, (0.5, 99.5))
    flat = np.clip(flat, low, high)
    flat -= flat.mean()
    norm = float(np.linalg.norm(flat))
    return np.asarray(flat / norm if norm > 0 else flat, np.float32)


def brightness_skewness(volume: NDArray[Any]) -> float:
    """Return the skewness of an image's brightness (Z, Y, X), without slow changes: 0 where it is symmetric."""
    reduced, _ = _reduce(volume, factors_for(volume.shape))
    flat = _flatten(reduced).astype(np.float64)
    deviation = float(flat.std())
    return float(((flat - flat.mean()) ** 3).mean()) / deviation**3 if deviation > 0 else 0.0


def look_swapped(signal_skewness: float, target_skewness: float) -> bool:
    """Return whether the signal looks like fluorescence and the target like transmitted light."""
    return target_skewness < _TRANSMITTED_SKEWNESS and signal_skewness > target_skewness + _SKEWER


def explained_variance(signal: SignalFeatures, target: NDArray[np.float32], feature_set: int) -> float:
    """Return the R2 of one image's target by a signal of the same shape, unshifted, with one set of features."""
    return float(sum(float(np.vdot(feature, target)) ** 2 for feature in signal.sets[feature_set]))


def fit_pair(signal: SignalFeatures, target: NDArray[np.float32]) -> PairFit:
    """Fit a signal to a target, unshifted and at every shift."""
    spectrum = fft.rfftn(target)
    fits = [
        _fit(features, spectrum, target.shape, signal.factors, feature_set)
        for feature_set, features in enumerate(signal.sets)
    ]
    return max(fits, key=lambda fit: fit.best / max(fit.limit, 1e-30))


def _fit(
    features: NDArray[np.float32],
    spectrum: NDArray[Any],
    shape: tuple[int, ...],
    factors: tuple[int, int, int],
    feature_set: int,
) -> PairFit:
    at = np.zeros(shape, np.float32)
    for feature in features:
        at += fft.irfftn(np.conj(fft.rfftn(feature)) * spectrum, s=shape) ** 2
    # Shifts up to a quarter of the image are near; along z those within its plane's reach are no test of chance.
    z, y, x = (np.abs(fft.fftfreq(size, 1 / size)) <= max(1.0, size / 4) for size in shape)
    near = y[:, None] & x[None, :]
    far = at[:, ~near]
    if not far.size:
        return PairFit(float(at[0, 0, 0]), 1.0, float(at[0, 0, 0]), 1.0, (0, 0, 0), feature_set)
    nearby = np.where(z[:, None, None] & near[None], at, -1.0)
    place = np.unravel_index(int(np.argmax(nearby)), at.shape)
    dz, dy, dx = (
        (int(n) if n <= size // 2 else int(n) - size) * factor
        for n, size, factor in zip(place, shape, factors, strict=True)
    )
    chance = float(np.quantile(far, _CHANCE_QUANTILE))
    return PairFit(
        float(at[0, 0, 0]), chance, float(nearby[place]), float(far.max()), (dz, dy, dx), feature_set
    )
