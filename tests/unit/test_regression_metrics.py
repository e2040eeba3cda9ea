"""Plugin metrics of regression, in Avalanche's own strategies and in ours, against numpy, scipy and results.csv."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import repmode_cl.strategies.base  # first: it imports Avalanche quietly

# isort: split
from avalanche.benchmarks import benchmark_from_datasets, task_incremental_benchmark
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.logging import CSVLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from scipy import stats
from tiny_run import changed, tiny
from tiny_strategies import (
    APART,
    ARCHITECTURE,
    BASE,
    BUILD,
    TRAINING,
    build,
    experts_frozen,
    fine_tuning,
    learn,
    stream_of,
)
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from repmode_cl.benchmark import run_benchmark
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.evaluation import backward_transfer, forgetting, performance_matrix
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.nn import RepModeUNet
from repmode_cl.results import ResultsTable
from repmode_cl.strategies import FineTuning, StructureStrategy
from repmode_cl.strategies.metrics import (
    bwt_of,
    forgetting_of,
    forward_transfer_of,
    mae_metrics,
    mse_metrics,
    pearson_metrics,
    r2_metrics,
)
from repmode_cl.strategies.metrics.batch import VoxelSums, batch_sums
from repmode_cl.strategies.metrics.regression import TITLES
from repmode_cl.training.loss import masked_mse

OF = {"mse": mse_metrics, "mae": mae_metrics, "r2": r2_metrics, "pearson": pearson_metrics}


def by_scipy(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    p, y = prediction.astype(float).ravel(), target.astype(float).ravel()
    return {
        "mse": np.mean((p - y) ** 2),
        "mae": np.mean(abs(p - y)),
        "r2": 1 - np.sum((p - y) ** 2) / np.sum((y - y.mean()) ** 2),
        "pearson": stats.pearsonr(p, y).statistic,
    }


def every_metric() -> list[Any]:
    return [
        metric
        for of in OF.values()
        for metric in of(minibatch=True, epoch=True, experience=True, stream=True)
    ]


def quiet(*metrics: Any) -> EvaluationPlugin:
    """Return an evaluator that prints nothing."""
    return EvaluationPlugin(*metrics, loggers=[TextLogger(io.StringIO())])


# -- sums of voxels ---------------------------------------------------------------------------------------------


class Holding:
    """Stands for a strategy: holds a batch."""

    def __init__(self, output: Tensor, target: Tensor) -> None:
        self.mb_output, self.mb_y = output, target
        self.experience: Any = type(
            "", (), {"current_experience": 3, "origin_stream": type("", (), {"name": "test"})}
        )


@pytest.mark.parametrize("seed", range(12))
def test_sums_of_a_stream_of_batches_are_those_of_all_its_voxels(seed: int) -> None:
    random = np.random.default_rng(seed)
    offset, scale = 10.0 ** random.uniform(-3, 4), 10.0 ** random.uniform(-3, 2)
    sums, predictions, targets = VoxelSums(), [], []
    for _ in range(random.integers(1, 7)):
        shape = (int(random.integers(1, 4)), 1, *random.integers(1, 9, size=3))
        y = torch.from_numpy(offset + scale * random.normal(size=shape))
        p = torch.from_numpy(y.numpy() * random.uniform(-1, 1) + scale * random.normal(size=shape))
        if random.random() < 0.5:
            mask = torch.from_numpy((random.random(shape) < 0.5).astype(float))
            sums = sums.merged(batch_sums(Holding(p, torch.cat([y, mask], dim=1))))
            counts = mask.bool()
        else:
            sums = sums.merged(batch_sums(Holding(p, y)))
            counts = torch.ones_like(y, dtype=torch.bool)
        predictions.append(p[counts].numpy())
        targets.append(y[counts].numpy())
    expected = by_scipy(np.concatenate(predictions), np.concatenate(targets))
    assert sums.count == sum(map(len, targets))
    for metric, value in expected.items():
        assert sums.metric(metric) == pytest.approx(value, rel=1e-9, abs=1e-12), metric


def test_float32_voxels_are_summed_in_float64() -> None:
    """Ten million numbers of 4,096 and a little: a sum in float32 is wrong in the third digit of the variance."""
    random = np.random.default_rng(0)
    sums, parts = VoxelSums(), []
    for _ in range(10):
        y = (4096 + random.normal(size=(1, 1, 10**5))).astype(np.float32)
        p = (y + random.normal(size=y.shape) / 2).astype(np.float32)
        parts.append((p, y))
        sums = sums.merged(batch_sums(Holding(torch.from_numpy(p), torch.from_numpy(y))))
    p, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    for metric, value in by_scipy(p, y).items():
        assert sums.metric(metric) == pytest.approx(value, rel=1e-10), metric


def test_what_is_undefined_is_nan() -> None:
    y = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0))
    flat = torch.full_like(y, 0.1)
    undefined = {"r2", "pearson"}
    sums = batch_sums(Holding(y, flat))
    assert {metric for metric in OF if np.isnan(sums.metric(metric))} == undefined
    # Each constant by itself, together not: a merge sees the contrast between batches.
    both = sums.merged(batch_sums(Holding(y, flat + 1)))
    assert not any(np.isnan(both.metric(metric)) for metric in OF)
    assert np.isnan(batch_sums(Holding(flat, y)).metric("pearson"))
    assert batch_sums(Holding(flat, y)).metric("r2") < 0
    bad = y.clone()
    bad[0, 0, 0] = torch.inf
    none = torch.cat([y, torch.zeros_like(y)], dim=1)
    for sums in (batch_sums(Holding(bad, y)), batch_sums(Holding(y, none)), VoxelSums()):
        assert all(np.isnan(sums.metric(metric)) for metric in OF)
    assert batch_sums(Holding(y, none)).merged(batch_sums(Holding(y, y))).metric("mse") == 0.0


def test_shapes_and_masks_are_checked() -> None:
    y = torch.randn(2, 1, 3, 4, 5)
    with pytest.raises(RepmodeError, match=r"test stream, experience 3: .*\(2, 1, 3, 4, 5\).*\(2, 1, 3, 4\)"):
        batch_sums(Holding(y, y[..., 0]))
    with pytest.raises(RepmodeError, match="must be equal"):  # broadcasts in torch, silently
        batch_sums(Holding(y, y[:1]))
    with pytest.raises(RepmodeError, match="holds other values than 0 and 1"):
        batch_sums(Holding(y, torch.cat([y, y], dim=1)))
    with pytest.raises(RepmodeError, match=r"the target is a tensor of torch\.int64.*Avalanche's own"):
        batch_sums(Holding(y, torch.zeros(2, dtype=torch.int64)))
    assert batch_sums(Holding(y.bfloat16(), y)).metric("mse") < 1e-3


# -- names ------------------------------------------------------------------------------------------------------


def test_unknown_names_are_refused_with_the_nearest() -> None:
    for of in (forgetting_of, bwt_of, forward_transfer_of):
        with pytest.raises(
            RepmodeError, match=r"no metric 'R2': choose mse, mae, r2, pearson \(did you mean 'r2'\?\)"
        ):
            of("R2", stream=True)  # type: ignore[operator]
        with pytest.raises(RepmodeError, match="set experience or stream to True"):
            of("r2")  # type: ignore[operator]
    with pytest.raises(
        RepmodeError, match=r"definition 'best'.*from_best or from_learning \(did you mean 'from_best'"
    ):
        forgetting_of("r2", stream=True, definition="best")
    for name, metrics in OF.items():
        with pytest.raises(RepmodeError, match=f"{name}_metrics measures nothing"):
            metrics()


# -- Avalanche's own strategies ---------------------------------------------------------------------------------


def volumes(number: int, seed: int, shape: Sequence[int] = (3, 6, 6)) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 1, *shape, generator=generator)
    return TensorDataset(x, torch.sin(x) + seed + 0.3 * torch.randn(x.shape, generator=generator))


def plain_benchmark(labelled: bool, experiences: int = 3) -> Any:
    benchmark = benchmark_from_datasets(
        train=[AvalancheDataset([volumes(5, n)]) for n in range(experiences)],
        test=[AvalancheDataset([volumes(3 + n, 100 + n)]) for n in range(experiences)],
    )
    return task_incremental_benchmark(benchmark) if labelled else benchmark


class Recorder(SupervisedPlugin):
    """Keeps copies of what was predicted: of training batches, and by experience of evaluated ones."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[tuple[np.ndarray, np.ndarray]] = []
        self.evaluated: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.trained.append((strategy.mb_output.detach().numpy().copy(), strategy.mb_y.numpy().copy()))

    def after_eval_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        pairs = self.evaluated.setdefault(int(strategy.experience.current_experience), [])
        pairs += zip(strategy.mb_output.numpy().copy(), strategy.mb_y.numpy().copy(), strict=True)


