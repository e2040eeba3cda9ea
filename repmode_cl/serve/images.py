"""Images that visitors sent: received within bounds, described from their headers, deleted in time.

Each image is a folder with a name that nobody can guess, and whoever knows it may use the image. The folder holds the
image and the results of its predictions, and is deleted with them.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile

from repmode_cl.data.phantom.field import LIGHT_CHANNEL, SIMULATED_VOXEL, simulate_field
from repmode_cl.data.readers import ImageReader, open_image
from repmode_cl.data.readers.tiff.metadata import check_ome
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.serve.settings import RequestError, ServeSettings
from repmode_cl.utils.memory import format_bytes

__all__ = ["SAMPLE_NAME", "ImageStore", "StoredImage", "describe_image", "open_stored", "without_folder"]

#: Name of the simulated sample image.
SAMPLE_NAME = "simulated-cells.ome.tif"

# Voxels (z, y, x) of it, and bytes that it takes at most.
_SAMPLE_SHAPE = (24, 128, 128)
_SAMPLE_BYTES = 4 << 20

# Bytes of the disk that stay free.
_DISK_RESERVE = 1 << 30
# Received bytes between two looks at the disk.
_LOOK_EVERY = 64 << 20

# Characters that do not stay in the name of an upload. Names of so many bytes are kept whole, of longer ones so many at
# the end: file systems take 255 bytes, of which names of results and of temporary files need some more.
_STRANGE = re.compile(r"[^\w .()+-]")
_LONGEST_NAME, _LONGEST_END = 160, 30


@dataclass(eq=False)
class StoredImage:
    """An image that a visitor sent.

    Attributes
    ----------
    identifier
        Not to be guessed.
    name
        Name of the file, without what no file system takes.
    folder
        Holds everything that belongs to it.
    bytes
        Of the image and its results.
    used
        Time of its last use, as the store's clock has it.
    downloaded
        Whether a result was downloaded.
    users
        Requests and predictions that use it now.
    deleted
        Whether it goes as soon as nobody uses it.
    limits
        Display limits that were measured, by what they are of.
    """

    identifier: str
    name: str
    folder: Path
    bytes: int = 0
    used: float = 0.0
    downloaded: bool = False
    users: int = 0
    deleted: bool = False
    limits: dict[Any, tuple[float, float]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "image" / self.name


class ImageStore:
    """The images of a server.

    Parameters
    ----------
    folder
        An empty folder that this process owns.
    settings
        Of the server.
    clock
        Seconds; for tests.
    """

    def __init__(
        self, folder: Path, settings: ServeSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._settings, self._clock = folder, settings, clock
        self._images: dict[str, StoredImage] = {}
        self._lock = threading.Lock()  # of users and removal: predictions have their own thread

    async def receive(self, name: str, declared: int | None, chunks: AsyncIterator[bytes]) -> StoredImage:
        """Receive an image, and refuse it before its first byte beyond a bound is kept.

        Parameters
        ----------
        name
            The visitor's name of the file.
        declared
            Bytes that the request announces, if it does.
        chunks
            The bytes.

        Raises
        ------
        RequestError
            If it is too large, stalls, breaks off, or there is no room for it.
        """
        self._check_size(name, declared or 0)
        self._check_room(declared or 0)
        image = self._new(name)
        try:
            looked = 0
            with image.path.open("xb") as file:
                while (chunk := await self._next(chunks)) is not None:
                    self._check_size(name, image.bytes + len(chunk))
                    if image.bytes + len(chunk) - looked > _LOOK_EVERY:
                        looked = image.bytes
                        self._check_room(len(chunk))
                    # Pages are flushed by the system; a write into its cache does not hold others up for long.
                    file.write(chunk)
                    image.bytes += len(chunk)
            self._check_arrived(image, declared)
        except BaseException:
            self.delete(image)
            raise
        self._touch(image)
        return image

    def make_sample(self, voxel_size: tuple[float, float, float] | None, seed: int = 0) -> StoredImage:
        """Simulate a field of cells in transmitted light, on a model's voxel size where the simulator can.

        Raises
        ------
        RequestError
            If there is no room for it.
        """
        self._check_room(_SAMPLE_BYTES)
        voxel = voxel_size or SIMULATED_VOXEL
        if not all(0.05 <= step <= 1.0 for step in voxel):
            voxel = SIMULATED_VOXEL
        image = self._new(SAMPLE_NAME)
        try:
            light = simulate_field(seed, 0, ("dna",), _SAMPLE_SHAPE, voxel)[LIGHT_CHANNEL]
            sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", voxel, strict=True)}
            units = {f"{name}Unit": "µm" for name in sizes}
            tifffile.imwrite(
                image.path,
                light,
                ome=True,
                photometric="minisblack",
                metadata={"axes": "ZYX", "Channel": {"Name": [LIGHT_CHANNEL]}, **sizes, **units},
            )
        except BaseException:
            self.delete(image)
            raise
        image.bytes = image.path.stat().st_size
        self._touch(image)
        return image

    def find(self, identifier: str) -> StoredImage:
        """Return an image and note that it is used.

        Raises
        ------
        RequestError
            If there is none of that name, or it was deleted.
        """
        image = self._images.get(identifier)
        if image is None:
            raise RequestError(404, "this image is no longer on the server; send it again")
        self._touch(image)
        return image

    @contextmanager
    def using(self, image: StoredImage) -> Iterator[StoredImage]:
        """Keep an image's files within the block, whatever asks to delete them."""
        with self._lock:
            image.users += 1
        try:
            yield image
        finally:
            with self._lock:
                image.users -= 1
                self._remove_if_unused(image)
            self._touch(image)

    def delete(self, image: StoredImage) -> None:
        """Delete an image and its results, as soon as nobody uses them."""
        self._images.pop(image.identifier, None)
        with self._lock:
            image.deleted = True
            self._remove_if_unused(image)

    def expired(self) -> list[StoredImage]:
        """Return the images that nobody used for so long that they should be deleted."""
        now = self._clock()
        return [
            image
            for image in list(self._images.values())
            if image.users == 0 and now - image.used > self.life(image)
        ]

    def life(self, image: StoredImage) -> float:
        """Return the seconds after its last use until an image is deleted."""
        if image.downloaded:
            return min(self._settings.keep_seconds, self._settings.keep_downloaded_seconds)
        return self._settings.keep_seconds

    @property
    def held(self) -> int:
        """Bytes of all images and results."""
        return sum(image.bytes for image in list(self._images.values()))

    def check_voxels(self, name: str, shape: tuple[int, int, int]) -> None:
        """Refuse an image of too many voxels, whose shape is known and none of whose voxels was read.

        Raises
        ------
        RequestError
            If it has too many.
        """
        most = self._settings.max_voxels
        if math.prod(shape) > most:
            size = " x ".join(f"{extent:,}" for extent in shape)
            raise RequestError(
                413,
                f"{name}: {size} = {math.prod(shape):,} voxels (z, y, x) in a channel; this server takes up to "
                f"{most:,} (option --max-voxels). Crop the image, or predict it with repmode-cl predict, which takes "
                "any size",
            )

    def remove_folder(self, folder: Path) -> None:
        """Remove what a prediction that did not finish left in an image's folder."""
        shutil.rmtree(folder, ignore_errors=True)

    def check_room(self, nbytes: int) -> None:
        """Refuse to hold `nbytes` more, if they are too many for this server or its disk."""
        self._check_room(nbytes)

    # -- parts ------------------------------------------------------------------------------------------------

    def _new(self, name: str) -> StoredImage:
        identifier = secrets.token_urlsafe(18)
        image = StoredImage(identifier, _safe_name(name), self._folder / identifier)
        image.path.parent.mkdir(parents=True)
        self._touch(image)
        self._images[identifier] = image
        return image

    def _touch(self, image: StoredImage) -> None:
        image.used = self._clock()

    def _remove_if_unused(self, image: StoredImage) -> None:
        if image.deleted and image.users == 0:
            # What cannot be removed now (Windows, a virus scanner) goes with the whole folder at the end.
            shutil.rmtree(image.folder, ignore_errors=True)

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        try:
            async with asyncio.timeout(self._settings.stall_seconds):
                return await anext(chunks, None)
        except TimeoutError:
            raise RequestError(
                408, f"nothing arrived for {self._settings.stall_seconds:g} s; send the image again"
            ) from None

    def _check_arrived(self, image: StoredImage, declared: int | None) -> None:
        if declared is not None and image.bytes != declared:
            raise RequestError(400, f"{image.name}: {image.bytes} bytes of {declared} arrived; send it again")
        if image.bytes == 0:
            raise RequestError(400, f"{image.name}: the file is empty")
        self._check_room(0)

    def _check_size(self, name: str, nbytes: int) -> None:
        if nbytes > self._settings.max_upload:
            raise RequestError(
                413,
                f"{name}: more than the {format_bytes(self._settings.max_upload)} that this server takes (option "
                "--max-upload). Crop the image, or predict it with repmode-cl predict, which takes any size",
            )

    def _check_room(self, nbytes: int) -> None:
        if self.held + nbytes > self._settings.max_stored:
            raise RequestError(
                507,
                f"this server holds {format_bytes(self.held)} of images and results, of at most "
                f"{format_bytes(self._settings.max_stored)} (option --max-stored); delete an image, or try again later",
            )
        if shutil.disk_usage(self._folder).free - nbytes < _DISK_RESERVE:
            raise RequestError(507, "the server's disk is nearly full; delete an image, or try again later")


