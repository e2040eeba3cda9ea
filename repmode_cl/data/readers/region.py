"""Region: a box of voxels of a file; and what goes with it: channels by name or number, shapes as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from repmode_cl.data.geometry import Box, shape_text
from repmode_cl.errors import ImageError, did_you_mean

__all__ = ["Region", "find_channel", "number_of"]

Span = tuple[int, int | None]


@dataclass(frozen=True)
class Region:
    """A box in voxels of the file: half-open spans in z, y and x.

    A stop of None is the end of the axis, whose length only the file knows.
    """

    z: Span = (0, None)
    y: Span = (0, None)
    x: Span = (0, None)

    def __post_init__(self) -> None:
        for axis, (start, stop) in zip("zyx", (self.z, self.y, self.x), strict=True):
            if start < 0 or (stop is not None and stop <= start):
                raise ImageError(
                    f"region {self}: {axis} {start}:{'' if stop is None else stop} holds nothing; "
                    "a span is start:stop with 0 <= start < stop"
                )

    @classmethod
    def parse(cls, text: str) -> Region:
        """Read ``z0:z1,y0:y1,x0:x1``; an empty start or stop (``:``, ``8:``) means the end of the axis.

        Raises
        ------
        ImageError
            If `text` is anything else.
        """
        spans: list[Span] = []
        for part in text.split(","):
            start, colon, stop = (piece.strip() for piece in part.partition(":"))
            numbers = not (start + stop) or (start + stop).isdecimal()
            if not colon or not numbers or not text.isascii():
                break
            spans.append((int(start or 0), int(stop) if stop else None))
        if len(spans) != 3 or len(text.split(",")) != 3:
            raise ImageError(
                f"region {text!r} is not z0:z1,y0:y1,x0:x1 in voxels of the file, such as 0:32,:,100:228"
            )
        return cls(*spans)

    def __str__(self) -> str:
        spans = (self.z, self.y, self.x)
        return ",".join(f"{start or ''}:{'' if stop is None else stop}" for start, stop in spans)

    def resolve(self, shape: Sequence[int]) -> Box:
        """Return slices with both ends for a volume of `shape` (Z, Y, X).

        Raises
        ------
        ImageError
            If the region reaches beyond the volume.
        """
        slices = []
        for axis, (start, stop), size in zip("zyx", (self.z, self.y, self.x), shape, strict=True):
            end = size if stop is None else stop
            if end > size or start >= end:
                raise ImageError(
                    f"region {self} reaches beyond the volume of {shape_text(shape)} voxels (z, y, x): "
                    f"{axis} has 0:{size}"
                )
            slices.append(slice(start, end))
        return slices[0], slices[1], slices[2]

    def shape_in(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return the region's own size (Z, Y, X) within a volume of `shape`."""
        z, y, x = self.resolve(shape)
        return z.stop - z.start, y.stop - y.start, x.stop - x.start


def number_of(text: str, names: Sequence[str]) -> int | None:
    """Return the number of the channel or scene that a user means by `text`: a name first, then a number from 0.

    None where there is neither, or where several have that name and the number is another's.
    """
    named = [number for number, name in enumerate(names) if name == text]
    if len(named) == 1:
        return named[0]
    number = int(text) if text.isascii() and text.isdigit() else len(names)
    return number if number < len(names) and (not named or number in named) else None


def find_channel(channel: str | int | None, names: Sequence[str], path: Path | str) -> int:
    """Return the number of `channel` among `names`.

    A text is what a user typed: a name first, then a number counted from 0. An `int` is a number; one that is out of
    range may still be a name, such as the wavelength 488.

    Raises
    ------
    ImageError
        If nothing or more than one channel fits; the message lists the channels.
    """
    listed = ", ".join(f"{number} {name!r}" for number, name in enumerate(names))
    if channel is None:
        if len(names) == 1:
            return 0
        raise ImageError(f"{path}: no channel is named, and there are {len(names)}: {listed}; name one")
    if isinstance(channel, int) and 0 <= channel < len(names):
        return int(channel)
    found = number_of(str(channel), names)
    if found is not None:
        return found
    if str(channel) in names:
        raise ImageError(f"{path}: several channels are named {channel!r}: {listed}; give the number instead")
    hint = did_you_mean(str(channel), names)
    shown = channel if str(channel).isdecimal() else repr(channel)
    raise ImageError(f"{path}: there is no channel {shown}{hint}; there are {listed}")
