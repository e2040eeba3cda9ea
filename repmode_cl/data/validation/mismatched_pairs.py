"""Warnings about rows whose signal and target do not seem to belong together, and about images that occur twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from repmode_cl.data.manifest import Problem
from repmode_cl.data.validation.pair_fit import PairFit, look_swapped
from repmode_cl.data.validation.rows import InspectedRow
from repmode_cl.data.validation.voxels import VoxelFindings, compare_with_others, image_key

__all__ = ["check_pairs", "check_duplicate_images"]

#: Most rows of a structure that are compared with other images, and most images that each is compared with.
_MOST_ROWS, _MOST_OTHERS = 50, 8
#: The same limit on rows for a structure whose images as a whole do not seem to go with their signals.
_MOST_ROWS_UNPREDICTABLE = 4
#: Another image must explain this many times as much of a target as its own signal to be named.
_CLEARLY_BETTER = 1.5
#: Fewest rows of a structure, and the median strength of their fits, from which a pair that does not fit stands out.
_FEWEST_ROWS, _PREDICTABLE_STRENGTH = 3, 3.0


def check_pairs(
    inspected: Sequence[InspectedRow], findings: VoxelFindings, *, workers: int = 1
) -> tuple[list[Problem], dict[int, tuple[int, float]]]:
    """Compare each target with its signal, and where they do not fit, with the signals of other images.

    The fit of a pair is compared with chance (far shifts) and with near shifts. Rows that stand out are compared with
    the signals of other images of the structure. A structure that no simple filter predicts from transmitted light
    gets no warning: its pairs cannot be judged this way.

    Returns
    -------
    list of Problem
        Warnings.
    dict
        Row number -> line and R2 of the other row whose signal explains the target best, for rows that were compared.
    """
    by_structure: dict[str, list[InspectedRow]] = defaultdict(list)
    for one in inspected:
        if one.row.number in findings.fits:
            by_structure[one.row.structure].append(one)
    doubtful: list[tuple[InspectedRow, list[InspectedRow]]] = []
    predictable: dict[str, bool] = {}
    # Of a swapped pair neither fit nor shift means anything.
    swapped = {number for number, pair in findings.skewness.items() if look_swapped(*pair)}
    for structure, members in by_structure.items():
        odd = [
            place
            for place, one in enumerate(members)
            if one.row.number not in swapped and not findings.fits[one.row.number].related
        ]
        strength = median(findings.fits[one.row.number].strength for one in members)
        predictable[structure] = len(members) >= _FEWEST_ROWS and strength >= _PREDICTABLE_STRENGTH
        compared = odd[: _MOST_ROWS if predictable[structure] else _MOST_ROWS_UNPREDICTABLE]
        doubtful += [
            (members[place], others) for place in compared if (others := _nearest_rows(place, members))
        ]
    feature_sets = [findings.fits[one.row.number].feature_set for one, _ in doubtful]
    r2_of_others = compare_with_others(doubtful, feature_sets, workers=workers)
    best = {number: max(r2.items(), key=lambda item: item[1]) for number, r2 in r2_of_others.items() if r2}
    problems = [
        problem
        for structure, members in by_structure.items()
        for one in members
        if one.row.number not in swapped
        for problem in _fit_warnings(one, findings.fits[one.row.number], best, predictable[structure])
    ]
    problems += [
        _swapped_warning(one.row.number, *findings.skewness[one.row.number])
        for members in by_structure.values()
        for one in members
        if one.row.number in swapped
    ]
    return problems, best


def _swapped_warning(number: int, signal: float, target: float) -> Problem:
    message = (
        "signal and target may be swapped: the signal is bright on a dark ground like fluorescence (skewness of its "
        f"brightness {signal:.1f}), and the target is about as often dark as bright, like transmitted light "
        f"({target:.1f}); exchange the columns if so, and read nothing into fits and shifts before"
    )
    return Problem(number, "signal", message, severity="warning", kind="swapped")


def _nearest_rows(place: int, members: Sequence[InspectedRow]) -> list[InspectedRow]:
    """Return the nearest rows of the manifest whose signal is another image of the same shape."""
    one = members[place]
    own, shape = image_key(one.images["signal"], one.row.region), _shape(one)
    nearest: dict[object, InspectedRow] = {}
    for distance in range(1, len(members)):
        for other in (members[at] for at in (place - distance, place + distance) if 0 <= at < len(members)):
            key = image_key(other.images["signal"], other.row.region)
            if key != own and _shape(other) == shape:
                nearest.setdefault(key, other)
        if len(nearest) >= _MOST_OTHERS:
            break
    return list(nearest.values())


def _shape(one: InspectedRow) -> tuple[int, int, int]:
    return one.region.shape_in(one.images["signal"].shape)


def _fit_warnings(
    one: InspectedRow, fit: PairFit, best: Mapping[int, tuple[int, float]], predictable: bool
) -> Iterator[Problem]:
    number = one.row.number

    def warning(kind: str, message: str) -> Problem:
        return Problem(number, "target", message, severity="warning", kind=kind)

    if number in best:
        line, r2 = best[number]
        if r2 > max(fit.limit, _CLEARLY_BETTER * fit.r2):
            yield warning(
                "mixed up",
                f"fits the signal of line {line} better than its own (R2 {r2:.3f}, own {fit.r2:.3f}); check that files "
                "were not mixed up",
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
        yield warning(
            "shifted",
            f"seems to be shifted by {shift} voxels (z, y, x){um} from its signal: there the signal explains "
            f"{fit.best:.3f} of its variance, and {fit.r2:.3f} as the files are; register the channels",
        )
    elif predictable and not fit.related:
        yield warning(
            "unrelated",
            f"does not fit its signal better than chance (R2 {fit.r2:.3f}, chance up to {fit.chance:.3f}), as most "
            "images of the structure do; check that both show the same cells",
        )


def check_duplicate_images(
    inspected: Sequence[InspectedRow], findings: VoxelFindings, names: Mapping[Path, object]
) -> Iterator[Problem]:
    """Yield rows whose image holds the same values as another file, scene or time point.

    Copies of a file are detected by their bytes; these images were converted, compressed again or saved under another
    type.
    """
    signals: dict[str, InspectedRow] = {}
    targets: dict[tuple[str, str], InspectedRow] = {}
    for one in inspected:
        row, signal = one.row, one.images.get("signal")
        statistics = None if signal is None else findings.statistics.get(image_key(signal, row.region))
        if signal is None or statistics is None:
            continue
        other = signals.setdefault(statistics.digest, one)
        if other is not one and _source(other, "signal", names) != _source(one, "signal", names):
            different_splits = row.split and other.row.split and row.split != other.row.split
            together = (row.split and row.split == other.row.split) or (
                row.group and row.group == other.row.group
            )
            if different_splits:
                message = f"the same image as that of line {other.row.number}, which is in another split"
                yield Problem(row.number, "signal", f"{message} ({other.row.split})", kind="duplicate")
            elif not together:
                message = (
                    f"the same image as that of line {other.row.number}, in another file; give both one group"
                )
                yield Problem(row.number, "signal", message, severity="warning", kind="duplicate")
        target = one.images.get("target")
        of_target = None if target is None else findings.statistics.get(image_key(target, row.region))
        if of_target is None:
            continue
        first = targets.setdefault((row.structure, of_target.digest), one)
        of_first = findings.statistics[image_key(first.images["signal"], first.row.region)]
        if of_first.digest != statistics.digest:
            message = f"the same image as the target of line {first.row.number}, whose signal is another"
            yield Problem(row.number, "target", message, severity="warning", kind="duplicate")


def _source(one: InspectedRow, column: str, names: Mapping[Path, object]) -> object:
    image = one.images[column]
    return names[image.path], image.channel, image.header.scene, image.t