def naive(model: nn.Module, *metrics: Any, plugins: Sequence[Any] = (), **options: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=options.pop("lr", 0.05))
    settings = {
        "train_mb_size": 2,
        "eval_mb_size": 2,
        "train_epochs": 2,
        "criterion": nn.MSELoss(),
        **options,
    }
    evaluator = settings.pop("evaluator", None) or quiet(*metrics)
    return Naive(model=model, optimizer=optimizer, evaluator=evaluator, plugins=list(plugins), **settings)


@pytest.mark.parametrize("labelled", [True, False])
def test_naive_agrees_with_scipy(labelled: bool) -> None:
    torch.manual_seed(0)
    benchmark, recorder = plain_benchmark(labelled), Recorder()
    strategy = naive(nn.Conv3d(1, 1, 3, padding=1), every_metric(), plugins=[recorder])
    for number, experience in enumerate(benchmark.train_stream):
        recorder.trained.clear()
        recorder.evaluated.clear()
        task = f"Task{number:03}" if labelled else "Task000"
        trained = strategy.train(experience)
        epoch = recorder.trained[3:]  # the second of two epochs, of three batches
        assert [len(p) for p, _ in epoch] == [2, 2, 1]
        results = strategy.eval(benchmark.test_stream)
        assert sorted(recorder.evaluated) == [0, 1, 2]
        whole = by_scipy(*(np.concatenate(part) for part in zip(*epoch, strict=True)))
        for name, title in TITLES.items():
            train, test = "train_phase/train_stream", f"{title}_Exp/eval_phase/test_stream"
            place = f"/{task}" if labelled else ""
            last = by_scipy(*epoch[-1])[name]
            assert trained[f"{title}_MB/{train}{place}"] == pytest.approx(last, rel=1e-6)
            assert trained[f"{title}_Epoch/{train}{place}"] == pytest.approx(whole[name], rel=1e-6)
            means = []
            for evaluated, pairs in recorder.evaluated.items():
                means.append(np.mean([by_scipy(*pair)[name] for pair in pairs]))
                assert len(pairs) == 3 + evaluated
                place = f"/Task{evaluated:03}" if labelled else ""
                assert results[f"{test}{place}/Exp{evaluated:03}"] == pytest.approx(means[-1], rel=1e-6)
            # Of the experiences, not of the images: they have different numbers.
            assert results[f"{title}_StreamMean/eval_phase/test_stream"] == pytest.approx(
                np.mean(means), rel=1e-6
            )
        assert len([key for key in results if "StreamMean" in key]) == 4
        assert results["R2_Exp/eval_phase/test_stream" + ("/Task002" if labelled else "") + "/Exp002"] < 0


