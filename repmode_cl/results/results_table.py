"""``results.csv``: the one file that every figure of a run is computed from.

It has the long form, one number a line: any program can read it, and it grows while a run goes on. A value is
written so that it reads back as the very same float: a forgetting of exactly 0.0 stays exactly 0.0.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from repmode_cl.errors import RepmodeError
from repmode_cl.utils.atomic_files import write_text

__all__ = ["ResultsTable", "Result", "BASE", "COSTS", "COLUMNS"]

#: Columns of results.csv, in order.
COLUMNS = ("strategy", "stream", "seed", "step", "structure", "metric", "value")

#: Columns of tables from before a run could have several streams; they read as the stream ``""``.
OLD_COLUMNS = ("strategy", "seed", "step", "structure", "metric", "value")

#: In cost rows, the "structure" of a base experience that learned several jointly.
BASE = "base"

#: Metrics of the cost of learning, with their meaning. Processor seconds stay comparable where several runs
#: share a machine; wall-clock seconds do not.
COSTS: Mapping[str, str] = MappingProxyType(
    {
        "train_seconds": "wall-clock seconds of training",
        "cpu_seconds": "processor seconds of the process in training steps",
        "added_parameters": "parameters that the step added",
        "added_bytes": "bytes of those parameters",
        "peak_memory_bytes": "largest memory while training, bytes",
        "steps": "optimiser steps",
        "buffer_bytes": "bytes of what is kept of earlier images",
        "buffer_images": "number of images that a buffer keeps something of",
        "kept_bytes": "bytes of what is kept besides the network and images: importances, anchors, an old network",
        "images": "training images of the experience",
    }
)

#: All but the value: strategy, stream, seed, step, structure, metric.
Key = tuple[str, str, int, int, str, str]


class Result(NamedTuple):
    """One number of a run.

    `step` is the number of the experience after which the model was evaluated (0 is the base). In rows of
    cost, `structure` is the one learned in that step (`BASE` for a joint base). `stream` is the name of the
    stream, empty in a run of one stream.
    """

    strategy: str
    seed: int
    step: int
    structure: str
    metric: str
    value: float
    stream: str = ""

    @property
    def key(self) -> Key:
        """All but the value, in the order of `COLUMNS`: what may stand once in a table."""
        return (self.strategy, self.stream, self.seed, self.step, self.structure, self.metric)


class ResultsTable:
    """The rows of results.csv, in the order in which they were measured.

    Parameters
    ----------
    rows
        Its first rows.
    """

    def __init__(self, rows: Iterable[Result] = ()) -> None:
        self._rows: dict[Key, Result] = {}
        # The same rows by (strategy, stream, seed), and by metric too: a report of hundreds of trials selects one
        # after the other.
        self._by_trial: dict[tuple[str, str, int], list[Result]] = {}
        self._by_metric: dict[tuple[str, str, int, str], list[Result]] = {}
        for row in rows:
            self.append(*row)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._rows.values())

    @property
    def rows(self) -> tuple[Result, ...]:
        """All rows, in order."""
        return tuple(self._rows.values())

    @property
    def strategies(self) -> tuple[str, ...]:
        """Titles of the strategies, in order of appearance."""
        return tuple(dict.fromkeys(row.strategy for row in self))

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams, in order of appearance; ``("",)`` for a run of one stream."""
        return tuple(dict.fromkeys(stream for _, stream, _ in self._by_trial))

    def seeds(self, strategy: str, stream: str = "") -> tuple[int, ...]:
        """Return the seeds of `strategy` in `stream`, in order of appearance."""
        return tuple(seed for title, name, seed in self._by_trial if (title, name) == (strategy, stream))

    def append(
        self,
        strategy: str,
        seed: int,
        step: int,
        structure: str,
        metric: str,
        value: float,
        stream: str = "",
    ) -> None:
        """Add one number.

        Raises
        ------
        ValueError
            If that number is there already: a run measures each once (`drop` makes room for a repetition).
        """
        # int() and float() also turn NumPy's scalars, whose repr is not a number, into Python's.
        row = Result(strategy, int(seed), int(step), structure, metric, float(value), stream)
        if row.key in self._rows:
            raise ValueError(f"results hold {row.key} already, with the value {self._rows[row.key].value!r}")
        self._put(row)

    def _put(self, row: Result) -> None:
        self._rows[row.key] = row
        trial = (row.strategy, row.stream, row.seed)
        self._by_trial.setdefault(trial, []).append(row)
        self._by_metric.setdefault((*trial, row.metric), []).append(row)

    def drop(self, strategy: str, seed: int, stream: str = "", *, from_step: int = 0) -> None:
        """Remove the rows of one trial at `from_step` and later, to measure them again."""
        remaining = [
            row
            for row in self
            if (row.strategy, row.stream, row.seed) != (strategy, stream, seed) or row.step < from_step
        ]
        self._rows, self._by_trial, self._by_metric = {}, {}, {}
        for row in remaining:
            self._put(row)

    def merge(self, other: ResultsTable) -> None:
        """Add the rows of another table; those that stand in both, with the same value, stay once.

        Raises
        ------
        RepmodeError
            If a number is in both with different values; nothing is added then.
        """
        for row in other:
            # As text, because NaN (a constant prediction's correlation) is not equal to itself.
            if row.key in self._rows and repr(self._rows[row.key].value) != repr(row.value):
                number = ", ".join(
                    f"{column} {value!r}"
                    for column, value in zip(COLUMNS, row.key, strict=False)
                    if value != ""
                )
                raise RepmodeError(
                    f"two tables hold different values of {number}: {self._rows[row.key].value!r} and {row.value!r}; "
                    "merge runs whose strategies, streams or seeds differ, or leave one of the two out"
                )
        for row in other:
            if row.key not in self._rows:
                self._put(row)

    def select(
        self,
        *,
        strategy: str | None = None,
        stream: str | None = None,
        seed: int | None = None,
        step: int | None = None,
        structure: str | None = None,
        metric: str | None = None,
    ) -> list[Result]:
        """Return the rows that agree with every argument given."""
        rows: Iterable[Result] = self
        values = {"step": step, "structure": structure, "metric": metric}
        if strategy is not None and stream is not None and seed is not None:
            trial = (strategy, stream, seed)
            rows = (
                self._by_trial.get(trial, ()) if metric is None else self._by_metric.get((*trial, metric), ())
            )
            del values["metric"]
        else:
            values |= {"strategy": strategy, "stream": stream, "seed": seed}
        filters = [(COLUMNS.index(column), value) for column, value in values.items() if value is not None]
        if not filters:
            return [*rows]
        return [row for row in rows if all(row.key[column] == value for column, value in filters)]

    def write(self, path: str | Path) -> None:
        """Write all rows as CSV, whole or not at all."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self:
            writer.writerow([*row.key, repr(row.value)])
        write_text(path, text.getvalue())

    @classmethod
    def read(cls, path: str | Path) -> ResultsTable:
        """Read a table that `write` wrote, or one without the column ``stream``.

        Raises
        ------
        RepmodeError
            If the file is missing or is no such table; the message names the line.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise RepmodeError(f"{path}: there are no results; `repmode-cl bench` writes them") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RepmodeError(f"{path}: cannot be read as UTF-8 text: {error}") from error
        reader = csv.reader(io.StringIO(text))
        header = next(reader, [])
        if tuple(header) not in (COLUMNS, OLD_COLUMNS):
            raise RepmodeError(
                f"{path}: the first line is {','.join(header)!r}, expected {','.join(COLUMNS)!r}"
            )
        table = cls()
        for fields in reader:
            if not fields:
                continue
            where = f"{os.fspath(path)}, line {reader.line_num}"
            if len(fields) != len(header):
                raise RepmodeError(f"{where}: {len(fields)} fields, expected {len(header)}")
            strategy, stream, seed, step, structure, metric, value = (
                fields if len(header) == len(COLUMNS) else (fields[0], "", *fields[1:])
            )
            try:
                row = Result(strategy, int(seed), int(step), structure, metric, float(value), stream)
            except ValueError as error:
                raise RepmodeError(
                    f"{where}: seed and step must be whole numbers, value a number: {error}"
                ) from error
            if row.key in table._rows:
                raise RepmodeError(f"{where}: stands twice in the file: {row.key}")
            table._put(row)
        return table
