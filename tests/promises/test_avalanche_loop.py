"""The loop that users of Avalanche write: it learns every experience, and its figures are those of a benchmark."""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from repmode_cl.scenarios import StructureStream, structure_stream  # isort: skip - it imports Avalanche quietly

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.evaluation.metric_definitions import GenericPluginMetric
from avalanche.evaluation.metrics import loss_metrics, timing_metrics
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    LRSchedulerPlugin,
    SupervisedPlugin,
)
from tiny_run import ADDED, BASE, PATCH, SEED, STRUCTURES, changed, tiny
from tiny_strategies import differing, state_of
from torch import Tensor, nn
from typer.testing import CliRunner

from repmode_cl.benchmark import run_benchmark
from repmode_cl.cli.app import app
from repmode_cl.config import StrategyConfig, TrainingConfig
from repmode_cl.errors import ConfigError, StructureError, UnknownStructureError
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.results import ResultsTable
from repmode_cl.strategies import (
    AGEM,
    EWC,
    MAS,
    Cumulative,
    ExpertsFrozen,
    FineTuning,
    FrozenEncoder,
    Joint,
    LwF,
    MultiNet,
    PlainNetworks,
    Replay,
    StructureStrategy,
    SynapticIntelligence,
)

ARCHITECTURE = Architecture(width=4, depth=1, experts=("conv3", "conv1", "avg3"))
#: Name in a configuration -> class, of those that learn the stream as it is.
LOOPED: dict[str, type[StructureStrategy]] = {
    "experts_frozen": ExpertsFrozen, "fine_tuning": FineTuning, "frozen_encoder": FrozenEncoder, "replay": Replay,
    "a_gem": AGEM, "ewc": EWC, "synaptic_intelligence": SynapticIntelligence, "mas": MAS, "lwf": LwF,
    "cumulative": Cumulative,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {"replay": {"buffer": 4}, "a_gem": {"buffer": 4}}


class MeanSquare(GenericPluginMetric[float, "Square"]):
    """Mean square of the error of each experience, or of each epoch."""

    def __init__(self, emit_at: str = "experience", mode: str = "eval") -> None:
        super().__init__(Square(), "experience", emit_at, cast(Any, mode))

    def update(self, strategy: Any) -> None:
        self._metric.update(strategy.mb_output[:, :1], strategy.mb_y[:, :1])

    def __str__(self) -> str:
        return "MeanSquare"


class Square:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, output: Tensor, target: Tensor) -> None:
        self.sum += float((output.cpu() - target.cpu()).square().sum())
        self.count += target.numel()

    def result(self) -> float:
        return self.sum / self.count


class Recorder(SupervisedPlugin):
    """A plugin of one's own: notes the events that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, int]] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.events.append(("begin", strategy.experience.current_experience))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.events.append(("end", strategy.experience.current_experience))

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.events.append(("epoch", len(strategy.dataloader)))

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        assert math.isfinite(strategy.loss.item())
        self.events.append(("step", strategy.clock.train_exp_iterations + 1))  # the clock is the last plugin

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self.events.append(("eval", len(list(strategy.current_eval_stream))))

    def of(self, kind: str) -> list[int]:
        return [number for event, number in self.events if event == kind]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


Streams = Callable[..., StructureStream]


@pytest.fixture
def stream_for(manifest: Path, cache: Path) -> Streams:
    """Return a function that makes the stream of the tests, with 8 patches in each experience."""

    def make(order: Any = ADDED, **options: Any) -> StructureStream:
        options = {"base": BASE, "patch": PATCH, "patches": 8, "seed": SEED, **options}
        return structure_stream(manifest, order, cache=cache, **options)

    return make


def network(*names: str) -> RepModeUNet:
    return RepModeUNet(ARCHITECTURE, names or BASE, seed=SEED)


def silent(*metrics: Any) -> EvaluationPlugin:
    return EvaluationPlugin(*metrics, loggers=[InteractiveLogger()])


def make(kind: type[StructureStrategy] = ExpertsFrozen, **options: Any) -> StructureStrategy:
    options = {"model": network(), "train_mb_size": 2, "device": "cpu", "seed": SEED, **options}
    return kind(**options)


def run_loop(strategy: StructureStrategy, benchmark: StructureStream) -> list[dict[str, dict[str, float]]]:
    """Write the loop of Avalanche's tutorial; return the figures after each experience."""
    figures = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        figures.append(strategy.figures)
    return figures


