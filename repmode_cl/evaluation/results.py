"""results.csv: the one file that every figure of a run is computed from.

Long form, one number a line, so that it can be read by anything and grows while a run goes on. A value is
written so that it reads back as the very same float: a forgetting of exactly 0.0 stays exactly 0.0.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from repmode_cl.errors import RepmodeError
from repmode_cl.files import write_text

__all__ = ["Result", "ResultsTable", "BASE", "COLUMNS", "COSTS"]

#: Columns of results.csv, in order.
COLUMNS = ("strategy", "seed", "step", "structure", "metric", "value")

#: In cost rows, the "structure" of a base experience that learned several jointly.
BASE = "base"

#: Metrics that say what learning cost (units: s, scalars, bytes, bytes, optimiser steps).
COSTS = ("train_seconds", "added_parameters", "added_bytes", "peak_memory_bytes", "steps")


class Result(NamedTuple):
    """One number of a run.

    `step` is the number of the experience after which the model was evaluated (0 is the base). In rows of
    cost, `structure` is the one learned in that step (`BASE` for a joint base).
    """

    strategy: str
    seed: int
    step: int
    structure: str
    metric: str
    value: float

    @property
    def key(self) -> tuple[str, int, int, str, str]:
        """All but the value: what may stand once in a table."""
        return self[:5]


class ResultsTable:
    """The rows of results.csv, in the order in which they were measured.

    Parameters
    ----------
    rows
        Rows to begin with.
    """

    def __init__(self, rows: Iterable[Result] = ()) -> None:
        self._rows: dict[tuple[str, int, int, str, str], Result] = {}
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

    def seeds(self, strategy: str) -> tuple[int, ...]:
        """Return the seeds that `strategy` has rows of, in order of appearance."""
        return tuple(dict.fromkeys(row.seed for row in self if row.strategy == strategy))

    def append(self, strategy: str, seed: int, step: int, structure: str, metric: str, value: float) -> None:
        """Add one number.

        Raises
        ------
        ValueError
            If that number is there already: a run measures each once (`drop` makes room for a repetition).
        """
        # int() and float() also turn NumPy's scalars, whose repr is not a number, into Python's.
        row = Result(strategy, int(seed), int(step), structure, metric, float(value))
        if row.key in self._rows:
            raise ValueError(f"results hold {row.key} already, with the value {self._rows[row.key].value!r}")
        self._rows[row.key] = row

    def drop(self, strategy: str, seed: int, from_step: int = 0) -> None:
        """Remove what was measured of one strategy and seed at `from_step` and later, to measure it again."""
        self._rows = {
            key: row
            for key, row in self._rows.items()
            if not (row.strategy == strategy and row.seed == seed and row.step >= from_step)
        }

    def select(
        self,
        *,
        strategy: str | None = None,
        seed: int | None = None,
        step: int | None = None,
        structure: str | None = None,
        metric: str | None = None,
    ) -> list[Result]:
        """Return the rows that agree with every argument given."""
        wanted = (strategy, seed, step, structure, metric)
        return [
            row
            for row in self
            if all(want is None or want == have for want, have in zip(wanted, row.key, strict=True))
        ]

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
        """Read a table that `write` wrote.

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
        if tuple(header) != COLUMNS:
            raise RepmodeError(
                f"{path}: the first line is {','.join(header)!r}, expected {','.join(COLUMNS)!r}"
            )
        table = cls()
        for fields in reader:
            if not fields:
                continue
            where = f"{os.fspath(path)}, line {reader.line_num}"
            if len(fields) != len(COLUMNS):
                raise RepmodeError(f"{where}: {len(fields)} fields, expected {len(COLUMNS)}")
            strategy, seed, step, structure, metric, value = fields
            try:
                row = Result(strategy, int(seed), int(step), structure, metric, float(value))
            except ValueError as error:
                raise RepmodeError(
                    f"{where}: seed and step must be whole numbers, value a number: {error}"
                ) from error
            if row.key in table._rows:
                raise RepmodeError(f"{where}: stands twice in the file: {row.key}")
            table._rows[row.key] = row
        return table
