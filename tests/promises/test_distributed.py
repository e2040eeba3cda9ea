"""Two processes that train together come to what one comes to with the joint batch."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from several_processes import LAUNCHED, start
from tiny_run import BASE, changed, tiny
from torch import Tensor, nn

from repmode_cl import __version__
from repmode_cl.benchmark import run_benchmark
from repmode_cl.config import DataConfig, StreamConfig
from repmode_cl.config.load import dump_config
from repmode_cl.config.strategy_schema import STRATEGY_NAMES
from repmode_cl.errors import ConfigError
from repmode_cl.model import Model
from repmode_cl.training import Ranks, process_group, refuse_distributed, sync_batch_norms
from repmode_cl.training.distributed import launched_ranks
from repmode_cl.workflows.add_structure import add_structure
from repmode_cl.workflows.train_base import train_base


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


def launched(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    for name, value in zip(LAUNCHED, (rank, rank, world, "127.0.0.1", 1), strict=True):
        monkeypatch.setenv(name, str(value))


# -- steps ------------------------------------------------------------------------------------------------------

#: Steps of one joint batch after another, of three structures in a network of four, with masks of which some leave
#: nearly nothing. The two processes share no structure in the first half of the batch.
STEPS = """
import sys
import torch
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.nn.unet import checkpoint_activations
from repmode_cl.training import process_group, sync_batch_norms, make_adam, masked_mse, sum_gradients, count_voxels

names = ["dna", "dna", "dna", "nucleolus", "dna", "cell_membrane", "cell_membrane", "nucleolus"]
base = ("dna", "cell_membrane", "nucleolus", "mitochondria")

def steps(ranks, accumulate, dtype, checkpointing):
    random = torch.Generator().manual_seed(0)
    network = RepModeUNet(Architecture(4, 1, ("conv3", "conv1", "avg3")), base, seed=0).to(dtype).train()
    checkpoint_activations(network, checkpointing)
    optimizer = make_adam(network.parameters(), learning_rate=0.01, weight_decay=0.1)
    losses = []
    size = len(names) // accumulate
    share = size // ranks.world
    with sync_batch_norms(network, ranks):
        for step in range(4):
            x, y, chance = (torch.randn((8, 1, 4, 8, 8), generator=random).to(dtype) for _ in range(3))
            cut = torch.linspace(-2, 2, 8).view(-1, 1, 1, 1, 1)
            target = torch.cat([y, (chance > cut).to(dtype)], 1)
            starts = [number * size + ranks.rank * share for number in range(accumulate)]
            parts = [slice(start, start + share) for start in starts]
            [count] = ranks.total([sum(count_voxels(target[part]) for part in parts)])
            optimizer.zero_grad()
            loss = torch.zeros((), dtype=dtype)
            for part in parts:
                one = masked_mse(network(x[part], names[part]), target[part], count=count)
                one.backward()
                loss += one.detach()
            losses.append(sum_gradients(network.parameters(), loss, ranks))
            optimizer.step()
    assert type(network.get_submodule("encoder.0.0.norm.base")) is torch.nn.BatchNorm3d
    # What no process had in its batch is not moved by weight decay either.
    assert network.get_parameter("head.gates.mitochondria").grad is None
    return {**network.state_dict(), "losses": torch.stack(losses)}

with process_group("cpu") as (ranks, device):
    found = {
        "plain": steps(ranks, 1, torch.float32, False),
        "all at once": steps(ranks, 2, torch.float64, True),
    }
    torch.save(found, f"{sys.argv[1]}.{ranks.rank}")
