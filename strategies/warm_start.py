"""Start of a new structure from the known one whose network fits it best, in place of chance."""

from __future__ import annotations

import time
from typing import Any

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.errors import ConfigError
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.hooks import Experiences
from repmode_cl.training.known_modes import fit_of, sample_of

__all__ = ["WarmStart"]


class WarmStart(StructureStrategy):
    """Base of strategies in which each structure after the base has separate weights, which may start warm.

    Parameters
    ----------
    init_from
        ``none``: the weights of a new structure start by chance. ``best``: they are copied, as far as they fit, from
        the known structure, of the base or a later one, whose network has the lowest squared error on a sample of the
        new structure's training patches.
    **kwargs
        Of `StructureStrategy`.

    Raises
    ------
    ConfigError
        If `init_from` is neither.

    Attributes
    ----------
    started_from
        Structure -> the one that it started from.
    """

    def __init__(self, *, init_from: str = "none", **kwargs: Any) -> None:
        if init_from not in ("none", "best"):
            raise ConfigError(f"init_from: found {init_from!r}: none or best is needed")
        self.init_from = init_from
        self.started_from: dict[str, str] = {}
        super().__init__(**kwargs)

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return what new structures start from, if that is not chance: a user's own class need not know it."""
        given = super().own_options(options)
        return given | ({} if options.init_from == "none" else {"init_from": options.init_from})

    @classmethod
    def check(cls, config: Config, options: StrategyConfig, experiences: Experiences) -> None:
        """Refuse to compare the networks of known structures where they depend on the image."""
        super().check(config, options, experiences)
        if options.init_from == "best" and config.network.gate == "input":
            raise ConfigError(
                f"{options.title}: init_from is best, which needs one fused network for each structure, and "
                "network.gate is input: such a gate has none; set init_from to none"
            )

    def begin_as(self, name: str, other: str) -> None:
        """Set the untrained weights of `name` by those of `other`, as far as they fit."""
        self.network.begin_as(name, other)

    def before_experience(self, number: int) -> None:
        """Start a new structure from the known one that fits best, where that is asked for."""
        super().before_experience(number)
        earlier = {name for names in self.stream.experiences[:number] for name in names}
        names = self.stream.experiences[number]
        # What was learned already, here or elsewhere, is trained further and not begun again.
        learned = self._adopted is not None or number in self.learned
        if self.init_from == "none" or learned or not earlier or earlier.issuperset(names):
            return
        began, began_cpu = time.perf_counter(), time.process_time()
        [name] = names
        sample = sample_of(self.stream.patches[number])
        fits = {
            other: fit_of(self.network.fuse(other).eval(), sample, self.device)
            for other in self.network.structures
            if other != name
        }
        errors = {other: fit["mse"] for other, fit in fits.items() if fit}
        if not errors:
            raise ConfigError(
                f"init_from best: no known structure predicts finite numbers for the images of {name}: set it to none"
            )
        best = min(errors, key=errors.__getitem__)
        self.begin_as(name, best)
        self.started_from[name] = best
        if self.progress_bar is not None:
            self.progress_bar.report(
                f"starts from {best}, which fits its training patches best: mean squared error {errors[best]:.3f}"
                f"{_second(errors, best)}"
            )
        # It is part of learning.
        self.progress.seconds += time.perf_counter() - began
        self.progress.cpu_seconds += time.process_time() - began_cpu


def _second(errors: dict[str, float], best: str) -> str:
    others = {name: error for name, error in errors.items() if name != best}
    second = min(others, key=others.__getitem__, default=None)
    return "" if second is None else f" (the next: {second}, {others[second]:.3f})"
