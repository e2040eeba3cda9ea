"""Verdict of a structure from its held-out figures: learned nothing, weak, or useful.

The rule, and why its limits are what they are, is in ``docs/verdicts.md``. Figures are read from what a model records
about a structure, which for an imported one is what its sender says: whatever is no sensible number counts as missing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

__all__ = [
    "HeldOutFigures",
    "Verdict",
    "VerdictLevel",
    "held_out_evidence",
    "judge",
    "structure_verdict",
    "validation_rise",
    "EVIDENCE",
    "FLOOR",
    "FLOOR_WITHOUT_INTERVAL",
    "RISE",
    "USEFUL",
]

#: A structure is useful if the lower end of the interval of its R2 is at least this.
USEFUL = 0.25
#: Below this R2 nothing was learned, however certain the figure is: one per cent of the variance.
FLOOR = 0.01
#: The same where there is no interval, which would say whether an R2 is above 0.
FLOOR_WITHOUT_INTERVAL = 0.05
#: The learning curve still rises if the best validation R2 gained at least this in the second half of the steps.
RISE = 0.02

#: Key of a provenance: structure -> what its verdict needs besides R2, which is what `held_out_evidence` returns, and
#: ``r2_rise``, the value of `validation_rise`.
EVIDENCE = "evidence"

_CONFIDENCE = 0.95
_MOST_IMAGES = 10**9
_LARGEST = 1e100  # of what is read: sums and products of such numbers stay finite
_SPLITS = ("test", "val")


class VerdictLevel(StrEnum):
    """What held-out figures say of a structure."""

    UNKNOWN = "unknown"
    NOTHING = "learned nothing"
    WEAK = "weak"
    USEFUL = "useful"


@dataclass(frozen=True)
class HeldOutFigures:
    """Figures of one structure that its verdict is made of; None for each that is not known.

    Attributes
    ----------
    r2
        Mean R2 over the held-out images.
    images
        Number of held-out images.
    groups
        Number of independent groups among them: images of one group show parts of the same field, say.
    standard_error
        Standard error of `r2` over the groups.
    split
        ``test``, or ``val`` where no image tests; ``new`` for images that came later; empty if unknown.
    rise
        Gain of the best validation R2 in the second half of the training steps.
    steps
        Training steps.
    pearson
        Mean correlation with the truth over the held-out images.
    """

    r2: float | None = None
    images: int | None = None
    groups: int | None = None
    standard_error: float | None = None
    split: str = ""
    rise: float | None = None
    steps: int | None = None
    pearson: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Verdict of a structure, with the figures that it rests on.

    Attributes
    ----------
    level
        ``unknown``, ``learned nothing``, ``weak`` or ``useful``.
    reason
        What keeps it from a better level; empty for ``useful``.
    figures
        What it was made of.
    low, high
        Ends of the 95% interval of R2 over groups of images; None where there is none.
    """

    level: VerdictLevel
    reason: str
    figures: HeldOutFigures
    low: float | None = None
    high: float | None = None

    @property
    def useful(self) -> bool:
        """Whether the level is ``useful``."""
        return self.level is VerdictLevel.USEFUL

    @property
    def rises(self) -> bool | None:
        """Whether the learning curve still rose when the training ended; None where that is not known."""
        return None if self.figures.rise is None else self.figures.rise >= RISE

    @property
    def text(self) -> str:
        """The verdict in words: ``useful: R2 0.612 (95% interval 0.550 to 0.674) on 8 test images``."""
        figures = self.figures
        if figures.r2 is None:
            return f"{self.level}: {self.reason}"
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" (95% interval {_number_text(self.low)} to {_number_text(self.high)})"
        reason = f"; {self.reason}" if self.reason else ""
        r = figures.pearson or 0.0
        # A prediction that is scaled and shifted to fit the truth has the square of its correlation as R2.
        if self.level is VerdictLevel.NOTHING and r > 0 and r * r >= FLOOR_WITHOUT_INTERVAL:
            reason += (
                f"; yet at the right brightness R2 would be about {_number_text(r * r)} (Pearson {_number_text(r)}): "
                "look at the pictures"
            )
        return f"{self.level}: R2 {_number_text(figures.r2)}{interval} on {_images_text(figures)}{reason}"

    @property
    def curve_text(self) -> str:
        """What the learning curve says about more training steps."""
        figures = self.figures
        if figures.rise is None:
            return "whether more steps would help is not known: too few validations were recorded"
        half = "the second half of its steps"
        if figures.steps is not None:
            half = f"the second half of its {figures.steps:,} steps"
        # From far below 0 any number can be gained, and it says no more.
        gain = _number_text(figures.rise) if figures.rise <= 1 else "more than 1"
        gained = f"validation R2 gained {gain} in {half}"
        return f"the learning curve still rises: {gained}" if self.rises else f"{gained}: it is level"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON: level, reason, text, figures, interval, and whether the curve rises."""
        return {
            "level": str(self.level),
            "reason": self.reason,
            "text": self.text,
            **asdict(self.figures),
            "low": self.low,
            "high": self.high,
            "rises": self.rises,
        }


def judge(figures: HeldOutFigures) -> Verdict:
    """Return the verdict of a structure with these figures.

    With an interval (two groups of images or more), *learned nothing* is an R2 below `FLOOR`, or one below `USEFUL`
    whose interval reaches 0; *useful* is one whose interval is at `USEFUL` or above. Without an interval nothing is
    *useful*, and below `FLOOR_WITHOUT_INTERVAL` nothing was learned. Everything else is *weak*.
    """
    r2 = figures.r2
    if r2 is None:
        return Verdict(VerdictLevel.UNKNOWN, "no held-out figures", figures)
    if figures.standard_error is None or figures.groups is None or figures.groups < 2:
        missing = _missing_interval(figures)
        if r2 < FLOOR_WITHOUT_INTERVAL:
            return Verdict(
                VerdictLevel.NOTHING,
                f"below {FLOOR_WITHOUT_INTERVAL:g}, without an interval: {missing}",
                figures,
            )
        return Verdict(VerdictLevel.WEAK, f"no interval, so it is not called useful: {missing}", figures)
    half = _t_quantile(figures.groups - 1) * figures.standard_error
    low, high = r2 - half, r2 + half
    if r2 < FLOOR:
        level, reason = VerdictLevel.NOTHING, f"below {FLOOR:g}, where 0 is predicting the mean"
    elif low <= 0 and r2 < USEFUL:
        level, reason = VerdictLevel.NOTHING, "not above 0 beyond the noise between images"
    elif low >= USEFUL:
        level, reason = VerdictLevel.USEFUL, ""
    elif r2 >= USEFUL:
        level, reason = (
            VerdictLevel.WEAK,
            f"the interval reaches below {USEFUL:g}: more held-out images may show more",
        )
    else:
        level, reason = VerdictLevel.WEAK, f"below {USEFUL:g}"
    return Verdict(level, reason, figures, low, high)


def structure_verdict(
    structure: str,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    recorded_images: bool = False,
) -> Verdict:
    """Return the verdict of a structure from what a model records about it.

    Parameters
    ----------
    structure
        Its name.
    metrics
        Its figures on held-out images.
    provenance
        How it was learned, with `EVIDENCE`, which models of earlier versions lack.
    recorded_images
        Whether the images that `provenance` lists are all of this structure, so that those that were held out can be
        counted where there is no number of them.
    """
    split = provenance.get("held_out")
    r2 = _number(metrics.get("r2"))
    recorded = provenance.get(EVIDENCE)
    own = recorded.get(structure) if isinstance(recorded, Mapping) else None
    evidence: Mapping[str, Any] = own if isinstance(own, Mapping) else {}
    error = _number(evidence.get("r2_standard_error"))
    images = _count(evidence.get("images"))
    if images is None and recorded_images:
        images = _listed_images(provenance.get("splits"), split)
    return judge(
        HeldOutFigures(
            r2=r2 if r2 is not None and r2 <= 1 else None,
            images=images,
            groups=_count(evidence.get("groups")),
            standard_error=error if error is not None and error >= 0 else None,
            split=split if split in _SPLITS else "",
            rise=_number(evidence.get("r2_rise")),
            steps=_count(provenance.get("steps")),
            pearson=_correlation(metrics.get("pearson")),
        )
    )


def held_out_evidence(r2: Sequence[float], groups: Sequence[str]) -> dict[str, float]:
    """Return the numbers that a verdict needs besides the mean R2, as a model records them.

    Parameters
    ----------
    r2
        R2 of each held-out image.
    groups
        Group of each: images of one group are not independent of each other.

    Returns
    -------
    dict
        ``images`` and ``groups``, their numbers, and ``r2_standard_error`` of the mean over images, where there are two
        groups or more and all R2 are finite. Deviations from the mean are summed within each group (the variance of
        cluster samples, Cochran, *Sampling Techniques*, 1977, chapter 9); with one image in each group it is the usual
        standard error.

    Raises
    ------
    ValueError
        If there are not as many groups as images, or no image.
    """
    if len(r2) != len(groups) or not r2:
        raise ValueError(f"found {len(r2)} images with {len(groups)} groups: give one group for each image")
    sums: dict[str, float] = defaultdict(float)
    mean = math.fsum(r2) / len(r2)
    for value, group in zip(r2, groups, strict=True):
        sums[group] += value - mean
    evidence: dict[str, float] = {"images": len(r2), "groups": len(sums)}
    if len(sums) > 1:
        squares = math.fsum(deviation * deviation for deviation in sums.values())
        error = math.sqrt(len(sums) / (len(sums) - 1) * squares) / len(r2)
        if math.isfinite(error):
            evidence["r2_standard_error"] = error
    return evidence


def validation_rise(curve: Iterable[tuple[int, float]], steps: int) -> float | None:
    """Return how much the best validation R2 gained in the second half of a training.

    Parameters
    ----------
    curve
        Validations: (step, R2).
    steps
        Steps of the whole training.

    Returns
    -------
    float or None
        Best R2 of all validations minus the best of those in the first half; 0 if the best is one of these. None where
        one of the halves has no validation with a finite R2.
    """
    finite = [(step, r2) for step, r2 in curve if math.isfinite(r2) and step > 0]
    early = [r2 for step, r2 in finite if 2 * step <= steps]
    late = [r2 for step, r2 in finite if 2 * step > steps]
    return max(0.0, max(late) - max(early)) if early and late else None


def _listed_images(splits: object, split: object) -> int | None:
    """Return the number of images of a split that a provenance lists; None if it lists none."""
    listed = splits.get(split) if isinstance(splits, Mapping) and split in _SPLITS else None
    return _count(len(listed.split())) if isinstance(listed, str) else None


def _missing_interval(figures: HeldOutFigures) -> str:
    """Return why there is no interval."""
    if figures.images == 1:
        return "there is one image"
    if figures.groups == 1:
        return "all images are of one group"
    return "the spread between images is not recorded"


def _images_text(figures: HeldOutFigures) -> str:
    kind = {"test": "test ", "val": "validation ", "new": "new "}.get(figures.split, "held-out ")
    if figures.images is None:
        return f"the {kind}images"
    text = f"{figures.images:,} {kind}image{'s' * (figures.images != 1)}"
    grouped = figures.groups is not None and figures.groups < figures.images
    return f"{text} of {figures.groups} group{'s' * (figures.groups != 1)}" if grouped else text


def _t_quantile(degrees: int) -> float:
    """Return the two-sided 95% quantile of Student's t."""
    from scipy.special import stdtrit  # most commands need no interval, and start sooner without scipy

    return float(stdtrit(degrees, (1 + _CONFIDENCE) / 2))


def _number_text(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def _number(value: object) -> float | None:
    """Return a number of sensible size as a float; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) <= _LARGEST else None  # NaN is not


def _correlation(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and -1 <= number <= 1 else None


def _count(value: object) -> int | None:
    """Return a whole number of at least 1, which JSON may write as a float; None for everything else."""
    number = _number(value)
    return (
        int(number) if number is not None and 1 <= number <= _MOST_IMAGES and number == int(number) else None
    )
