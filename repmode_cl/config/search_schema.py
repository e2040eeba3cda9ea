"""Keys of a search: what is tried for each strategy, how often, with which seeds, and how the best is chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from repmode_cl.config.field_types import FrozenModel, Positive, Seed
from repmode_cl.config.strategy_schema import RATE_GROUPS, StrategyConfig
from repmode_cl.errors import did_you_mean

__all__ = ["SearchConfig", "SearchRange", "Value", "check_range", "check_search", "with_values"]

#: A value that a search tries.
Value = bool | int | float | str

#: Keys of a strategy that no search may vary, and why.
_FIXED = {
    "name": "it says which strategy it is",
    "label": "it says how tables name it",
    "steps": "strategies are compared at one budget",
    "networks": "it decides which structures have figures",
    "options": "name one argument of the constructor, such as options.alpha",
}

#: Keys of which nothing lies beyond the values that a list names.
_CHOICES = ("kernel",)

#: Keys whose values are whole numbers.
_WHOLE = (
    "rank",
    "bottleneck",
    "slots",
    "buffer",
    "buffer_bytes",
    "buffer_bytes_each",
    "replay_batch",
    "distilled",
    "probes",
)

#: What precedes an argument of the constructor of a user's own strategy.
_OPTION = "options."

#: What precedes a group of an addition's parameters that has its own learning rate.
_RATE = "learning_rate."

#: Part of a range, at each end, in which a winner lies at the edge.
EDGE = 0.05


class _Interval(FrozenModel):
    """All numbers between two, as a configuration writes them."""

    low: float
    high: float
    log: bool = False
    points: int | None = Field(default=None, ge=2)


@dataclass(frozen=True)
class SearchRange:
    """Values that a search may give to one key.

    Attributes
    ----------
    values
        The values of a list; empty for an interval.
    low, high
        Ends of an interval, both included.
    log
        Whether an interval counts in factors, and not in differences.
    whole
        Whether an interval holds whole numbers only.
    points
        Number of values of an interval in a grid; None where it has none.
    choice
        Whether the values of a list have no order, so that none of them lies at an edge.
    """

    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    points: int | None = None
    choice: bool = False

    @property
    def grid(self) -> tuple[Value, ...]:
        """Values of a grid, in order: those of the list, or `points` of the interval, evenly apart."""
        if self.values or self.points is None:
            return self.values
        return tuple(self._at(number / (self.points - 1)) for number in range(self.points))

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that show whether a strategy takes them: all of a list, or both ends of an interval."""
        return self.values or (self._at(0.0), self._at(1.0))

    def at_edge(self, value: Value) -> bool:
        """Return whether values beyond the range might be better than `value`.

        So it is for the smallest and the largest number of a list, and in the outermost twentieth of an interval at
        each end (of its logarithm, where it counts in factors).
        """
        if isinstance(value, (bool, str)):
            return False
        if self.values:
            numbers = [one for one in self.values if not isinstance(one, (bool, str))]
            return not self.choice and len(numbers) > 1 and value in (min(numbers), max(numbers))
        return not EDGE <= self._place(value) <= 1 - EDGE

    def _at(self, share: float) -> Value:
        """Return the number at `share` of the interval, to six digits; its ends exactly."""
        if share in (0.0, 1.0):
            number = self.high if share else self.low
        elif self.log:
            number = float(f"{self.low * (self.high / self.low) ** share:.6g}")
        else:
            number = float(f"{self.low + (self.high - self.low) * share:.6g}")
        return round(number) if self.whole else number

    def _place(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


class SearchConfig(FrozenModel):
    """A search for values of the strategies' keys; each strategy gets the same number of trials.

    It learns and measures on no image that the study tests on, and with none of its seeds.
    """

    sampler: Literal["grid", "tpe"] = "grid"
    """grid: every combination; tpe: a tree-structured Parzen estimator proposes from what the trials before gave."""
    trials: Annotated[int, Field(ge=2)] | None = None
    """Of each strategy; null takes the number of combinations of a grid. tpe needs it."""
    batch: Positive = 4
    """tpe: trials of a strategy that are proposed at once, from all of the batches before; the first are random."""
    sampler_seed: Seed = 0
    """tpe: seed of its proposals."""
    seeds: tuple[Seed, ...] | None = None
    """Seeds of each trial; null takes one, the number after the largest of `seeds`."""
    keys: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    """Title of each strategy, and for each of its keys that are searched a list of values, or low, high, log and
    points; left out, each strategy is searched over its strength or its learning rate."""
    rule: Literal["end", "after_learning", "end_by_group"] = "end"
    """What a trial is worth: the mean R2 of all structures in the end; of those after the base, each just after it was
    learned; or the mean of two means in the end, of the base's structures and of the others."""
    study: str | tuple[str, ...] | None = None
    """Configurations, by file or name, that take the chosen values; null: this one."""

    @property
    def studies(self) -> tuple[str, ...]:
        """Value of `study` as a list."""
        return (self.study,) if isinstance(self.study, str) else self.study or ()

    def ranges(self, title: str) -> dict[str, SearchRange]:
        """Return the range of each key of the strategy `title`; empty where `keys` does not name it."""
        return {key: _range(key, value) for key, value in self.keys.get(title, {}).items()}

    @field_validator("keys")
    @classmethod
    def _keys(cls, keys: dict[str, dict[str, JsonValue]]) -> dict[str, dict[str, JsonValue]]:
        for title, ranges in keys.items():
            if not ranges:
                raise ValueError(
                    f"{title}: names nothing to search, such as learning_rate: [5.0e-3, 1.0e-2, 2.0e-2]"
                )
            for key, value in ranges.items():
                try:
                    _range(key, value)
                except ValueError as error:
                    raise ValueError(f"{title}: {key}: {_first(error)}") from error
        return keys

    @field_validator("seeds", "study")
    @classmethod
    def _filled(cls, value: object) -> object:
        if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
            raise ValueError("at least one is needed, and none twice")
        return value

    @model_validator(mode="after")
    def _sampler_has_what_it_needs(self) -> SearchConfig:
        of_tpe = [key for key in ("batch", "sampler_seed") if key in self.model_fields_set]
        if self.sampler == "grid" and of_tpe:
            raise ValueError(f"{of_tpe[0]} is of the sampler tpe, and sampler is grid: leave it out")
        if self.sampler == "tpe" and self.trials is None:
            raise ValueError("sampler tpe needs trials: the number that each strategy gets, such as 20")
        for title in self.keys:
            for key, one in self.ranges(title).items():
                if self.sampler == "grid" and not one.grid:
                    raise ValueError(
                        f"keys: {title}: {key}: an interval in a grid needs points: the number of its values, such "
                        "as points: 4 (or make sampler tpe)"
                    )
                if self.sampler == "tpe" and one.points is not None:
                    raise ValueError(
                        f"keys: {title}: {key}: points is of the sampler grid, and sampler is tpe: leave it out"
                    )
        return self


def check_search(search: SearchConfig, strategies: Sequence[StrategyConfig], seeds: Sequence[int]) -> None:
    """Refuse a search that does not fit the strategies and seeds of its configuration.

    Raises
    ------
    ValueError
        If it names an unknown strategy or leaves one out, a key that a strategy lacks or a value that the key cannot
        have; if strategies would get different numbers of trials; or if it has seeds of the study.
    """
    if search.study is not None and search.seeds is not None:
        raise ValueError(
            "search.seeds: with search.study all of this configuration is the search's, also `seeds`"
        )
    if shared := [seed for seed in search.seeds or () if seed in seeds]:
        raise ValueError(
            f"search.seeds: {', '.join(map(str, shared))} also in `seeds`: what is chosen with a seed must be measured "
            "with others"
        )
    titles = [one.title for one in strategies]
    for title in search.keys:
        if title not in titles:
            raise ValueError(
                f"search.keys: no strategy is called {title!r}{did_you_mean(title, titles)}: there are "
                f"{', '.join(titles)}"
            )
    missing = [title for title in titles if title not in search.keys]
    if search.keys and missing:
        raise ValueError(
            f"search.keys: nothing is searched for {', '.join(missing)}, and the others would be chosen from several "
            "trials: name a key of each strategy, or leave search.keys out for those that each has by default"
        )
    for strategy in strategies:
        ranges = search.ranges(strategy.title)
        for key, one in ranges.items():
            check_range(strategy, key, one)
        if search.keys:
            _check_count(search, strategy.title, strategies[0].title)


def _check_count(search: SearchConfig, title: str, first: str) -> None:
    """Refuse a grid that gives a strategy another number of trials, and lists that run out before its trials do."""

    def combinations(of: str) -> int | None:
        ranges = search.ranges(of).values()
        return math.prod(len(one.grid) for one in ranges) if all(one.grid for one in ranges) else None

    count = combinations(title)
    if (
        count is not None
        and search.sampler == "grid"
        and count != (wanted := search.trials or combinations(first))
    ):
        whose = f"search.trials is {wanted}" if search.trials else f"{first} has {wanted}"
        raise ValueError(
            f"search.keys: {title} has {count} combinations and {whose}: every strategy gets the same number of trials"
        )
    if count is not None and search.trials is not None and count < search.trials:
        raise ValueError(
            f"search.keys: {title} has {count} combinations and search.trials is {search.trials}: some would be tried "
            "twice; name more values, or low and high"
        )


def check_range(strategy: StrategyConfig, key: str, one: SearchRange) -> None:
    """Refuse a key that `strategy` lacks, and values that it cannot have.

    Raises
    ------
    ValueError
        Naming the strategy, the key and what is allowed.
    """
    where = f"search.keys: {strategy.title}"
    if key in _FIXED:
        raise ValueError(f"{where}: {key} cannot be searched: {_FIXED[key]}")
    known = [name for name in StrategyConfig.model_fields if name not in _FIXED]
    if key not in known and not key.startswith((_OPTION, _RATE)):
        raise ValueError(
            f"{where}: unknown key {key!r}{did_you_mean(key, known)}: there are {', '.join(known)}"
        )
    for value in one.ends:
        with_values(strategy, {key: value})


def with_values(
    strategy: StrategyConfig, values: Mapping[str, Value], label: str | None = None
) -> StrategyConfig:
    """Return a strategy with other values of some keys.

    Parameters
    ----------
    strategy
        What all other keys are taken from.
    values
        By key; ``options.alpha`` is an argument of a user's own strategy, ``learning_rate.gate`` the rate of a group.
    label
        Its label; None keeps what there is.

    Raises
    ------
    ValueError
        If the strategy has no such key, or the key not such a value.
    """
    data = strategy.model_dump(mode="json", exclude_unset=True)
    for key, value in values.items():
        if key.startswith(_OPTION):
            data["options"] = {**data.get("options", {}), key.removeprefix(_OPTION): value}
        elif not key.startswith(_RATE):
            data[key] = value
    # After the keys that decide which groups there are, and the rate of those that are not varied.
    if rates := {key.removeprefix(_RATE): value for key, value in values.items() if key.startswith(_RATE)}:
        data["learning_rate"] = _rates_by_group(strategy, data) | rates
    if label is not None:
        data["label"] = label
    try:
        return StrategyConfig.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        listed = ", ".join(f"{key} {value}" for key, value in values.items())
        raise ValueError(f"search.keys: {strategy.title} with {listed}: {_first(error)}") from error


def _rates_by_group(strategy: StrategyConfig, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rates of a strategy's groups; one number is that of each group that it trains."""
    rate = data.get("learning_rate")
    if rate is None or isinstance(rate, Mapping):
        return dict(rate or {})
    present = strategy.model_copy(
        update={key: data[key] for key in RATE_GROUPS if key in data and key in StrategyConfig.model_fields}
    )
    return dict.fromkeys(present.rate_groups, rate)


def _range(key: str, value: JsonValue) -> SearchRange:
    if isinstance(value, list):
        return _list(key, value)
    if isinstance(value, dict):
        return _interval(key, value)
    raise ValueError(
        f"found {json.dumps(value)}: a list of values is needed, such as [a, b, c], or low and high"
    )


def _interval(key: str, value: Mapping[str, JsonValue]) -> SearchRange:
    interval = _Interval.model_validate_json(json.dumps(value))
    if not interval.low < interval.high:
        raise ValueError(f"low is {interval.low:g} and high {interval.high:g}: there is nothing between them")
    if interval.log and interval.low <= 0:
        raise ValueError(f"log counts in factors, and low is {interval.low:g}: it must be more than 0")
    # Other keys may have an end that is written as a whole number (low: 1), and numbers of any kind.
    whole = all(isinstance(value[end], int) for end in ("low", "high")) and (
        key in _WHOLE or key.startswith(_OPTION)
    )
    found = SearchRange(
        low=interval.low,
        high=interval.high,
        log=interval.log,
        whole=whole,
        points=interval.points,
    )
    if len(set(found.grid)) < len(found.grid):
        raise ValueError(f"{interval.points} points of whole numbers are more than there are: make it fewer")
    return found


def _list(key: str, values: Sequence[JsonValue]) -> SearchRange:
    if not values:
        raise ValueError("the list is empty: name the values to try, such as [a, b, c]")
    plain = [value for value in values if isinstance(value, (bool, int, float, str))]
    if len(plain) < len(values):
        other = next(value for value in values if not isinstance(value, (bool, int, float, str)))
        raise ValueError(f"found {json.dumps(other)} in the list: numbers, text, true and false can be tried")
    if len({(type(value) is bool, value) for value in plain}) < len(plain):
        raise ValueError("a value is named twice")
    return SearchRange(values=tuple(plain), choice=key in _CHOICES)


def _first(error: ValueError) -> str:
    """Return the first problem of an error of pydantic, or the message of any other."""
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{place} is missing"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {place!r}: there are {', '.join(_Interval.model_fields)}"
    text = (
        str(problem.get("ctx", {}).get("error", ""))
        or f"found {json.dumps(problem['input'])}: {problem['msg']}"
    )
    return f"{place}: {text}" if place else text