def test_the_epoch_mse_is_avalanches_loss() -> None:
    from avalanche.evaluation.metrics import loss_metrics

    torch.manual_seed(0)
    benchmark = plain_benchmark(True)
    strategy = naive(nn.Conv3d(1, 1, 1), mse_metrics(epoch=True), loss_metrics(epoch=True))
    results = strategy.train(benchmark.train_stream)
    place = "_Epoch/train_phase/train_stream/Task002"
    assert results[f"MSE{place}"] == pytest.approx(results[f"Loss{place}"], rel=1e-5)


def test_a_mask_is_respected_in_naive_too() -> None:
    """A criterion of one's own takes the second channel as weights; the metrics take it as the mask."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 1, 2, 5, 5, generator=generator), torch.randn(3, 1, 2, 5, 5, generator=generator)
    mask = (torch.rand(y.shape, generator=generator) < 0.6).float()
    spoiled = torch.where(mask > 0, y, torch.full_like(y, 1e6))
    data = AvalancheDataset([TensorDataset(x, torch.cat([spoiled, mask], dim=1))])
    benchmark = task_incremental_benchmark(benchmark_from_datasets(train=[data], test=[data]))
    model = nn.Conv3d(1, 1, 1)
    nn.init.ones_(model.weight)
    nn.init.zeros_(model.bias)
    strategy = naive(model, every_metric(), criterion=masked_mse, lr=0.0, train_mb_size=3)
    trained, results = strategy.train(benchmark.train_stream[0]), strategy.eval(benchmark.test_stream)
    counts = mask.bool()
    whole = by_scipy(x[counts].numpy(), y[counts].numpy())
    each = [by_scipy(x[n][counts[n]].numpy(), y[n][counts[n]].numpy()) for n in range(3)]
    for name, title in TITLES.items():
        assert trained[f"{title}_Epoch/train_phase/train_stream/Task000"] == pytest.approx(
            whole[name], rel=1e-6
        )
        expected = np.mean([image[name] for image in each])
        assert results[f"{title}_StreamMean/eval_phase/test_stream"] == pytest.approx(expected, rel=1e-6)


def test_an_image_without_contrast_has_errors_and_no_r2() -> None:
    x = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    data = AvalancheDataset([TensorDataset(x, torch.stack([x[0], torch.full_like(x[1], 3.0)]))])
    benchmark = task_incremental_benchmark(benchmark_from_datasets(train=[data], test=[data]))
    results = naive(nn.Conv3d(1, 1, 1), mse_metrics(stream=True)).eval(benchmark.test_stream)
    assert results["MSE_StreamMean/eval_phase/test_stream"] > 0
    with pytest.raises(
        ImageError, match=r"test stream, experience 0, image 1 of the batch: the target is 3 in every"
    ):
        naive(nn.Conv3d(1, 1, 1), r2_metrics(stream=True)).eval(benchmark.test_stream)


# -- forgetting and transfer ------------------------------------------------------------------------------------

#: MSE of three experiences: before training, and after each of three trainings. R2 is 1 - MSE here.
MATRIX = ((4.0, 3.0, 5.0), (1.0, 2.0, 6.0), (0.5, 0.25, 4.5), (2.0, 1.25, 0.75))


class Scripted(nn.Module):
    """Predicts with the errors that it is given: target + error of the experience * noise."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.errors: Sequence[float] = MATRIX[0]

    def forward(self, x: Tensor) -> Tensor:
        target, noise, experience = x[:, :1], x[:, 1:2], int(x[0, 2].flatten()[0])
        return target + self.errors[experience] ** 0.5 * noise + 0 * self.unused


