"""What the loop of Avalanche's users meets besides plain streams: each combination works as under a benchmark, or is
refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from repmode_cl.scenarios import StructureStream, structure_stream  # isort: skip - it imports Avalanche quietly

import numpy as np
import pytest
import tifffile
import torch
from avalanche.training.plugins import SupervisedPlugin
from several_processes import start
from tiny_run import ADDED, BASE, PATCH, SEED, changed, tiny
from tiny_strategies import differing, state_of
from torch import Tensor, nn

from repmode_cl.benchmark import run_benchmark
from repmode_cl.config import Config, StrategyConfig, StreamConfig
from repmode_cl.data.manifest import read_manifest, write_manifest
from repmode_cl.errors import ConfigError
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet
from repmode_cl.results import ResultsTable
from repmode_cl.strategies import (
    AGEM,
    EWC,
    Cumulative,
    ExpertsFrozen,
    FineTuning,
    LwF,
    Replay,
    StructureStrategy,
)
from repmode_cl.strategies.plugins.checkpoint import StrategyCheckpoint
from repmode_cl.training import Ranks

ARCHITECTURE = Architecture(width=4, depth=1, experts=("conv3", "conv1", "avg3"))
KINDS: dict[str, type[StructureStrategy]] = {
    "experts_frozen": ExpertsFrozen, "fine_tuning": FineTuning, "replay": Replay, "a_gem": AGEM, "ewc": EWC,
    "lwf": LwF, "cumulative": Cumulative,
}  # fmt: skip


def slow_but(name: str, names: tuple[str, ...]) -> list[Any]:
    """Return parameters of which only one is not slow: another one for each kind of stream."""
    return [one if one == name else pytest.param(one, marks=pytest.mark.slow) for one in names]


@pytest.fixture(scope="module")
def masked(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a manifest whose images have masks, of which each leaves another part."""
    folder, random, rows = tmp_path_factory.mktemp("masks"), np.random.default_rng(1), []
    for row in read_manifest(manifest).rows:
        shape = tifffile.imread(row.target).shape
        mask = folder / f"{row.target.stem}-mask.tif"
        kept = (random.random(shape) < 0.4).astype(np.uint8)
        tifffile.imwrite(mask, kept, photometric="minisblack", metadata={"axes": "ZYX"})
        rows.append(replace(row, number=0, mask=mask))
    path = folder / "manifest.csv"
    write_manifest(path, rows)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def stream(manifest: Path, cache: Path, order: Any = ADDED, **options: Any) -> StructureStream:
    """Return the stream of `tiny`'s configuration."""
    options = {
        "base": BASE, "patch": PATCH, "patches": lambda names, _: 12 if len(names) > 1 else 8, "seed": SEED,
        **options,
    }  # fmt: skip
    return structure_stream(manifest, order, cache=cache, **options)


def network() -> RepModeUNet:
    return RepModeUNet(ARCHITECTURE, BASE, seed=SEED)


def figures_of_bench(config: Config) -> list[dict[tuple[str, str], float]]:
    table = ResultsTable.read(run_benchmark(config) / "results.csv")
    steps = 1 + max(row.step for row in table)
    return [
        {
            (row.structure, row.metric): row.value
            for row in table
            if row.step == step and row.metric in HIGHER_IS_BETTER
        }
        for step in range(steps)
    ]


def figures_of_loop(
    strategy: StructureStrategy, benchmark: StructureStream
) -> list[dict[tuple[str, str], float]]:
    found = []
    for number, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        # A structure that comes again is in several test experiences, which show the same images.
        strategy.eval(benchmark.known_after(number))
        found.append(
            {(name, metric): value for name, row in strategy.figures.items() for metric, value in row.items()}
        )
    return found


def check_as_bench(
    config: Config, benchmark: StructureStream, kind: type[StructureStrategy], **options: Any
) -> StructureStrategy:
    """Compare the loop with a benchmark, to the bit, and return the strategy."""
    strategy = kind(
        model=network(), training=config.training, inference=config.inference, seed=SEED, **options
    )
    assert figures_of_loop(strategy, benchmark) == figures_of_bench(config)
    return strategy