def open_stored(image: StoredImage, scene: int | None = None, t: int | None = None) -> ImageReader:
    """Open a stored image; messages have its name, not its place on the server.

    Raises
    ------
    RepmodeError
        As of `open_image`, and if it refers to other files, which would be the server's own.
    """
    try:
        _refuse_other_files(image.path)
        return open_image(image.path, scene=scene, t=t)
    except RepmodeError as error:
        raise ImageError(without_folder(str(error), image)) from error


def describe_image(reader: ImageReader) -> dict[str, Any]:
    """Return what the page shows of an open image, as JSON values."""
    return {
        "scenes": list(reader.scenes),
        "times": reader.times,
        "channels": list(reader.channel_names),
        "shape": list(reader.shape),
        "voxel_size": None if reader.voxel_size is None else list(reader.voxel_size),
        "dtype": str(reader.dtype),
    }


def without_folder(text: str, image: StoredImage) -> str:
    """Return a message without the place of an image on the server."""
    # Folders below it have no spaces, names of images may.
    return re.sub(re.escape(str(image.folder)) + r"(?:[/\\][^/\\\s]+)*[/\\]", "", text)


def _safe_name(name: str) -> str:
    """Return the last part of a name without what no file system takes; its end, the suffix, is kept."""
    last = _STRANGE.sub("_", name.replace("\\", "/").rpartition("/")[2]).strip(" .")
    data = last.encode()
    if len(data) > _LONGEST_NAME:
        # A character that is cut in two goes as a whole.
        parts = (data[: _LONGEST_NAME - _LONGEST_END], data[-_LONGEST_END:])
        last = "".join(part.decode(errors="ignore") for part in parts)
    # Names that mean a folder to a reader (zarr.json), or a device to Windows, get a harmless one.
    if not last or "." not in last or last in ("zarr.json",) or last.split(".")[0].upper() in _DEVICES:
        last = f"image-{last}" if last else "image"
    return last