# -- the loop -----------------------------------------------------------------------------------------------------


def test_every_experience_is_trained(stream_for: Streams) -> None:
    benchmark = stream_for()
    recorder = Recorder()
    strategy = make(plugins=[recorder], evaluator=silent(MeanSquare()))
    results = []
    for number, experience in enumerate(benchmark.train_stream):
        before = state_of(strategy)
        metrics = strategy.train(experience)
        assert isinstance(metrics, dict)
        assert strategy.progress.step == 4
        assert strategy.progress.experience == number
        after = state_of(strategy)
        assert differing(before, after) if number == 0 else set(after) - set(before)
        results.append(strategy.eval(benchmark.test_stream))
        assert set(strategy.figures) == {*BASE, *ADDED[:number]}
    assert recorder.of("step") == [1, 2, 3, 4] * 3
    assert recorder.of("begin") == recorder.of("end") == [0, 1, 2]
    assert recorder.of("eval") == [1, 2, 3]
    names = [sorted(name for name in result if name.startswith("MeanSquare")) for result in results]
    assert [len(one) for one in names] == [1, 2, 3]
    assert all("eval_phase/test_stream" in name for name in names[-1])
    for number, name in enumerate(names[-1][:2]):
        # What was learned before does not change, to the bit.
        assert results[number][names[number][0]] == results[-1][names[number][0]], name


def test_a_stream_is_trained_as_its_experiences_are(stream_for: Streams) -> None:
    benchmark = stream_for()
    one_by_one, at_once = make(Replay, buffer=4), make(Replay, buffer=4)
    run_loop(one_by_one, benchmark)
    metrics = at_once.train(benchmark.train_stream)
    assert isinstance(metrics, dict)
    assert differing(state_of(one_by_one), state_of(at_once)) == set()
    assert one_by_one.progress.curve == at_once.progress.curve


def test_slices_and_their_order(stream_for: Streams) -> None:
    benchmark = stream_for()
    whole, sliced = make(), make()
    run_loop(whole, benchmark)
    sliced.train(benchmark.train_stream[:2])
    sliced.eval(benchmark.test_stream[1:2])
    assert set(sliced.figures) == {ADDED[0]}
    sliced.train(benchmark.train_stream[2])
    assert differing(state_of(whole), state_of(sliced)) == set()


#: Strategies whose figures are compared each time: ours, and one that keeps patches (EWC, which keeps importances, is
#: compared below).
COMPARED = ("experts_frozen", "replay")


@pytest.mark.parametrize(
    "name", [name if name in COMPARED else pytest.param(name, marks=pytest.mark.slow) for name in LOOPED]
)
def test_figures_are_those_of_a_benchmark(
    stream_for: Streams, manifest: Path, tmp_path: Path, name: str
) -> None:
    """To the bit, with the sections of a configuration; random numbers that others draw do not matter."""
    options = OPTIONS.get(name, {})
    config = changed(
        tiny(manifest, tmp_path), name="looped", strategies=(StrategyConfig(name=name, **options),)
    )
    table = ResultsTable.read(run_benchmark(config) / "results.csv")
    benchmark = stream_for(patches=lambda names, _: 12 if len(names) > 1 else 8)
    torch.manual_seed(99)
    strategy = LOOPED[name](
        model=network(), training=config.training, inference=config.inference, seed=SEED, **options
    )
    for step, figures in enumerate(run_loop(strategy, benchmark)):
        torch.rand(3)
        expected = {
            (row.structure, row.metric): row.value
            for row in table
            if row.step == step and row.metric in HIGHER_IS_BETTER
        }
        found = {
            (name, metric): value for name, metrics in figures.items() for metric, value in metrics.items()
        }
        assert found == expected


