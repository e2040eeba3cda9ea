"""What each strategy trains, on which images, what it changes, and that a seed decides everything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from repmode_cl.scenarios import StructureStream, stream_of_samples
from repmode_cl.strategies import ExpertsFrozen, FineTuning, MultiNet, PlainNetworks, StructureStrategy
from scipy.ndimage import gaussian_filter
from torch import Tensor

from repmode_cl.config import TrainingConfig
from repmode_cl.data.sample import Sample
from repmode_cl.errors import StructureError, UnknownStructureError
from repmode_cl.nn import AdditionSpec, Architecture, PlainUNet, RepModeUNet

ARCHITECTURE = Architecture(width=4, depth=1, experts=("conv3", "conv1", "avg3"))
BASE = ("dna", "cell_membrane")
STRUCTURES = (*BASE, "nucleolus", "mitochondria")
STREAM = (BASE, ("nucleolus",), ("mitochondria",))
APART = tuple((name,) for name in STRUCTURES)
SHAPE, PATCH = (6, 12, 12), (4, 8, 8)
TRAINING = TrainingConfig(
    batch_size=2, steps=4, base_steps=4, learning_rate=0.02, weight_decay=0.01, schedule="one_cycle",
    validate_every=2, precision="float32", device="cpu",
)  # fmt: skip

#: Strategy -> how it is built for a stream, with a seed.
Build = Callable[..., StructureStrategy]


def normalised(volume: np.ndarray) -> np.ndarray:
    return ((volume - volume.mean()) / volume.std()).astype(np.float32)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Return prepared images, each of one structure: what a structure looks like is a blur of its signal."""
    folder = tmp_path_factory.mktemp("samples")
    random = np.random.default_rng(0)
    made = []
    for number, name in enumerate(STRUCTURES):
        for field, split in enumerate(("train", "train", "train", "val", "test")):
            signal = normalised(gaussian_filter(random.normal(size=SHAPE), 0.7))
            target = normalised(gaussian_filter(signal, 0.5 + number / 2) ** (1 + number % 2))
            paths = [folder / f"{name}{field}-{part}.npy" for part in ("signal", "target")]
            for path, volume in zip(paths, (signal, target), strict=True):
                np.save(path, volume)
            row = len(made) + 2
            made.append(
                Sample(name, split, row, f"{name}-{field}", paths[0], paths[1], None, SHAPE, f"group {row}")
            )
    return made


def stream_of(
    samples: Sequence[Sample], experiences: Sequence[Sequence[str]] = STREAM, seed: int = 0
) -> StructureStream:
    return stream_of_samples(samples, experiences, patch=PATCH, count=lambda _, __: 8, seed=seed)


def experts_frozen(stream: StructureStream, seed: int = 0, **spec: Any) -> StructureStrategy:
    options = {"training": spec.pop("training", TRAINING)}
    network = RepModeUNet(ARCHITECTURE, stream.experiences[0], seed=seed)
    return ExpertsFrozen(
        network=network, spec=AdditionSpec(**spec), stream=stream, patch=PATCH, seed=seed, **options
    )


def fine_tuning(
    stream: StructureStream, seed: int = 0, training: TrainingConfig = TRAINING
) -> StructureStrategy:
    network = RepModeUNet(ARCHITECTURE, stream.experiences[0], seed=seed)
    return FineTuning(network=network, stream=stream, training=training, patch=PATCH, seed=seed)


def multi_net(
    stream: StructureStream, seed: int = 0, training: TrainingConfig = TRAINING
) -> StructureStrategy:
    network = PlainNetworks(ARCHITECTURE, 3)
    return MultiNet(network=network, stream=stream, training=training, patch=PATCH, seed=seed)


BUILD: dict[str, Build] = {
    "experts_frozen": experts_frozen, "fine_tuning": fine_tuning, "multi_net": multi_net,
}  # fmt: skip
EACH = pytest.mark.parametrize("name", BUILD)
SPECS = (
    {},
    {"sees": "all"},
    {"norm": "base"},
    {"resampling": "base"},
    {"expert": "none"},
    {"expert": "lowrank:1"},
    {"expert": "none", "norm": "base", "resampling": "base"},
)


