"""Remarks on rows whose signal and target do not seem to belong together, and on images that stand there twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from repmode_cl.data.manifest import Problem
from repmode_cl.data.validation.pair_fit import Fit
from repmode_cl.data.validation.rows import InspectedRow
from repmode_cl.data.validation.voxels import VoxelFindings, compare_with_others, key_of

__all__ = ["check_belonging", "check_twins"]

#: Rows of a structure at most that are compared with other images, and images that each is compared with.
_ROWS, _OTHERS = 50, 8
#: Rows looked at of a structure none of whose images seems to go with its signal.
_PROBES = 4
#: Another image must explain so many times as much to be named.
_CLEARLY = 1.5
#: Rows of a structure, and how far above chance half of them must go together, for one that does not to stand out.
_FEWEST, _VISIBLE = 3, 3.0


def check_belonging(
    looked: Sequence[InspectedRow], seen: VoxelFindings, *, workers: int = 1
) -> tuple[list[Problem], dict[int, tuple[int, float]]]:
    """Return remarks, and for rows that were compared with other images, the line and R2 of the best of those.

    How well a target is explained is compared with chance (far shifts), with near shifts, and, for rows that stand
    out, with the signals of other images of the structure. A structure that no simple filter sees in transmitted
    light stays without remark: nothing can be told of it this way.
    """
    by_structure: dict[str, list[InspectedRow]] = defaultdict(list)
    for one in looked:
        if one.row.number in seen.fits:
            by_structure[one.row.structure].append(one)
    doubtful: list[tuple[InspectedRow, list[InspectedRow]]] = []
    visible: dict[str, bool] = {}
    for structure, members in by_structure.items():
        odd = [place for place, one in enumerate(members) if not seen.fits[one.row.number].related]
        strength = median(seen.fits[one.row.number].strength for one in members)
        visible[structure] = len(members) >= _FEWEST and strength >= _VISIBLE
        probed = odd[: _ROWS if visible[structure] else _PROBES]
        doubtful += [(members[place], others) for place in probed if (others := _others(place, members))]
    kinds = [seen.fits[one.row.number].kind for one, _ in doubtful]
    tried = compare_with_others(doubtful, kinds, workers=workers)
    best = {number: max(found.items(), key=lambda item: item[1]) for number, found in tried.items() if found}
    problems = [
        problem
        for structure, members in by_structure.items()
        for one in members
        for problem in _remarks(one, seen.fits[one.row.number], best, visible[structure])
    ]
    return problems, best


def _others(place: int, members: Sequence[InspectedRow]) -> list[InspectedRow]:
    """Return the rows nearest in the manifest whose signal is another image of the same shape."""
    one = members[place]
    own, shape = key_of(one.images["signal"], one.row.region), _shape(one)
    found: dict[object, InspectedRow] = {}
    for away in range(1, len(members)):
        for other in (members[at] for at in (place - away, place + away) if 0 <= at < len(members)):
            key = key_of(other.images["signal"], other.row.region)
            if key != own and _shape(other) == shape:
                found.setdefault(key, other)
        if len(found) >= _OTHERS:
            break
    return list(found.values())


def _shape(one: InspectedRow) -> tuple[int, int, int]:
    return one.region.shape_in(one.images["signal"].shape)


def _remarks(
    one: InspectedRow, fit: Fit, best: Mapping[int, tuple[int, float]], visible: bool
) -> Iterator[Problem]:
    number = one.row.number

    def remark(kind: str, message: str) -> Problem:
        return Problem(number, "target", message, severity="warning", kind=kind)

    if number in best:
        line, r2 = best[number]
        if r2 > max(fit.limit, _CLEARLY * fit.r2):
            yield remark(
                "mixed up",
                f"fits the signal of line {line} better than its own (R2 {r2:.3f} against {fit.r2:.3f}); were files "
                "mixed up?",
            )
            return
    if fit.shifted:
        shift = ", ".join(f"{part:+d}" for part in fit.shift)
        size = one.voxel_size
        um = (
            ""
            if size is None
            else f" ({', '.join(f'{n * s:+.2g}' for n, s in zip(fit.shift, size, strict=True))} um)"
        )
        yield remark(
            "shifted",
            f"seems to lie {shift} voxels (z, y, x){um} beside its signal: there the signal explains {fit.best:.3f} of "
            f"its variance, as the files are {fit.r2:.3f}; register the channels",
        )
    elif visible and not fit.related:
        yield remark(
            "unrelated",
            f"does not go with its signal better than by chance (R2 {fit.r2:.3f}, chance up to {fit.chance:.3f}), as "
            "most images of the structure do; look whether they show the same cells",
        )


def check_twins(
    looked: Sequence[InspectedRow], seen: VoxelFindings, names: Mapping[Path, object]
) -> Iterator[Problem]:
    """Yield rows whose image holds the same values as another file, scene or time point does.

    Copies of a file are found by their bytes; these were converted, compressed anew or saved under another type.
    """
    signals: dict[str, InspectedRow] = {}
    targets: dict[tuple[str, str], InspectedRow] = {}
    for one in looked:
        row, signal = one.row, one.images.get("signal")
        found = None if signal is None else seen.measures.get(key_of(signal, row.region))
        if signal is None or found is None:
            continue
        other = signals.setdefault(found.digest, one)
        if other is not one and _place(other, "signal", names) != _place(one, "signal", names):
            apart = row.split and other.row.split and row.split != other.row.split
            together = (row.split and row.split == other.row.split) or (
                row.group and row.group == other.row.group
            )
            if apart:
                message = f"the same image as that of line {other.row.number}, which is in another split"
                yield Problem(row.number, "signal", f"{message} ({other.row.split})", kind="duplicate")
            elif not together:
                message = (
                    f"the same image as that of line {other.row.number}, in another file; give both one group"
                )
                yield Problem(row.number, "signal", message, severity="warning", kind="duplicate")
        target = one.images.get("target")
        shown = None if target is None else seen.measures.get(key_of(target, row.region))
        if shown is None:
            continue
        twin = targets.setdefault((row.structure, shown.digest), one)
        before = seen.measures[key_of(twin.images["signal"], twin.row.region)]
        if before.digest != found.digest:
            message = f"the same image as the target of line {twin.row.number}, whose signal is another"
            yield Problem(row.number, "target", message, severity="warning", kind="duplicate")


def _place(one: InspectedRow, column: str, names: Mapping[Path, object]) -> object:
    image = one.images[column]
    return names[image.path], image.channel, image.header.scene, image.t
