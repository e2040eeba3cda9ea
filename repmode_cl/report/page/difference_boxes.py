"""Predictions of ours and of the best rival side by side, with boxes where they differ most (the paper's Fig. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repmode_cl.errors import RepmodeError
from repmode_cl.evaluation.performance_matrix import mean_or_nan
from repmode_cl.metrics import image_metrics
from repmode_cl.report.page.chart_data import readable
from repmode_cl.report.page.slices import busiest, grey_levels, png_data_uri
from repmode_cl.report.tables.paper_figures import systems_of_run
from repmode_cl.report.tables.selection import chosen_streams
from repmode_cl.report.tables.structures import structure_table
from repmode_cl.results.predictions import Prediction, contrast, read_prediction
from repmode_cl.results.run_folder import Run
from repmode_cl.utils.number_format import number, r2_text

__all__ = ["Box", "BoxedPanel", "BoxedStructure", "SideBySide", "difference_boxes", "side_by_side"]

#: Structures of the paper's figure, which come first.
_IN_PAPER = ("microtubule", "actin_filament", "dna")

#: Characters that all pictures may take.
_BUDGET = 1_500_000

#: Part of the shorter side of a picture that a box takes.
_PART = 0.25

#: A second box must be around this part of the first one's difference.
_SECOND = 0.5


@dataclass(frozen=True)
class Box:
    """A square in a slice.

    Attributes
    ----------
    name
        Its letter.
    y, x, side
        First row and column, and edge, in pixels.
    ours, rival
        Mean squared error of both within it.
    """

    name: str
    y: int
    x: int
    side: int
    ours: float
    rival: float

    @property
    def text(self) -> str:
        """Which of the two is nearer to the truth in it."""
        nearer = "ours" if self.ours < self.rival else "the rival" if self.rival < self.ours else "neither"
        return f"{self.name}: MSE {number(self.ours, 2)} (ours), {number(self.rival, 2)} (rival): {nearer} is nearer"


@dataclass(frozen=True)
class BoxedPanel:
    """A picture: what stands above it, the line below that, its data URI, and whether it has the boxes."""

    title: str
    note: str
    uri: str
    boxed: bool


@dataclass(frozen=True)
class BoxedStructure:
    """The pictures of one structure.

    Attributes
    ----------
    structure, heading
        Its name, and its readable name.
    height, width
        Pixels of a picture.
    panels
        Transmitted light, truth, the rival, ours.
    boxes
        Where the two predictions differ most.
    caption
        Which slice it is.
    """

    structure: str
    heading: str
    height: int
    width: int
    panels: tuple[BoxedPanel, ...]
    boxes: tuple[Box, ...]
    caption: str


@dataclass(frozen=True)
class SideBySide:
    """The structures of a run, with the titles of the two strategies."""

    ours: str
    rival: str
    structures: tuple[BoxedStructure, ...]


def side_by_side(run: Run, *, budget: int = _BUDGET) -> SideBySide | None:
    """Return the pictures of a run that repeats one of the paper's tables; None of others, and without predictions.

    Of ours and of the others that strategy is shown whose R2, the mean over all structures in the end, is highest.

    Parameters
    ----------
    run
        A run; gets a note where its pictures have no room.
    budget
        Characters that all pictures may take. Structures of the paper's figure come first.
    """
    titles = _best_of_both(run)
    if titles is None:
        return None
    ours, rival = titles
    shown: list[BoxedStructure] = []
    size = dropped = 0
    first = [name for name in _IN_PAPER if name in run.predictions]
    for name in dict.fromkeys([*first, *run.predictions]):
        files = run.predictions[name]
        if ours not in files or rival not in files:
            continue
        try:
            one = _structure(name, read_prediction(files[ours]), read_prediction(files[rival]), titles)
        except RepmodeError:
            continue  # reported where all volumes are read
        if one is None:
            continue
        size += sum(len(panel.uri) for panel in one.panels)
        if size > budget and shown:
            dropped += 1
        else:
            shown.append(one)
    if dropped:
        run.notes.append(
            f"the page has no room for {dropped} structure(s) of {ours} and {rival} side by side; the volumes below "
            "have them"
        )
    return SideBySide(ours, rival, tuple(shown)) if shown else None


def _best_of_both(run: Run) -> tuple[str, str] | None:
    """Return the titles of ours and of the best rival."""
    found = systems_of_run(run.info, chosen_streams(run.info, None))
    if found is None or found.table.reference == "RepMode":
        return None
    values: dict[str, list[float]] = {}
    for row in structure_table(run.results, run.info, "r2"):
        values.setdefault(row["strategy"], []).append(row["value"])
    most = max((len(of) for of in values.values()), default=0)
    means = {title: mean_or_nan(of) for title, of in values.items() if len(of) == most}
    known = {title: mean for title, mean in means.items() if title in found.systems and np.isfinite(mean)}
    ours = {title for title in known if found.systems[title] == "RepMode"}
    rivals = known.keys() - ours
    if not ours or not rivals:
        return None
    return max(ours, key=known.__getitem__), max(rivals, key=known.__getitem__)


def _structure(
    name: str, ours: Prediction, rival: Prediction, titles: tuple[str, str]
) -> BoxedStructure | None:
    """Return the pictures of the slice of most contrast; None where the two predicted other images."""
    target = ours.target
    if rival.target.shape != target.shape:
        return None
    z = busiest(target.std(axis=(1, 2)))
    boxes = difference_boxes(ours.prediction[z], rival.prediction[z], target[z])
    window, light = contrast(target, 0.5, 99.7), contrast(ours.signal, 0.5, 99.5)
    panels = [
        BoxedPanel("transmitted light", "input", png_data_uri(grey_levels(ours.signal[z], *light)), False),
        BoxedPanel("truth", "fluorescence", png_data_uri(grey_levels(target[z], *window)), True),
    ]
    for words, title, one in (("best rival", titles[1], rival), ("ours", titles[0], ours)):
        r2 = image_metrics(one.prediction, one.target)["r2"]
        picture = png_data_uri(grey_levels(one.prediction[z], *window))
        panels.append(BoxedPanel(title, f"{words}, R² {r2_text(r2)}", picture, True))
    return BoxedStructure(
        name,
        readable(name),
        target.shape[1],
        target.shape[2],
        tuple(panels),
        boxes,
        f"xy at z = {z} of {target.shape[0]}; truth and predictions: black {number(window[0], 1)}, white "
        f"{number(window[1], 1)} z-score units. " + "; ".join(box.text for box in boxes) + ".",
    )


def difference_boxes(
    ours: NDArray[np.float32], rival: NDArray[np.float32], truth: NDArray[np.float32]
) -> tuple[Box, ...]:
    """Return squares in which two predictions differ most, whichever of the two is nearer to the truth.

    The first has the largest mean absolute difference of all squares of a quarter of the shorter side; the second that
    of all that do not touch the first, if it is half as large or more.

    Parameters
    ----------
    ours, rival, truth
        (Y, X), of equal shape.

    Returns
    -------
    tuple of Box
        One or two; none of predictions that are equal or hold no numbers.
    """
    difference = np.abs(ours.astype(np.float64) - rival)
    if not np.isfinite(difference).all() or not difference.any():
        return ()
    side = max(1, round(_PART * min(difference.shape)))
    means = _means_of_squares(difference, side)
    boxes: list[Box] = []
    least = 0.0
    for name in "AB":
        y, x = (int(place) for place in np.unravel_index(np.argmax(means), means.shape))
        if means[y, x] < least:
            break
        least = _SECOND * float(means[y, x])
        boxes.append(Box(name, y, x, side, *(_error(one, truth, y, x, side) for one in (ours, rival))))
        means[max(0, y - side) : y + side + 1, max(0, x - side) : x + side + 1] = -1.0
    return tuple(boxes)


def _means_of_squares(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return the mean of each square of an edge, by its first row and column."""
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    corners: Sequence[NDArray[np.float64]] = (
        sums[side:, side:],
        sums[:-side, side:],
        sums[side:, :-side],
        sums[:-side, :-side],
    )
    means: NDArray[np.float64] = (corners[0] - corners[1] - corners[2] + corners[3]) / side**2
    return means


def _error(prediction: NDArray[np.float32], truth: NDArray[np.float32], y: int, x: int, side: int) -> float:
    inside = (slice(y, y + side), slice(x, x + side))
    return float(np.mean((prediction[inside].astype(np.float64) - truth[inside]) ** 2))