"""


@pytest.mark.slow
def test_two_processes_come_to_the_joint_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path / "1")])
    exec(compile(STEPS, "steps", "exec"), {})  # one process: this one
    for done in start(2, "-W", "error", "-c", STEPS, str(tmp_path / "2")):
        assert done.returncode == 0, done.stderr
    alone, one, other = (torch.load(tmp_path / name, weights_only=True) for name in ("1.0", "2.0", "2.1"))
    # Adam divides by small roots: what float32 rounds away grows in four steps. Float64 shows that it is only that.
    for case, tolerance in (("plain", 3e-5), ("all at once", 1e-12)):
        assert all(
            torch.equal(one[case][name], other[case][name]) for name in one[case]
        )  # in step, to the bit
        for name, expected in alone[case].items():
            difference = (one[case][name] - expected).abs().max() / expected.abs().max()
            assert difference <= tolerance, (case, name)
        assert alone[case]["losses"].dtype == (torch.float32 if case == "plain" else torch.float64)


class _Twice(Ranks):
    """Two processes that compute the same share."""

    def gathered(self, tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor])


@pytest.mark.parametrize(
    "settings", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}, {"bias": None}]
)
def test_norms_of_every_kind_are_those_of_the_joint_batch(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    no_bias = settings.pop("bias", "") is None
    joint = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2, **settings)).double()
    if no_bias:
        joint[1].bias = None
    shared = copy.deepcopy(joint)
    for batch in torch.randn((3, 2, 1, 2, 3, 4), dtype=torch.float64):
        expected, inputs = joint(torch.cat([batch, batch])), batch.clone().requires_grad_()
        with sync_batch_norms(shared, _Twice(0, 2)):
            found = shared(inputs)
            torch.testing.assert_close(found, expected[:2])
            found.pow(3).sum().backward()
            torch.testing.assert_close(copy.deepcopy(shared).eval()(batch), joint.eval()(batch))
        joint.train()
        expected.pow(3).sum().backward()
    for (name, one), other in zip(joint.named_parameters(), shared.parameters(), strict=True):
        # Each process has half of the sum.
        torch.testing.assert_close(2 * other.grad, one.grad, msg=name)
    torch.testing.assert_close(dict(shared.state_dict()), dict(joint.state_dict()))


# -- what waits and what fails ----------------------------------------------------------------------------------

FAILING = """
import os, time
from repmode_cl.errors import RepmodeError
from repmode_cl.training import process_group

def unreadable():
    raise FileNotFoundError("no such manifest")

with process_group("cpu") as (ranks, device):
    assert ranks.from_first(lambda: {"rank": ranks.rank}) == {"rank": 0}
    try:
        ranks.from_first(unreadable)
    except (FileNotFoundError, RepmodeError) as error:
        print(error)
    began = time.monotonic()
    try:
        ranks.from_first(lambda: os._exit(9))  # killed, say for its memory
    finally:
        print(time.monotonic() - began)
"""


@pytest.mark.slow
def test_a_failure_of_the_first_process_ends_the_others() -> None:
    first, second = start(2, "-c", FAILING)
    assert first.returncode == 9
    message, seconds = second.stdout.splitlines()
    assert message == "process 1 ends, because process 0 ended with FileNotFoundError: no such manifest"
    assert second.returncode == 1
    assert float(seconds) < 60


# -- every strategy ---------------------------------------------------------------------------------------------

#: Strategies that several processes cannot train together, whose refusal says so.
REFUSED = {"replay", "a_gem", "cumulative", "der_pp", "multi_head", "frozen_trunk", "warm_copy-decoder"}
#: Strategy, or label of one with options -> its name and options.
EVERY = {name: (name, {}) for name in STRATEGY_NAMES} | {
    "multi_head-last": ("multi_head", {"head": "last"}),
    "frozen_trunk-last": ("frozen_trunk", {"head": "last"}),
    "warm_copy-decoder": ("warm_copy", {"of": "multi_head"}),
    "warm_copy-last": ("warm_copy", {"of": "multi_head", "head": "last"}),
    "experts_frozen-small": ("experts_frozen", {"setting": "small"}),
}

LEARNING = """
import json, sys
from pathlib import Path
import torch
from repmode_cl.errors import ConfigError
from repmode_cl.training import process_group
from tiny_strategies import TRAINING, configured, learn, make_samples

every, folder, out = sys.argv[1:]
training = TRAINING.model_copy(update={"batch_size": 4, "validate_every": 4})
found = {}
with process_group("cpu") as (ranks, _):
    samples = ranks.from_first(lambda: make_samples(Path(folder)))
    for label, (name, options) in json.loads(every).items():
        try:
            strategy = configured(name, samples, training=training, ranks=ranks, **options)
        except ConfigError as error:
            found[label] = str(error)
            continue
        learn(strategy)
        figures = [value for row in strategy.figures.values() for value in row.values()]
        found[label] = {"weights": strategy.network.state_dict(), "figures": torch.tensor(figures)}
    torch.save(found, f"{out}.{ranks.world}.{ranks.rank}")
"""


@pytest.mark.slow
def test_every_strategy_learns_in_two_processes_or_refuses_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "support"))
    for world in (1, 2):
        (tmp_path / str(world)).mkdir()
        arguments = (json.dumps(EVERY), str(tmp_path / str(world)), str(tmp_path / "out"))
        for done in start(world, "-c", LEARNING, *arguments):
            assert done.returncode == 0, done.stderr
    alone, one, other = (
        torch.load(tmp_path / f"out.{name}", weights_only=True) for name in ("1.0", "2.0", "2.1")
    )
    refused = {label for label, found in one.items() if isinstance(found, str)}
    assert refused == REFUSED
    assert all("train it in one process (found 2)" in one[label] for label in refused)
    assert not any(isinstance(found, str) for found in alone.values())
    for label in set(EVERY) - REFUSED:
        weights, others = one[label]["weights"], other[label]["weights"]
        assert set(weights) == set(others) == set(alone[label]["weights"]), label
        for name, tensor in weights.items():
            assert torch.equal(tensor, others[name]), (label, name)
        assert torch.isfinite(one[label]["figures"]).all(), label
        # Rounding differs, and Adam makes steps of nearly nothing as long as others: so not weights, but what they do.
        torch.testing.assert_close(
            one[label]["figures"], alone[label]["figures"], rtol=0.1, atol=0.1, msg=label
        )


# -- a whole training -------------------------------------------------------------------------------------------

#: Cut off in the middle, and resumed by the command itself.
INTERRUPTED = """
import sys
from repmode_cl.cli.app import main
from repmode_cl.config import load_config
from repmode_cl.strategies import StructureStrategy
from repmode_cl.workflows.train_base import train_base

