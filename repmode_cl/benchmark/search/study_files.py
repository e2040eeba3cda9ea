"""Configurations of studies with the values that a search chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repmode_cl.benchmark.search.plan import SearchPlan
from repmode_cl.config import Config, StrategyConfig
from repmode_cl.config.load import dump_config
from repmode_cl.config.search_schema import with_values
from repmode_cl.errors import ConfigError
from repmode_cl.evaluation.search_score import RULES
from repmode_cl.results.search_table import SEARCH_TABLE, SearchRow
from repmode_cl.utils.atomic_files import write_text

__all__ = ["matching_strategies", "write_studies"]

#: Keys by which a strategy of a study may differ from the one that was searched for it.
_MAY_DIFFER = ("name", "label", "steps", "networks")


def matching_strategies(plan: SearchPlan) -> dict[str, dict[str, str]]:
    """Return which strategy of the search each strategy of a study takes its values from.

    Of another configuration they are those with the same options but for label, steps, networks, and the keys that
    were searched.

    Returns
    -------
    dict
        File name of the study -> title of its strategy -> title of the search's.

    Raises
    ------
    ConfigError
        If two strategies of the search fit one of a study, or none fits any.
    """
    found: dict[str, dict[str, str]] = {}
    for file, study in plan.studies.items():
        found[file] = {}
        for strategy in study.strategies:
            if study is plan.config:
                fitting = [strategy.title]
            else:
                fitting = [one.title for one in plan.config.strategies if _fits(one, strategy, plan)]
            if len(fitting) > 1:
                raise ConfigError(
                    f"search.study: both {' and '.join(fitting)} would choose values for {strategy.title} of "
                    f"{study.name}: leave one of them out of the search"
                )
            if fitting:
                found[file][strategy.title] = fitting[0]
        if not found[file]:
            raise ConfigError(
                f"search.study: no strategy of {study.name} has the options of one that is searched "
                f"({', '.join(plan.ranges)}): there are {', '.join(one.title for one in study.strategies)}"
            )
    return found


def write_studies(plan: SearchPlan, rows: Sequence[SearchRow]) -> list[Path]:
    """Write each study, complete, with the chosen values, and comments that say where they come from.

    Parameters
    ----------
    plan
        The search.
    rows
        All its trials; of each strategy one is chosen.

    Returns
    -------
    list of Path
        What `repmode-cl bench` takes, in the search's folder.
    """
    chosen = {row.strategy: row for row in rows if row.chosen}
    matches = matching_strategies(plan)
    paths = []
    for file, study in plan.studies.items():
        before = study.model_copy(update={"search": None})
        strategies = [
            with_values(one, chosen[matches[file][one.title]].values) if one.title in matches[file] else one
            for one in study.strategies
        ]
        strategies = _distinct(strategies, study.strategies)
        # What was planned is planned of the same strategies, whose titles may name what was chosen.
        titles = {old.title: new.title for old, new in zip(study.strategies, strategies, strict=True)}
        planned = tuple(
            one.model_copy(update={"first": titles[one.first], "second": titles[one.second]})
            for one in study.comparisons
        )
        values: dict[str, Any] = {key: getattr(before, key) for key in Config.model_fields}
        text = dump_config(Config(**{**values, "strategies": tuple(strategies), "comparisons": planned}))
        path = plan.folder / file
        comments = [
            *_header(plan, study.name, path),
            *_choices(study.strategies, strategies, matches[file], chosen),
        ]
        write_text(path, "\n".join(comments) + "\n" + text)
        paths.append(path)
    return paths


def _fits(searched: StrategyConfig, strategy: StrategyConfig, plan: SearchPlan) -> bool:
    keys = plan.ranges[searched.title]

    def rest(one: StrategyConfig) -> dict[str, Any]:
        options = {key: value for key, value in one.options.items() if f"options.{key}" not in keys}
        values = {key: getattr(one, key) for key in StrategyConfig.model_fields}
        return {key: value for key, value in values.items() if key not in (*_MAY_DIFFER, *keys)} | {
            "options": options
        }

    return searched.name == strategy.name and rest(searched) == rest(strategy)


def _distinct(strategies: Sequence[StrategyConfig], before: Sequence[StrategyConfig]) -> list[StrategyConfig]:
    """Label the strategies that the chosen values have made namesakes; before they had titles of their own."""
    folders = [one.folder_key for one in strategies]
    return [
        one if folders.count(one.folder_key) == 1 else with_values(one, {}, f"{one.title[:40]} ({number})")
        for number, one in enumerate(strategies)
    ]


def _header(plan: SearchPlan, name: str, path: Path) -> list[str]:
    """Return the comments at the head of a study: where its values come from."""
    seed = plan.data.simulate.seed
    return [
        f"# {name}, with values chosen by the search in {plan.folder}: {SEARCH_TABLE}, search.html",
        f"# Of {plan.trials} trials for each strategy ({plan.search.sampler}) the one with the best",
        f"# {RULES[plan.search.rule]},",
        f"# over seed(s) {', '.join(map(str, plan.seeds))}; of equal ones that of fewest bytes, then the first.",
        (
            "# Measured on images that this study does not test on, with seeds that it does not have."
            if plan.data.without_test
            else f"# Measured on other simulated images (data.simulate.seed {seed}), with other seeds."
        ),
        f"# repmode-cl bench {path} runs it.",
    ]


def _choices(
    before: Sequence[StrategyConfig],
    after: Sequence[StrategyConfig],
    matches: Mapping[str, str],
    chosen: Mapping[str, SearchRow],
) -> list[str]:
    """Return a comment for each strategy: what was chosen for it, and from which trial."""
    lines = []
    for old, new in zip(before, after, strict=True):
        if old.title not in matches:
            lines.append(f"# {new.title}: not searched")
            continue
        row = chosen[matches[old.title]]
        values = ", ".join(f"{key} {value}" for key, value in row.values.items())
        edge = f"; at the edge of what was tried: {', '.join(row.edges)}" if row.edges else ""
        lines.append(f"# {new.title}: {values}: {row.score:.4f} (trial {row.title}){edge}")
    return lines
