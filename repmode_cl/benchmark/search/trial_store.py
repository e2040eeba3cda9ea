"""Trials of a search in SQLite, by optuna: what was proposed, and what it was worth.

A proposal depends only on the sampler's seed, the strategy, the number of the trial, the values of the trials before,
and what those of earlier batches were worth. So a search that was killed proposes what it would have proposed, however
many trials ran at once and whichever of them ended first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from repmode_cl.benchmark.search.plan import SearchPlan, Values
from repmode_cl.config.search_schema import SearchRange, Value
from repmode_cl.data.sample import digest_of
from repmode_cl.errors import RepmodeError
from repmode_cl.utils.extras import install_command

if TYPE_CHECKING:
    import optuna

__all__ = ["STORE", "StoredTrial", "TrialStore", "require_optuna"]

#: Name of the file in the search's folder.
STORE = "search.db"

#: Proposals of values that were tried already, after which they are tried again.
_ATTEMPTS = 50


def require_optuna() -> None:
    """Load optuna.

    Raises
    ------
    RepmodeError
        If it is not installed; the message names the command that installs it.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise RepmodeError(f"a search needs optuna: {install_command('search')}") from error
    # A line for each trial that it stores: the run reports what runs.
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class StoredTrial:
    """A trial as it is stored.

    Attributes
    ----------
    values
        Key -> the value that it tries.
    score
        What it is worth; None before it is measured, or if its training diverged.
    measured
        Whether it has been measured.
    """

    values: Values
    score: float | None
    measured: bool


class TrialStore:
    """The trials of a search, one optuna study for each strategy.

    Parameters
    ----------
    plan
        The search. Its folder holds the file.
    """

    def __init__(self, plan: SearchPlan) -> None:
        require_optuna()
        import optuna

        self._plan = plan
        plan.folder.mkdir(parents=True, exist_ok=True)
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{(plan.folder / STORE).absolute()}")
        self._studies = {
            title: optuna.create_study(
                storage=self._storage,
                study_name=title,
                direction="maximize",
                load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(seed=0),  # it proposes nothing
            )
            for title in plan.ranges
        }

    def close(self) -> None:
        """Close the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def trials(self, title: str) -> list[StoredTrial]:
        """Return the trials of a strategy, by number."""
        return [
            StoredTrial(
                values=dict(trial.params),
                score=trial.value if trial.state.name == "COMPLETE" else None,
                measured=trial.state.is_finished(),
            )
            for trial in self._frozen(title)
        ]

    def propose(self, title: str, count: int) -> None:
        """Propose trials until a strategy has `count`.

        Parameters
        ----------
        title
            The strategy.
        count
            Number of trials, of which all batches before the last are measured.
        """
        distributions = _distributions(self._plan.ranges[title])
        for number in range(len(self._frozen(title)), count):
            if self._plan.search.sampler == "grid":
                values = self._plan.combinations(title)[number]
            else:
                values = self._ask(title, number, distributions)
            self._add(title, values, distributions)

    def record(self, title: str, number: int, score: float | None) -> None:
        """Store what a trial is worth; None where its training diverged."""
        import optuna

        state = optuna.trial.TrialState
        self._studies[title].tell(number, score, state=state.FAIL if score is None else state.COMPLETE)

    def _add(
        self,
        title: str,
        values: Values,
        distributions: dict[str, optuna.distributions.BaseDistribution],
    ) -> None:
        """Store a proposal, in one transaction: what is killed before it has proposed nothing."""
        import optuna

        running = optuna.trial.TrialState.RUNNING
        self._studies[title].add_trial(
            optuna.trial.create_trial(state=running, params=values, distributions=distributions)
        )

    def _ask(
        self, title: str, number: int, distributions: Mapping[str, optuna.distributions.BaseDistribution]
    ) -> Values:
        """Propose one trial, from the batches before its own."""
        import optuna

        batch, before = self._plan.batch, self._frozen(title)[:number]
        measured = before[: number - number % batch]
        values: Values = {}
        for attempt in range(_ATTEMPTS):
            parts = ("search", self._plan.search.sampler_seed, title, number, attempt)
            seed = int.from_bytes(digest_of(*parts)[:4], "big")
            sampler = optuna.samplers.TPESampler(n_startup_trials=batch, seed=seed)
            study = optuna.create_study(direction="maximize", sampler=sampler)
            study.add_trials(measured)
            proposed = study.ask(dict(distributions)).params
            values = {key: _rounded(value, self._plan.ranges[title][key]) for key, value in proposed.items()}
            # The same values would give the same figures.
            if all(trial.params != values for trial in before):
                break
        return values

    def _frozen(self, title: str) -> Sequence[optuna.trial.FrozenTrial]:
        return self._studies[title].get_trials(deepcopy=False)


def _distributions(ranges: Mapping[str, SearchRange]) -> dict[str, optuna.distributions.BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for key, one in ranges.items():
        if one.values:
            found[key] = CategoricalDistribution(one.values)
        elif one.points is not None:
            found[key] = CategoricalDistribution(one.grid)
        elif one.whole:
            found[key] = IntDistribution(round(one.low), round(one.high), log=one.log)
        else:
            found[key] = FloatDistribution(one.low, one.high, log=one.log)
    return found


def _rounded(value: Value, one: SearchRange) -> Value:
    """Return a proposed number with four digits, within its range: people read and write it."""
    if one.values or not isinstance(value, float) or not math.isfinite(value):
        return value
    return min(max(float(f"{value:.4g}"), one.low), one.high)
