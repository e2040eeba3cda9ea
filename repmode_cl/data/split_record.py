"""Record of the images that trained, validated and tested a structure, kept in its provenance.

What is trained or compared later on the same images follows it, so that no image is held out that a model has learned
from. Images are known by their content: names of files and rows of manifests change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from repmode_cl.data.manifest import SPLITS
from repmode_cl.data.sample import Sample

__all__ = [
    "ImagePart",
    "SplitRecord",
    "TrainingRecords",
    "read_split_record",
    "least_held_out",
    "split_record",
]

#: Key of the provenance.
_KEY = "splits"
#: Hexadecimal digits that stand for the content of a file: two of 10,000 files agree by chance once in 5 million times.
_DIGITS = 12
#: Most characters of images in a provenance, which a pack limits as a whole: about 7,000 images.
_MOST = 100_000

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ImagePart:
    """Part of an image file that a row stands for.

    Attributes
    ----------
    content
        First digits of the SHA-256 of the signal file.
    scene, t
        Numbers of scene and time point; 0 in a file of one.
    box
        Start and stop along z, y, x, in voxels of the file; None where it is the whole.
    """

    content: str
    scene: int = 0
    t: int = 0
    box: Spans | None = None

    @classmethod
    def of(
        cls, content: str, scene: int | None, t: int | None, box: Sequence[slice] | None, shape: Sequence[int]
    ) -> ImagePart:
        """Return the part of a file with the SHA-256 `content`, whose volumes are of `shape`."""
        spans = None if box is None else tuple((part.start, part.stop) for part in box)
        whole = tuple((0, size) for size in shape)
        return cls(content[:_DIGITS], scene or 0, t or 0, None if spans == whole else spans)

    @classmethod
    def parse(cls, text: str) -> ImagePart:
        """Read what `str` returns.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        content, *parts = text.split("/")
        if len(content) != _DIGITS or not set(content) <= set("0123456789abcdef"):
            raise ValueError(f"{content!r} is no digest")
        scene = t = 0
        box = None
        for part in parts:
            if part.startswith("s"):
                scene = int(part[1:])
            elif part.startswith("t"):
                t = int(part[1:])
            else:
                (z0, z1), (y0, y1), (x0, x1) = (map(int, span.split(":")) for span in part.split(","))
                box = (z0, z1), (y0, y1), (x0, x1)
        return cls(content, scene, t, box)

    def __str__(self) -> str:
        box = "" if self.box is None else "/" + ",".join(f"{start}:{stop}" for start, stop in self.box)
        return f"{self.content}{f'/s{self.scene}' * bool(self.scene)}{f'/t{self.t}' * bool(self.t)}{box}"

    def meets(self, other: ImagePart, gap: Sequence[int]) -> bool:
        """Return whether both are of one volume, and overlap or lie nearer than `gap` (z, y, x) along every axis."""
        if (self.content, self.scene, self.t) != (other.content, other.scene, other.t):
            return False
        if self.box is None or other.box is None:
            return True
        distances = [max(c - b, a - d) for (a, b), (c, d) in zip(self.box, other.box, strict=True)]
        # Along an axis where they overlap the distance is negative; that of adjacent boxes is 0.
        return all(distance < least for distance, least in zip(distances, gap, strict=True))


@dataclass(frozen=True)
class SplitRecord:
    """Settings of a split, and the images of each split by their content; see `read_split_record`.

    Attributes
    ----------
    seed, test_fraction, val_fraction
        As of a configuration; None where they are not recorded.
    recorded
        Whether the images are recorded.
    images
        Content -> parts of that file, each with its split.
    """

    seed: int | None = None
    test_fraction: float | None = None
    val_fraction: float | None = None
    recorded: bool = False
    images: Mapping[str, Sequence[tuple[ImagePart, str]]] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Recorded settings, by their names in a configuration's section `data`."""
        values = {
            "split_seed": self.seed,
            "test_fraction": self.test_fraction,
            "val_fraction": self.val_fraction,
        }
        return {key: value for key, value in values.items() if value is not None}

    def split_of(self, part: ImagePart) -> str | None:
        """Return the split of an image: that of the same part, or the one least held out of the image's other parts.

        Time points and regions of one image show the same cells, so that they are never spread over splits.
        """
        same_image = [
            (other, split) for other, split in self.images.get(part.content, ()) if other.scene == part.scene
        ]
        same = [split for other, split in same_image if other == part]
        return least_held_out(same or [split for _, split in same_image])

    def meeting(self, part: ImagePart, gap: Sequence[int]) -> str | None:
        """Return the split, of those with voxels that `part` meets, that is the least held out; None without any."""
        return least_held_out(
            split for other, split in self.images.get(part.content, ()) if part.meets(other, gap)
        )


@dataclass(frozen=True)
class TrainingRecords:
    """Records of all structures of a model, for a training that builds on it.

    Attributes
    ----------
    records
        By name, as messages call it: ``the base``, or a structure.
    learned_from
        Those whose images must not be held out: what is trained or measured has learned from them.
    """

    records: Mapping[str, SplitRecord]
    learned_from: Sequence[str]

    @property
    def unrecorded(self) -> list[str]:
        """Names of those in `learned_from` whose images are not recorded."""
        return [name for name in self.learned_from if not self.records[name].recorded]

    def split_of(self, part: ImagePart) -> str | None:
        """Return the split that an image has in the model; None for one that it does not know."""
        return least_held_out(
            split for record in self.records.values() if (split := record.split_of(part)) is not None
        )


def least_held_out(splits: Iterable[str]) -> str | None:
    """Return train before val before test; None for none."""
    return min(splits, key=SPLITS.index, default=None)


def split_record(samples: Iterable[Sample], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a training for its provenance, as JSON values.

    Parameters
    ----------
    samples
        All its images.
    settings
        ``split_seed``, ``test_fraction`` and ``val_fraction`` of the configuration's section `data`.

    Returns
    -------
    dict
        With the key ``splits``. Too many images are left out: then later commands say that they cannot compare.
    """
    record: dict[str, Any] = {
        "seed": settings["split_seed"],
        "test_fraction": settings["test_fraction"],
        "val_fraction": settings["val_fraction"],
    }
    images: dict[str, set[str]] = {split: set() for split in SPLITS}
    for sample in samples:
        images[sample.split].add(sample.source)
    texts = {split: " ".join(sorted(parts)) for split, parts in images.items()}
    # A sample that was not made from a file has no source.
    if all("" not in parts for parts in images.values()) and sum(map(len, texts.values())) <= _MOST:
        record |= texts
    return {_KEY: record}


def read_split_record(provenance: Mapping[str, Any]) -> SplitRecord:
    """Read the record of `split_record`.

    One that is missing, or that cannot be understood (a pack may come from anywhere), counts as not recorded.
    """
    record = provenance.get(_KEY)
    if not isinstance(record, Mapping):
        return SplitRecord()
    seed = record.get("seed")
    settings: dict[str, Any] = {"seed": seed if type(seed) is int and seed >= 0 else None}
    for key in ("test_fraction", "val_fraction"):
        part = record.get(key)
        settings[key] = part if isinstance(part, float) and 0 <= part < 1 else None
    if not settings["test_fraction"]:
        settings["test_fraction"] = None
    images: dict[str, list[tuple[ImagePart, str]]] = defaultdict(list)
    try:
        for split in SPLITS:
            for text in record[split].split():
                part = ImagePart.parse(text)
                images[part.content].append((part, split))
    except (KeyError, AttributeError, ValueError):
        return SplitRecord(**settings)
    return SplitRecord(**settings, recorded=True, images=dict(images))
