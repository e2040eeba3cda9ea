"""Problems of one kind, grouped: twelve warnings that say the same are read as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from repmode_cl.data.manifest import Problem
from repmode_cl.errors import counted

__all__ = ["ProblemGroup", "group_problems", "line_ranges", "lines_text"]

#: Most ranges of lines that are named.
_MOST_RANGES = 12


@dataclass(frozen=True)
class ProblemGroup:
    """Problems of one kind and severity, in the order of their lines."""

    problems: tuple[Problem, ...]

    @property
    def severity(self) -> str:
        """Severity of all of them."""
        return self.problems[0].severity

    def __str__(self) -> str:
        """Return the message of the only problem, or all lines with the message of the first."""
        first = self.problems[0]
        if len(self.problems) == 1:
            return str(first)
        rows = sorted({problem.row for problem in self.problems})
        count = counted(len(self.problems), first.severity)
        return f"{lines_text(rows)}: {first.kind} ({count}); the first is {first}"


def group_problems(problems: Iterable[Problem]) -> list[ProblemGroup]:
    """Return problems grouped by severity and kind, errors first, in the order of the first line of each kind."""
    groups: dict[tuple[bool, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        groups[problem.severity != "error", problem.kind].append(problem)
    return [ProblemGroup(tuple(groups[key])) for key in sorted(groups, key=lambda key: key[0])]


def line_ranges(rows: Iterable[int]) -> list[tuple[int, int]]:
    """Return lines as ranges (first, last) without gaps, in order."""
    ranges: list[tuple[int, int]] = []
    for row in sorted(set(rows)):
        if ranges and row == ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], row
        else:
            ranges.append((row, row))
    return ranges


def lines_text(rows: list[int]) -> str:
    """Write lines, in order, such as ``lines 2-13, 15``."""
    ranges = line_ranges(rows)
    listed = ", ".join(
        str(start) if start == stop else f"{start}-{stop}" for start, stop in ranges[:_MOST_RANGES]
    )
    more = sum(stop - start + 1 for start, stop in ranges[_MOST_RANGES:])
    return f"{'line' if len(rows) == 1 else 'lines'} {listed}" + (f" and {more} more" if more else "")