@pytest.mark.slow
def test_avalanches_arguments_give_a_benchmarks_figures(
    stream_for: Streams, manifest: Path, tmp_path: Path
) -> None:
    """To the bit too, where the optimiser has the form that the package takes: one pass over memory."""
    training = TrainingConfig(
        batch_size=2,
        steps=4,
        base_steps=4,
        learning_rate=0.02,
        weight_decay=0.01,
        device="cpu",
    )
    config = changed(
        tiny(manifest, tmp_path),
        name="arguments",
        training=training,
        strategies=(StrategyConfig(name="ewc"),),
    )
    table = ResultsTable.read(run_benchmark(config) / "results.csv")
    benchmark, model = stream_for(), network()
    strategy = EWC(
        model=model, optimizer=torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=0.01, fused=True),
        criterion=nn.MSELoss(), train_mb_size=2, train_epochs=1, eval_mb_size=4, device="cpu", seed=SEED,
    )  # fmt: skip
    for step, figures in enumerate(run_loop(strategy, benchmark)):
        for structure, metrics in figures.items():
            for metric, value in metrics.items():
                [row] = [r for r in table if (r.step, r.structure, r.metric) == (step, structure, metric)]
                assert row.value == value


def test_the_callers_random_numbers_go_on(stream_for: Streams) -> None:
    benchmark, strategy = stream_for(), make()
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(2).tolist(), torch.rand(1).tolist(), np.random.rand(2).tolist()
    torch.manual_seed(5)
    np.random.seed(5)
    first = torch.rand(2).tolist()
    strategy.train(benchmark.train_stream[0])
    assert (first, torch.rand(1).tolist(), np.random.rand(2).tolist()) == expected


def script_of_the_guide() -> str:
    """Return the first script of the guide, which is to be run where there is a manifest ``cells/manifest.csv``."""
    text = (Path(__file__).parents[2] / "docs" / "avalanche.md").read_text(encoding="utf-8")
    script = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert "cells/manifest.csv" in script
    return str(script)