def scripted_benchmark(labels: Sequence[int] | None = None) -> Any:
    """Return experiences whose target and noise have mean 0 and variance 1, and nothing in common."""
    generator, sets = torch.Generator().manual_seed(0), []
    for number in range(3):
        basis, _ = torch.linalg.qr(
            torch.cat([torch.ones(64, 1), torch.randn(64, 2, generator=generator)], dim=1).double()
        )
        target, noise = (8 * basis[:, column].float().reshape(1, 1, 4, 4, 4) for column in (1, 2))
        x = torch.cat([target, noise, torch.full_like(target, number)], dim=1)
        sets.append(AvalancheDataset([TensorDataset(x, target)]))
    benchmark = benchmark_from_datasets(train=sets, test=sets)
    return benchmark if labels is None else task_incremental_benchmark(benchmark)


def play(
    *metrics: Any,
    labels: Sequence[int] | None = (0, 1, 2),
    order: Sequence[int] = (0, 1, 2),
    benchmark: Any = None,
    **options: Any,
) -> tuple[Any, list[dict[str, float]]]:
    """Train `order` with the errors of `MATRIX`, and return what each evaluation reports."""
    benchmark, model = benchmark or scripted_benchmark(labels), Scripted()
    strategy = naive(model, *metrics, **options)
    rows = [strategy.eval(benchmark.test_stream)]
    for row, number in enumerate(order, start=1):
        strategy.train(benchmark.train_stream[number], eval_streams=[])
        model.errors = MATRIX[row]
        strategy.evaluator.reset_last_metrics()
        rows.append(strategy.eval(benchmark.test_stream))
    return strategy, rows


@pytest.mark.parametrize("metric", ["mse", "r2"])
@pytest.mark.parametrize(
    ("of", "what", "second", "last"),
    [
        # of experience 0: best of 1.0 and 0.5, now 2.0; of experience 1: 0.25, now 1.25
        (
            lambda m, **at: forgetting_of(m, **at),
            "Forgetting_{}_from_best",
            {"0": -0.5},
            {"0": 1.5, "1": 1.0},
        ),
        # of experience 0: 1.0 after learning, now 2.0
        (
            lambda m, **at: forgetting_of(m, definition="from_learning", **at),
            "Forgetting_{}_from_learning",
            {"0": -0.5},
            {"0": 1.0, "1": 1.0},
        ),
        (bwt_of, "BWT_{}", {"0": 0.5}, {"0": -1.0, "1": -1.0}),
        # of experience 1: 3.0 untrained, 2.0 before learning; of experience 2: 5.0, 4.5
        (forward_transfer_of, "ForwardTransfer_{}", {"1": 1.0}, {"1": 1.0, "2": 0.5}),
    ],
    ids=["from_best", "from_learning", "bwt", "forward_transfer"],
)
@pytest.mark.parametrize("labels", [(0, 1, 2), None], ids=["labels", "no_labels"])
def test_measures_worked_out_by_hand(
    metric: str,
    of: Callable[..., Any],
    what: str,
    second: dict[str, float],
    last: dict[str, float],
    labels: Sequence[int] | None,
) -> None:
    """The same figures for MSE and R2: one is better when lower, and R2 is 1 - MSE, down to -5."""
    _, rows = play(of(metric, experience=True, stream=True), labels=labels)
    what = what.format(TITLES[metric])
    assert not [key for row in rows[:2] for key in row if what in key]
    for row, expected in ((rows[2], second), (rows[3], last)):
        values = {key: value for key, value in row.items() if what in key}
        places = {key.rsplit("/", 1)[1][-1]: value for key, value in values.items() if key.startswith("Exp")}
        assert places == pytest.approx(expected, abs=1e-5)
        mean = values.pop(f"StreamMean{what}/eval_phase/test_stream")
        assert mean == pytest.approx(sum(expected.values()) / len(expected), abs=1e-5)
        task = "Task000/" if labels else ""
        assert (f"Experience{what}/eval_phase/test_stream/{task}Exp000" in values) is ("0" in expected)


