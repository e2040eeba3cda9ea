"""Headers of all files of a manifest: each is read once, by several processes where there are many.

So a manifest of a hundred thousand rows is checked by its headers in less than a minute.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from repmode_cl.data.geometry import VoxelSize
from repmode_cl.data.readers import open_image
from repmode_cl.errors import ImageError
from repmode_cl.utils.process_pool import run_jobs
from repmode_cl.utils.progress import task

__all__ = ["HeaderTable", "SceneHeader", "Source", "read_headers"]

#: A file and the scene that a row names, or None.
Source = tuple[Path, int | str | None]

#: Files that one process is given at once, and below which starting processes costs more than it saves.
_BATCH, _MANY = 250, 4000
#: Scenes that a message lists at most.
_MOST_LISTED = 20


@dataclass(frozen=True)
class SceneHeader:
    """Header of one scene of a file.

    Attributes
    ----------
    shape
        Voxels (Z, Y, X) of one channel.
    dtype
        Name of the voxels' type.
    channel_names
        One for each channel.
    voxel_size
        (z, y, x) in um, or None.
    scenes
        Names of all scenes of the file.
    scene
        Number of the scene described; None where there are several and the row names none.
    times
        Number of time points.
    """

    shape: tuple[int, int, int]
    dtype: str
    channel_names: tuple[str, ...]
    voxel_size: VoxelSize | None
    scenes: tuple[str, ...]
    scene: int | None
    times: int

    def time_point(self, path: Path, t: int | None) -> int:
        """Return the number of the time point that a row means by `t`.

        Raises
        ------
        ImageError
            If there are several scenes or time points and none is named, or there is no time point `t`.
        """
        if self.scene is None:
            listed = ", ".join(f"{number} {name!r}" for number, name in enumerate(self.scenes[:_MOST_LISTED]))
            more = ", ..." if len(self.scenes) > _MOST_LISTED else ""
            raise ImageError(
                f"{path}: the file holds {len(self.scenes)} scenes: {listed}{more}; name one in the column scene"
            )
        if t is None and self.times > 1:
            raise ImageError(
                f"{path}: the file holds {self.times} time points; name one from 0 to {self.times - 1} in the column t"
            )
        if t is not None and t >= self.times:
            raise ImageError(f"{path}: there is no time point {t}; there are 0 to {self.times - 1}")
        return t or 0


#: Header of each source, or the reason why it has none.
HeaderTable = dict[Source, SceneHeader | str]


def read_headers(sources: Iterable[Source], headers: HeaderTable, workers: int = 1) -> None:
    """Read the headers that a table lacks and add them to it.

    Parameters
    ----------
    sources
        Files and scenes; the same one may come often.
    headers
        The table; changed in place.
    workers
        Processes that read at the same time, where there are thousands of files.
    """
    missing = [source for source in dict.fromkeys(sources) if source not in headers]
    batches = [missing[start : start + _BATCH] for start in range(0, len(missing), _BATCH)]
    workers = workers if len(missing) >= _MANY else 1
    with task("reading headers", total=len(missing)) as bar:
        for batch in run_jobs(_read_batch, batches, workers, name=lambda batch: str(batch[0][0])):
            headers.update(batch)
            bar.advance(len(batch))


def _read_batch(sources: list[Source]) -> HeaderTable:
    return {source: _read_header(*source) for source in sources}


def _read_header(path: Path, scene: int | str | None) -> SceneHeader | str:
    try:
        with open_image(path, scene=scene) as image:
            number: int | None = 0
            if len(image.scenes) > 1:
                number = None if scene is None else image.scene_index(scene)
            return SceneHeader(
                image.shape,
                str(image.dtype),
                image.channel_names,
                image.voxel_size,
                image.scenes,
                number,
                image.times,
            )
    except ImageError as error:
        return str(error)
