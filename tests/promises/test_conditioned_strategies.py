"""The paper's task-conditioned rivals: joint training, and fine-tuning of everything, as definitions say.

That their frozen form changes nothing old is in `test_rivals_that_never_forget.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_strategies
import torch
from several_processes import start
from tiny_run import changed, make_manifest, tiny
from tiny_strategies import (
    ARCHITECTURE,
    BASE,
    STREAM,
    STRUCTURES,
    TRAINING,
    configured,
    differing,
    learn,
    predictions,
    state_of,
)
from torch import nn

from repmode_cl.benchmark import run_benchmark
from repmode_cl.config import Config, InferenceConfig, PatchConfig, StrategyConfig
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.nn import StructureUNet
from repmode_cl.nn.conditioned_unet import ConditionedUNet
from repmode_cl.results import ResultsTable, read_run_info
from repmode_cl.strategies import ConditionedStrategy
from repmode_cl.strategies.plugins.checkpoint import StrategyCheckpoint
from repmode_cl.strategies.registry import STRATEGIES, strategy_class

RIVALS = [name for name, kind in STRATEGIES.items() if issubclass(kind, ConditionedStrategy)]
EACH = pytest.mark.parametrize("name", RIVALS)
AGAIN = (*STREAM, ("nucleolus",))


class KilledError(Exception):
    """Stands for the end of a process."""


def test_all_are_here() -> None:
    assert RIVALS == ["dodnet", "tgnet", "condnet", "tsns", "pipo_fan"]


# -- joint ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@EACH
def test_joint_training_learns_all_structures_in_mixed_batches(name: str, samples: list[Sample]) -> None:
    strategy = configured(name, samples, mode="joint")
    assert strategy.stream.experiences == (STRUCTURES,)
    assert strategy.base_key is None
    mixed: list[int] = []
    strategy.listeners.append(lambda s: mixed.append(len(set(s.mb_task_id.tolist()))))
    learn(strategy)
    assert len(mixed) == strategy.budget.steps == 4 * 3  # those of all experiences
    assert max(mixed) == TRAINING.batch_size == 2
    assert strategy.network.structures == strategy.network.base_structures == STRUCTURES
    assert strategy.trained == {key for key, _ in strategy.network.named_parameters()}
    assert set(strategy.evaluate(strategy.stream.known_after(0))) == set(STRUCTURES)
    other = predictions(strategy, STRUCTURES)
    assert all(not torch.equal(other[one], other["dna"]) for one in STRUCTURES[1:])


@EACH
def test_joint_training_has_one_rate_and_refuses_increments(name: str, samples: list[Sample]) -> None:
    for given, expected in ((None, TRAINING.learning_rate), (0.5, 0.5)):
        assert configured(name, samples, mode="joint", learning_rate=given).learning_rate() == expected
    stream = configured(name, samples).stream
    network = STRATEGIES[name].network_class  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="learns all structures in one experience, and the stream has 3"):
        STRATEGIES[name](model=network(ARCHITECTURE, 3, BASE), mode="joint", stream=stream, training=TRAINING)
    with pytest.raises(ConfigError, match="mode is joint, frozen or fine_tuning, not 'both'"):
        STRATEGIES[name](model=network(ARCHITECTURE, 3, BASE), mode="both", stream=stream, training=TRAINING)


@pytest.mark.slow
def test_deep_supervision_adds_the_mean_error_of_the_maps(samples: list[Sample]) -> None:
    strategy = configured("pipo_fan", samples, mode="joint", deep_supervision=True)
    checked: list[bool] = []

    def check(trained: Any) -> None:
        names = trained.stream.names(trained.mb_task_id.tolist())
        with torch.no_grad():
            trained.mb_output = trained.forward()
            maps = trained.network.predict_maps(trained.mb_x, names)
            found = float(trained.criterion())
        # In training mode norms compute with the batch, so that both calls see the same.
        errors = [float(((one - trained.mb_y[:, :1]) ** 2).mean()) for one in maps.split(1, dim=1)]
        assert len(errors) == 1 + 2
        assert tuple(trained.mb_output.shape) == tuple(trained.mb_x.shape)
        checked.append(found == pytest.approx(errors[0] + sum(errors[1:]) / 2, rel=1e-5))

    strategy.listeners.append(check)
    learn(strategy)
    assert checked == [True] * strategy.budget.steps
    plain = configured("pipo_fan", samples, mode="joint")
    assert plain.deep_supervision is False
    # Outside training it predicts the fused map only.
    assert set(strategy.evaluate(strategy.stream.known_after(0))) == set(STRUCTURES)


# -- fine-tuning ------------------------------------------------------------------------------------------------


@EACH
def test_fine_tuning_moves_all_but_what_others_own(name: str, samples: list[Sample]) -> None:
    strategy = learn(configured(name, samples, mode="fine_tuning"), 0)
    before, old = state_of(strategy), predictions(strategy, BASE)
    learn(strategy, 1)
    assert strategy.network.additions == ()
    after, new = state_of(strategy), predictions(strategy, BASE)
    assert all(not torch.equal(old[one], new[one]) for one in BASE)  # it forgets
    of_base = {key for key in before if any(f".own.{one}." in key for one in BASE)}
    kept = {key for key in before if not strategy.network.shares_training(key)}
    assert differing(before, after) == before.keys() - of_base - kept
    own = {key for key in after if ".own.nucleolus." in key}
    assert after.keys() - before.keys() == own
    parameters = {key for key, _ in strategy.network.named_parameters()}
    assert strategy.trained == parameters - of_base - kept


@pytest.mark.parametrize(
    "name",
    [one if one in ("dodnet", "tsns") else pytest.param(one, marks=pytest.mark.slow) for one in RIVALS],
)
def test_fine_tuning_of_a_structure_that_comes_again_is_resumed_to_the_same_bits(
    name: str, samples: list[Sample], tmp_path: Path
) -> None:
    def made() -> Any:
        return configured(name, samples, AGAIN, mode="fine_tuning")

    whole = learn(made())
    checkpoint = StrategyCheckpoint(tmp_path)
    cut = learn(made(), 0, 1, 2)
    cut.on_validation.append(checkpoint.save)

    def kill(strategy: Any) -> None:
        if strategy.progress.step == 3:
            raise KilledError

    cut.listeners.append(kill)
    with pytest.raises(KilledError):
        learn(cut, 3)
    again = made()
    checkpoint.resume(again)
    learn(again, 3)
    assert list(state_of(again)) == list(state_of(whole))
    assert differing(state_of(whole), state_of(again)) == set()


@EACH
def test_frozen_and_fine_tuned_share_a_base_and_joint_has_none(name: str) -> None:
    kind = STRATEGIES[name]
    keys = {
        (mode, kernel): kind.declared_base(StrategyConfig(name=name, mode=mode, kernel=kernel))
        for mode in ("joint", "frozen", "fine_tuning")
        for kernel in (3, 5)
    }
    assert keys["joint", 3] is keys["joint", 5] is None
    assert keys["frozen", 3] == keys["fine_tuning", 3] != keys["frozen", 5] == keys["fine_tuning", 5]


# -- frozen, in a new process -----------------------------------------------------------------------------------

#: Label -> strategy and its options: every form in which nothing old changes, of the rows of `table1_incremental`.
FROZEN: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in RIVALS},
    # With seed 0 its predictions hardly differ from a constant after four steps.
    "tgnet": ("tgnet", {"seed": 3}),
    "condnet-shared": ("condnet", {"last_layer": "shared"}),
    "tsns-code": ("tsns", {"condition": "code"}),
    "pipo_fan-deep": ("pipo_fan", {"deep_supervision": True}),
    "frozen_trunk": ("frozen_trunk", {}),
    "frozen_trunk-last": ("frozen_trunk", {"head": "last"}),
    "multi_net": ("multi_net", {}),
    "small": ("experts_frozen", {"expert": "lowrank:4,4", "resampling": "base", "init_from": "best"}),
    "best": ("experts_frozen", {"init_from": "best"}),
}

#: Those that compute norms of the base while they train what is added: left in training mode, these would drift.
DRIFTING = [label for label, (name, _) in FROZEN.items() if name not in ("multi_net", "experts_frozen")]

#: Run by a new process: what stored strategies predict.
LOOK = """
import json
import sys
from pathlib import Path
import torch
from tiny_strategies import configured, make_samples, predictions
from repmode_cl.strategies.plugins.checkpoint import StrategyCheckpoint

