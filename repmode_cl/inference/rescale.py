"""Mapping of z-scores onto the numbers of a file: a range chosen by the user, and stated in the file."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repmode_cl.errors import RepmodeError

__all__ = ["Rescale"]

#: Type of the file's voxels -> the number that the upper end of the range becomes.
_TOP = {"uint8": 255, "uint16": 65535, "float32": 1}


@dataclass(frozen=True)
class Rescale:
    """A range of z-scores that is mapped linearly onto 0 and the largest number of a type (1 for float32).

    Values beyond the range are clipped; integers are rounded to the nearest.

    Attributes
    ----------
    low, high
        z-scores that become 0 and the largest number.
    dtype
        ``uint8``, ``uint16`` or ``float32``.

    Examples
    --------
    >>> import numpy as np
    >>> from repmode_cl.inference.rescale import Rescale
    >>> Rescale.parse("-2:8:uint8")(np.array([-3, -2, 3, 8], np.float32)).tolist()
    [0, 0, 128, 255]
    """

    low: float
    high: float
    dtype: str = "uint16"

    def __post_init__(self) -> None:
        if self.dtype not in _TOP:
            raise RepmodeError(f"rescale: the type {self.dtype!r} is none of {', '.join(_TOP)}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise RepmodeError(
                f"rescale: the range {self.low:g}:{self.high:g} is none; two z-scores are needed, the lower first, "
                "such as -2:8"
            )

    @classmethod
    def parse(cls, text: str) -> Rescale:
        """Read ``LOW:HIGH`` or ``LOW:HIGH:TYPE``, such as ``-2:8:uint8``; uint16 where no type is named.

        Raises
        ------
        RepmodeError
            If it is anything else.
        """
        parts = [part.strip() for part in text.split(":")]
        try:
            low, high = float(parts[0]), float(parts[1])
        except (IndexError, ValueError):
            parts = []
        if len(parts) not in (2, 3):
            raise RepmodeError(
                f"--rescale {text!r}: give two z-scores, and a type if not uint16: LOW:HIGH or LOW:HIGH:TYPE "
                f"({', '.join(_TOP)}), such as -2:8:uint8"
            )
        return cls(low, high, *parts[2:])

    @property
    def top(self) -> int:
        """The number that `high` becomes."""
        return _TOP[self.dtype]

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.generic]:
        """Return z-scores as the numbers of the file."""
        scaled = (values.astype(np.float64) - self.low) * (self.top / (self.high - self.low))
        np.clip(scaled, 0, self.top, out=scaled)
        return (scaled if self.dtype == "float32" else np.rint(scaled)).astype(self.dtype)

    def __str__(self) -> str:
        return f"{_exact(self.low)}:{_exact(self.high)}:{self.dtype}"

    @property
    def meaning(self) -> str:
        """The formula by which a file's numbers become z-scores again."""
        low, high = _exact(self.low), _exact(self.high)
        span = f"{high} + {low[1:]}" if low.startswith("-") else f"{high} - {low}"
        return (
            f"z-scores {low} to {high} as 0 to {self.top} ({self.dtype}), clipped beyond: "
            f"z-score = {low} + value / {self.top} * ({span})"
        )


def _exact(number: float) -> str:
    """Return a number with all of its digits, and no more."""
    return repr(float(number)).removesuffix(".0")
