"""Splits of a manifest's rows into train, val and test: decided once, by content, and never changed afterwards.

An image must not straddle splits, whatever its files are called and however many structures it shows, so groups are
named by the content of the signal file. Rows that name a split keep it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from repmode_cl.data.manifest import SPLITS, Manifest, Row
from repmode_cl.data.preprocessing.content_digest import content_digest
from repmode_cl.data.readers import open_image
from repmode_cl.errors import ImageError, ManifestError, counted
from repmode_cl.utils.atomic_files import write_json

__all__ = ["Assignment", "assign_splits", "order_of_group", "place_groups", "split_counts"]

_FORMAT = 1


class Assignment(dict[int, str]):
    """Split ("train", "val" or "test") by row number, with remarks for the user in `notes`."""

    def __init__(self, splits: Mapping[int, str], notes: Iterable[str] = ()) -> None:
        super().__init__(splits)
        self.notes = tuple(notes)


def split_counts(groups: int, test_fraction: float, val_fraction: float) -> tuple[int, int]:
    """Return the numbers of groups that test and that validate.

    Exact fractions, rounded half up: `test_fraction` of all, `val_fraction` of the rest, and at least one
    each from four groups up (unless the fraction is 0). Two or three groups test one and validate none; one
    group only trains.
    """
    if groups < 2:
        return 0, 0
    if groups < 4:
        return (1 if test_fraction else 0), 0
    test = min(max(math.floor(test_fraction * groups + 0.5), 1 if test_fraction else 0), groups - 2)
    rest = groups - test
    val = min(max(math.floor(val_fraction * rest + 0.5), 1 if val_fraction else 0), rest - 1)
    return test, val


def assign_splits(
    manifest: Manifest,
    *,
    seed: int,
    test_fraction: float = 0.25,
    val_fraction: float = 0.1,
    record: str | Path | None = None,
    earlier: Mapping[int, str] | None = None,
    digest: Callable[[Path], str] = content_digest,
) -> Assignment:
    """Decide the split of every row.

    Parameters
    ----------
    manifest
        The rows. A row's `split` wins; other rows of the same group, if all of those agree, follow it.
    seed
        Orders the groups: by the SHA-256 of seed and group.
    test_fraction, val_fraction
        Part of each structure's groups that tests, and of the rest that validates. Structures that share all
        their images share the split; where they share some, those already held out count for each.
    record
        JSON file of earlier decisions, each seed in its own part. They are kept, whatever images are added.
    earlier
        Split by row number of images that a model has learned from or was tested on. Groups without a split in the
        manifest follow it, before they follow `record`; one with several follows train before val before test.
    digest
        Returns the digest of a file's content; pass one that stores digests where files are large. Called for rows
        without `group`.

    Returns
    -------
    Assignment
        Split by row number; `notes` names structures with nothing to validate or test with.

    Raises
    ------
    ManifestError
        If rows of one group are in several splits and others of it in none, a named group straddles splits, rows name
        one scene differently, or the record is damaged.
    """
    keys = _group_keys(manifest.rows, digest)
    decided = _splits_by_manifest(manifest, keys)
    notes: list[str] = []
    followed: dict[str, str] = {}
    for row, key in zip(manifest.rows, keys, strict=True):
        if earlier and row.number in earlier:
            followed[key] = min(earlier[row.number], followed.get(key, "test"), key=SPLITS.index)
    if record is None:
        chosen = _split_open_groups(manifest, keys, decided, followed, seed, test_fraction, val_fraction)
    else:
        record = Path(record)
        record.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{record}.lock"):
            # Another run that decides at the same time must read this run's decisions.
            recorded = _read_record(record)
            before = recorded.get(str(seed), {})
            known = {**before, **followed}
            chosen = _split_open_groups(manifest, keys, decided, known, seed, test_fraction, val_fraction)
            moved = sorted({key for key, split in decided.items() if before.get(key, split) != split})
            if moved:
                are = f"{counted(len(moved), 'image')} {'is' if len(moved) == 1 else 'are'}"
                notes.append(f"{are} now placed by the manifest, not as recorded in {record}")
            if added := {key: split for key, split in chosen.items() if key not in before}:
                recorded[str(seed)] = {**before, **added}
                write_json(record, {"format": _FORMAT, "seeds": recorded})
    splits = {
        row.number: row.split or decided.get(key) or chosen[key]
        for row, key in zip(manifest.rows, keys, strict=True)
    }
    return Assignment(splits, notes + _missing_splits(manifest, splits))


def _group_keys(rows: Sequence[Row], digest: Callable[[Path], str]) -> list[str]:
    """Return the group of each row: the one it names, or content and scene of the signal file.

    Channels, time points and regions of one file show the same cells and are one group.
    """
    contents: dict[Path, str] = {}
    keys = []
    for row in rows:
        if row.group is not None:
            keys.append(f"group {row.group}")
            continue
        if row.signal not in contents:
            try:
                contents[row.signal] = digest(row.signal)
            except OSError as error:
                raise ManifestError(
                    f"line {row.number}, signal: {row.signal} cannot be read ({error.strerror or error})"
                ) from error
        keys.append(f"sha256 {contents[row.signal]}" + (f" scene {row.scene}" if row.scene else ""))
    _refuse_renamed_scenes([row for row in rows if row.group is None], contents)
    return keys


def _refuse_renamed_scenes(rows: Sequence[Row], contents: Mapping[Path, str]) -> None:
    """Refuse rows that name one scene differently: counted as two images, it could straddle splits."""
    of_image: dict[str, dict[int | str | None, Row]] = {}
    for row in rows:
        of_image.setdefault(contents[row.signal], {}).setdefault(row.scene, row)
    for named in of_image.values():
        if len(named) == 1:
            continue
        first: dict[int, Row] = {}
        try:
            some = next(row for row in named.values() if row.scene is not None)
            with open_image(some.signal, scene=some.scene) as image:
                numbers = {scene: image.scene_index(scene or 0) for scene in named}
        except (ImageError, OSError):
            continue  # reported where it is read
        for scene, row in named.items():
            other = first.setdefault(numbers[scene], row)
            if other is not row:
                raise ManifestError(
                    f"line {row.number}, scene: {_named(scene)} is the scene of {row.signal} that line {other.number} "
                    f"calls {_named(other.scene)}: use one of them, or one image could train and test"
                )


def _named(scene: int | str | None) -> str:
    return "an empty cell" if scene is None else repr(scene)


def _splits_by_manifest(manifest: Manifest, keys: list[str]) -> dict[str, str]:
    """Return the split of each group whose rows name only one; rows of the group that name none follow it."""
    named: dict[str, dict[str, int]] = {}
    open_rows: dict[str, int] = {}
    for row, key in zip(manifest.rows, keys, strict=True):
        if row.split is None:
            open_rows.setdefault(key, row.number)
        else:
            named.setdefault(key, {}).setdefault(row.split, row.number)
    for key, splits in named.items():
        listed = ", ".join(f"{split} (line {number})" for split, number in splits.items())
        if len(splits) > 1 and key.startswith("group "):
            raise ManifestError(f"{manifest.path}: {key!r} straddles splits: {listed}; a group stays in one")
        if len(splits) > 1 and key in open_rows:
            raise ManifestError(
                f"{manifest.path}: line {open_rows[key]} names no split, but other rows of the same image "
                f"are in several: {listed}; name its split"
            )
    return {key: next(iter(splits)) for key, splits in named.items() if len(splits) == 1}


def _split_open_groups(
    manifest: Manifest,
    keys: list[str],
    decided: Mapping[str, str],
    before: Mapping[str, str],
    seed: int,
    test_fraction: float,
    val_fraction: float,
) -> dict[str, str]:
    """Decide the split of every group that no row names one for, structure by structure."""
    placed: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    # Regions of one image that rows put in several splits count as groups of those splits.
    split_regions: dict[str, set[tuple[str, str]]] = {}
    for row, key in zip(manifest.rows, keys, strict=True):
        if row.split is not None and key not in decided:
            split_regions.setdefault(row.structure, set()).add((key, row.split))
            continue
        members.setdefault(row.structure, []).append(key)
        if key in decided or key in before:
            placed[key] = decided.get(key) or before[key]

    def order(key: str) -> str:
        return order_of_group(seed, key)

    held = {structure: [split for _, split in regions] for structure, regions in split_regions.items()}
    place_groups(members, placed, held, order=order, test_fraction=test_fraction, val_fraction=val_fraction)
    return {key: split for key, split in placed.items() if key not in decided}


def order_of_group(seed: int, key: str) -> str:
    """Return what groups are ordered by before they are split: a digest of seed and group."""
    return hashlib.sha256(f"{seed}\0{key}".encode()).hexdigest()


def place_groups(
    members: Mapping[str, Iterable[str]],
    placed: dict[str, str],
    held_regions: Mapping[str, Sequence[str]],
    *,
    order: Callable[[str], tuple[bool, str] | str],
    test_fraction: float,
    val_fraction: float,
) -> None:
    """Put every open group into a split, structure by structure: the first test, the next validate, the rest train.

    Parameters
    ----------
    members
        Structure -> its groups.
    placed
        Group -> split, of those that are decided; the others are added.
    held_regions
        Structure -> the splits of regions of images that lie in several.
    order
        Key that a structure's groups are sorted by.
    test_fraction, val_fraction
        As for `split_counts`.
    """
    # By name and not by row, so that sorting a manifest changes nothing.
    for structure in sorted(members):
        groups = sorted(set(members[structure]), key=order)
        held = [placed[key] for key in groups if key in placed]
        held += held_regions.get(structure, ())
        open_groups = [key for key in groups if key not in placed]
        wanted = split_counts(len(open_groups) + len(held), test_fraction, val_fraction)
        for split, count in zip(("test", "val"), wanted, strict=True):
            # The last open group trains where nothing else does.
            spare = len(open_groups) - (0 if "train" in held else 1)
            count_open = max(0, min(count - held.count(split), spare))
            placed.update(dict.fromkeys(open_groups[:count_open], split))
            open_groups = open_groups[count_open:]
        placed.update(dict.fromkeys(open_groups, "train"))


def _read_record(record: Path) -> dict[str, dict[str, str]]:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ManifestError(
            f"{record}: the record of splits cannot be read ({error}); restore it or remove it"
        ) from error
    seeds = content.get("seeds") if isinstance(content, dict) and content.get("format") == _FORMAT else None
    if not isinstance(seeds, dict) or not all(
        isinstance(groups, dict) and all(split in SPLITS for split in groups.values())
        for groups in seeds.values()
    ):
        raise ManifestError(
            f"{record}: not a record of splits of format {_FORMAT}; restore it, or remove it to split the images again"
        )
    return seeds


def _missing_splits(manifest: Manifest, splits: Mapping[int, str]) -> list[str]:
    notes = []
    for structure in manifest.structures:
        rows = manifest.for_structure(structure)
        held = [splits[row.number] for row in rows]
        train = held.count("train")
        if not train:
            notes.append(f"{structure}: no image trains")
        elif train < len(held) - train and any(row.split is None for row in rows):
            # Of two groups one tests, which may be the larger.
            notes.append(
                f"{structure}: {counted(train, 'image')} to train on and {len(held) - train} held out, because those "
                "of a group stay together: name the images that train in the column split"
            )
        if "val" not in held:
            notes.append(f"{structure}: no image validates; the state of the last step is used, not the best")
        if "test" not in held:
            notes.append(
                f"{structure}: no image tests; there are no figures for images that it was not trained on"
            )
    return notes