torch.set_num_threads(int(sys.argv[1]))
folder = Path(sys.argv[2])
(folder / "images").mkdir()
samples = make_samples(folder / "images")
for checkpoint, (name, options) in json.loads(sys.argv[3]).items():
    strategy = configured(name, samples, **options)
    StrategyCheckpoint(folder / checkpoint).resume(strategy)
    torch.save(predictions(strategy, strategy.network.structures), folder / f"{checkpoint}.pt")
"""


def learned_and_stored(label: str, samples: list[Sample], folder: Path) -> dict[str, torch.Tensor]:
    """Store what learned the whole stream, and return what each structure predicted when it had just been learned."""
    name, options = FROZEN[label]
    strategy, seen = configured(name, samples, **options), dict[str, torch.Tensor]()
    for number in range(len(strategy.stream.experiences)):
        learn(strategy, number)
        new = [one for one in strategy.network.structures if one not in seen]
        seen |= predictions(strategy, new)
    strategy.finish_experience()
    StrategyCheckpoint(folder).save(strategy)
    return seen


@pytest.mark.parametrize(
    "spoilt", [["dodnet", "frozen_trunk"], pytest.param(DRIFTING, marks=pytest.mark.slow)], ids=len
)
def test_a_new_process_predicts_the_bits_of_when_each_structure_was_learned(
    spoilt: list[str], samples: list[Sample], tmp_path: Path
) -> None:
    """Of every frozen form; and not where frozen norms are left in training mode, of those that are spoilt so."""
    seen = {label: learned_and_stored(label, samples, tmp_path / label) for label in FROZEN}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StructureUNet, "train", nn.Module.train)
        drifting = {
            f"{label}-drifting": learned_and_stored(label, samples, tmp_path / f"{label}-drifting")
            for label in spoilt
        }
    what = {label: FROZEN[label.removesuffix("-drifting")] for label in (*seen, *drifting)}
    command = [sys.executable, "-c", LOOK, str(torch.get_num_threads()), str(tmp_path), json.dumps(what)]
    environment = {**os.environ, "PYTHONPATH": str(Path(tiny_strategies.__file__).parent)}
    subprocess.run(command, env=environment, check=True)
    for label, before in (seen | drifting).items():
        now = torch.load(tmp_path / f"{label}.pt", weights_only=True)
        assert tuple(before) == tuple(now) == STRUCTURES
        different = {one for one in STRUCTURES if not torch.equal(before[one], now[one])}
        if label in seen:
            assert different == set(), label
        else:
            assert different >= set(BASE), label


# -- windows ----------------------------------------------------------------------------------------------------


@EACH
def test_other_windows_are_refused_where_the_network_depends_on_them(
    name: str, samples: list[Sample], tmp_path: Path
) -> None:
    strategy = learn(configured(name, samples), 0)
    network: ConditionedUNet = strategy.network
    options = StrategyConfig(name=name)
    config = tiny(tmp_path / "manifest.csv", tmp_path)
    for window, refused in (
        (None, False),
        (config.patch.size, False),
        ((4, 8, 16), network.depends_on_window),
    ):
        windowed = changed(config, inference=InferenceConfig(window=window), strategies=(options,))
        arguments: dict[str, Any] = {
            "model": type(network)(network.architecture, 3, BASE),
            "stream": strategy.stream,
            "training": TRAINING,
            "inference": windowed.inference,
        }
        if refused:
            message = rf"inference.window is \[4, 8, 16\] and the patches have \[4, 8, 8\] .* {type(network).__name__}"
            with pytest.raises(ConfigError, match=message):
                strategy_class(options).check(windowed, options, STREAM)
            with pytest.raises(ConfigError, match=message):
                STRATEGIES[name](**arguments)
        else:
            strategy_class(options).check(windowed, options, STREAM)
            STRATEGIES[name](**arguments)
    sizes: list[tuple[int, ...]] = []
    forward = type(network).forward

    def recorded(self: Any, x: torch.Tensor, structures: Any) -> torch.Tensor:
        sizes.append(tuple(x.shape[2:]))
        return forward(self, x, structures)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(network), "forward", recorded)
        predictions(strategy, BASE)
    assert set(sizes) == {(4, 8, 8)}


# -- a benchmark ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a benchmark of every rival, trained jointly, and of one in the two other modes."""
    folder = tmp_path_factory.mktemp("rivals")
    config: Config = tiny(make_manifest(folder), folder / "out")
    training = config.training.model_copy(update={"steps": 2, "base_steps": 2})
    joint = [StrategyConfig(name=name, mode="joint") for name in RIVALS]
    others = [StrategyConfig(name="dodnet", mode=mode) for mode in ("frozen", "fine_tuning")]
    return run_benchmark(changed(config, training=training, strategies=(*joint, *others)))


