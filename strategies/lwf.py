"""LwF (learning without forgetting), for regression: the network is trained to repeat its earlier predictions."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from repmode_cl.config import StrategyConfig, TrainingConfig
from repmode_cl.data.sample import digest_of
from repmode_cl.errors import ConfigError
from repmode_cl.nn import RepModeUNet
from repmode_cl.nn.mode_block import fuse_under_autocast
from repmode_cl.strategies.fine_tuning import FineTuning
from repmode_cl.training import masked_mse
from repmode_cl.utils.memory import tensor_bytes

__all__ = ["LwF"]

#: Cost of predicting with a network, relative to training it.
_PREDICTION_COST = 1 / 3


class LwF(FineTuning):
    """Learning without forgetting (Li and Hoiem, 2016), with the squared error in place of its softmax.

    On the signals of the new patches, and on no earlier image, the trained network predicts earlier structures too.
    ``strength`` times the mean squared error to the predictions of the network before the experience, averaged over
    those structures, is added to the loss. They share a batch with the new structure, and so its norms; their gate
    rows are trained further.

    Parameters
    ----------
    strength
        Weight of the added loss; 0 is fine-tuning.
    distilled
        Earlier structures of a step, chosen at random by the seed; ``None`` stands for all.
    warm_up
        Share of the steps of an experience in which only its new structures' gate rows are trained, as in the
        publication, before all parameters are. Nothing of earlier structures changes meanwhile, so that nothing is
        distilled. An experience without a new structure, and the base, have none.
    """

    shares_base: ClassVar[bool] = True
    default_strength: ClassVar[float] = 1.0

    def __init__(
        self,
        *,
        strength: float | None = None,
        distilled: int | None = None,
        warm_up: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.warm_up = warm_up or 0.0
        if not 0 <= self.warm_up < 1:
            raise ConfigError(f"warm_up is {warm_up}: give a share of the steps, at least 0 and less than 1")
        #: Whether only what is new is trainable now.
        self._warming_up = False
        self.strength = self.default_strength if strength is None else strength
        self.distilled = distilled
        self._teacher: RepModeUNet | None = None
        self._students: dict[str, Tensor] = {}

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return strength, number of structures and warm-up."""
        keys = ("strength", "distilled", "warm_up")
        return {key: value for key in keys if (value := getattr(options, key)) is not None}

    @classmethod
    def cost_of_step(cls, options: StrategyConfig, training: TrainingConfig, earlier: int) -> float:
        """Return one, and for each distilled structure one more and the cost of the old network's prediction."""
        share = 1 - (options.warm_up or 0.0)  # of the steps, with distillation
        return 1 + share * min(options.distilled or earlier, earlier) * (1 + _PREDICTION_COST)

    def choose_trained(self, structures: Sequence[str]) -> frozenset[str]:
        """Train all parameters, where earlier structures are distilled."""
        self._warming_up = False
        return super().choose_trained(self.network.structures if self.strength else structures)

    def warm_up_steps(self, number: int) -> int:
        """Return the number of steps of experience `number` in which only what is new is trained."""
        steps = self.budget_for(number).steps
        return min(round(self.warm_up * steps), steps - 1) if self._new_structures(number) else 0

    def _new_structures(self, number: int) -> tuple[str, ...]:
        """Return the structures of an experience after the base that no earlier one had."""
        earlier = {name for names in self.stream.experiences[:number] for name in names}
        return tuple(name for name in self.stream.experiences[number] if number and name not in earlier)

    def _train_step(self, parts: Sequence[Any], **kwargs: Any) -> None:
        """Make a step, of only what is new while the experience warms up."""
        # Here, and not when the experience begins: optimiser and selection hold all that is trained.
        number = self._experience_number
        warming_up = self.progress.step < self.warm_up_steps(number)
        if warming_up != self._warming_up:
            rows = tuple(f".gates.{name}" for name in self._new_structures(number))
            new = frozenset(name for name in self.trained if name.endswith(rows))
            self.network.restrict_training(new if warming_up else self.trained)
            self._warming_up = warming_up
        super()._train_step(parts, **kwargs)

    def distilled_structures(self) -> list[str]:
        """Return the earlier structures that are distilled in this step."""
        if self._teacher is None or not self.strength or self._warming_up:
            return []
        new = self.stream.names_of(self.experience)
        earlier = [name for name in self._teacher.structures if name not in new]
        if self.distilled is None or self.distilled >= len(earlier):
            return earlier
        number, step = self._experience_number, self.progress.step
        return sorted(earlier, key=lambda name: digest_of("distil", self.seed, number, step, name))[
            : self.distilled
        ]

    def forward(self) -> Tensor:
        """Predict; in training the earlier structures too, on the same signals and in one batch."""
        self._students = {}
        if not self.is_training or not (structures := self.distilled_structures()):
            return super().forward()
        names, size = self.stream.names(self.mb_task_id.tolist()), len(self.mb_x)
        with self.precision.autocast():
            output: Tensor = self.model(
                self.mb_x.repeat(1 + len(structures), 1, 1, 1, 1),
                names + [name for name in structures for _ in range(size)],
            )
        new, *earlier = output.split(size)
        self._students = dict(zip(structures, earlier, strict=True))
        return new

    def criterion(self) -> Tensor:
        """Return the loss of the new structure, plus that of differing from the old network's predictions."""
        loss = super().criterion()
        if not self._students or self._teacher is None:
            return loss
        weights = self.mb_y[:, 1:]
        distillation = torch.zeros_like(loss)
        for name, student in self._students.items():
            with torch.no_grad(), self.precision.autocast():
                before = self._teacher(self.mb_x, [name] * len(self.mb_x))
            target = torch.cat([before.to(self.mb_y.dtype), weights], dim=1)
            distillation = distillation + masked_mse(student, target, count=self._voxels)
        return loss + self.strength * distillation / len(self._students)

    def after_experience(self, number: int) -> None:
        """Copy the network as the teacher of the next experience."""
        self._copy_teacher()

    def _copy_teacher(self) -> None:
        if self.strength:
            self._teacher = copy.deepcopy(self.network).to(self.device).eval().requires_grad_(False)
            # A teacher that is loaded from a checkpoint is copied before this is set for the network.
            fuse_under_autocast(self._teacher, self.training_config.fusing == "autocast")

    def costs(self) -> dict[str, float]:
        """Return bytes of the old network."""
        tensors = {} if self._teacher is None else self._teacher.state_dict()
        return {"kept_bytes": tensor_bytes(tensors.values())}

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the old network."""
        if self._teacher is None:
            return {}, {}
        return {f"teacher.{name}": tensor for name, tensor in self._teacher.state_dict().items()}, {}

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Load the old network; it knows the structures that the present one knows now."""
        state = {
            name.removeprefix("teacher."): t for name, t in tensors.items() if name.startswith("teacher.")
        }
        if state:
            self._copy_teacher()
            assert self._teacher is not None
            self._teacher.load_state_dict(state)