def build(name: str, samples: Sequence[Sample], **options: Any) -> StructureStrategy:
    experiences = APART if name == "multi_net" else STREAM
    return BUILD[name](stream_of(samples, experiences, seed=options.get("seed", 0)), **options)


def learn(strategy: StructureStrategy, *numbers: int) -> StructureStrategy:
    """Train the experiences `numbers`, or all."""
    for number in numbers or range(len(strategy.stream.experiences)):
        strategy.train(strategy.stream.train[number], eval_streams=[])
        strategy.progress.experience, strategy.progress.step = number + 1, 0
    return strategy


def state_of(strategy: StructureStrategy) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in strategy.network.state_dict().items()}


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def predictions(strategy: StructureStrategy, structures: Iterable[str]) -> dict[str, Tensor]:
    volume = torch.from_numpy(normalised(np.random.default_rng(7).normal(size=SHAPE)))
    found = {name: torch.from_numpy(strategy.predict(volume, name)) for name in structures}
    # A network that died of its training would predict 0 whatever happened to it.
    assert all(prediction.std() > 1e-3 for prediction in found.values())
    return found


# -- what is trained, and what changes --------------------------------------------------------------------------


def expected_names(network: RepModeUNet, name: str, spec: dict[str, str]) -> tuple[set[str], set[str]]:
    """Return the parameters that the paper's addition owns, written out, and its norms' buffers."""
    blocks = [block for block, _ in network.named_blocks()]
    sites = [site for site, _ in network.named_resampling()]
    assert blocks == [
        *(f"{part}.{i}" for part in ("encoder.0", "bottleneck", "decoder.0") for i in (0, 1)),
        "head",
    ]
    assert sites == ["down.0", "up.0"]
    names = {f"{block}.own.{name}.gate" for block in blocks}
    expert = spec.get("expert", "conv3")
    if expert != "none":
        parts = ("spatial", "mix") if expert.startswith("lowrank") else ("weight",)
        names |= {f"{block}.own.{name}.expert.{part}" for block in blocks for part in parts}
    if spec.get("resampling", "own") == "own":
        names |= {f"{site}.own.{name}.weight" for site in sites}
    norms: list[str] = []
    if spec.get("norm", "own") == "own":
        norms = [f"{place}.norm.own.{name}" for place in (*blocks, *sites) if place != "head"]
        names |= {f"{norm}.{part}" for norm in norms for part in ("weight", "bias")}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return names, {f"{norm}.{part}" for norm in norms for part in buffers}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: "-".join(spec.values()) or "default")
def test_experts_frozen_trains_what_the_addition_owns(samples: list[Sample], spec: dict[str, str]) -> None:
    strategy = learn(build("experts_frozen", samples, **spec), 0)
    for number, name in enumerate(("nucleolus", "mitochondria"), start=1):
        known = strategy.network.structures
        before, old = state_of(strategy), predictions(strategy, known)
        fresh: dict[str, Tensor] = {}
        strategy.listeners = [lambda s, fresh=fresh: fresh or fresh.update(state_of(s))]
        learn(strategy, number)
        parameters, buffers = expected_names(strategy.network, name, spec)
        assert strategy.trained == parameters
        assert {n for n, p in strategy.network.named_parameters() if p.requires_grad} == parameters
        after = state_of(strategy)
        assert after.keys() - before.keys() == parameters | buffers
        assert differing(before, after) == set()  # all that was there, to the bit
        assert differing(fresh, after) == parameters | buffers  # and all that is new did learn
        now = predictions(strategy, known)
        assert all(torch.equal(old[structure], now[structure]) for structure in known)
    needs = ("nucleolus",) if spec.get("sees") == "all" else ()
    assert strategy.network.additions["mitochondria"].needs == needs


def test_a_joint_base_trains_everything(samples: list[Sample]) -> None:
    strategy = build("experts_frozen", samples)
    before = state_of(strategy)
    learn(strategy, 0)
    assert strategy.trained == {name for name, _ in strategy.network.named_parameters()}
    assert differing(before, state_of(strategy)) == before.keys()