@pytest.mark.parametrize(
    ("kind", "patches"), [pytest.param("ExpertsFrozen", 400, marks=pytest.mark.slow), ("FineTuning", 16)]
)
def test_the_script_of_the_guide(
    kind: str,
    patches: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As it stands, with real files; and with the strategy that forgets, for which it reports forgetting."""
    monkeypatch.chdir(tmp_path)
    arguments = ["data", "simulate", "cells", "--fields", "4", "--shape", "12,32,32"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    script = script_of_the_guide()
    names: dict[str, Any] = {}
    script = script.replace("ExpertsFrozen", kind).replace("patches=400", f"patches={patches}")
    exec(compile(script, "avalanche.md", "exec"), names)
    results, strategy = names["results"], names["strategy"]
    _, table, events = strategy.evaluator.loggers  # their files would stay open
    table.close()
    events.writer.close()
    assert strategy.network.structures == ("dna", "cell_membrane", "nucleolus")
    assert strategy.progress.step == patches // 8
    shown = capsys.readouterr().out
    assert shown.count("learned so far:") == 3
    exact = {
        name: value for name, value in results.items() if name.startswith("R2_Exp/eval_phase/test_stream")
    }
    assert list(exact.values()) == [strategy.figures[name]["r2"] for name in strategy.network.structures]
    # The last structure has nothing to forget yet, and is not reported.
    forgetting = [value for name, value in results.items() if name.startswith("ExperienceForgetting_R2")]
    assert len(forgetting) == 2
    if kind == "ExpertsFrozen":
        assert forgetting == [0.0, 0.0]
    else:
        assert all(value != 0.0 for value in forgetting)
    assert any(name.startswith("Loss_Epoch/train_phase/train_stream") for name in results)
    assert any(name.startswith("Time_Epoch/train_phase") for name in results)
    assert (tmp_path / "logs" / "eval_results.csv").exists()
    assert list((tmp_path / "events").glob("events*"))


# -- what strategies keep -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_replay_ewc_and_lwf_keep_what_they_need(stream_for: Streams) -> None:
    benchmark = stream_for()
    training = TrainingConfig(
        batch_size=2, steps=4, base_steps=4, learning_rate=0.02, validate_every=4, device="cpu"
    )
    sections: dict[str, Any] = {"training": training, "train_mb_size": None}
    plain = make(FineTuning, **sections)
    run_loop(plain, benchmark)
    for kind, kept in (
        (Replay, lambda s: s.buffer.patches),
        (AGEM, lambda s: s.buffer.patches),
        (EWC, lambda s: s.importance),
        (MAS, lambda s: s.importance),
        (SynapticIntelligence, lambda s: s.importance),
        (LwF, lambda s: s._teacher is not None),
    ):
        strategy = make(kind, **sections)
        strategy.train(benchmark.train_stream[0])
        assert kept(strategy), kind.__name__
        strategy.train(benchmark.train_stream[1:])
        assert differing(state_of(plain), state_of(strategy)), kind.__name__


def test_replayed_patches_are_of_the_base(stream_for: Streams) -> None:
    benchmark, strategy = stream_for(), make(Replay, buffer=4)
    strategy.train(benchmark.train_stream[:2])
    assert {name for name, _ in strategy.trained_patches[1]} == {*BASE, ADDED[0]}


@pytest.mark.parametrize(
    "kind",
    [
        Replay,
        EWC,
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in (ExpertsFrozen, LwF, Cumulative)),
    ],
)
def test_a_base_that_is_ready_is_adopted(stream_for: Streams, kind: type[StructureStrategy]) -> None:
    """As if it had been trained here: what is kept of it, what plugins see, and all that follows."""
    benchmark = stream_for()
    whole = make(kind)
    whole.train(benchmark.train_stream[0])
    base = state_of(whole)
    whole.train(benchmark.train_stream[1:])
    model = network()
    model.load_state_dict(base)
    recorder = Recorder()
    later = make(kind, model=model, plugins=[recorder])
    later.adopt_experience(benchmark.train_stream[0])
    assert recorder.events == [("begin", 0), ("end", 0)]
    assert differing(base, state_of(later)) == set()
    later.train(benchmark.train_stream[1:])
    assert differing(state_of(whole), state_of(later)) == set()


def test_what_cannot_be_adopted_is_refused(stream_for: Streams) -> None:
    benchmark = stream_for()
    with pytest.raises(
        ConfigError, match=r"experience 1 comes before experience 0 was learned.*adopt_experience"
    ):
        make(Replay).train(benchmark.train_stream[1])
    with pytest.raises(ConfigError, match=f"does not know {ADDED[0]}"):
        make().adopt_experience(benchmark.train_stream[1])
    with pytest.raises(ConfigError, match="measures importances while it trains"):
        make(SynapticIntelligence).adopt_experience(benchmark.train_stream[0])


# -- a given optimiser and criterion ------------------------------------------------------------------------------


def test_a_given_optimiser_stays_and_holds_what_is_trained(stream_for: Streams) -> None:
    benchmark, model = stream_for(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    strategy = make(model=model, optimizer=optimizer)
    held: list[set[str]] = []

    def look(strategy: StructureStrategy) -> None:
        names = {id(p): name for name, p in strategy.network.named_parameters()}
        held.append({names[id(p)] for group in optimizer.param_groups for p in group["params"]})
        assert strategy.optimizer is optimizer
        if strategy.progress.step == 1:
            assert [group["lr"] for group in optimizer.param_groups] == [0.01]
            optimizer.param_groups[0]["lr"] = 0.005
            assert len(optimizer.state) <= len(held[-1])

    strategy.listeners.append(look)
    for experience in benchmark.train_stream:
        before = state_of(strategy)
        held.clear()
        strategy.train(experience)
        assert all(names == set(strategy.optimized_param_id) == set(strategy.trained) for names in held)
        if experience.current_experience:
            assert differing(before, state_of(strategy)) == set()


def test_parameters_stay_in_the_group_that_they_were_given_in(stream_for: Streams) -> None:
    benchmark, model = stream_for(), network()
    gates = [p for name, p in model.named_parameters() if ".gates." in name]
    others = [p for name, p in model.named_parameters() if ".gates." not in name]
    optimizer = torch.optim.AdamW([{"params": others, "lr": 0.01}, {"params": gates, "lr": 0.002}])
    strategy = make(FineTuning, model=model, optimizer=optimizer)
    strategy.train(benchmark.train_stream[0])
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(others), len(gates)]
    strategy.train(benchmark.train_stream[1])
    names = {id(p): name for name, p in model.named_parameters()}
    assert {
        names[id(p)] for p in optimizer.param_groups[1]["params"]
    } == set()  # rows of the base are not trained
    with pytest.raises(ConfigError, match="not the model's"):
        make(optimizer=torch.optim.Adam(network().parameters()))
    with pytest.raises(ConfigError, match="addition_learning_rate"):
        make(model=model, optimizer=optimizer, addition_learning_rate=0.1)


def test_a_given_optimiser_trains_as_it_would_by_itself(stream_for: Streams) -> None:
    """A second training of the same experience starts as the first: no state of Adam is left."""
    benchmark = stream_for()
    model, other = network(), network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    given = make(model=model, optimizer=optimizer)
    given.train(benchmark.train_stream[0])
    model.load_state_dict(network().state_dict())
    given.train(benchmark.train_stream[0])
    fresh = make(model=other, optimizer=torch.optim.Adam(other.parameters(), lr=0.02))
    fresh.train(benchmark.train_stream[0])
    assert differing(state_of(given), state_of(fresh)) == set()
    default = make()
    default.train(benchmark.train_stream[0])
    assert differing(state_of(default), state_of(fresh))


def test_a_given_criterion_counts(stream_for: Streams, samples: Any) -> None:
    benchmark = stream_for()
    shapes: list[tuple[int, ...]] = []

    def absolute(output: Tensor, target: Tensor) -> Tensor:
        shapes.append(tuple(output.shape))
        assert output.shape == target.shape
        return (output - target).abs().mean()

    trained = make(criterion=absolute)
    trained.train(benchmark.train_stream[0])
    voxels = 2 * math.prod(PATCH)
    assert shapes[0] == (voxels,)
    squared = make()
    squared.train(benchmark.train_stream[0])
    assert differing(state_of(trained), state_of(squared))
    mean = make(criterion=nn.MSELoss())
    mean.train(benchmark.train_stream[0])
    assert differing(state_of(mean), state_of(squared)) == set()
    with pytest.raises(ValueError, match="a loss is one number"):
        make(criterion=nn.MSELoss(reduction="none")).train(benchmark.train_stream[0])


def test_the_criterion_is_what_a_gem_and_ewc_take_gradients_of(stream_for: Streams) -> None:
    benchmark = stream_for()
    for kind in (AGEM, EWC):
        calls = []

        def huber(output: Tensor, target: Tensor, calls: list[int] = calls) -> Tensor:
            calls.append(len(output))
            return nn.functional.smooth_l1_loss(output, target)

        strategy = make(kind, criterion=huber)
        strategy.train(benchmark.train_stream[:2])
        images = len(benchmark.images[0]) + len(benchmark.images[1])
        assert len(calls) > 8 + (images if kind is EWC else 0) - 1


# -- epochs, steps and plugins ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Replay, pytest.param(ExpertsFrozen, marks=pytest.mark.slow)])
def test_epochs_are_real(stream_for: Streams, kind: type[StructureStrategy]) -> None:
    """Two epochs of four patches are the steps of one epoch of eight: each pass cuts other patches."""
    recorder = Recorder()
    twice = make(kind, train_epochs=2, plugins=[recorder])
    run_loop(twice, stream_for(patches=4))
    assert recorder.of("epoch") == [2] * 6
    assert recorder.of("step") == [1, 2, 3, 4] * 3
    once = make(kind)
    run_loop(once, stream_for(patches=8))
    assert differing(state_of(twice), state_of(once)) == set()
    assert twice.trained_patches == once.trained_patches


def test_an_epoch_that_batches_do_not_divide(stream_for: Streams) -> None:
    recorder = Recorder()
    strategy = make(train_epochs=3, plugins=[recorder])
    strategy.train(stream_for(patches=5).train_stream[0])
    assert recorder.of("step") == list(range(1, 10))
    assert sum(strategy.trained_patches[0].values()) == 15


def test_steps_are_what_the_patches_make(stream_for: Streams) -> None:
    recorder = Recorder()
    strategy = make(train_steps=4, eval_every=2, plugins=[recorder], evaluator=silent(MeanSquare()))
    benchmark = stream_for()
    strategy.train(benchmark.train_stream[0])
    assert recorder.of("step") == [1, 2, 3, 4]
    # Before, after steps 2 and 4, and at the end; only of the base, whose structures are known.
    assert recorder.of("eval") == [1, 1, 1, 1]
    with pytest.raises(ConfigError, match=r"train_steps is 5.*8 patches, which are 4.*patches=10"):
        make(train_steps=5).train(benchmark.train_stream[0])
    training = TrainingConfig(batch_size=2, steps=3, base_steps=4, device="cpu")
    strategy = make(train_mb_size=None, training=training)
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(ConfigError, match="the section training asks for 3 step"):
        strategy.train(benchmark.train_stream[1])


def test_periodic_evaluation_is_on_validation_images(stream_for: Streams) -> None:
    benchmark, recorder = stream_for(), Recorder()
    strategy = make(train_epochs=1, eval_every=1, plugins=[recorder], evaluator=silent(MeanSquare()))
    metrics = strategy.train(benchmark.train_stream[0])
    metrics = strategy.train(benchmark.train_stream[1])
    names = [name for name in metrics if name.startswith("MeanSquare")]
    assert names
    assert all("/eval_phase/val_stream/" in name for name in names)
    recorder.events.clear()
    chosen = make(eval_every=1, evaluator=silent(MeanSquare()))
    metrics = chosen.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream])
    assert any("/eval_phase/test_stream/" in name for name in metrics)


def test_validation_is_no_evaluation_for_loggers(stream_for: Streams, tmp_path: Path) -> None:
    benchmark, recorder = stream_for(), Recorder()
    strategy = make(plugins=[recorder])
    strategy.train(benchmark.train_stream)
    assert strategy.progress.curve
    assert recorder.of("eval") == []


def test_avalanches_loggers_work(
    stream_for: Streams, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = stream_for()
    table, events = CSVLogger(str(tmp_path / "csv")), TensorboardLogger(str(tmp_path / "tensorboard"))
    evaluator = EvaluationPlugin(
        MeanSquare(),
        loss_metrics(epoch=True, experience=True, stream=True),
        timing_metrics(epoch=True),
        loggers=[InteractiveLogger(), table, events],
    )
    strategy = make(evaluator=evaluator)
    results = [strategy.train(benchmark.train_stream[:2]), strategy.eval(benchmark.test_stream)]
    table.close()
    shown = capsys.readouterr().out
    assert "Start of training phase" in shown
    assert "MeanSquare" in shown
    assert any(name.startswith("Loss_Epoch/train_phase/train_stream") for name in results[0])
    assert any(name.startswith("Time_Epoch") for name in results[0])
    exact = [value for name, value in results[1].items() if name.startswith("Loss_Exp/eval_phase")]
    assert len(exact) == 2
    training = list(csv.DictReader((tmp_path / "csv" / "training_results.csv").read_text().splitlines()))
    evaluation = list(csv.DictReader((tmp_path / "csv" / "eval_results.csv").read_text().splitlines()))
    assert [row["training_exp"] for row in training] == ["0", "1"]
    assert [row["eval_exp"] for row in evaluation] == ["0", "1"]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_the_rate_of_a_plugins_schedule(stream_for: Streams) -> None:
    benchmark, model = stream_for(patches=4), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    strategy = make(model=model, optimizer=optimizer, train_epochs=3, plugins=[LRSchedulerPlugin(schedule)])
    rates: dict[int, list[float]] = {}
    strategy.listeners.append(
        lambda s: rates.setdefault(s.progress.experience, []).append(s.optimizer.param_groups[0]["lr"])
    )
    strategy.train(benchmark.train_stream)
    assert rates == {number: [0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025] for number in range(3)}


def test_a_schedule_of_the_configuration_is_off(
    stream_for: Streams, caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    training = TrainingConfig(batch_size=2, steps=4, base_steps=4, schedule="cosine", device="cpu")
    strategy = make(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        training=training,
        train_mb_size=None,
    )
    assert "training.schedule cosine is off" in caplog.text
    rates: list[float] = []
    strategy.listeners.append(lambda s: rates.append(s.optimizer.param_groups[0]["lr"]))
    strategy.train(stream_for().train_stream[0])
    assert rates == [0.01] * 4
    assert strategy.learning_rate_of(0) == 0.01


@pytest.mark.filterwarnings("ignore:Metric MeanSquare used by the EarlyStopping plugin")
def test_early_stopping_selects_the_state(stream_for: Streams, caplog: pytest.LogCaptureFixture) -> None:
    """Avalanche's plugin loads the best state and stops; the strategy's own selection does not interfere."""
    benchmark, model = stream_for(patches=2), network()
    plugin = EarlyStoppingPlugin(
        patience=2, val_stream_name="val_stream", metric_name="MeanSquare", mode="min", peval_mode="iteration"
    )
    strategy = make(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01), train_epochs=30, eval_every=1,
        peval_mode="iteration", plugins=[plugin], evaluator=silent(MeanSquare()),
    )  # fmt: skip
    assert "EarlyStoppingPlugin selects the state" in caplog.text
    assert not strategy.selects_state
    steps = []

    def wreck(strategy: StructureStrategy) -> None:
        steps.append(strategy.progress.step)
        if strategy.progress.step >= 3:
            with torch.no_grad():
                for parameter in strategy.optimized_param_id.values():
                    parameter.mul_(-3)

    # Before the evaluation after the step, which is a plugin's.
    class Wreck(SupervisedPlugin):
        def after_update(self, strategy: Any, **kwargs: Any) -> None:
            if strategy.progress.step >= 3:
                wreck(strategy)

    strategy.plugins.insert(0, Wreck())
    strategy.train(benchmark.train_stream[0])
    assert strategy.stop_reason.startswith("a plugin")
    assert strategy.progress.step < 30
    assert plugin.best_step is not None
    assert plugin.best_step <= 3
    assert all(torch.equal(tensor, state_of(strategy)[name]) for name, tensor in plugin.best_state.items())
    # The next experience is not stopped by the stop of the one before.
    before = set(strategy.network.structures)
    strategy.train(benchmark.train_stream[1])
    assert set(strategy.network.structures) - before == {ADDED[0]}
    assert strategy.progress.step > 0
    training = TrainingConfig(batch_size=2, steps=4, patience=1, device="cpu")
    with pytest.raises(ConfigError, match="patience and EarlyStoppingPlugin"):
        make(training=training, train_mb_size=None, plugins=[plugin])


def test_stopping_is_honoured_within_an_epoch(stream_for: Streams) -> None:
    class Stop(SupervisedPlugin):
        def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            if strategy.progress.step == 2:
                strategy.stop_training()

    recorder = Recorder()
    strategy = make(plugins=[Stop(), recorder])
    strategy.train(stream_for().train_stream[:2])
    assert recorder.of("step") == [1, 2, 1, 2]
    assert strategy.stop_reason.startswith("a plugin")


# -- the benchmark ------------------------------------------------------------------------------------------------


def test_a_benchmark_has_avalanches_names(stream_for: Streams) -> None:
    benchmark = stream_for()
    assert benchmark.n_experiences == len(benchmark.train_stream) == 3
    assert set(benchmark.streams) == {"train", "val", "test"}
    assert benchmark.train_stream is benchmark.train
    for stream in benchmark.streams.values():
        for number, experience in enumerate(stream):
            assert experience.benchmark is benchmark
            assert experience.origin_stream is stream
            assert experience.current_experience == number
            labels = sorted(benchmark.labels[name] for name in benchmark.experiences[number])
            assert experience.classes_in_this_experience == labels
            assert experience.logging().classes_in_this_experience == labels
            assert isinstance(experience.dataset, AvalancheDataset)
            assert set(experience.dataset.targets_task_labels) == set(labels)
    [last] = benchmark.test_stream[2:]
    assert (last.current_experience, last.benchmark) == (2, benchmark)


def test_r2_is_measured_where_no_evaluator_is_given(stream_for: Streams) -> None:
    benchmark, strategy = stream_for(), make()
    strategy.train(benchmark.train_stream[0])
    results = strategy.eval(benchmark.test_stream)
    r2 = [metrics["r2"] for metrics in strategy.figures.values()]
    assert len(r2) == len(BASE)
    [of_stream] = [value for name, value in results.items() if name.startswith("R2_Stream")]
    assert sorted(value for name, value in results.items() if name.startswith("R2_Exp")) == sorted(r2)
    assert of_stream == pytest.approx(sum(r2) / len(r2))


def test_what_is_not_known_yet_is_named_and_left_out(
    stream_for: Streams, caplog: pytest.LogCaptureFixture
) -> None:
    benchmark, strategy = stream_for(), make(evaluator=silent(MeanSquare()))
    strategy.train(benchmark.train_stream[0])
    with caplog.at_level(logging.WARNING, logger="repmode_cl"):
        strategy.eval(benchmark.test_stream)
    assert f"not learned yet: {', '.join(ADDED)}" in caplog.text
    assert set(strategy.figures) == set(BASE)
    assert set(strategy.network.structures) == set(BASE)
    with pytest.raises(UnknownStructureError, match=ADDED[0]):
        strategy.eval(benchmark.test_stream, unknown="error")
    with pytest.raises(UnknownStructureError, match=ADDED[0]):
        strategy.predict(torch.zeros(8, 8, 8), ADDED[0])
    with pytest.raises(ConfigError, match="skip or error"):
        strategy.eval(benchmark.test_stream, unknown=cast(Any, "guess"))


def test_nothing_is_known_where_nothing_was_learned(stream_for: Streams) -> None:
    benchmark = stream_for()
    strategy = MultiNet(model=PlainNetworks(ARCHITECTURE, 3), train_mb_size=2, device="cpu")
    apart = stream_for(STRUCTURES, base=())
    assert strategy.eval(apart.test_stream) == {}
    assert strategy.figures == {}
    strategy.train(apart.train_stream[2])  # a separate network needs no base
    strategy.eval(apart.test_stream)
    assert set(strategy.figures) == {STRUCTURES[2]}
    with pytest.raises(ConfigError, match="Multi-Net trains one network at a time"):
        MultiNet(model=PlainNetworks(ARCHITECTURE, 3), device="cpu").train(benchmark.train_stream[0])


def test_joint_training_takes_one_experience(stream_for: Streams) -> None:
    with pytest.raises(ConfigError, match="joint training learns all structures in one experience"):
        make(Joint).train(stream_for().train_stream)
    benchmark = stream_for((), base=STRUCTURES)
    strategy = make(Joint, model=network(*STRUCTURES))
    strategy.train(benchmark.train_stream)
    strategy.eval(benchmark.test_stream)
    assert set(strategy.figures) == set(STRUCTURES)


# -- refusals -----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(stream_for: Streams) -> None:
    benchmark, other = stream_for(), stream_for()
    strategy = make()
    strategy.train(benchmark.train_stream[0])
    for call in (
        lambda: strategy.train(other.train_stream[1]),
        lambda: strategy.eval(other.test_stream),
        lambda: strategy.adopt_experience(other.train_stream[0]),
    ):
        with pytest.raises(ConfigError, match="of another benchmark"):
            call()
    for stream in (benchmark.test_stream, benchmark.val_stream):
        with pytest.raises(ConfigError, match=f"is of the {stream.name} stream"):
            strategy.train(stream[1])
    with pytest.raises(ConfigError, match="does not name structures"):
        strategy.train(cast(Any, benchmark.train_stream[0].dataset))
    with pytest.raises(ConfigError, match=r"patch is \[4, 4, 4\].*\[4, 8, 8\]"):
        make(patch=(4, 4, 4)).train(benchmark.train_stream[0])
    with pytest.raises(ConfigError, match="no benchmark yet"):
        _ = make().stream


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_mb_size": 0}, "train_mb_size is 0"),
        ({"train_epochs": 1.5}, "train_epochs is 1.5"),
        ({"train_epochs": 1, "train_steps": 4}, "either train_epochs or train_steps"),
        ({"training": TrainingConfig(steps=4)}, "train_mb_size and the section training"),
        ({"peval_mode": "step"}, "peval_mode is 'step'"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(**options)


def test_an_experience_is_trained_again_or_refused(stream_for: Streams) -> None:
    benchmark, strategy = stream_for(), make()
    strategy.train(benchmark.train_stream[0])
    once = state_of(strategy)
    strategy.train(benchmark.train_stream[0])
    assert strategy.progress.step == 4
    assert differing(once, state_of(strategy))
    assert len({row["train_step"] for row in strategy.progress.curve}) == 4
    strategy.train(benchmark.train_stream[1])
    added = state_of(strategy)
    strategy.train(benchmark.train_stream[1])
    changed_names = differing(added, state_of(strategy))
    assert changed_names
    assert changed_names <= set(strategy.network.owned_names(ADDED[0]))
    with pytest.raises(StructureError, match="the base cannot be trained any more"):
        strategy.train(benchmark.train_stream[0])


def test_a_plugin_that_replaces_the_loader_is_refused(stream_for: Streams) -> None:
    class Loader(SupervisedPlugin):
        def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
            strategy.dataloader = list(strategy.dataloader)[:1]

    with pytest.raises(ConfigError, match="a plugin has replaced the loader of patches"):
        make(plugins=[Loader()]).train(stream_for().train_stream[0])


def test_the_old_name_of_the_model_works() -> None:
    with pytest.warns(DeprecationWarning, match="network is deprecated"):
        strategy = FineTuning(network=network())
    assert strategy.network is strategy.model
    with pytest.raises(TypeError, match="model is missing"):
        FineTuning()
    with pytest.raises(TypeError, match="two names of one argument"):
        FineTuning(model=network(), network=network())
