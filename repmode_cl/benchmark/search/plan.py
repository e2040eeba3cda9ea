"""Plan of a search: what each strategy tries, with which images and seeds, and which studies take what is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, product
from math import prod
from pathlib import Path
from typing import Any

from repmode_cl.config import Config, DataConfig, SearchConfig, StrategyConfig, load_config
from repmode_cl.config.search_schema import SearchRange, Value, check_range, with_values
from repmode_cl.errors import ConfigError
from repmode_cl.strategies.registry import strategy_class

__all__ = ["SearchPlan", "Values", "plan_search", "trial_title"]

#: Values of the keys that one trial tries.
Values = dict[str, Value]

#: Number of values of a grid over the key that a strategy has by default.
_DEFAULT_POINTS = 4

#: Settings by which images are found and split.
_IMAGES = ("manifest", "simulate", "split_seed", "test_fraction", "val_fraction")


@dataclass(frozen=True)
class SearchPlan:
    """A search that was checked.

    Attributes
    ----------
    config
        The configuration, with its search.
    search
        Its search.
    ranges
        Title of a strategy -> key -> what it may be.
    trials
        Trials of each strategy.
    seeds
        Seeds of each trial.
    data
        Images that trials learn from and are measured on.
    studies
        File name -> the study that takes the chosen values.
    """

    config: Config
    search: SearchConfig
    ranges: Mapping[str, Mapping[str, SearchRange]]
    trials: int
    seeds: tuple[int, ...]
    data: DataConfig
    studies: Mapping[str, Config]

    @property
    def folder(self) -> Path:
        """Folder of the search, and of the run of its trials."""
        return Path(self.config.output) / f"{self.config.name}-search"

    @property
    def batch(self) -> int:
        """Trials of a strategy that are known before any of them is measured."""
        return self.search.batch if self.search.sampler == "tpe" else self.trials

    def combinations(self, title: str) -> list[Values]:
        """Return all combinations of a strategy's grid; the last key changes fastest."""
        ranges = self.ranges[title]
        return [
            dict(zip(ranges, values, strict=True))
            for values in product(*(one.grid for one in ranges.values()))
        ]

    def examples(self, title: str) -> list[Values]:
        """Return as many combinations as there will be trials, for an estimate of what they cost."""
        if self.search.sampler == "grid":
            return self.combinations(title)
        ends = {key: one.ends for key, one in self.ranges[title].items()}
        return [
            {key: values[number % len(values)] for key, values in ends.items()}
            for number in range(self.trials)
        ]

    def run(self, trials: Mapping[str, Sequence[Values]]) -> Config:
        """Return the configuration of a run of the trials, in which each is a strategy.

        Parameters
        ----------
        trials
            Title of a strategy -> values of its trials, by number.
        """
        strategies = [
            with_values(strategy, values, trial_title(strategy.title, number))
            for strategy in self.config.strategies
            for number, values in enumerate(trials[strategy.title])
        ]
        return _changed(
            self.config,
            name=self.folder.name,
            seeds=self.seeds,
            data=self.data,
            strategies=tuple(strategies),
            comparisons=(),  # of the study, whose strategies the trials are not
            search=None,
        )


def trial_title(title: str, number: int) -> str:
    """Return the title of a trial in the search's run."""
    return f"{title[:59]}-{number:03d}"


def plan_search(config: Config) -> SearchPlan:
    """Check a search, and plan it.

    Raises
    ------
    ConfigError
        If the search does not fit its strategies, or shares images or seeds with a study.
    """
    if config.search is None:
        raise ConfigError(f"{config.name}: the configuration has no group 'search'")
    search = config.search
    points = None if search.sampler == "tpe" else search.trials or _DEFAULT_POINTS
    try:
        ranges = {
            one.title: search.ranges(one.title) or _default_range(config, one, points)
            for one in config.strategies
        }
        for strategy in config.strategies:
            for key, one in ranges[strategy.title].items():
                check_range(strategy, key, one)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    others = {name: load_config(name) for name in search.studies}
    # Of all strategies as many: the configuration was checked for that.
    trials = search.trials or min(prod(len(one.grid) for one in own.values()) for own in ranges.values())
    if trials < 2:
        raise ConfigError(
            "search.keys: every strategy has one combination, and nothing to choose from: name more values"
        )
    plan = SearchPlan(
        config=config,
        search=search,
        ranges=ranges,
        trials=trials,
        seeds=_seeds(config, others),
        data=_data(config, others),
        studies={f"study-{one.name}.yaml": one for one in others.values()} or {"study.yaml": config},
    )
    if len(plan.studies) < len(others):
        raise ConfigError("search.study: two of the studies have the same name: give each its own")
    _check_titles(plan)
    return plan