def test_fine_tuning_trains_all_but_the_other_rows_and_forgets(samples: list[Sample]) -> None:
    strategy = learn(build("fine_tuning", samples), 0)
    for number, name in enumerate(("nucleolus", "mitochondria"), start=1):
        known = strategy.network.structures
        before, old = state_of(strategy), predictions(strategy, known)
        learn(strategy, number)
        after, now = state_of(strategy), predictions(strategy, known)
        blocks = [block for block, _ in strategy.network.named_blocks()]
        rows = {f"{block}.gates.{structure}" for block in blocks for structure in known}
        assert rows <= before.keys()
        assert after.keys() - before.keys() == {f"{block}.gates.{name}" for block in blocks}
        assert strategy.trained == {n for n, _ in strategy.network.named_parameters()} - rows
        assert differing(before, after) == before.keys() - rows
        assert all((old[structure] - now[structure]).abs().max() > 1e-3 for structure in known)
    assert strategy.network.additions == {}


def test_multi_net_trains_one_network_and_leaves_the_others(samples: list[Sample]) -> None:
    strategy = build("multi_net", samples)
    for number, name in enumerate(STRUCTURES):
        known = strategy.network.structures
        before, old = state_of(strategy), predictions(strategy, known)
        learn(strategy, number)
        after, now = state_of(strategy), predictions(strategy, known)
        new = {f"networks.{name}.{part}" for part in PlainUNet(4, 1, 3).state_dict()}
        assert after.keys() - before.keys() == new
        assert strategy.trained == {n for n in new if n.endswith(("weight", "bias"))}
        assert differing(before, after) == set()
        assert all(torch.equal(old[structure], now[structure]) for structure in known)


def test_networks_of_multi_net_are_independent(samples: list[Sample]) -> None:
    """A network is the same whoever came before it; and no two are alike."""
    after_others = learn(build("multi_net", samples)).network
    alone = learn(multi_net(stream_of(samples, [("mitochondria",)]))).network
    mine = alone.networks["mitochondria"].state_dict()
    assert differing(mine, after_others.networks["mitochondria"].state_dict()) == set()
    weights = [parameter.data_ptr() for parameter in after_others.parameters()]
    assert len(set(weights)) == len(weights)
    assert not torch.equal(
        after_others.networks["dna"].head.weight, after_others.networks["cell_membrane"].head.weight
    )
    with pytest.raises(StructureError, match="one at a time"):
        after_others.train_only(BASE)


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_network_of_multi_net_has_the_kernel_that_is_asked_for(samples: list[Sample], kernel: int) -> None:
    strategy = MultiNet(
        network=PlainNetworks(ARCHITECTURE, kernel), stream=stream_of(samples, [("dna",)]), training=TRAINING,
        patch=PATCH,
    )  # fmt: skip
    learn(strategy)
    assert strategy.network.networks["dna"].head.weight.shape == (1, 4, kernel, kernel, kernel)


@EACH
def test_the_optimiser_holds_what_is_trained_and_nothing_else(samples: list[Sample], name: str) -> None:
    strategy = build(name, samples)
    seen = []

    def look(strategy: StructureStrategy) -> None:
        named = dict(strategy.network.named_parameters())
        held = [p for group in strategy.optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(named[n]) for n in strategy.trained}
        assert len(held) == len(strategy.trained)
        assert all(p.grad is None for n, p in named.items() if n not in strategy.trained)
        seen.append((strategy.progress.experience, id(strategy.optimizer)))

    strategy.listeners.append(look)
    learn(strategy)
    experiences = len(strategy.stream.experiences)
    assert len(seen) == 4 * experiences
    assert [experience for experience, _ in seen[::4]] == list(range(experiences))


# -- images -----------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Path]]:
    """Yield the files that are being opened."""
    paths: set[Path] = set()
    load = np.load

    def spy(path: Path, *args: Any, **kwargs: Any) -> Any:
        paths.add(Path(path))
        return load(path, *args, **kwargs)

    monkeypatch.setattr(np, "load", spy)
    return paths


