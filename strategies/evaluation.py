"""Evaluation of all strategies: whole volumes, by the fused network and the Gaussian sliding window, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.utils.data import DataLoader

from repmode_cl.config import InferenceConfig
from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.metrics import image_metrics, mean_metrics
from repmode_cl.nn import fold_norms
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.state import Evaluation, Example, TrainingProgress
from repmode_cl.training import BestState, Ranks
from repmode_cl.utils.progress import Task
from repmode_cl.utils.stop_signals import check_stop

__all__ = ["EvaluationMixin"]


class EvaluationMixin(SupervisedTemplate):
    """The part of a strategy that validates, evaluates and predicts; `StructureStrategy` trains."""

    dataloader: Any
    stream: StructureStream
    inference: InferenceConfig
    patch: tuple[int, ...]
    progress: TrainingProgress
    selection: BestState
    ranks: Ranks
    progress_bar: Task | None
    on_validation: list[Callable[[Any], None]]
    outside_training: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Entered for work in the middle of training that is not training: validating, writing a checkpoint."""
    examples: dict[str, Example]
    """Structure -> the slice with the most contrast in its first image, of the last evaluation."""

    @property
    def network(self) -> Any:
        """The network, a `StructureNetwork`."""
        return self.model

    def _validate(self) -> None:
        with self.outside_training():
            self._validate_now()

    def _validate_now(self) -> None:
        number = int(self.experience.current_experience)
        # Only the first process predicts; all decide by its figures.
        figures = self.ranks.from_first(lambda: self.evaluate([self.stream.val[number]]))
        for structure, metrics in figures.items():
            for metric, value in metrics.items():
                self.progress.curve.append(
                    {
                        "experience": number,
                        "structure": structure,
                        "train_step": self.progress.step,
                        "metric": metric,
                        "value": value,
                    }
                )
        if figures:
            mse = sum(metrics["mse"] for metrics in figures.values()) / len(figures)
            self.selection.offer(self.model, self.progress.step, mse)
        self._report_validation(figures)
        for listener in self.on_validation:
            listener(self)

    def _report_validation(self, figures: Evaluation) -> None:
        if self.progress_bar is not None:
            values = ", ".join(f"{name} R2 {metrics['r2']:.3f}" for name, metrics in figures.items())
            best = f" (best so far: step {self.selection.step})" if figures else ""
            self.progress_bar.report(
                f"after step {self.progress.step}: {values or 'no image validates'}{best}"
            )

    def evaluate(self, experiences: Iterable[Any]) -> Evaluation:
        """Predict every volume of `experiences` and return each structure's mean metrics (paper, section 4.1)."""
        self._figures: dict[str, list[dict[str, float]]] = {}
        self.examples = {}
        self._plain: dict[str, nn.Module] = {}  # fused once per evaluation, not once per volume
        self.eval([experience for experience in experiences if len(experience.dataset)])
        self._plain = {}
        # Avalanche restores modes layer by layer; the network itself keeps frozen norms in evaluation mode.
        self.model.train(self.is_training)
        return {name: mean_metrics(images) for name, images in self._figures.items()}

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        """Load all volumes, one by one: Avalanche's loader would divide them among processes."""
        self.dataloader = DataLoader(self.adapted_dataset, batch_size=1)

    def _predict_whole(self, structure: str) -> Tensor:
        """Predict the volume of the current batch, which holds one."""
        if structure not in self._plain:
            self._plain[structure] = fold_norms(self.network.fuse(structure))
        return torch.from_numpy(self._sliding_window(self._plain[structure], self.mb_x[0, 0]))[None, None]

    def _after_eval_iteration(self, **kwargs: Any) -> None:
        target = self.mb_y[0].cpu().numpy()
        mask = target[1] > 0 if len(target) > 1 else None
        metrics = image_metrics(self.mb_output[0, 0].numpy(), target[0], mask)
        [name] = self.stream.names(self.mb_task_id.tolist())
        if name not in self.examples:
            z = int(target[0].std(axis=(1, 2)).argmax())
            signal, prediction = self.mb_x[0, 0, z].float(), self.mb_output[0, 0, z].float()
            self.examples[name] = Example(signal.cpu().numpy(), target[0, z], prediction.cpu().numpy())
        self._figures.setdefault(name, []).append(metrics)
        super()._after_eval_iteration(**kwargs)

    def predict(self, volume: Tensor, structure: str) -> Any:
        """Predict one whole volume (Z, Y, X), z-scored, in float32; returns an array of that shape."""
        return self._sliding_window(fold_norms(self.network.fuse(structure)), volume)

    def _sliding_window(self, plain: nn.Module, volume: Tensor) -> Any:
        return sliding_window(
            plain,
            volume,
            window=self.inference.window or self.patch,
            overlap=self.inference.overlap,
            batch_size=self.inference.batch_size,
            device=self.device,
            progress=lambda done, total: check_stop(),
        )
