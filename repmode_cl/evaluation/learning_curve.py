"""Learning curve over the number of images: R2 fitted by a power law, and extrapolated with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Extrapolation", "LearningCurve", "fit_learning_curve", "GAIN"]

#: A doubling of the images that gains less R2 than this is not worth it.
GAIN = 0.02
#: Exponent of the number of images. Errors of estimates fall with the root of the number of samples; three or four
#: points do not determine an exponent besides.
_POWER = -0.5
_CONFIDENCE = 0.95
#: Most images that an answer names.
_MOST = 1024


@dataclass(frozen=True)
class Extrapolation:
    """R2 that a curve gives for a number of images.

    Attributes
    ----------
    images
        Number of images.
    r2
        The curve's value.
    low, high
        Ends of the 95% prediction interval; None where there are too few points for one.
    """

    images: int
    r2: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class LearningCurve:
    """R2 = `limit` - `loss` / sqrt(images), by least squares.

    Attributes
    ----------
    counts
        Numbers of images that were tried.
    limit
        R2 with endlessly many images.
    loss
        What one image loses against that; at most 0 where more images did not help.
    error
        Standard deviation of the points around the curve; None with fewer than three points.
    """

    counts: tuple[int, ...]
    limit: float
    loss: float
    error: float | None

    def at(self, images: int) -> Extrapolation:
        """Return the R2 for a number of images."""
        r2 = min(1.0, self.limit - self.loss * images**_POWER)
        if self.error is None:
            return Extrapolation(images, r2, None, None)
        x = np.asarray(self.counts, float) ** _POWER
        spread = float(((x - x.mean()) ** 2).sum())
        variance = 1 + 1 / len(x) + (images**_POWER - float(x.mean())) ** 2 / spread
        half = _t_quantile(len(x) - 2) * self.error * math.sqrt(variance)
        return Extrapolation(images, r2, r2 - half, min(1.0, r2 + half))

    def enough(self) -> int:
        """Return the number of images from which a doubling gains less than `GAIN`."""
        return _enough(self.loss)

    def enough_range(self) -> tuple[int, int] | None:
        """Return the 95% range of `enough`; None where there are too few points for one."""
        if self.error is None:
            return None
        x = np.asarray(self.counts, float) ** _POWER
        half = _t_quantile(len(x) - 2) * self.error / math.sqrt(float(((x - x.mean()) ** 2).sum()))
        return _enough(self.loss - half), _enough(self.loss + half)


def fit_learning_curve(counts: Sequence[int], r2: Sequence[float]) -> LearningCurve | None:
    """Fit R2 against the number of images.

    Parameters
    ----------
    counts
        Numbers of images, each at least 1.
    r2
        R2 on the same held-out images for each.

    Returns
    -------
    LearningCurve or None
        None with fewer than two different counts.

    Raises
    ------
    ValueError
        If there are not as many figures as counts, or one is not finite or below 1.
    """
    if len(counts) != len(r2):
        raise ValueError(f"{len(counts)} counts and {len(r2)} figures: give one for each")
    if not all(count >= 1 for count in counts) or not all(math.isfinite(value) for value in r2):
        raise ValueError("counts are at least 1 and figures finite")
    if len(set(counts)) < 2:
        return None
    x, y = np.asarray(counts, float) ** _POWER, np.asarray(r2, float)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    limit = float(y.mean() - slope * x.mean())
    error = None
    if len(x) > 2:
        error = math.sqrt(float(((y - limit - slope * x) ** 2).sum()) / (len(x) - 2))
    return LearningCurve(tuple(int(count) for count in counts), limit, -slope, error)


def _enough(loss: float) -> int:
    # loss * (n ** -0.5 - (2 n) ** -0.5) < GAIN
    gained = loss * (1 - 2**_POWER)
    return min(_MOST, max(1, math.ceil((max(gained, 0.0) / GAIN) ** 2)))


def _t_quantile(degrees: int) -> float:
    """Return the two-sided 95% quantile of Student's t."""
    from scipy.special import stdtrit  # imported here for a fast start

    return float(stdtrit(degrees, (1 + _CONFIDENCE) / 2))