@EACH
def test_a_strategy_sees_the_images_of_its_experience(
    samples: list[Sample], opened: set[Path], name: str
) -> None:
    strategy = build(name, samples)
    for number, names in enumerate(strategy.stream.experiences):
        opened.clear()
        learn(strategy, number)
        # Three training images of each structure in eight patches: all of them, and the validation image.
        mine = [s for s in samples if s.structure in names and s.split in ("train", "val")]
        assert opened == {path for s in mine for path in (s.signal, s.target)}
    opened.clear()
    figures = strategy.evaluate(strategy.stream.test)
    assert opened == {path for s in samples if s.split == "test" for path in (s.signal, s.target)}
    assert tuple(figures) == STRUCTURES
    assert all(metrics.keys() == {"mse", "mae", "r2", "pearson"} for metrics in figures.values())


def test_all_strategies_see_the_same_patches(samples: list[Sample]) -> None:
    seen: dict[str, list[Tensor]] = {}
    for name in BUILD:
        strategy = build(name, samples)
        [number] = [k for k, names in enumerate(strategy.stream.experiences) if names == ("nucleolus",)]
        strategy.listeners = [lambda s, name=name: seen.setdefault(name, []).append(s.mb_x.clone())]
        if name != "multi_net":
            learn(strategy, *range(number))
            seen.pop(name)
        learn(strategy, number)
    first = seen["experts_frozen"]
    assert len(first) == 4
    for name in BUILD:
        assert all(map(torch.equal, first, seen[name]))


def test_evaluation_agrees_with_predicting_by_hand(samples: list[Sample]) -> None:
    strategy = learn(build("experts_frozen", samples), 0)
    figures = strategy.evaluate([strategy.stream.test[0]])
    for sample in samples:
        if sample.split == "test" and sample.structure in BASE:
            predicted = strategy.predict(torch.from_numpy(np.load(sample.signal)), sample.structure)
            mse = ((predicted - np.load(sample.target)).astype(np.float64) ** 2).mean()
            assert figures[sample.structure]["mse"] == pytest.approx(mse, rel=1e-5)


# -- seeds ------------------------------------------------------------------------------------------------------


@EACH
def test_a_seed_decides_everything(samples: list[Sample], name: str) -> None:
    torch.manual_seed(1)
    first = learn(build(name, samples, seed=3))
    torch.manual_seed(2)  # whatever state the global generator is in
    again = learn(build(name, samples, seed=3))
    other = learn(build(name, samples, seed=4), 0)
    assert differing(state_of(first), state_of(again)) == set()
    assert first.progress.curve == again.progress.curve
    assert first.evaluate(first.stream.test) == again.evaluate(again.stream.test)
    assert first.progress.curve[: len(other.progress.curve)] != other.progress.curve
    changed = differing(state_of(other), state_of(first))
    assert changed >= {n for n in state_of(other) if n.endswith("weight")}


# -- schedule and selection -------------------------------------------------------------------------------------


@EACH
def test_the_best_validated_state_is_what_an_experience_ends_with(samples: list[Sample], name: str) -> None:
    training = TRAINING.model_copy(update={"steps": 6, "base_steps": 6, "validate_every": 1})
    strategy = build(name, samples, training=training)
    states: dict[int, dict[str, Tensor]] = {}

    def wreck(strategy: StructureStrategy) -> None:
        if strategy.progress.step == 4:
            with torch.no_grad():
                for parameter in strategy.optimized_param_id.values():
                    parameter.mul_(-30)

    strategy.listeners.append(wreck)
    strategy.on_validation.append(lambda s: states.update({s.progress.step: state_of(s)}))
    for number in range(len(strategy.stream.experiences)):
        states.clear()
        curve = len(strategy.progress.curve)
        learn(strategy, number)
        mse: dict[int, list[float]] = {}
        for row in strategy.progress.curve[curve:]:
            assert row["experience"] == number
            if row["metric"] == "mse":
                mse.setdefault(row["train_step"], []).append(row["value"])
        assert list(mse) == list(states) == [1, 2, 3, 4]
        mean = {step: sum(values) / len(values) for step, values in mse.items()}
        best = min(mean, key=lambda step: mean[step])
        assert best < 4
        assert (strategy.selection.step, strategy.selection.best) == (best, mean[best])
        assert differing(states[best], state_of(strategy)) == set()
        assert differing(states[4], state_of(strategy))