@pytest.mark.parametrize("metric", ["mae", "pearson"])
def test_measures_of_the_other_metrics(metric: str) -> None:
    _, rows = play(
        OF[metric](experience=True),
        forgetting_of(metric, experience=True, stream=True),
        bwt_of(metric, stream=True),
    )
    title, place = TITLES[metric], "eval_phase/test_stream"
    better = 1 if HIGHER_IS_BETTER[metric] else -1
    matrix = [[better * row[f"{title}_Exp/{place}/Task00{n}/Exp00{n}"] for n in range(3)] for row in rows]
    if metric == "pearson":
        np.testing.assert_allclose(matrix, 1 / np.sqrt(1 + np.array(MATRIX)), rtol=1e-5)
    lost = [max(matrix[1][0], matrix[2][0]) - matrix[3][0], matrix[2][1] - matrix[3][1]]
    assert min(lost) > 0
    for number, value in enumerate(lost):
        key = f"ExperienceForgetting_{title}_from_best/{place}/Task00{number}/Exp00{number}"
        assert rows[3][key] == pytest.approx(value)
    assert rows[3][f"StreamMeanForgetting_{title}_from_best/{place}"] == pytest.approx(sum(lost) / 2)
    gained = [matrix[3][0] - matrix[1][0], matrix[3][1] - matrix[2][1]]
    assert rows[3][f"StreamMeanBWT_{title}/{place}"] == pytest.approx(sum(gained) / 2)


def test_evaluations_in_the_middle_of_training_are_not_kept() -> None:
    """One is near perfect: it would be the best ever, from which all is forgotten."""

    class Peek(SupervisedPlugin):
        def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            errors, strategy.model.errors = strategy.model.errors, (1e-4,) * 3
            strategy.eval(benchmark.test_stream)
            seen.update(strategy.evaluator.get_last_metrics())
            strategy.model.errors = errors

    benchmark, seen = scripted_benchmark((0, 1, 2)), {}
    metrics = (*forgetting_of("mse", stream=True), *forward_transfer_of("mse", stream=True))
    _, rows = play(metrics, benchmark=benchmark, plugins=[Peek()])
    assert rows[3]["StreamMeanForgetting_MSE_from_best/eval_phase/test_stream"] == pytest.approx(
        1.25, abs=1e-5
    )
    assert rows[3]["StreamMeanForwardTransfer_MSE/eval_phase/test_stream"] == pytest.approx(0.75, abs=1e-5)
    # They are compared: while the third experience is learned, with the best of 0.5 and 0.25.
    expected = np.mean([1e-4 - 0.5, 1e-4 - 0.25])
    assert seen["StreamMeanForgetting_MSE_from_best/eval_phase/test_stream"] == pytest.approx(
        expected, abs=1e-5
    )


def test_another_stream_is_not_mixed_in() -> None:
    """Evaluating the training stream too, as `eval_every` does by default, leaves the test stream's figures."""
    benchmark, model = scripted_benchmark((0, 1, 2)), Scripted()
    strategy = naive(model, forgetting_of("mse", stream=True), eval_every=1)
    for row, experience in enumerate(benchmark.train_stream, start=1):
        strategy.train(experience)  # evaluates the training experience, with the old errors
        model.errors = MATRIX[row]
        strategy.eval(benchmark.train_stream[:1])
        results = strategy.eval(benchmark.test_stream)
    assert results["StreamMeanForgetting_MSE_from_best/eval_phase/test_stream"] == pytest.approx(
        1.25, abs=1e-5
    )
    assert results["StreamMeanForgetting_MSE_from_best/eval_phase/train_stream"] == pytest.approx(
        1.5, abs=1e-5
    )


