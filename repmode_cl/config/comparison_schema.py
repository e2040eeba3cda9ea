"""Keys of planned comparisons: what a study is to show, written down before its results are seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from repmode_cl.config.field_types import FrozenModel
from repmode_cl.errors import RepmodeError, did_you_mean

__all__ = [
    "MOST_COMPARISONS",
    "PlannedComparison",
    "check_planned",
    "check_planned_streams",
    "planned_digest",
]

#: More claims than these are no plan: correcting for all of them leaves nothing to find.
MOST_COMPARISONS = 10

#: What "not lower" allows where nothing else is said, in R2.
MARGIN = 0.01


class PlannedComparison(FrozenModel):
    """One claim about two strategies, by the R2 of the structures after the base."""

    first: str
    """Title of the strategy that the claim is about."""
    second: str
    """Title of the one it is compared with."""
    claim: Literal["ahead", "not_lower"] = "ahead"
    """What is to hold: better beyond noise, or not lower by more than `margin`."""
    margin: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of `not_lower`, in R2: the 95% interval of the difference must lie above -margin; 0.01 by default."""
    when: Literal["final", "learned"] = "final"
    """Which R2: after the last step, or of each structure just after it was learned."""
    first_stream: str | None = None
    """The first strategy's stream, such as `images-1`; null takes all orders of the run, and is refused with others."""
    second_stream: str | None = None
    """The second strategy's stream; null takes `first_stream`."""

    @model_validator(mode="after")
    def _makes_sense(self) -> PlannedComparison:
        if self.margin is not None and self.claim != "not_lower":
            raise ValueError("margin belongs to claim: not_lower; leave it out")
        if self.second_stream is not None and self.first_stream is None:
            raise ValueError("second_stream needs first_stream too")
        if self.first == self.second and self.streams[0] == self.streams[1]:
            raise ValueError(f"{self.first} is compared with itself: name another strategy or stream")
        return self

    @property
    def allowed(self) -> float:
        """By how much the first may be lower."""
        return MARGIN if self.margin is None else self.margin

    @property
    def streams(self) -> tuple[str | None, str | None]:
        """Streams of the first and of the second; None stands for all orders of the run."""
        return self.first_stream, self.first_stream if self.second_stream is None else self.second_stream

    @property
    def text(self) -> str:
        """The claim in words."""
        first, second = (
            title if stream is None else f"{title} ({stream or 'the only stream'})"
            for title, stream in zip((self.first, self.second), self.streams, strict=True)
        )
        what = f"is ahead of {second}" if self.claim == "ahead" else f"is not lower than {second}"
        allowed = "" if self.claim == "ahead" else f" (by more than {self.allowed:g})"
        return f"{first} {what}{allowed}{', just after learning' if self.when == 'learned' else ''}"


def check_planned(planned: Sequence[PlannedComparison], titles: Collection[str]) -> None:
    """Refuse a plan that a run cannot answer.

    Parameters
    ----------
    planned
        The comparisons.
    titles
        Titles of the run's strategies.

    Raises
    ------
    ValueError
        If there are too many, one is there twice, or one names no strategy of the run.
    """
    if len(planned) > MOST_COMPARISONS:
        raise ValueError(
            f"comparisons: {len(planned)} are planned, and at most {MOST_COMPARISONS} can be: with more, correcting "
            "for all of them leaves little to find"
        )
    for place, one in enumerate(planned):
        if one in planned[:place]:
            raise ValueError(f"comparisons[{place}]: {one.text} is there twice")
        for key, title in (("first", one.first), ("second", one.second)):
            if title not in titles:
                raise ValueError(
                    f"comparisons[{place}].{key}: there is no strategy {title!r}: there are {', '.join(titles)}"
                    f"{did_you_mean(title, titles)}"
                )


def check_planned_streams(planned: Sequence[PlannedComparison], groups: Collection[Collection[str]]) -> None:
    """Refuse a plan that names a stream which the run does not have, or none where it has several kinds of streams.

    Parameters
    ----------
    planned
        The comparisons.
    groups
        The run's streams, those together that are orders of one experiment.

    Raises
    ------
    RepmodeError
        With the streams that there are.
    """
    streams = [name for group in groups for name in group]
    for place, one in enumerate(planned):
        if one.first_stream is None and len(groups) > 1:
            raise RepmodeError(
                f"comparisons[{place}]: {one.text}: in which stream? The run has {', '.join(map(repr, streams))}, "
                "which are not orders of one experiment and have no common mean: name one as first_stream"
            )
        for stream in one.streams:
            if stream is not None and stream not in streams:
                raise RepmodeError(
                    f"comparisons[{place}]: the run has no stream {stream!r}: it has "
                    f"{', '.join(repr(name) for name in streams)}{did_you_mean(stream, streams)}"
                )


def planned_digest(planned: Sequence[PlannedComparison | Mapping[str, Any]]) -> str | None:
    """Return the SHA-256 of the planned comparisons as canonical JSON; None where nothing was planned."""
    if not planned:
        return None
    values = [one.model_dump(mode="json") if isinstance(one, PlannedComparison) else one for one in planned]
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
