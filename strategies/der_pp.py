"""DER++ (dark experience replay): earlier patches are replayed with their targets, and with earlier predictions.

Buzzega et al., NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from repmode_cl.config import StrategyConfig, TrainingConfig
from repmode_cl.strategies.hooks import REPMODE
from repmode_cl.strategies.replay import Replay
from repmode_cl.strategies.replay_buffer import BufferedPatch, Predict, join_patches
from repmode_cl.training import count_voxels, masked_mse

__all__ = ["DERPlusPlus"]


class DERPlusPlus(Replay):
    """Replay of two independent draws: ``loss + alpha * (prediction error to before) + beta * (error to targets)``.

    The publication's equation 6, with the squared error for its cross-entropy too: it compares what the network says
    of the first draw with what it said when these patches were put into the buffer, after their experience and in
    evaluation mode, and of the second draw with the targets. Each term is a mean over its voxels; those that a mask
    leaves out count in none. Both draws share the batch, and its norms, with the new patches.

    Parameters
    ----------
    alpha, beta
        Weights of the two terms.
    **kwargs
        As of `Replay`; `replay_batch` patches are in each draw.
    """

    default_alpha: ClassVar[float] = 0.5
    default_beta: ClassVar[float] = 0.5
    kept_volumes: ClassVar[tuple[str, int]] = ("signal, target and prediction", 3)

    def __init__(self, *, alpha: float | None = None, beta: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha = self.default_alpha if alpha is None else alpha
        self.beta = self.default_beta if beta is None else beta
        #: New, first and second draw's patches of each micro-batch, and the voxels that count in all of the step's.
        self._sizes: list[list[int]] = []
        self._counts = [0.0, 0.0, 0.0]
        self._position = 0

    @classmethod
    def shared_base(cls, options: StrategyConfig) -> str | None:
        """Return the key of the one RepMode base."""
        return REPMODE

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return the options of replay, and both weights."""
        return {**super().own_options(options), "alpha": options.alpha, "beta": options.beta}

    @classmethod
    def cost_of_step(cls, options: StrategyConfig, training: TrainingConfig, earlier: int) -> float:
        """Return one, and the share of both draws."""
        return 2 * super().cost_of_step(options, training, earlier) - 1

    def extend(self, batch: list[Tensor], part: int, parts: int) -> list[Tensor]:
        """Return the new patches, followed by the two draws; the first has earlier predictions as targets."""
        if not part:
            self._sizes, self._counts, self._position = [], [0.0, 0.0, 0.0], 0
        dark = [_with_prediction(one) for one in self.drawn_patches(part, parts, "dark")]
        draws = [self._batch(drawn) for drawn in (dark, self.drawn_patches(part, parts))]
        joined = [batch, *draws]
        self._sizes.append([len(one[0]) if one else 0 for one in joined])
        for place, one in enumerate(joined):
            self._counts[place] += count_voxels(one[1]) if one else 0.0
        for one in draws:
            batch = join_patches(batch, one) if one else batch
        return batch

    def criterion(self) -> Tensor:
        """Return the loss of the new patches and both weighted terms, or this micro-batch's part of them."""
        if not self.is_training or not self.buffer.patches:
            return super().criterion()
        sizes = self._sizes[self._position]
        self._position += 1
        outputs, targets = self.mb_output.split(sizes), self.mb_y.to(self.mb_output.device).split(sizes)
        losses = ((1.0, self.loss_of), (self.alpha, masked_mse), (self.beta, self.loss_of))
        terms = [
            weight * loss(output, target, count=count)
            for (weight, loss), output, target, count in zip(
                losses, outputs, targets, self._counts, strict=True
            )
            if len(output)
        ]
        return torch.stack(terms).sum()

    def predictor(self) -> Predict | None:
        """Return what predicts the patches that are kept: the network as it is now, in evaluation mode."""

        def predict(patch: BufferedPatch) -> Tensor:
            training = self.model.training
            self.model.eval()
            with torch.no_grad():
                output: Tensor = self.model(patch.signal[None].to(self.device), [patch.structure])
            self.model.train(training)
            return output[0].float().cpu()

        return predict

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return which patches are in the buffer, and what was predicted of each."""
        _, values = super().extra_state()
        kept = [one.prediction for one in self.buffer.patches]
        return {f"prediction.{place}": t for place, t in enumerate(kept) if t is not None}, values

    def load_extra_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Cut the patches again, and load what was predicted of them."""
        predictions = [tensors[f"prediction.{place}"] for place in range(len(values["kept"]))]
        self.buffer.restore(values["kept"], self.buffered, predictions)


def _with_prediction(patch: BufferedPatch) -> BufferedPatch:
    """Return a patch whose target is what was predicted of it, with its mask."""
    assert patch.prediction is not None, "the buffer keeps predictions"
    return replace(patch, target=torch.cat([patch.prediction, patch.target[1:]]))