def figures_of(run: Path, title: str, metric: str) -> dict[tuple[int, str], float]:
    rows = ResultsTable.read(run / "results.csv")
    return {(row.step, row.structure): row.value for row in rows.select(strategy=title, metric=metric)}


@pytest.mark.slow
@EACH
def test_a_benchmark_reports_joint_training_after_the_last_step(name: str, run: Path) -> None:
    info, joint = read_run_info(run), f"{name}_k3_joint"
    assert info.joint_titles == {f"{one}_k3_joint" for one in RIVALS}
    figures = figures_of(run, joint, "r2")
    assert set(figures) == {(2, one) for one in STRUCTURES}
    assert all(np.isfinite(list(figures.values())))
    for metric in ("train_seconds", "added_parameters", "added_bytes"):
        [cost] = figures_of(run, joint, metric).values()
        assert cost > 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert joint in page


def test_a_benchmark_shares_the_base_of_both_incremental_modes(run: Path) -> None:
    frozen, tuned = (figures_of(run, title, "r2") for title in ("dodnet_k3", "dodnet_k3_fine_tuning"))
    assert set(frozen) == set(tuned)
    assert len(frozen) == 2 + 3 + 4
    for one in BASE:
        assert frozen[0, one] == tuned[0, one] == frozen[2, one] != tuned[2, one]
    assert [path.name for path in (run / "base").iterdir() if path.is_dir()] == ["dodnet_k3"]