# -- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but("a_gem", ("experts_frozen", "replay", "a_gem", "ewc")))
def test_masks(masked: Path, cache: Path, tmp_path: Path, name: str) -> None:
    config = changed(tiny(masked, tmp_path), strategies=(StrategyConfig(name=name),))
    benchmark = stream(masked, cache)
    assert benchmark.patches[0].weighted
    check_as_bench(config, benchmark, KINDS[name])


@pytest.mark.slow
def test_a_criterion_gets_the_voxels_that_count(masked: Path, cache: Path) -> None:
    benchmark = stream(masked, cache, patches=8)
    shapes: list[tuple[int, ...]] = []

    def absolute(output: Tensor, target: Tensor) -> Tensor:
        assert output.shape == target.shape
        assert output.ndim == 1
        shapes.append(tuple(output.shape))
        return (output - target).abs().mean()

    for kind in (FineTuning, Replay, AGEM, EWC, LwF):
        shapes.clear()
        strategy = kind(model=network(), criterion=absolute, train_mb_size=2, device="cpu", seed=SEED)
        strategy.train(benchmark.train_stream[:2])
        whole = 2 * math.prod(PATCH)
        assert shapes
        assert all(0 < size[0] < 2 * whole for size in shapes)
        assert 0.2 * whole < shapes[0][0] < 0.6 * whole
    same = [
        FineTuning(model=network(), criterion=one, train_mb_size=2, device="cpu", seed=SEED)
        for one in (None, nn.MSELoss())
    ]
    for strategy in same:
        strategy.train(benchmark.train_stream[:2])
    assert differing(*map(state_of, same)) == set()


# -- accumulation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but("lwf", ("experts_frozen", "replay", "lwf")))
def test_accumulation(masked: Path, cache: Path, tmp_path: Path, name: str) -> None:
    config = tiny(masked, tmp_path)
    training = config.training.model_copy(update={"accumulate": 2, "gradient_clip": 1.0})
    config = changed(config, training=training, strategies=(StrategyConfig(name=name),))

    class Count(SupervisedPlugin):
        iterations = backwards = 0

        def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            self.iterations += 1

        def after_backward(self, strategy: Any, **kwargs: Any) -> None:
            self.backwards += 1

    counts = Count()
    check_as_bench(config, stream(masked, cache), KINDS[name], plugins=[counts])
    assert counts.iterations == 6 + 4 + 4
    assert counts.backwards == 2 * counts.iterations


def test_a_criterion_with_parts_must_be_a_mean(masked: Path, cache: Path, tmp_path: Path) -> None:
    training = tiny(masked, tmp_path).training.model_copy(update={"accumulate": 2})
    sums: list[Any] = [nn.MSELoss(reduction="sum"), lambda output, target: (output - target).abs().mean()]
    for criterion in sums:
        with pytest.raises(ConfigError, match=r"in parts.*does not say reduction='mean'"):
            ExpertsFrozen(model=network(), criterion=criterion, training=training)
    benchmark = stream(masked, cache)
    strategies = [
        FineTuning(
            model=network(), criterion=nn.L1Loss(), training=training.model_copy(update={"accumulate": parts})
        )
        for parts in (1, 2)
    ]
    losses: list[list[float]] = [[], []]
    for strategy, noted in zip(strategies, losses, strict=True):
        strategy.listeners.append(lambda s, noted=noted: noted.append(float(s.last_loss)))  # type: ignore[misc]
        strategy.train(benchmark.train_stream[0])
    # The first step starts from equal weights; batch norm sees one part at a time, so that losses are near, not equal.
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.2)
    assert losses[0][0] != losses[1][0]


# -- several processes --------------------------------------------------------------------------------------------

