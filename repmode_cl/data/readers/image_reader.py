"""ImageReader: an open image of any format, the only view of image files that the rest of the project has.

Opening reads headers; `read` fetches one channel's sub-volume and no more of the file than that needs. A further format
is another subclass, offered through `registry.py`.

No file may decide in silence which of several images is meant: where there are several scenes or time points and none
is named, reading fails and lists them.
"""

from __future__ import annotations

import abc
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from repmode_cl.data.geometry import Box, VoxelSize
from repmode_cl.data.readers.region import Region, find_channel, number_of
from repmode_cl.errors import ImageError, did_you_mean

__all__ = ["ImageReader", "SceneInfo", "BaseReader"]

#: Most scenes that a message lists.
_MOST_LISTED = 20


@dataclass(frozen=True)
class SceneInfo:
    """Header of one scene.

    Attributes
    ----------
    shape
        Voxels (Z, Y, X) of one channel.
    dtype
        Of the voxels, in this machine's byte order.
    channel_names
        One for each channel.
    times
        Number of time points.
    voxel_size
        Edges (z, y, x) in um; None unless all three are known.
    random_access
        Whether a small region costs little to read.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    channel_names: tuple[str, ...]
    times: int = 1
    voxel_size: VoxelSize | None = None
    random_access: bool = False


class ImageReader(AbstractContextManager["ImageReader"]):
    """An open image; a context manager.

    A subclass for a format has three methods: `_describe`, `_load` and, where something is open, `close`. Sizes,
    channels and voxel size describe one scene: the one that it was opened with, else the first.

    Parameters
    ----------
    path
        The file or folder, or a URL.
    scenes
        A name for each scene, at least one; an empty name becomes ``S<number>``.
    scene, t
        The scene (as of `scene_index`) and time point to read; None where there is only one, or to read only
        headers.

    Raises
    ------
    ImageError
        If there is no such scene or time point, or the scene cannot be read.
    """

    def __init__(
        self,
        path: Path | str,
        scenes: tuple[str, ...] = ("",),
        scene: int | str | None = None,
        t: int | None = None,
    ) -> None:
        self._path = path
        self._scene_names = tuple(name or f"S{number}" for number, name in enumerate(scenes))
        self._headers: dict[int, SceneInfo] = {}
        self._chosen_scene = None if scene is None else self.scene_index(scene)
        self._chosen_time = t
        self._current = self._first_header() if self._chosen_scene is None else self._info(self._chosen_scene)
        if t is not None:
            self._find_time(t, self._current)

    def _first_header(self) -> SceneInfo:
        """Return the header of the first scene that has one: an overview before the stacks hides none of them."""
        first: ImageError | None = None
        for number in range(len(self._scene_names)):
            try:
                return self._info(number)
            except ImageError as error:
                first = first or error
        assert first is not None
        if len(self._scene_names) == 1:
            raise first
        raise ImageError(f"{first}. That is its first scene; {self._list_scenes()}") from None

    @abc.abstractmethod
    def _describe(self, scene: int) -> SceneInfo:
        """Return the header of a scene, by number; called once for each scene.

        Raises
        ------
        ImageError
            If the scene is no stack of planes with channels.
        """

    @abc.abstractmethod
    def _load(self, scene: int, t: int, channel: int, box: Box) -> NDArray[Any]:
        """Return voxels (Z, Y, X) of a box that lies within the scene, as a new array.

        Raises
        ------
        ImageError
            If the file is damaged.
        """

    @property
    def path(self) -> Path | str:
        """The file or folder, or a URL as text."""
        return self._path

    @property
    def axes(self) -> str:
        """``"CZYX"``."""
        return "CZYX"

    @property
    def n_channels(self) -> int:
        """Number of channels; colour samples count as channels."""
        return len(self._current.channel_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (Z, Y, X) of one channel."""
        return self._current.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels, in this machine's byte order."""
        return self._current.dtype

    @property
    def voxel_size(self) -> VoxelSize | None:
        """Edges of a voxel (z, y, x) in um; None unless the file states all three."""
        return self._current.voxel_size

    @property
    def channel_names(self) -> tuple[str, ...]:
        """One name for each channel; ``C0``, ``C1`` ... where the file names none."""
        return self._current.channel_names

    @property
    def scenes(self) -> tuple[str, ...]:
        """A name for each separate image in the file."""
        return self._scene_names

    @property
    def times(self) -> int:
        """Number of time points."""
        return self._current.times

    @property
    def random_access(self) -> bool:
        """True if reading a small region costs little."""
        return self._current.random_access

    def channel_index(self, channel: str | int | None) -> int:
        """Return the number of a channel given by name, number, or (where there is only one) not at all."""
        return find_channel(channel, self.channel_names, self._path)

    def scene_index(self, scene: int | str) -> int:
        """Return the number of a scene: a text is its name, else its number; an `int` its number, else its name.

        Raises
        ------
        ImageError
            If there is no such scene; the message lists the scenes.
        """
        names = self._scene_names
        if isinstance(scene, int) and 0 <= scene < len(names):
            return scene
        number = number_of(str(scene), names)
        if number is None:
            if str(scene) in names:
                raise ImageError(
                    f"{self._path}: several scenes are named {scene!r}; give the number instead; {self._list_scenes()}"
                )
            hint = did_you_mean(str(scene), names)
            raise ImageError(f"{self._path}: there is no scene {scene}{hint}; {self._list_scenes()}")
        return number

    def read(
        self,
        channel: int,
        region: Region | None = None,
        scene: int | str | None = None,
        t: int | None = None,
    ) -> NDArray[Any]:
        """Return one channel's sub-volume (Z, Y, X) in the file's own type, native byte order.

        Raises
        ------
        ImageError
            If there are several scenes or time points and none is named, there is no such channel, scene or time
            point, or the file is damaged or truncated.
        """
        number = self._chosen_scene if scene is None else self.scene_index(scene)
        if number is None:
            if len(self.scenes) > 1:
                raise ImageError(
                    f"{self._path}: {self._list_scenes()}; name one of them (column scene, option --scene)"
                )
            number = 0
        info = self._info(number)
        time = self._find_time(self._chosen_time if t is None else t, info)
        if not 0 <= channel < len(info.channel_names):
            raise ImageError(
                f"{self._path}: there is no channel {channel}; there are 0 to {len(info.channel_names) - 1}"
            )
        try:
            box = (region or Region()).resolve(info.shape)
        except ImageError as error:
            raise ImageError(f"{self._path}: {error}") from None
        return self._load(number, time, channel, box)

    def absent_parts(
        self, channel: int, region: Region | None = None, t: int | None = None
    ) -> tuple[int, int]:
        """Return the number of separately stored parts of a sub-volume that are missing and read as blank, and of all.

        Only formats that allow that have any, and only where counting them costs little; others return (0, 0).
        """
        return 0, 0

    def close(self) -> None:
        """Close what is open; reading afterwards fails."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _info(self, scene: int) -> SceneInfo:
        if scene not in self._headers:
            self._headers[scene] = self._describe(scene)
        return self._headers[scene]

    def _find_time(self, t: int | None, info: SceneInfo) -> int:
        if t is None and info.times > 1:
            hint = ""
            if info.shape[0] == 1:
                hint = "; if these are the planes of a Z-stack, save it with its planes as Z"
            raise ImageError(
                f"{self._path}: {info.times} time points of {info.shape[0]} planes; name one from 0 to "
                f"{info.times - 1} (column t, option --t){hint}"
            )
        if t is not None and not 0 <= t < info.times:
            raise ImageError(f"{self._path}: there is no time point {t}; there are 0 to {info.times - 1}")
        return t or 0

    def _list_scenes(self) -> str:
        listed = []
        for number, name in enumerate(self._scene_names[:_MOST_LISTED]):
            try:
                info = self._info(number)
                times = f", {info.times} times" if info.times > 1 else ""
                size = "x".join(map(str, (len(info.channel_names), *info.shape)))
                listed.append(f"{number} {name!r} CZYX {size}{times}")
            except ImageError:
                listed.append(f"{number} {name!r}")
        count = len(self._scene_names)
        more = ", ..." if count > _MOST_LISTED else ""
        held = "the file holds 1 scene" if count == 1 else f"the file holds {count} scenes"
        return f"{held}: {', '.join(listed)}{more}"


#: Earlier name of `ImageReader`, for readers of other packages; it goes with the next release.
BaseReader = ImageReader
