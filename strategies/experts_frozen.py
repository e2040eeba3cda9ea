"""Experts frozen (paper, section 4.4): each added structure gets a fresh expert and gate; nothing old may change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.errors import ConfigError
from repmode_cl.nn import AdditionSpec
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.hooks import REPMODE, Experiences

__all__ = ["ExpertsFrozen"]


class ExpertsFrozen(StructureStrategy):
    """Strategy of this package: each added structure trains only its own expert, gates and norms.

    Parameters
    ----------
    model
        RepModeUNet that knows the base structures, those of the first experience.
    spec
        Expert, gates and layers that each added structure gets.

    Raises
    ------
    ConfigError
        If a structure returns after another that sees its experts: training it further would change that one.

    Notes
    -----
    A structure that returns trains its own parameters further; all others stay unchanged, to the bit.
    """

    stores_model: ClassVar[bool] = True
    shares_base: ClassVar[bool] = True

    def __init__(self, *, spec: AdditionSpec | None = None, **kwargs: Any) -> None:
        self.spec = spec or AdditionSpec()
        super().__init__(**kwargs)

    def check_stream(self, stream: StructureStream) -> None:
        """Refuse a structure that returns after another that sees its experts."""
        _refuse_returns(self.spec, stream.experiences)

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Train what the structures own, unless a later one sees their experts."""
        additions = self.network.additions
        added = list(additions)
        for name in structures:
            if name not in additions or additions[name].expert == "none":
                continue
            later = [one for one in added[added.index(name) + 1 :] if additions[one].sees == "all"]
            if later:
                raise ConfigError(
                    f"{name} cannot be trained again: {later[0]} came after it, which sees its experts and would "
                    "change with them; set sees: own to train structures again"
                )
        return super().choose_trained(structures)

    @classmethod
    def check(cls, config: Config, options: StrategyConfig, experiences: Experiences) -> None:
        """Refuse a structure that returns after another that sees its experts."""
        super().check(config, options, experiences)
        spec: AdditionSpec = cls.own_options(options)["spec"]
        try:
            spec.check_depth(config.network.depth)
        except ValueError as error:
            raise ConfigError(f"{options.title}: {error}") from error
        _refuse_returns(spec, experiences)

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the one RepMode base."""
        return REPMODE

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return the specification of an addition."""
        keys = ("expert", "sees", "norm", "resampling", "gate", "scale", "blocks")
        return {"spec": AdditionSpec(**{key: getattr(options, key) for key in keys})}

    def grow(self, structures: Sequence[str]) -> None:
        """Add each structure to the frozen network."""
        for name in structures:
            self.network.add_structure(name, self.spec, seed=self.seed)


def _refuse_returns(spec: AdditionSpec, experiences: Experiences) -> None:
    if spec.sees != "all" or spec.expert == "none":
        return
    added = [name for names in experiences[1:] for name in names]
    for position, name in enumerate(added):
        between = [other for other in added[added.index(name) : position] if other != name]
        if between:
            raise ConfigError(
                f"experts_frozen with sees: all: {name} comes again after {between[0]}, which may see its experts "
                "and would change with them; set sees: own, or choose a stream in which no structure comes again"
            )