RANKS = """
import sys
from pathlib import Path
import torch
from repmode_cl.config import TrainingConfig
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.scenarios import structure_stream
from repmode_cl.strategies import ExpertsFrozen
from repmode_cl.training import process_group

manifest, cache, out = map(Path, sys.argv[1:])
with process_group("cpu") as (ranks, device):
    benchmark = structure_stream(
        manifest, ["nucleolus"], base=("dna", "cell_membrane"), cache=cache, patch=(4, 8, 8), patches=16, seed=3
    )
    training = TrainingConfig(
        batch_size=4, steps=4, base_steps=4, learning_rate=0.02, precision="float32", device="cpu"
    )
    strategy = ExpertsFrozen(
        model=RepModeUNet(Architecture(4, 1, ("conv3", "conv1", "avg3")), ("dna", "cell_membrane"), seed=3),
        training=training, device=device, ranks=ranks, seed=3,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
        assert strategy.progress.step == 4
        strategy.eval(benchmark.test_stream)
    found = {f"{name}.{metric}": torch.tensor(v) for name, row in strategy.figures.items() for metric, v in row.items()}
    torch.save({**strategy.network.state_dict(), **found}, f"{out}.{ranks.world}.{ranks.rank}")
"""


@pytest.mark.slow
def test_several_processes(manifest: Path, cache: Path, tmp_path: Path) -> None:
    stream(manifest, cache)  # one process prepares the images
    for world in (1, 2):
        for done in start(
            world, "-W", "error", "-c", RANKS, str(manifest), str(cache), str(tmp_path / "out")
        ):
            assert done.returncode == 0, done.stderr
    alone, one, other = (
        torch.load(tmp_path / f"out.{name}", weights_only=True) for name in ("1.0", "2.0", "2.1")
    )
    assert set(alone) == set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    for name, expected in alone.items():
        torch.testing.assert_close(one[name], expected, rtol=2e-2, atol=2e-2, msg=name)


def test_what_several_processes_cannot_do_is_refused() -> None:
    ranks = Ranks(0, 2)
    for kind in (Replay, AGEM, Cumulative):
        with pytest.raises(ConfigError, match="several processes cannot share: train it in one process"):
            kind(model=network(), ranks=ranks, device="cpu")
    with pytest.raises(ConfigError, match=r"2 process.*does not say reduction='mean'"):
        ExpertsFrozen(model=network(), ranks=ranks, device="cpu", criterion=nn.MSELoss(reduction="sum"))
    assert ExpertsFrozen(model=network(), ranks=ranks, device="cpu", criterion=nn.L1Loss()).ranks is ranks


# -- streams ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_additions_that_see_all(manifest: Path, cache: Path, tmp_path: Path) -> None:
    config = changed(
        tiny(manifest, tmp_path), strategies=(StrategyConfig(name="experts_frozen", sees="all"),)
    )
    strategy = check_as_bench(config, stream(manifest, cache), ExpertsFrozen, spec=AdditionSpec(sees="all"))
    again = stream(manifest, cache, (*ADDED, ADDED[0]))
    with pytest.raises(ConfigError, match="comes again after"):
        ExpertsFrozen(model=network(), spec=AdditionSpec(sees="all"), device="cpu").train(again.train_stream)
    with pytest.raises(ConfigError, match=f"{ADDED[0]} cannot be trained again: {ADDED[1]} came after"):
        strategy.train(strategy.stream.train_stream[1])  # trained again, below the one that sees it


@pytest.mark.parametrize("name", slow_but("experts_frozen", ("experts_frozen", "replay", "cumulative")))
def test_structures_that_come_again(manifest: Path, cache: Path, tmp_path: Path, name: str) -> None:
    order = (*ADDED, ADDED[0])
    config = changed(
        tiny(manifest, tmp_path),
        stream=StreamConfig(base=BASE, order=order),
        strategies=(StrategyConfig(name=name),),
    )
    check_as_bench(config, stream(manifest, cache, order), KINDS[name])


@pytest.mark.slow
def test_few_images(manifest: Path, cache: Path, tmp_path: Path) -> None:
    config = changed(
        tiny(manifest, tmp_path),
        stream=StreamConfig(base=BASE, order=ADDED, images=1),
        strategies=(StrategyConfig(name="replay", buffer=4),),
    )
    benchmark = stream(manifest, cache, images_each=1)
    assert [len(images) for images in benchmark.images][1:] == [1, 1]
    check_as_bench(config, benchmark, Replay, buffer=4)


# -- interruption -------------------------------------------------------------------------------------------------


class InterruptedLoopError(Exception):
    pass