config, out = sys.argv[1:]
step = StructureStrategy._train_step
class Interruption(Exception):
    pass
def interrupted(self, *args, **kwargs):
    if self.progress.step == 5:
        raise Interruption
    step(self, *args, **kwargs)
StructureStrategy._train_step = interrupted
try:
    train_base(load_config(config), out)
except Interruption:
    pass
else:
    raise AssertionError("it was not interrupted")
StructureStrategy._train_step = step
sys.argv = ["repmode-cl", "train", config, "--out", out]
main()
"""


@pytest.mark.slow
def test_a_base_is_trained_by_torchrun(manifest: Path, tmp_path: Path) -> None:
    config = tiny(manifest, tmp_path)
    config = changed(
        config,
        stream=StreamConfig(base=BASE),
        data=DataConfig(manifest=str(manifest), cache=str(tmp_path / "cache")),
        training=config.training.model_copy(
            # Adam by itself would hide a gradient that is some factor too large; weight decay does not.
            update={"batch_size": 4, "base_steps": 7, "accumulate": 2, "weight_decay": 0.1}
        ),
    )
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    (tmp_path / "go.py").write_text(INTERRUPTED, encoding="utf-8")
    one = train_base(config, tmp_path / "one")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    [done] = start(
        1, *torchrun, str(tmp_path / "go.py"), str(tmp_path / "config.yaml"), str(tmp_path / "two")
    )
    assert done.returncode == 0, done.stderr
    # One of the processes tells what came of it; its text names a structure more than once.
    assert done.stdout.count("width 4, depth 1") == 1
    assert "cell_membrane" in done.stdout
    two = Model.open(tmp_path / "two")
    assert two.structures == one.structures == BASE
    assert two.verify().ok
    volume = torch.randn((4, 16, 16), generator=torch.Generator().manual_seed(0)).numpy()
    for name in BASE:
        expected = one.predict(volume, name)
        assert abs(two.predict(volume, name) - expected).max() <= 1e-4 * abs(expected).max()
        figures = one.entries[name].metrics
        assert two.entries[name].metrics == pytest.approx(figures, rel=1e-4)
    work = tmp_path / "two.training"
    assert len(list((work / "tensorboard").iterdir())) == 2  # of the first process: one before, one after


def test_the_command_is_a_module() -> None:
    """As torchrun starts it."""
    [done] = start(1, "-m", "repmode_cl", "--version")
    assert done.stdout == f"repmode-cl {__version__}\n"


# -- what is refused --------------------------------------------------------------------------------------------


def test_who_was_started_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched_ranks() is None
    launched(monkeypatch, 1, 2)
    assert launched_ranks() == (1, 2, 1)
    launched(monkeypatch, 0, 1)  # torchrun with one process is no company
    assert launched_ranks() is None
    refuse_distributed("anything")
    with process_group("cpu") as (ranks, device):
        assert (ranks, device) == (Ranks(), torch.device("cpu"))


def test_what_is_not_distributed_is_refused(
    monkeypatch: pytest.MonkeyPatch, manifest: Path, tmp_path: Path
) -> None:
    launched(monkeypatch, 0, 2)
    with pytest.raises(ConfigError, match=r"2 processes were started together, but a benchmark is .* of one"):
        run_benchmark(tiny(manifest, tmp_path))
    with pytest.raises(ConfigError, match="but adding a structure is the work of one"):
        add_structure(tmp_path, "dna", manifest)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    Ranks(0, 2).check_shares(8, 4)
    with pytest.raises(ConfigError, match=r"batch_size is 8, in training.accumulate=4 .* a multiple of 12"):
        Ranks(0, 3).check_shares(8, 4)


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, 2, 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(ConfigError, match=r"at least 3 processes here, but torch sees 2 GPU"),
        process_group("auto"),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"training.device is cuda:1, one GPU for all"),
        process_group("cuda:1"),
    ):
        pass