def test_what_was_not_evaluated_is_nan_and_not_zero() -> None:
    benchmark, model = scripted_benchmark((0, 1, 2)), Scripted()
    strategy = naive(model, forgetting_of("r2", experience=True), bwt_of("r2", experience=True))
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
    results = strategy.eval(benchmark.test_stream)
    place = "eval_phase/test_stream/Task000/Exp000"
    assert np.isnan(results[f"ExperienceForgetting_R2_from_best/{place}"])
    assert np.isnan(results[f"ExperienceBWT_R2/{place}"])
    assert not [key for key in results if "Exp002" in key]  # had no time to be forgotten


def test_a_training_of_the_same_experience_starts_again() -> None:
    _, rows = play(forgetting_of("mse", experience=True), order=(0, 1, 0))
    forgotten = {key: value for key, value in rows[3].items() if "Forgetting" in key}
    assert [key[-6:] for key in forgotten] == ["Exp001"]
    assert list(forgotten.values()) == pytest.approx([1.0], abs=1e-5)  # 0.25, now 1.25


def test_forward_transfer_wants_an_evaluation_before_training() -> None:
    benchmark = scripted_benchmark((0, 1, 2))
    strategy = naive(Scripted(), forward_transfer_of("r2", stream=True))
    with pytest.raises(RepmodeError, match=r"call strategy\.eval\(benchmark\.test_stream\) first"):
        strategy.train(benchmark.train_stream[0])


