"""Import of the public label-free collection: twelve structures from the CSVs of its data sets.

Each transmitted-light stack of the collection shows one tagged structure and, in another channel, DNA. DNA has no
separate data set: its rows are drawn from those of the others, within their splits, so that no image trains one
structure and tests another. Splits and draws follow the scripts published with the paper exactly: with seed 42
they are the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from repmode_cl.data.importers.common import ImportedRows, Skipped, read_table
from repmode_cl.data.manifest import SPLITS, Row
from repmode_cl.errors import ManifestError, counted
from repmode_cl.structures import DATASET_NAMES

__all__ = ["DNA_COUNTS", "import_allen"]

#: DNA rows that train, validate and test.
DNA_COUNTS = (54, 6, 20)
#: Part of a data set that is not for testing, and of that, what trains.
_NOT_TEST, _TRAIN = 0.75, 0.9

_COLUMNS = ("path_czi", "channel_signal", "channel_target")


@dataclass(frozen=True)
class _Entry:
    """A line of one of the CSVs."""

    where: str
    dataset: str
    path: str
    signal: int
    target: int | None


def import_allen(
    folder: str | Path,
    root: str | Path,
    *,
    seed: int = 42,
    dna: tuple[int, int, int] = DNA_COUNTS,
    voxel_size: tuple[float, float, float] | None = None,
) -> ImportedRows:
    """Return the rows of the collection.

    Parameters
    ----------
    folder
        Holds one CSV for each data set, such as ``beta_actin.csv``, with the columns ``path_czi``,
        ``channel_signal`` and ``channel_target`` (others are ignored), and ``dna.csv``, which lists images that
        DNA may be drawn from. A folder ``beta_actin/`` with ``train.csv``, ``val.csv`` and ``test.csv`` states the
        split of its data set.
    root
        Folder of the images: at the paths of the CSVs, with or without their leading ``data/``, or in a folder for
        each data set, or all together.
    seed
        Of splits and draws.
    dna
        DNA rows that train, validate and test, at most.
    voxel_size
        (z, y, x) in um, written into every row; None takes what the files say.

    Returns
    -------
    ImportedRows
        `skipped` holds missing images.

    Raises
    ------
    ManifestError
        If a CSV cannot be read, or there is none.
    """
    folder, root = Path(folder), Path(root)
    if not folder.is_dir():
        raise ManifestError(f"{folder}: there is no such folder; it holds one CSV for each data set")
    if not root.is_dir():
        raise ManifestError(f"{root}: there is no such folder; the images of the collection lie below it")
    imported = ImportedRows()
    split: dict[str, dict[str, list[_Entry]]] = {}
    # In the order of the data sets' names, which the draw of DNA rows depends on.
    for dataset in sorted(name for name in DATASET_NAMES.values() if name != "dna"):
        entries = _read_splits(folder, dataset, seed)
        if entries is None:
            imported.notes.append(f"{dataset}: no {dataset}.csv in {folder}; the manifest has no rows of it")
        else:
            split[dataset] = entries
    if not split:
        listed = ", ".join(f"{name}.csv" for name in DATASET_NAMES.values())
        raise ManifestError(f"{folder}: none of {listed} is there")
    split["dna"] = _draw_dna(folder, split, seed, dna, imported.notes)
    images = _Images(root)
    for structure, dataset in DATASET_NAMES.items():
        for part in SPLITS:
            for entry in split.get(dataset, {}).get(part, ()):
                path = images.find(entry)
                if path is None:
                    imported.skipped.append(Skipped(entry.where, f"there is no {entry.path} below {root}"))
                elif entry.target is None:
                    imported.skipped.append(Skipped(entry.where, "channel_target is empty"))
                else:
                    imported.rows.append(
                        Row(0, structure, path, entry.signal, path, entry.target, part, voxel_size=voxel_size)
                    )
    return imported


def _read_splits(folder: Path, dataset: str, seed: int) -> dict[str, list[_Entry]] | None:
    """Return the entries of a data set by split; None where there is no CSV of it."""
    stated = {part: folder / dataset / f"{part}.csv" for part in SPLITS}
    if all(path.is_file() for path in stated.values()):
        return {part: _read(path, dataset) for part, path in stated.items()}
    whole = folder / f"{dataset}.csv"
    if not whole.exists():
        return None
    entries = _shuffled(_read(whole, dataset), seed)
    count = round(_NOT_TEST * len(entries))
    rest, test = _shuffled(entries[:count], seed), entries[count:]
    count = round(_TRAIN * len(rest))
    return {"train": rest[:count], "val": rest[count:], "test": test}


def _shuffled(entries: Sequence[_Entry], seed: int) -> list[_Entry]:
    # The generator of the published scripts, whose numbers never change.
    return [entries[place] for place in np.random.RandomState(seed).permutation(len(entries))]


def _draw_dna(
    folder: Path,
    split: dict[str, dict[str, list[_Entry]]],
    seed: int,
    counts: tuple[int, int, int],
    notes: list[str],
) -> dict[str, list[_Entry]]:
    pool = _dna_pool(folder, split, notes)
    drawn: dict[str, list[_Entry]] = {}
    for part, count in zip(SPLITS, counts, strict=True):
        entries = [entry for parts in split.values() for entry in parts[part]]
        random = np.random.RandomState(seed)
        entries = [entries[place] for place in random.permutation(len(entries))]
        order = np.arange(len(entries))
        random.shuffle(order)
        chosen = [pool[entries[place].path] for place in order if entries[place].path in pool]
        drawn[part] = chosen[:count]
        if len(chosen) < count:
            notes.append(
                f"dna: {counted(len(chosen), 'image')} for {part}, not {count}: there are no more with a DNA channel"
            )
    return drawn


def _dna_pool(folder: Path, split: dict[str, dict[str, list[_Entry]]], notes: list[str]) -> dict[str, _Entry]:
    """Return the images that DNA may be drawn from, with its channel."""
    path = folder / "dna.csv"
    if path.exists():
        return {entry.path: entry for entry in _read(path, "dna")}
    notes.append(
        f"dna: no dna.csv in {folder}; taking the channel before the transmitted light, as in the collection. Look "
        "at some of them (repmode-cl data check --page)"
    )
    entries = [entry for parts in split.values() for part in parts.values() for entry in part]
    return {
        entry.path: _Entry(entry.where, "dna", entry.path, entry.signal, entry.signal - 1)
        for entry in entries
        if entry.signal >= 1 and entry.signal - 1 != entry.target
    }


def _read(path: Path, dataset: str) -> list[_Entry]:
    entries = []
    for line, values in read_table(path, _COLUMNS):
        where = f"{path}, line {line}"
        if not values["path_czi"]:
            raise ManifestError(f"{where}: path_czi is empty")
        signal = _channel(values["channel_signal"], where, "channel_signal")
        if signal is None:
            raise ManifestError(f"{where}: channel_signal is empty")
        target = _channel(values["channel_target"], where, "channel_target")
        entries.append(_Entry(where, dataset, values["path_czi"], signal, target))
    return entries


def _channel(text: str, where: str, column: str) -> int | None:
    if text.lower() in ("", "nan"):
        return None
    try:
        number = float(text)  # columns with gaps are written as 3.0
    except ValueError:
        number = -1.0
    if number < 0 or number != int(number):
        raise ManifestError(f"{where}: {column} {text!r} is no channel's number, counted from 0")
    return int(number)


class _Images:
    """Finds the images of CSVs that were written on other machines."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths: dict[str, Path | None] = {}

    def find(self, entry: _Entry) -> Path | None:
        """Return the path of an image; None if it is missing."""
        if entry.path not in self._paths:
            self._paths[entry.path] = next((path for path in self._candidates(entry) if path.is_file()), None)
        return self._paths[entry.path]

    def _candidates(self, entry: _Entry) -> list[Path]:
        stated_path = PurePosixPath(entry.path.replace("\\", "/"))
        candidates = [self.root / stated_path]
        if stated_path.parts[0] == "data":
            candidates.append(self.root.joinpath(*stated_path.parts[1:]))
        named = (
            [stated_path.parent.name] if entry.dataset == "dna" else [entry.dataset, stated_path.parent.name]
        )
        return [
            *candidates,
            *(self.root / name / stated_path.name for name in named),
            self.root / stated_path.name,
        ]
