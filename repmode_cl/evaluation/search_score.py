"""Worth of a trial of a search: one number from its R2 on the search's images, and the bytes that it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

from repmode_cl.results.results_table import ResultsTable

__all__ = ["Rule", "RULES", "bytes_of_trial", "score_of_trial"]

Rule = Literal["end", "after_learning", "end_by_group"]

#: Rule -> what a trial is worth by it, for readers.
RULES: Mapping[Rule, str] = {
    "end": "mean R2 of all structures in the end",
    "after_learning": "mean R2 of the structures after the base, each just after it was learned (the last time)",
    "end_by_group": "mean of two means of R2 in the end: of the base's structures, and of the others",
}


def score_of_trial(
    results: ResultsTable,
    title: str,
    experiences: Sequence[Sequence[str]],
    *,
    seed: int,
    stream: str = "",
    rule: Rule = "end",
) -> float | None:
    """Return what a trial is worth with one seed.

    Parameters
    ----------
    results
        Figures of the search's run.
    title
        The trial's title in it.
    experiences
        Structures of each experience of the stream.
    seed, stream
        Which of its runs.
    rule
        One of `RULES`. A structure without figures (of a base that Multi-Net left out) does not count.

    Returns
    -------
    float or None
        None where a figure that counts is not finite (training diverged), or where there is none.
    """
    last = len(experiences) - 1
    base = tuple(experiences[0])
    added = tuple(dict.fromkeys(name for names in experiences[1:] for name in names))
    found = {
        (row.step, row.structure): row.value
        for row in results.select(strategy=title, stream=stream, seed=seed, metric="r2")
    }

    def means(groups: Sequence[Sequence[tuple[int, str]]]) -> list[float]:
        values = [[found[key] for key in group if key in found] for group in groups]
        return [fmean(group) for group in values if group]

    if rule == "after_learning":
        arrived = {name: step for step, names in enumerate(experiences) for name in names}
        # Joint training has figures in the end only: the first at or after the arrival counts.
        of_groups = means(
            [
                [
                    (
                        min(
                            (step for step, of in found if of == name and step >= arrived[name]), default=last
                        ),
                        name,
                    )
                    for name in added or base
                ]
            ]
        )
    elif rule == "end_by_group":
        of_groups = means([[(last, name) for name in base], [(last, name) for name in added]])
    else:
        of_groups = means([[(last, name) for name in (*base, *added)]])
    score = fmean(of_groups) if of_groups else math.nan
    return score if math.isfinite(score) else None


def bytes_of_trial(results: ResultsTable, title: str) -> int:
    """Return the bytes that a trial costs: what its experiences add, and the largest of what it keeps besides.

    The most of all its seeds and streams.
    """
    totals = []
    rows = results.select(strategy=title)
    for stream, seed in dict.fromkeys((row.stream, row.seed) for row in rows):
        own = [row for row in rows if (row.stream, row.seed) == (stream, seed)]
        added = sum(row.value for row in own if row.metric == "added_bytes")
        kept = [
            max((row.value for row in own if row.metric == metric), default=0.0)
            for metric in ("buffer_bytes", "kept_bytes")
        ]
        totals.append(int(added + sum(kept)))
    return max(totals, default=0)
