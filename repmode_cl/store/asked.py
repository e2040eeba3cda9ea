"""What a prediction may be asked for: a mistake in a call is told before anything is loaded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from repmode_cl.errors import ImageError, StructureError

__all__ = ["check_asked"]


def check_asked(volume: object, structure: object) -> None:
    """Refuse arguments of `Model.predict` that are swapped, of another kind, or hold numbers that are not finite.

    Raises
    ------
    StructureError
        If `structure` is no text.
    ImageError
        If `volume` is no array of finite numbers.
    """
    call = "call predict(volume, structure)"
    if not isinstance(volume, np.ndarray | Tensor):
        raise ImageError(f"volume is an array (Z, Y, X), not {_kind(volume)}: {call}")
    if not isinstance(structure, str):
        raise StructureError(f"structure is a name, not {_kind(structure)}: {call}, once for each structure")
    if isinstance(volume, np.ndarray) and volume.dtype.kind not in "buif":
        raise ImageError(f"volume is an array of numbers, not of {volume.dtype}")
    # Plane by plane: beside a large volume, or a memory map, nothing of its size is made.
    for z, plane in enumerate(volume if volume.ndim else ()):
        finite = torch.isfinite(plane) if isinstance(plane, Tensor) else np.isfinite(plane)
        if not bool(finite.all()):
            raise ImageError(
                f"volume has numbers that are not finite, first in plane {z}: mend or cut out that part"
            )


def _kind(value: object) -> str:
    return f"the text {value!r}" if isinstance(value, str) else f"a {type(value).__name__}"