def _check_titles(plan: SearchPlan) -> None:
    """Refuse strategies whose trials would have the same title or folder; the run would refuse them later."""
    try:
        plan.run({title: plan.examples(title) for title in plan.ranges})
    except ValueError as error:
        raise ConfigError(
            f"search: the trials' titles are those of strategies, with a number: {error}"
        ) from error


def _default_range(config: Config, strategy: StrategyConfig, points: int | None) -> dict[str, SearchRange]:
    """Return the range of the key that decides most: strength where a strategy has one, else its learning rate."""
    default = None if strategy.is_custom else strategy_class(strategy).default_strength_of(strategy)
    if default is not None:
        middle = strategy.strength or default
        return {"strength": SearchRange(low=middle / 10, high=middle * 100, log=True, points=points)}
    rate = strategy.learning_rate or config.training.learning_rate
    if isinstance(rate, Mapping):
        raise ConfigError(
            f"search: {strategy.title} has a rate for each group, and no single one that could be searched: name what "
            f"is searched in search.keys, such as {{learning_rate.gate: [2.0e-2, 4.0e-2]}}"
        )
    return {"learning_rate": SearchRange(low=rate / 2, high=rate * 4, log=True, points=points)}


def _seeds(config: Config, others: Mapping[str, Config]) -> tuple[int, ...]:
    """Return the search's seeds, of which no study has any."""
    if not others:
        assert config.search is not None
        free = next(seed for seed in count(max(config.seeds) + 1) if seed not in config.seeds)
        return config.search.seeds or (free,)
    for name, study in others.items():
        if shared := [seed for seed in config.seeds if seed in study.seeds]:
            raise ConfigError(
                f"seeds: {', '.join(map(str, shared))} also in the seeds of the study {name}: what is chosen with a "
                "seed must be measured with others"
            )
    return config.seeds


def _data(config: Config, others: Mapping[str, Config]) -> DataConfig:
    """Return the images of the search: other ones than a study simulates, or none that it tests on."""
    studies = others or {config.name: config}
    same = [name for name, study in studies.items() if _same_images(config.data, study.data)]
    if not same:
        for name, study in studies.items():
            _check_disjoint(config.data, name, study.data)
        return config.data
    if len(studies) > 1:
        raise ConfigError(
            f"search.study: {', '.join(same)} has the images of this search, and its own split of them: name it as "
            "the only study, or give the search other images"
        )
    [study] = studies.values()
    # In the study's cache, where its split is recorded: it is kept when images are added.
    cache = study.data.cache or str(Path(study.output) / study.name / "cache")
    return config.data.model_copy(update={"without_test": True, "cache": cache})


def _same_images(one: DataConfig, other: DataConfig) -> bool:
    return all(getattr(one, key) == getattr(other, key) for key in _IMAGES)


def _check_disjoint(data: DataConfig, name: str, study: DataConfig) -> None:
    if data.manifest is None and study.manifest is None and data.simulate.seed != study.simulate.seed:
        return
    raise ConfigError(
        f"search.study: {name} has other settings of images ({', '.join(f'data.{key}' for key in _IMAGES)}), but "
        "perhaps the same images, and the search must not see those that it tests on: make all of them equal, so that "
        "the search leaves out what the study tests on, or simulate both with different data.simulate.seed"
    )


def _changed(config: Config, **values: Any) -> Config:
    """Return a configuration with other values, validated."""
    return Config(**{**{key: getattr(config, key) for key in Config.model_fields}, **values})
