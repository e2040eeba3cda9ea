"""PackNet: each structure is pruned into a part of one network's weights (Mallya and Lazebnik, CVPR 2018)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from repmode_cl.config import Config, StrategyConfig, TrainingConfig
from repmode_cl.errors import ConfigError
from repmode_cl.nn.packed_unet import PackedUNet
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.hooks import Experiences
from repmode_cl.strategies.state import architecture_of
from repmode_cl.training import BestState

__all__ = ["PackNet"]

_log = logging.getLogger(__name__)


class PackNet(StructureStrategy):
    """Train the free weights, prune the smallest of each layer after two thirds of the steps, and train the rest.

    The weights that are pruned are free for the next structure; all others stay as they are. The best state is chosen
    among those after pruning. Each structure has its own last layer, and its own norms or, as in the publication, the
    base's (``norm: base``).

    Parameters
    ----------
    prune
        Share of the free weights of each layer that pruning frees.

    Notes
    -----
    The base is pruned too, so it trains its own. A structure that comes again trains free weights as a new one does,
    in addition to those that it has. A structure adds a mask of one bit for each weight; the weights that it takes are
    in the network already.
    """

    network_class: ClassVar[type[nn.Module] | None] = PackedUNet
    default_prune: ClassVar[float] = 0.75

    def __init__(self, *, prune: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prune = self.default_prune if prune is None else prune
        self._check_ends(self.training_config, type(self).__name__)
        if not self.selects_state:
            raise ConfigError(
                "a plugin selects the state that an experience ends with, which may be one from before pruning: train "
                "PackNet without it"
            )

    def check_adoption(self, number: int) -> None:
        """Refuse a network that was trained elsewhere: its base is not pruned, so that no weight is free."""
        raise ConfigError(
            f"experience {number} cannot be adopted: PackNet prunes its base while it trains it, and a network that "
            "was trained otherwise has no free weights; train the experience"
        )

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return the share of weights that pruning frees."""
        return {"prune": options.prune}

    @classmethod
    def check(cls, config: Config, options: StrategyConfig, experiences: Experiences) -> None:
        """Refuse settings that may end training before or without pruning."""
        super().check(config, options, experiences)
        cls._check_ends(config.training, f"strategy {options.title}")
        for names in experiences:
            if cls.steps_of(config.training, options, experiences, names, len(names)) < 2:
                raise ConfigError(
                    f"strategy {options.title}: one step for {', '.join(names)}, and at least two are needed: one "
                    "before pruning and one after"
                )

    @staticmethod
    def _check_ends(training: TrainingConfig, whose: str) -> None:
        for key in ("patience", "time_limit"):
            if getattr(training, key) is not None:
                raise ConfigError(
                    f"{whose}: training.{key} may end an experience before its network is pruned, and then no weight "
                    "is free for the next: leave it out"
                )

    @classmethod
    def make_network(
        cls, config: Config, options: StrategyConfig, base: Sequence[str], seed: int
    ) -> nn.Module:
        """Return the network of the base's structures."""
        network = PackedUNet(
            architecture_of(config), options.kernel, base, own_norms=options.norm == "own", seed=seed
        )
        network.begin(base, 0)
        return network

    def grow(self, structures: Sequence[str]) -> None:
        """Give each structure a last layer, and norms."""
        for name in structures:
            self.network.add_structure(name, seed=self.seed)

    def pruning_step(self, number: int) -> int:
        """Return the number of steps after which experience `number` is pruned.

        Raises
        ------
        ConfigError
            If it has only one step.
        """
        steps = self.budget_for(number).steps
        if steps < 2:
            raise ConfigError(
                f"experience {number} has one step, and PackNet needs one before pruning and one after"
            )
        return min(max(1, round(2 * steps / 3)), steps - 1)

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Begin the experience, or the part of it after pruning where it is resumed there."""
        number = self._experience_number
        if number in self.learned:
            raise ConfigError(
                f"experience {number} cannot be trained again: its network is pruned, and later structures use its "
                "weights; train its structures in an experience after the others"
            )
        self.network.begin(structures, number, pruned=self.progress.step >= self.pruning_step(number))
        return super().choose_trained(structures)

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        """Run the steps of an experience; where a plugin ended it before pruning, prune at its end."""
        super()._train_exp(experience, eval_streams, **kwargs)
        step, pruned_at = self.progress.step, self.pruning_step(self._experience_number)
        if step < pruned_at:
            _log.warning(
                "experience %d ended at step %d, before pruning at step %d: it is pruned now, and what is left was not "
                "trained after it",
                self._experience_number,
                step,
                pruned_at,
            )
            self.network.prune(self.prune)

    def adjust_gradients(self) -> None:
        """Leave only the gradients of weights that this experience may change."""
        self.network.mask_gradients()

    def optimizer_step(self) -> None:
        """Update the weights, put back what weight decay moved of others', and prune when it is time."""
        before = self.network.frozen_weights()
        super().optimizer_step()
        self.network.restore(before)
        if self.progress.step + 1 == self.pruning_step(self._experience_number):
            self.network.prune(self.prune)
            self.selection = BestState(self.selection.names)

    def costs(self) -> dict[str, float]:
        """Return what a structure adds: a bit for each weight, and its last layer and norms."""
        number = self.progress.experience
        names = self.stream.experiences[number]
        if not number:
            return {}
        weights = [layer.owner for _, layer in self.network.packed_layers()]
        taken = sum(int((owner == number + 1).sum()) for owner in weights)
        bits = sum(-(-owner.numel() // 8) for owner in weights)
        came_before = any(set(names) & set(earlier) for earlier in self.stream.experiences[:number])
        own = 0 if came_before else self._own_numbers(names)
        return {"added_parameters": taken + own, "added_bytes": bits + 4 * own}

    def _own_numbers(self, names: Sequence[str]) -> int:
        parts = tuple(f".own.{name}." for name in names)
        state = self.network.state_dict()
        return sum(
            t.numel() for k, t in state.items() if t.is_floating_point() and any(part in k for part in parts)
        )

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return nothing: what is whose follows from the stream and the network's owners."""
        return {}, {}

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Let each structure use the weights that it did."""
        for number, names in enumerate(self.stream.experiences[: self.progress.experience]):
            self.network.begin(names, number, pruned=True)