# -- what a rival cannot be trained with ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["condnet", "tsns"])
def test_streams_of_more_structures_than_slots_are_refused(name: str, tmp_path: Path) -> None:
    config = tiny(tmp_path / "manifest.csv", tmp_path)
    options = StrategyConfig(name=name, slots=3)
    with pytest.raises(ConfigError, match=r"4 structures, and the network 3 slots: set slots: 4, or more"):
        strategy_class(options).check(config, options, STREAM)
    strategy_class(options).check(config, options, STREAM[:2])


@pytest.mark.parametrize(
    "training",
    [{"batch_size": 1}, {"batch_size": 2, "accumulate": 2}, {"batch_size": 4, "structures_per_batch": 1}],
)
def test_batches_in_which_the_condition_would_vanish_are_refused(
    training: dict[str, int], tmp_path: Path
) -> None:
    config = tiny(tmp_path / "manifest.csv", tmp_path)
    config = changed(config, training=config.training.model_copy(update=training))
    for mode in ("joint", "frozen", "fine_tuning"):
        options = StrategyConfig(name="condnet", mode=mode)
        with pytest.raises(ConfigError, match="batch norm would subtract the channel that tells them apart"):
            strategy_class(options).check(config, options, STREAM)
    alone = (("dna",), ("nucleolus",))  # nothing to tell apart
    strategy_class(options).check(config, options, alone)
    for other in set(RIVALS) - {"condnet"}:
        strategy_class(StrategyConfig(name=other)).check(config, StrategyConfig(name=other), STREAM)


def test_patches_that_leave_nothing_to_normalise_are_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path / "manifest.csv", tmp_path)
    options = StrategyConfig(name="tsns")
    strategy_class(options).check(config, options, STREAM)
    small = changed(config, patch=PatchConfig(size=(2, 2, 2)))
    with pytest.raises(ConfigError, match=r"patches of \[2, 2, 2\] voxels leave one voxel at the bottleneck"):
        strategy_class(options).check(small, options, STREAM)


# -- several processes ------------------------------------------------------------------------------------------

#: A step of a joint batch of three structures, in networks of four; no structure is in both halves.
STEPS = """
import sys
import torch
from repmode_cl.nn import Architecture
from repmode_cl.strategies.registry import STRATEGIES
from repmode_cl.training import process_group, sync_batch_norms, make_adam, masked_mse, sum_gradients, count_voxels

names = ["dna", "dna", "nucleolus", "cell_membrane"]
base = ("dna", "cell_membrane", "nucleolus", "mitochondria")

def step(kind, ranks):
    random = torch.Generator().manual_seed(0)
    network = kind(Architecture(2, 1, ("conv3",)), 3, base, seed=0).double().train()
    optimizer = make_adam(network.parameters(), learning_rate=0.01, weight_decay=0.1)
    share = len(names) // ranks.world
    part = slice(ranks.rank * share, (ranks.rank + 1) * share)
    losses = []
    with sync_batch_norms(network, ranks):
        x, y = (torch.randn((4, 1, 4, 8, 8), generator=random).double() for _ in range(2))
        [count] = ranks.total([count_voxels(y[part])])
        optimizer.zero_grad()
        loss = masked_mse(network(x[part], names[part]), y[part], count=count)
        loss.backward()
        losses.append(sum_gradients(network.parameters(), loss.detach(), ranks))
        optimizer.step()
    return {**network.state_dict(), "losses": torch.stack(losses)}

with process_group("cpu") as (ranks, device):
    kinds = {name: getattr(kind, "network_class", None) for name, kind in STRATEGIES.items()}
    found = {name: step(kind, ranks) for name, kind in kinds.items() if kind is not None}
    torch.save(found, f"{sys.argv[1]}.{ranks.rank}")
"""


@pytest.mark.slow
def test_two_processes_come_to_the_joint_batch(tmp_path: Path) -> None:
    for world in (1, 2):
        for done in start(world, "-c", STEPS, str(tmp_path / str(world))):
            assert done.returncode == 0, done.stderr
    alone, one, other = (torch.load(tmp_path / name, weights_only=True) for name in ("1.0", "2.0", "2.1"))
    assert list(alone) == RIVALS
    for name, state in alone.items():
        assert all(torch.equal(one[name][key], other[name][key]) for key in state)
        for key, expected in state.items():
            difference = (one[name][key] - expected).abs().max() / expected.abs().max().clamp(min=1e-9)
            assert difference <= 1e-9, (name, key)