def test_without_a_validation_image_the_last_state_stays(samples: list[Sample]) -> None:
    strategy = build("experts_frozen", [s for s in samples if s.split != "val"])
    last: list[dict[str, Tensor]] = []
    strategy.listeners.append(lambda s: last.append(state_of(s)))
    learn(strategy)
    assert strategy.progress.curve == []
    assert differing(last[-1], state_of(strategy)) == set()
    assert set(predictions(strategy, STRUCTURES)) == set(STRUCTURES)


def test_each_experience_has_its_own_schedule_and_additions_their_rate(samples: list[Sample]) -> None:
    stream = stream_of(samples)
    rates: dict[int, list[float]] = {}
    strategy = ExpertsFrozen(
        network=RepModeUNet(ARCHITECTURE, BASE), stream=stream, training=TRAINING, patch=PATCH,
        addition_learning_rate=0.1,
    )  # fmt: skip

    def note(strategy: StructureStrategy) -> None:
        rates.setdefault(strategy.progress.experience, []).append(strategy.optimizer.param_groups[0]["lr"])

    strategy.listeners.append(note)
    learn(strategy)
    assert max(rates[0]) <= 0.02
    assert rates[1] == rates[2]  # begun afresh
    assert rates[1] == pytest.approx([5 * rate for rate in rates[0]])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_too(samples: list[Sample], precision: str) -> None:
    training = TRAINING.model_copy(update={"precision": precision, "gradient_clip": 1.0})
    stream = stream_of_samples(samples, STREAM, patch=(6, 8, 8), count=lambda _, __: 8, seed=0)
    runs = [learn(experts_frozen(stream, training=training), 0, 1) for _ in range(2)]
    states = [state_of(run) for run in runs]
    assert differing(*states) == set()
    assert all(tensor.isfinite().all() for tensor in states[0].values())
    assert {tensor.dtype for name, tensor in states[0].items() if name.endswith("weight")} == {torch.float32}
    full = state_of(learn(experts_frozen(stream), 0))
    assert differing(full, states[0])


def test_a_strategy_learns(samples: list[Sample]) -> None:
    """Not a benchmark: sixty small steps must fit a blur, or the loop is wrong somewhere."""
    training = TRAINING.model_copy(update={"steps": 60, "validate_every": 30, "weight_decay": 0.0})
    stream = stream_of_samples(samples, [("dna",)], patch=PATCH, count=lambda _, __: 120, seed=0)
    for name in BUILD:
        figures = learn(BUILD[name](stream, training=training)).evaluate(stream.test)
        assert figures["dna"]["r2"] > 0.5, (name, figures)


# -- mistakes ---------------------------------------------------------------------------------------------------


@EACH
def test_what_was_not_learned_is_not_predicted(samples: list[Sample], name: str) -> None:
    strategy = learn(build(name, samples), 0)
    volume = torch.zeros(SHAPE)
    for unknown in ("nucleolus", "golgi_apparatus"):
        with pytest.raises(UnknownStructureError, match=unknown):
            strategy.predict(volume, unknown)
        with pytest.raises(UnknownStructureError, match=unknown):
            strategy.network(volume[None, None], [unknown])
    with pytest.raises(UnknownStructureError, match="nucleolus"):
        strategy.evaluate([e for e in strategy.stream.test if strategy.stream.names_of(e) == ("nucleolus",)])
    assert "nucleolus" not in strategy.network.structures  # evaluating grows nothing


def test_the_network_ends_where_it_can_be_used(samples: list[Sample]) -> None:
    """A network that was evaluated in the middle of training goes on training, its frozen norms do not."""
    strategy = build("experts_frozen", samples)
    modes = []

    def look(strategy: StructureStrategy) -> None:
        network = cast(RepModeUNet, strategy.network)
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm3d)]
        modes.append({(m.training, m.weight.requires_grad) for m in norms})

    strategy.on_validation.append(look)
    strategy.listeners.append(look)
    learn(strategy)
    assert modes[: len(modes) // 3] == [{(True, True)}] * 6
    assert all(found == {(True, True), (False, False)} for found in modes[6:])
