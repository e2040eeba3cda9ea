"""A user's own network: `fuse` may return any module, and what is wrong with it is found before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import changed, make_manifest, tiny
from tiny_strategies import SHAPE, STREAM, configured, learn
from torch import nn

from repmode_cl.benchmark import run_benchmark
from repmode_cl.benchmark.rehearsal import rehearse
from repmode_cl.config import StrategyConfig
from repmode_cl.config.strategy_schema import STRATEGY_NAMES
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.results import ResultsTable
from repmode_cl.scenarios import StreamVariant
from repmode_cl.strategies import FineTuning

TWO = STREAM[:2]

CODE = """
import torch
from torch import nn
from repmode_cl.strategies import StructureStrategy


class Heads(nn.Module):
    def __init__(self, structures):
        super().__init__()
        self.body = nn.Conv3d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4)
        self.heads = nn.ModuleDict({{name: nn.Conv3d(4, 1, 1) for name in structures}})

    @property
    def structures(self):
        return tuple(self.heads)

    def train_only(self, structures):
        for name, p in self.named_parameters():
            p.requires_grad_(not name.startswith("heads.") or name.split(".")[1] in structures)
        return frozenset(n for n, p in self.named_parameters() if p.requires_grad)

    def fuse(self, structure):
        return {fuse}

    def forward(self, x, structures):
        y = torch.relu(self.norm(self.body(x)))
        return torch.cat([self.heads[n](y[i : i + 1]) for i, n in enumerate(structures)])


class Mine(StructureStrategy):
    @classmethod
    def make_network(cls, config, options, base, seed):
        torch.manual_seed(seed)
        return Heads(base)

    def grow(self, structures):
        for name in structures:
            self.network.heads[name] = nn.Conv3d(4, 1, 1)
"""
GOOD = "nn.Sequential(self.body, self.norm, nn.ReLU(), self.heads[structure])"


def write(folder: Path, fuse: str) -> str:
    file = folder / "mine.py"
    file.write_text(CODE.format(fuse=fuse))
    return f"{file}:Mine"


@pytest.mark.parametrize("fuse", [GOOD, f"{GOOD}.eval()"])
def test_a_fused_network_may_be_any_module(samples: list[Sample], tmp_path: Path, fuse: str) -> None:
    strategy = learn(configured(write(tmp_path, fuse), samples, TWO))
    figures = strategy.evaluate(strategy.stream.known_after(1))
    assert set(figures) == {"dna", "cell_membrane", "nucleolus"}
    volume = torch.randn(SHAPE)
    network = strategy.network
    network.train()
    predicted = torch.from_numpy(strategy.predict(volume, "nucleolus"))
    # Predicting leaves the mode, and the running statistics, of layers that the fused network shares.
    assert network.norm.training
    mean = network.norm.running_mean.clone()
    network.eval()
    with torch.no_grad():
        whole = network(volume[None, None], ["nucleolus"])[0, 0]
    assert torch.equal(network.norm.running_mean, mean)
    # Windows of the patch's size see zeros around them, so only the middle of a whole volume is the same.
    inside = (slice(2, -2), slice(5, 7), slice(5, 7))
    assert predicted.shape == whole.shape
    assert (predicted[inside] - whole[inside]).abs().max() < 0.5


def test_a_benchmark_runs_it(tmp_path: Path) -> None:
    own = StrategyConfig(name=write(tmp_path, GOOD))
    config = changed(tiny(make_manifest(tmp_path), tmp_path / "out"), strategies=(own,))
    rows = ResultsTable.read(run_benchmark(config) / "results.csv")
    assert {row.structure for row in rows if row.metric == "r2"} == {
        "dna",
        "cell_membrane",
        "nucleolus",
        "mitochondria",
    }


@pytest.mark.parametrize(
    ("fuse", "message"),
    [
        ("self.bdoy", r"AttributeError: .*'bdoy' \(line \d+ of .*mine\.py\)"),
        ("self.state_dict()", r"Heads\.fuse\('dna'\) returned OrderedDict: return a module"),
        ("self.body", r"shape"),
        ("nn.Sequential(self.body, self.heads[structure], nn.AvgPool3d(2))", "shape"),
    ],
)
def test_what_is_wrong_with_it_is_found_by_a_dry_run(tmp_path: Path, fuse: str, message: str) -> None:
    own = StrategyConfig(name=write(tmp_path, fuse))
    config = changed(tiny(make_manifest(tmp_path), tmp_path / "out"), strategies=(own,))
    with pytest.raises(ConfigError, match=message):
        run_benchmark(config, dry_run=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_dry_run_rehearses_every_strategy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = changed(
        tiny(make_manifest(tmp_path), tmp_path / "out"),
        strategies=tuple(StrategyConfig(name=name) for name in STRATEGY_NAMES),
    )
    trained: list[tuple[str, int]] = []
    step = FineTuning._train_step

    def spy(self: FineTuning, *args: object, **kwargs: object) -> None:
        trained.append((type(self).__name__, self.progress.step))
        step(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("repmode_cl.strategies.base.StructureStrategy._train_step", spy)
    run_benchmark(config, dry_run=True)
    names = {name for name, _ in trained}
    assert len(names) == len(STRATEGY_NAMES)
    # Two steps of each experience; joint training has the sum of all budgets.
    assert {at for name, at in trained if name != "Joint"} == {0, 1}
    assert capfd.readouterr().err == ""

    def fails(self: FineTuning, number: int) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(FineTuning, "after_experience", fails)
    with pytest.raises(RuntimeError, match="out of order"):
        run_benchmark(config, dry_run=True)
    assert not (tmp_path / "out").exists()


def test_a_rehearsal_leaves_random_numbers_and_the_configuration(tmp_path: Path) -> None:
    config = tiny(make_manifest(tmp_path), tmp_path / "out")
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    rehearse(config, config.strategies[0], StreamVariant((("dna",), ("nucleolus",), ("nucleolus",))))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert config.training.steps == 4
    assert not (tmp_path / "out").exists()


def test_a_plain_subclass_is_not_folded(samples: list[Sample]) -> None:
    strategy = configured("fine_tuning", samples, TWO)
    fused = strategy.network.eval().fuse("dna")
    doubled = type(
        "Doubled", (type(fused),), {"forward": lambda self, x: 2 * super(type(self), self).forward(x)}
    )
    volume = torch.randn(SHAPE)
    once = strategy.predict(volume, "dna")
    fused.__class__ = doubled
    strategy.network.fuse = lambda structure: fused
    assert isinstance(strategy.network.fuse("dna"), nn.Module)
    assert torch.allclose(
        torch.from_numpy(strategy.predict(volume, "dna")), 2 * torch.from_numpy(once), atol=1e-5
    )
