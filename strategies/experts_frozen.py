"""Experts frozen (paper, section 4.4): each added structure gets a fresh expert and gate; nothing old may change."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.config.strategy_schema import RATE_GROUPS
from repmode_cl.errors import ConfigError, did_you_mean
from repmode_cl.nn import AdditionSpec, RepModeUNet
from repmode_cl.nn.warm_start import warm_start
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.hooks import REPMODE, Experiences
from repmode_cl.strategies.warm_start import WarmStart

__all__ = ["ExpertsFrozen", "training_options"]

_log = logging.getLogger(__name__)

#: Keys of the specification of an addition, and of how it is trained, in the strategy's section of a configuration.
_SPEC_KEYS = ("expert", "sees", "norm", "resampling", "gate", "scale", "blocks")


class ExpertsFrozen(WarmStart):
    """Strategy of this package: each added structure trains only its own expert, gates and norms.

    Parameters
    ----------
    model
        RepModeUNet that knows the base structures, those of the first experience.
    spec
        Expert, gates and layers that each added structure gets.
    group_rates
        Peak learning rate of an addition's ``expert``, ``gate``, ``norm`` or ``resampling`` parameters; for groups that
        are left out, the one rate of the others.
    decay_to_base
        Decay of what an addition trains towards the base, for experts outside the softmax; see Notes.
    gate_steps
        Share of an addition's steps in which its gates learn, 0 to 1. Then they are fixed, and a step costs less.

    Raises
    ------
    ConfigError
        If a structure returns after another that sees its experts: training it further would change that one. If rates
        or decay do not fit the specification.

    Notes
    -----
    A structure that returns trains its own parameters further; all others stay unchanged, to the bit.

    With `decay_to_base` d, a step at the learning rate r first takes each parameter w of an addition to
    ``w + r d (b - w)``, where b is its value in the base's mean mode (`RepModeUNet.base_values`). That is the penalty
    L2-SP of Li, Grandvalet and Davoine (2018) in the decoupled form of AdamW (Loshchilov and Hutter, 2019); it is in
    place of the training's weight decay, which decays to zero.
    """

    network_class: ClassVar[type[nn.Module] | None] = RepModeUNet
    stores_model: ClassVar[bool] = True
    shares_base: ClassVar[bool] = True

    def __init__(
        self,
        *,
        spec: AdditionSpec | None = None,
        group_rates: Mapping[str, float] | None = None,
        decay_to_base: float = 0.0,
        gate_steps: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.spec = spec or AdditionSpec()
        self.group_rates = dict(group_rates or {})
        self.decay_to_base = decay_to_base
        self.gate_steps = gate_steps
        self._gates_fixed = False
        #: Whether a first experience that adds structures is meant: the base was trained elsewhere.
        self.base_is_ready = False
        #: Value in the base of each parameter that decays, by its id; None where it is not computed yet.
        self._base_values: dict[int, Tensor] | None = None
        super().__init__(**kwargs)
        self._check_training()

    def _check_training(self) -> None:
        """Refuse rates and a decay that cannot be, or that the specification has no use for."""
        for group, rate in self.group_rates.items():
            if group not in RATE_GROUPS:
                raise ConfigError(
                    f"group_rates: unknown group {group!r}{did_you_mean(group, RATE_GROUPS)}: the groups are "
                    f"{', '.join(RATE_GROUPS)}"
                )
            if not 0 < rate < math.inf:
                raise ConfigError(f"group_rates: {group}: found {rate!r}: a number above 0 is needed")
            absent = {"expert": self.spec.expert == "none", "gate": False}
            if absent.get(group, group in ("norm", "resampling") and getattr(self.spec, group) == "base"):
                raise ConfigError(
                    f"group_rates: {group}: an addition ({self.spec.text}) trains none: leave it out"
                )
        if self.group_rates and self._given_optimizer is not None:
            raise ConfigError(
                "group_rates and an optimizer are given: the optimizer's own rates hold in all experiences; leave one "
                "out"
            )
        if not 0 <= self.decay_to_base < math.inf:
            raise ConfigError(
                f"decay_to_base: found {self.decay_to_base!r}: a number of at least 0 is needed"
            )
        if not 0 <= self.gate_steps <= 1:
            raise ConfigError(
                f"gate_steps: found {self.gate_steps!r}: a share of the steps, 0 to 1, is needed"
            )
        if self.decay_to_base and self.spec.gate != "outside":
            raise ConfigError(
                f"decay_to_base {self.decay_to_base:g} needs an expert outside the softmax, and the addition has gate "
                f"{self.spec.gate}: no mode of the base has an expert within the softmax"
            )

    def check_stream(self, stream: StructureStream) -> None:
        """Refuse a structure that returns after another that sees its experts."""
        _refuse_returns(self.spec, stream.experiences)

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Train what the structures own, unless a later one sees their experts."""
        additions = self.network.additions
        added = list(additions)
        if self._adopted is not None and added and not set(structures) & set(added):
            # A base that is taken over is not trained, and with additions it must not be: any other parameters do.
            structures = added[-1:]
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
        if config.network.gate == "input":
            raise ConfigError(
                f"{options.title}: network.gate is input, and such a network has no fused kernel: it cannot be stored "
                "as a model, nor grow by additions; train it by the strategy joint, or set gate linear or two_layer"
            )
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
        """Return the specification of an addition, and how it is trained."""
        spec = AdditionSpec(**{key: getattr(options, key) for key in _SPEC_KEYS})
        start = {} if options.init_from == "none" else {"init_from": options.init_from}
        return {"spec": spec, **training_options(options), **start}

    def grow(self, structures: Sequence[str]) -> None:
        """Add each structure to the frozen network."""
        # Outside an experience a network is grown again for a checkpoint.
        first = self.experience is not None and self._experience_number == 0
        if first and not self.base_is_ready:
            _log.warning(
                "%s: added to a base (%s) that was neither trained nor adopted here: if it has learned nothing, make "
                "the stream with base=%r, or the network with the structures of the first experience",
                ", ".join(structures),
                ", ".join(self.network.base_structures),
                self.network.base_structures,
            )
        for name in structures:
            self.network.add_structure(name, self.spec, seed=self.seed)

    def begin_as(self, name: str, other: str) -> None:
        """Set gate rows, expert, norms and resampling layers of `name` by the mode of `other` (`nn.warm_start`)."""
        warm_start(self.network, name, other)

    def _adds(self, number: int) -> bool:
        """Return whether experience `number` trains an addition, and not the base."""
        return all(name in self.network.additions for name in self.stream.experiences[number])

    def group_rates_of(self, number: int) -> dict[str, float]:
        """Return the rates of an addition's groups; the base has one rate."""
        return dict(self.group_rates) if self._adds(number) else {}

    def weight_decay(self) -> float:
        """Return 0 for additions that decay to the base, otherwise the training's."""
        return 0.0 if self._decays() else super().weight_decay()

    def _decays(self) -> bool:
        return self.decay_to_base > 0 and self._adds(self._experience_number)

    def make_optimizer(self, **kwargs: Any) -> None:
        """Make the optimiser of an experience, whose parameters have other values in the base."""
        super().make_optimizer(**kwargs)
        self._base_values = None
        self._gates_fixed = False

    def _train_step(self, parts: Sequence[Any], **kwargs: Any) -> None:
        """Make one optimiser step; from the step on at which gates are fixed, without gradients of them."""
        # Rounded, so that 0.3 of 10 steps are 3 and not 2, as 0.3 is a little less than that.
        learning = self.gate_steps == 1 or self.progress.step < round(self.gate_steps * self.budget.steps)
        if not learning and not self._gates_fixed and self._adds(self._experience_number):
            self._fix_gates()
        super()._train_step(parts, **kwargs)

    def _fix_gates(self) -> None:
        """Fix the gates: they have no gradient and no moments any more, so that no optimiser moves them."""
        [name] = self.stream.experiences[self._experience_number]
        for one in self.network.fix_gates(name):
            parameter = self.optimized_param_id.pop(one, None)
            if parameter is not None:
                self.optimizer.state.pop(parameter, None)
        self._gates_fixed = True

    def optimizer_step(self) -> None:
        """Decay to the base, and update weights and learning rate."""
        if self._decays():
            self._decay()
        super().optimizer_step()

    def _decay(self) -> None:
        if self._base_values is None:  # only now: a resumed base is loaded after the optimiser is made
            [name] = self.stream.experiences[self._experience_number]
            values = self.network.base_values(name)
            self._base_values = {
                id(parameter): values[one]
                for one, parameter in self.optimized_param_id.items()
                if one in values
            }
        with torch.no_grad():
            for group in self.optimizer.param_groups:
                share = min(1.0, float(group["lr"]) * self.decay_to_base)
                for parameter in group["params"]:
                    if parameter.requires_grad and id(parameter) in self._base_values:
                        parameter.lerp_(self._base_values[id(parameter)], share)


def training_options(options: StrategyConfig) -> dict[str, Any]:
    """Return the arguments of `ExpertsFrozen` by which additions are trained otherwise than by default.

    Only those: a user's own strategy need not know the others.
    """
    arguments: dict[str, Any] = {}
    if isinstance(options.learning_rate, Mapping):
        arguments["group_rates"] = dict(options.learning_rate)
    if options.decay_to_base:
        arguments["decay_to_base"] = options.decay_to_base
    if options.gate_steps != 1:
        arguments["gate_steps"] = options.gate_steps
    return arguments


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
