"""Evaluation of all strategies: whole volumes, by the fused network and the Gaussian sliding window, in float32."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from avalanche.benchmarks import CLExperience
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.utils.data import DataLoader

from repmode_cl.config import InferenceConfig, TrainingConfig
from repmode_cl.errors import ConfigError, UnknownStructureError
from repmode_cl.evaluation.image_quality import ImagePair, figure_names, measure_image
from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.metrics import image_metrics, mean_metrics
from repmode_cl.nn import PlainUNet, fold_norms
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.hooks import StrategyHooks
from repmode_cl.strategies.state import Evaluation, Example, TrainingProgress
from repmode_cl.training import BestState, Ranks
from repmode_cl.utils.progress import Task
from repmode_cl.utils.stop_signals import check_stop

__all__ = ["EvaluationMixin"]

_log = logging.getLogger(__name__)


class EvaluationMixin(StrategyHooks, SupervisedTemplate):
    """The part of a strategy that validates, evaluates and predicts; `StructureStrategy` trains."""

    dataloader: Any
    inference: InferenceConfig
    patch: tuple[int, ...] | None
    progress: TrainingProgress
    selection: BestState
    selects_state: bool
    training_config: TrainingConfig
    ranks: Ranks
    plugins: list[Any]
    progress_bar: Task | None
    on_validation: list[Callable[[Any], None]]
    outside_training: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Entered for work in the middle of training that is not training: validating, writing a checkpoint."""
    examples: dict[str, Example]
    """Structure -> the slice with the most contrast in its first image, of the last evaluation."""
    measures: tuple[str, ...] = ()
    """Measures of images besides the voxel metrics (`repmode_cl.evaluation.image_quality`), in `measuring`."""
    _measured_voxel_size: tuple[float, float, float] | None = None
    _figures: dict[str, list[dict[str, float]]]

    @property
    def network(self) -> Any:
        """The network, a `StructureNetwork`."""
        return self.model

    def _validate(self) -> None:
        with self.outside_training():
            self._validate_now()

    def _validate_now(self) -> None:
        number = int(self.experience.current_experience)
        # Only the first process predicts; all decide by its figures. Plugins see no evaluation: this is training.
        plugins, self.plugins = self.plugins, []
        try:
            figures, error, earlier = self.ranks.from_first(lambda: self._validation_figures(number))
        finally:
            self.plugins = plugins
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
        if figures and self.selects_state:
            self.selection.offer(self.model, self.progress.step, error)
        self._report_validation(figures, earlier)
        for listener in self.on_validation:
            listener(self)

    def _validation_figures(self, number: int) -> tuple[Evaluation, float, Evaluation]:
        """Return figures of the new structures, the error that selects, and figures of earlier ones that do so too."""
        # First, so that what this evaluation leaves, such as examples, is of the present structures.
        earlier, errors = self._evaluate_earlier(number)
        figures = self.evaluate([self.stream.val[number]])
        errors += self._selecting_errors(figures)
        return figures, sum(errors) / len(errors) if errors else math.nan, earlier

    def _selecting_errors(self, figures: Evaluation) -> list[float]:
        """Return the errors of the last evaluation that count the same: of each image, or of each structure."""
        if self.training_config.selection == "images":
            return [metrics["mse"] for name in figures for metrics in self._figures[name]]
        return [metrics["mse"] for metrics in figures.values()]

    def _evaluate_earlier(self, number: int) -> tuple[Evaluation, list[float]]:
        """Return figures and selecting errors of structures of only earlier experiences, where they select too."""
        by_known = self.training_config.select_by == "known" and self.selects_state
        # Without an image of the new structures nothing is selected, as where only those select.
        if not by_known or not len(self.stream.val[number].dataset):
            return {}, []
        new, structures = self.stream.experiences[number], self.network.structures
        experiences = [
            one
            for one in self.stream.known_before(number)
            if set(self.stream.names_of(one)) <= set(structures)
        ]
        figures = {name: metrics for name, metrics in self.evaluate(experiences).items() if name not in new}
        return figures, self._selecting_errors(figures)

    def _report_validation(self, figures: Evaluation, earlier: Evaluation) -> None:
        if self.progress_bar is not None:
            values = ", ".join(f"{name} R2 {metrics['r2']:.3f}" for name, metrics in figures.items())
            if earlier:
                mean = sum(metrics["r2"] for metrics in earlier.values()) / len(earlier)
                values += f", earlier structures R2 {mean:.3f}"
            best = f" (best so far: step {self.selection.step})" if figures and self.selects_state else ""
            self.progress_bar.report(
                f"after step {self.progress.step}: {values or 'no image validates'}{best}"
            )

    @torch.no_grad()
    def eval(
        self,
        exp_list: CLExperience | Iterable[CLExperience],
        *,
        unknown: Literal["skip", "error"] = "skip",
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Predict the whole volumes of an experience, or of each of a stream, and return the metrics.

        Parameters
        ----------
        exp_list
            Such as ``benchmark.test_stream``. Experiences without an image are left out.
        unknown
            What is done with experiences whose structures the network does not know yet: ``skip`` leaves them out and
            logs their names, ``error`` refuses. They are never predicted.
        **kwargs
            Passed to all plugins.

        Returns
        -------
        dict of str to value
            The last value of each metric of `evaluator`.

        Raises
        ------
        ConfigError
            If an experience is of another benchmark.
        UnknownStructureError
            With ``unknown="error"``, if there is one that the network does not know.
        """
        if unknown not in ("skip", "error"):
            raise ConfigError(f"unknown is {unknown!r}: give skip or error")
        experiences = self._known_experiences(self._own_experiences(exp_list), unknown)
        self._figures = {}
        self.examples = {}
        self._plain: dict[str, nn.Module] = {}  # fused once per evaluation, not once per volume
        if experiences:
            super().eval(experiences, **kwargs)
            # Avalanche restores modes layer by layer; the network itself keeps frozen norms in evaluation mode.
            self.model.train(self.is_training)
        self._plain = {}
        metrics: dict[str, Any] = self.evaluator.get_last_metrics()
        return metrics

    def _known_experiences(self, experiences: Iterable[CLExperience], unknown: str) -> list[CLExperience]:
        """Return the experiences that have images, all of whose structures the network knows."""
        known: tuple[str, ...] = tuple(self.network.structures)
        chosen, missing = [], []
        for experience in experiences:
            names = self.stream.names_of(experience)
            if not len(experience.dataset):
                continue
            if lacking := [name for name in names if name not in known]:
                missing += lacking
            else:
                chosen.append(experience)
        if missing and unknown == "error":
            raise UnknownStructureError(missing[0], known)
        if missing:
            _log.warning("not evaluated, because not learned yet: %s", ", ".join(dict.fromkeys(missing)))
        return chosen

    def _own_experiences(self, experiences: Any) -> list[CLExperience]:
        """Return `experiences` as a list, after the check that they are of this strategy's benchmark."""
        chosen = list(experiences) if isinstance(experiences, Iterable) else [experiences]
        for experience in chosen:
            self.attach(StructureStream.of(experience))
        return chosen

    def attach(self, stream: StructureStream) -> None:
        """Make `stream` the one whose experiences are learned; training and evaluating do so by themselves.

        Raises
        ------
        ConfigError
            If it is another stream than that of the experiences so far, its patches have another size than the
            strategy's, or the strategy cannot learn it.
        """
        if self._stream is stream:
            return
        if self._stream is not None:
            raise ConfigError(
                "the experience is of another benchmark than the strategy's: a strategy learns the experiences of one "
                "benchmark; take them from it, or make a new strategy"
            )
        if self.patch is not None and self.patch != stream.patch:
            raise ConfigError(
                f"patch is {list(self.patch)}, and the patches of the stream have {list(stream.patch)} voxels: give "
                "the same, or leave patch out"
            )
        self.check_stream(stream)
        self._stream, self.patch = stream, stream.patch

    def evaluate(self, experiences: Iterable[CLExperience]) -> Evaluation:
        """Predict every volume of `experiences` and return each structure's mean metrics (paper, section 4.1).

        Raises
        ------
        UnknownStructureError
            If the network does not know one of the structures.
        """
        self.eval(experiences, unknown="error")
        return self.figures

    @property
    def figures(self) -> Evaluation:
        """Mean metrics over the images of each structure, of the last evaluation."""
        return {name: mean_metrics(images) for name, images in self._figures.items()}

    @contextmanager
    def measuring(
        self, measures: Sequence[str], voxel_size: tuple[float, float, float] | None
    ) -> Iterator[None]:
        """Add further measures to the figures of evaluations within.

        Parameters
        ----------
        measures
            Of `repmode_cl.evaluation.image_quality.check_measures`.
        voxel_size
            um (z, y, x) of the images as they are prepared; None if it is unknown.
        """
        self.measures, self._measured_voxel_size = tuple(measures), voxel_size
        try:
            yield
        finally:
            self.measures, self._measured_voxel_size = (), None

    @property
    def image_figures(self) -> dict[str, list[dict[str, float]]]:
        """Metrics of each image of each structure, in the order of the samples, of the last evaluation."""
        return {name: [dict(image) for image in images] for name, images in self._figures.items()}

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        """Load all volumes, one by one: Avalanche's loader would divide them among processes."""
        self.dataloader = DataLoader(self.adapted_dataset, batch_size=1)

    def _predict_whole(self, structure: str) -> Tensor:
        """Predict the volume of the current batch, which holds one."""
        if structure not in self._plain:
            self._plain[structure] = self._fused(structure)
        return torch.from_numpy(self._sliding_window(self._plain[structure], self.mb_x[0, 0]))[None, None]

    def _after_eval_iteration(self, **kwargs: Any) -> None:
        target = self.mb_y[0].cpu().numpy()
        mask = target[1] > 0 if len(target) > 1 else None
        metrics = image_metrics(self.mb_output[0, 0].numpy(), target[0], mask)
        if self.measures:
            pair = ImagePair(self.mb_output[0, 0].numpy(), target[0], mask, self._measured_voxel_size)
            # Every image has every figure, so that an undefined one makes the mean undefined.
            undefined = dict.fromkeys(figure_names(self.measures), math.nan)
            metrics = {**metrics, **undefined, **measure_image(pair, self.measures).figures}
        [name] = self.stream.names(self.mb_task_id.tolist())
        if name not in self.examples:
            z = int(target[0].std(axis=(1, 2)).argmax())
            signal, prediction = self.mb_x[0, 0, z].float(), self.mb_output[0, 0, z].float()
            self.examples[name] = Example(signal.cpu().numpy(), target[0, z], prediction.cpu().numpy())
        self._figures.setdefault(name, []).append(metrics)
        super()._after_eval_iteration(**kwargs)

    def predict(self, volume: Tensor, structure: str) -> Any:
        """Predict one whole volume (Z, Y, X), z-scored, in float32; returns an array of that shape."""
        training = self.model.training
        try:
            return self._sliding_window(self._fused(structure), volume)
        finally:
            self.model.train(training)  # layers of a fused network may be the network's own

    def _fused(self, structure: str) -> nn.Module:
        """Return the network that predicts `structure`, to be called in evaluation mode: of ours, with norms folded."""
        # Weights that depend on the image have no fused network: such a network says what predicts in its place.
        fused = getattr(self.network, "predictor", self.network.fuse)(structure)
        if type(fused) is PlainUNet:  # a subclass may compute something else
            return fold_norms(fused.eval())
        if not isinstance(fused, nn.Module):
            raise ConfigError(
                f"{type(self.network).__name__}.fuse({structure!r}) returned {type(fused).__name__}: return a module "
                "that maps (N, 1, Z, Y, X) to the same shape"
            )
        return fused.to(self.device).eval()

    def _sliding_window(self, plain: nn.Module, volume: Tensor) -> Any:
        return sliding_window(
            plain,
            volume,
            window=self.inference.window or self.patch or self.stream.patch,
            overlap=self.inference.overlap,
            batch_size=self.inference.batch_size,
            weights=self.inference.weights,
            device=self.device,
            progress=lambda done, total: check_stop(),
        )