def test_the_columns_of_avalanches_csv_logger(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    evaluator = EvaluationPlugin(forgetting_of("r2", experience=True, stream=True), loggers=[logger])
    play(evaluator=evaluator)
    logger.close()
    with (tmp_path / "eval_results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # Of four evaluations; the column is 0 where nothing is reported.
    last = {row["eval_exp"]: float(row["forgetting"]) for row in rows[-3:]}
    assert last == {"0": 1.5, "1": 1.0, "2": 0.0}
    assert {row["training_exp"] for row in rows[-3:]} == {"2"}


# -- our strategies ---------------------------------------------------------------------------------------------


def equip(strategy: StructureStrategy, *metrics: Any) -> None:
    """Give a strategy more metrics."""
    strategy.evaluator.metrics.extend(metrics)


def exp_key(title: str, strategy: Any, structure: str, stream: str = "test_stream") -> str:
    label = strategy.stream.labels[structure]
    [place] = [n for n, names in enumerate(strategy.stream.experiences) if structure in names][:1]
    return f"{title}/eval_phase/{stream}/Task{label:03}/Exp{place:03}"


@pytest.mark.parametrize("name", BUILD)
def test_ours_report_what_evaluate_returns_to_the_bit(samples: list[Sample], name: str) -> None:
    strategy = build(name, samples)
    equip(strategy, *every_metric())
    for number in range(len(strategy.stream.experiences)):
        learn(strategy, number)
        figures = strategy.evaluate(strategy.stream.known_after(number))
        results = strategy.evaluator.get_last_metrics()
        for metric, title in TITLES.items():
            for structure, values in figures.items():
                assert results[exp_key(f"{title}_Exp", strategy, structure)] == values[metric]
            # Of the structures: the base's experience has two.
            mean = np.mean([values[metric] for values in figures.values()])
            assert results[f"{title}_StreamMean/eval_phase/test_stream"] == pytest.approx(mean, rel=1e-12)


def masked(samples: Sequence[Sample], folder: Path) -> list[Sample]:
    """Return the samples with masks that leave out voxels of nonsense."""
    made = []
    for sample in samples:
        mask = np.random.default_rng(sample.row).random(sample.shape) < 0.7
        target = np.where(mask, np.load(sample.target), 1e4).astype(np.float32)
        paths = [folder / f"{sample.image_id}-{part}.npy" for part in ("mask", "target")]
        np.save(paths[0], mask.astype(np.uint8))
        np.save(paths[1], target)
        made.append(replace(sample, mask=paths[0], target=paths[1]))
    return made


def test_ours_with_masks_and_accumulated_batches(samples: list[Sample], tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"batch_size": 4, "accumulate": 2, "steps": 2, "base_steps": 2})
    strategy = experts_frozen(stream_of(masked(samples, tmp_path), APART), training=training)
    equip(strategy, *mse_metrics(minibatch=True, epoch=True), *OF["r2"](experience=True))
    losses, minibatch = [], []
    strategy.listeners.append(lambda s: losses.append(float(s.last_loss)))
    strategy.listeners.append(
        lambda s: minibatch.append(s.evaluator.last_metric_results["MSE_MB/train_phase/train_stream/Task000"])
    )
    learn(strategy, 0)
    # Of all parts of a step's batch, each voxel with the same weight, as the loss.
    assert len(losses) == 2
    assert minibatch == pytest.approx(losses, rel=1e-4)
    assert max(losses) < 100  # what is masked out is 1e4
    figures = strategy.evaluate(strategy.stream.known_after(0))
    results = strategy.evaluator.get_last_metrics()
    assert results[exp_key("R2_Exp", strategy, "dna")] == figures["dna"]["r2"] > -100


#: Two structures, then the first again, then a third.
AGAIN = (("dna",), ("nucleolus",), ("dna",), ("mitochondria",))


@pytest.mark.parametrize("ours", [True, False])
def test_a_structure_that_comes_again_starts_again(samples: list[Sample], ours: bool) -> None:
    """A unit is the structure, in ours and in Naive: counted once, of the first experience that shows it."""
    stream = stream_of(samples, AGAIN)
    metrics = [*r2_metrics(experience=True, stream=True), *forgetting_of("r2", experience=True, stream=True)]
    strategy: Any
    if ours:
        strategy = fine_tuning(stream)
        equip(strategy, *metrics)
    else:
        torch.manual_seed(0)
        strategy = naive(nn.Conv3d(1, 1, 3, padding=1), metrics, eval_mb_size=1)
        strategy.stream = stream
    rows = []
    for number in range(4):
        if ours:
            learn(strategy, number)
        else:
            strategy.train(stream.train[number], eval_streams=[])
        strategy.evaluator.reset_last_metrics()
        (strategy.evaluate if ours else strategy.eval)(stream.test[: number + 1])
        rows.append(strategy.evaluator.get_last_metrics())
    r2 = [row[exp_key("R2_Exp", strategy, "dna")] for row in rows]
    dna, other = (exp_key("ExperienceForgetting_R2_from_best", strategy, n) for n in ("dna", "nucleolus"))
    assert [dna in row for row in rows] == [False, True, False, True]
    assert rows[1][dna] == r2[0] - r2[1]
    assert rows[3][dna] == r2[2] - r2[3]
    mean = (rows[3][dna] + rows[3][other]) / 2
    assert rows[3]["StreamMeanForgetting_R2_from_best/eval_phase/test_stream"] == pytest.approx(mean)
    each = [rows[3][exp_key("R2_Exp", strategy, n)] for n in ("dna", "nucleolus", "mitochondria")]
    assert rows[3]["R2_StreamMean/eval_phase/test_stream"] == pytest.approx(np.mean(each))


def test_the_loop_of_avalanches_users(samples: list[Sample], tmp_path: Path) -> None:
    stream, logger = stream_of(samples), CSVLogger(tmp_path)
    metrics = r2_metrics(experience=True), forgetting_of("r2", experience=True, stream=True)
    strategy = FineTuning(
        model=RepModeUNet(ARCHITECTURE, BASE, seed=0),
        training=TRAINING,
        evaluator=EvaluationPlugin(*metrics, loggers=[logger]),
    )
    rows = []
    for experience in stream.train_stream:
        strategy.train(experience)
        rows.append(strategy.eval(stream.test_stream))
    logger.close()
    names = ("dna", "cell_membrane", "nucleolus", "mitochondria")
    r2 = {name: [row.get(exp_key("R2_Exp", strategy, name)) for row in rows] for name in names}
    assert r2["nucleolus"][0] is None  # never predicted before it is learned
    lost = {name: max(r2[name][:2]) - r2[name][2] for name in ("dna", "cell_membrane")}
    lost["nucleolus"] = r2["nucleolus"][1] - r2["nucleolus"][2]
    assert any(lost.values())
    for name in names:
        key = exp_key("ExperienceForgetting_R2_from_best", strategy, name)
        assert rows[2].get(key) == lost.get(name)
    mean = rows[2]["StreamMeanForgetting_R2_from_best/eval_phase/test_stream"]
    assert mean == pytest.approx(sum(lost.values()) / 3)
    with (tmp_path / "eval_results.csv").open(encoding="utf-8") as file:
        last = {row["eval_exp"]: float(row["forgetting"]) for row in list(csv.DictReader(file))[-3:]}
    assert last["1"] == pytest.approx(lost["nucleolus"], abs=5e-5)
    assert last["2"] == 0.0


def test_ours_refuse_the_forward_transfer_of_gem(samples: list[Sample]) -> None:
    strategy = build("experts_frozen", samples)
    equip(strategy, *forward_transfer_of("r2", stream=True))
    with pytest.raises(
        RepmodeError, match=r"ExpertsFrozen predicts no structure that it does not know, by design"
    ):
        strategy.train(strategy.stream.train[0], eval_streams=[])
    with pytest.raises(RepmodeError, match="by design"):
        strategy.evaluate([strategy.stream.test[0]])


@pytest.mark.slow
def test_a_benchmarks_metrics_are_the_figures_of_its_results(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the base is trained once and loaded into the other strategies, which do not see its training."""
    evaluate = StructureStrategy.eval

    def equipped(*metrics: Any, loggers: Any) -> EvaluationPlugin:
        more = [
            metric
            for name, metrics_of in OF.items()
            for metric in (
                *metrics_of(experience=True, stream=True),
                *bwt_of(name, experience=True),
                *forgetting_of(name, experience=True, stream=True),
            )
        ]
        return EvaluationPlugin(*metrics, more, loggers=loggers)

    def spied(self: Any, *args: Any, **kwargs: Any) -> Any:
        results = evaluate(self, *args, **kwargs)
        # Validations too; those are of another stream.
        tested = {key: value for key, value in results.items() if "/test_stream" in key}
        kept.append((type(self).__name__, dict(self.stream.labels), tested))
        self.evaluator.reset_last_metrics()
        return results

    kept: list[tuple[str, dict[str, int], dict[str, float]]] = []
    monkeypatch.setattr(repmode_cl.strategies.base, "EvaluationPlugin", equipped)
    monkeypatch.setattr(StructureStrategy, "eval", spied)
    config = tiny(manifest, tmp_path)
    folder = run_benchmark(changed(config, strategies=config.strategies[:2]))
    table = ResultsTable.read(folder / "results.csv")
    experiences = (config.stream.base, *((name,) for name in config.stream.order))
    for kind, title in (("ExpertsFrozen", "experts_frozen"), ("FineTuning", "fine_tuning")):
        rows = [(labels, results) for owner, labels, results in kept if owner == kind and results]
        assert len(rows) == len(experiences)
        for name, metric in TITLES.items():
            matrix = performance_matrix(table, title, name, config.seeds[0], experiences)
            for step, (labels, results) in enumerate(rows):
                for structure, column in zip(matrix.structures, matrix.values.T, strict=True):
                    found = value_of(results, f"{metric}_Exp", labels[structure])
                    assert found == (None if np.isnan(column[step]) else column[step])
                found = results[f"{metric}_StreamMean/eval_phase/test_stream"]
                assert found == pytest.approx(np.nanmean(matrix.values[step]), rel=1e-12)
            labels, results = rows[-1]
            lost, gained = forgetting(matrix), backward_transfer(matrix)
            assert set(lost) == {"dna", "cell_membrane", "nucleolus"}
            for structure in matrix.structures:
                found = value_of(results, f"ExperienceForgetting_{metric}_from_best", labels[structure])
                assert found == lost.get(structure)
                assert value_of(results, f"ExperienceBWT_{metric}", labels[structure]) == gained.get(
                    structure
                )
            mean = results[f"StreamMeanForgetting_{metric}_from_best/eval_phase/test_stream"]
            assert mean == pytest.approx(np.mean(list(lost.values())), rel=1e-12, abs=1e-15)
            if title == "experts_frozen":
                assert set(lost.values()) == {0.0}
            else:
                assert any(lost.values())


def value_of(results: dict[str, float], title: str, label: int) -> float | None:
    """Return the figure of a structure; None where it is not reported."""
    found = [
        value for key, value in results.items() if key.startswith(f"{title}/") and f"/Task{label:03}/" in key
    ]
    assert len(found) <= 1
    return found[0] if found else None


# -- the guide --------------------------------------------------------------------------------------------------


def test_the_guides_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Path(repmode_cl.__file__).parents[1] / "docs" / "avalanche.md"
    section = guide.read_text(encoding="utf-8").split("\n## Metrics\n")[1].split("\n## ")[0]
    script, others = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(script, str(guide), "exec"), names)
    names["strategy"].evaluator.loggers[1].close()
    results = names["results"]
    assert results["R2_StreamMean/eval_phase/test_stream"] < 1
    forgotten = results["StreamMeanForgetting_R2_from_best/eval_phase/test_stream"]
    exec(compile(others, str(guide), "exec"), names)
    # All begin with the same weights: only what Avalanche's strategies do against forgetting differs.
    assert set(names["forgotten"]) == {"Replay", "EWC"}
    assert all(0 < value < forgotten for value in names["forgotten"].values()), (
        names["forgotten"],
        forgotten,
    )