Optimizer = Callable[[nn.Module], torch.optim.Optimizer]


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def fused_adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.02, fused=True)


@pytest.mark.parametrize(
    ("name", "optimizer", "epochs"),
    [
        ("experts_frozen", None, 1), ("replay", momentum, 2), ("ewc", fused_adam, 1),
        *(pytest.param(*one, marks=pytest.mark.slow)
          for one in (("experts_frozen", fused_adam, 2), ("ewc", None, 2), ("lwf", momentum, 1))),
    ],
)  # fmt: skip
def test_resumed_in_the_middle(
    manifest: Path, cache: Path, tmp_path: Path, name: str, optimizer: Optimizer | None, epochs: int
) -> None:
    """A new process makes the same objects, loads the checkpoint and writes the same loop: equal to the bit."""
    benchmark = stream(manifest, cache, patches=8 // epochs)

    def make() -> StructureStrategy:
        model = network()
        given: dict[str, Any] = {} if optimizer is None else {"optimizer": optimizer(model)}
        return KINDS[name](
            model=model, train_mb_size=2, train_epochs=epochs, device="cpu", seed=SEED, **given
        )

    whole = make()
    whole.train(benchmark.train_stream)
    interrupted = make()
    checkpoint = StrategyCheckpoint(tmp_path / "checkpoint")

    def interrupt(strategy: StructureStrategy) -> None:
        if (strategy.progress.experience, strategy.progress.step) == (1, 3):
            checkpoint.save(strategy)
            raise InterruptedLoopError

    interrupted.listeners.append(interrupt)
    with pytest.raises(InterruptedLoopError):
        interrupted.train(benchmark.train_stream)
    resumed = make()
    resumed.attach(stream(manifest, cache, patches=8 // epochs))
    StrategyCheckpoint(tmp_path / "checkpoint").resume(resumed)
    assert resumed.progress.experience == 1
    with pytest.raises(ConfigError, match="middle of experience 1 is to be resumed"):
        resumed.train(resumed.stream.train_stream[2])
    steps: list[int] = []
    resumed.listeners.append(lambda s: steps.append(s.progress.step))
    for experience in resumed.stream.train_stream[resumed.progress.experience :]:
        resumed.train(experience)
    assert steps == [4, 1, 2, 3, 4]
    assert differing(state_of(whole), state_of(resumed)) == set()
    assert whole.trained_patches == resumed.trained_patches


# -- a user's own file --------------------------------------------------------------------------------------------


def test_user_files_on_windows_paths() -> None:
    for name in (
        r"C:\Users\me\my strategies\mine.py:Mine",
        r"\\server\share\mine.py:Mine",
        "D:/mine.py:Mine",
    ):
        options = StrategyConfig(name=name)
        assert options.is_custom
        assert options.title == "Mine"
        assert options.name.rpartition(":")[0].endswith("mine.py")


@pytest.mark.slow
def test_a_users_class_learns_in_the_loop_as_under_bench(manifest: Path, cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "my file.py"
    file.write_text(
        "from repmode_cl.strategies import Replay\n\n"
        "class Mine(Replay):\n"
        "    def __init__(self, *, network, alpha=1.0, **kwargs):\n"
        "        super().__init__(network=network, **kwargs)\n"
        "        self.alpha = alpha\n\n"
        "    @classmethod\n"
        "    def own_options(cls, options):\n"
        "        return dict(options.options)\n\n"
        "    def criterion(self):\n        return super().criterion() * self.alpha\n"
    )
    from repmode_cl.strategies.registry import strategy_class

    options = StrategyConfig(name=f"{file}:Mine", options={"alpha": 0.5, "buffer": 4})
    config = changed(tiny(manifest, tmp_path), strategies=(options,))
    with pytest.warns(DeprecationWarning, match="network is deprecated"):
        expected = figures_of_bench(config)
    kind = cast(Any, strategy_class(options))
    with pytest.warns(DeprecationWarning, match="network is deprecated"):
        strategy = kind(network=network(), training=config.training, seed=SEED, alpha=0.5, buffer=4)
    assert figures_of_loop(strategy, stream(manifest, cache)) == expected