_DEVICES = frozenset(
    {"CON", "PRN", "AUX", "NUL", *(f"{kind}{n}" for kind in ("COM", "LPT") for n in range(10))}
)


def _refuse_other_files(path: Path) -> None:
    """Refuse an image that names files in other places: reading it would read what is the server's.

    A name without a folder is harmless: an image lies in a folder by itself.

    Raises
    ------
    ImageError
        If it does.
    """
    with path.open("rb") as handle:
        head = handle.read(512)
    if not head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        if b"<OME" in head:
            raise ImageError(
                f"{path}: describes an image in other files; save the image as one file (OME-TIFF) and send that"
            )
        return
    try:
        # Only the first page: no other file is opened for it.
        with tifffile.TiffFile(path) as file:
            xml = file.pages.first.description
    except Exception:
        return  # the reader reports it with its own words
    if "<" not in xml:
        return
    try:
        check_ome(xml)
        root = ElementTree.fromstring(xml)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except ElementTree.ParseError:
        root = ElementTree.Element("none")
        if "FileName" in xml or "MetadataFile" in xml:
            raise ImageError(f"{path}: its OME-XML is damaged; write the image again") from None
    own = root.get("UUID")
    for element in root.iter():
        for key in ("FileName", "MetadataFile"):
            name = element.get(key, "")
            if (own is None or (element.text or "") != own) and (set(name) & set("/\\:") or ".." in name):
                raise ImageError(
                    f"{path}: is one file of a set (it names {name!r}); save the image as one file and send that"
                )
