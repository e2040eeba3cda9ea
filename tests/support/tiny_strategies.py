"""Strategies small enough to learn a whole stream in a second: what the tests of strategies share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from repmode_cl.config import Config, NetworkConfig, PatchConfig, StrategyConfig, TrainingConfig
from repmode_cl.data.sample import Sample
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet
from repmode_cl.scenarios import PatchSampling, StructureStream, stream_of_samples, task_labels
from repmode_cl.strategies import ExpertsFrozen, FineTuning, MultiNet, PlainNetworks, StructureStrategy
from repmode_cl.strategies.registry import build_strategy, strategy_class, strategy_section
from repmode_cl.training import Ranks, patch_count

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


def make_samples(folder: Path) -> list[Sample]:
    """Return prepared images, each of one structure: what a structure looks like is a blur of its signal."""
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
    return stream_of_samples(samples, experiences, PatchSampling(PATCH), count=lambda _, __: 8, seed=seed)


def experts_frozen(stream: StructureStream, seed: int = 0, **spec: Any) -> StructureStrategy:
    options = {"training": spec.pop("training", TRAINING)}
    network = RepModeUNet(ARCHITECTURE, stream.experiences[0], seed=seed)
    return ExpertsFrozen(model=network, spec=AdditionSpec(**spec), stream=stream, seed=seed, **options)


def fine_tuning(
    stream: StructureStream, seed: int = 0, training: TrainingConfig = TRAINING
) -> StructureStrategy:
    network = RepModeUNet(ARCHITECTURE, stream.experiences[0], seed=seed)
    return FineTuning(model=network, stream=stream, training=training, seed=seed)


def multi_net(
    stream: StructureStream, seed: int = 0, training: TrainingConfig = TRAINING
) -> StructureStrategy:
    network = PlainNetworks(ARCHITECTURE, 3)
    return MultiNet(model=network, stream=stream, training=training, seed=seed)


BUILD: dict[str, Build] = {
    "experts_frozen": experts_frozen, "fine_tuning": fine_tuning, "multi_net": multi_net,
}  # fmt: skip


def build(name: str, samples: Sequence[Sample], **options: Any) -> StructureStrategy:
    experiences = APART if name == "multi_net" else STREAM
    return BUILD[name](stream_of(samples, experiences, seed=options.get("seed", 0)), **options)


def configured(
    name: str,
    samples: Sequence[Sample],
    experiences: tuple[tuple[str, ...], ...] = STREAM,
    *,
    seed: int = 0,
    training: TrainingConfig = TRAINING,
    foreground: float = 0.0,
    ranks: Ranks | None = None,
    **options: Any,
) -> StructureStrategy:
    """Build a strategy as a benchmark does: from its section of a configuration."""
    section = StrategyConfig(name=name, **options)
    config = Config(
        name="tiny", network=NetworkConfig(width=4, depth=1, experts=ARCHITECTURE.experts),
        patch=PatchConfig(size=PATCH, foreground=foreground), training=training, strategies=(section,),
    )  # fmt: skip
    kind, full = strategy_class(section), strategy_section(section)
    stream = stream_of_samples(
        samples, kind.regroup(experiences, full)[0], PatchSampling(PATCH, foreground=foreground), seed=seed,
        labels=task_labels(experiences), arrivals=experiences,
        count=lambda names, images: patch_count(
            training, kind.steps_of(training, full, experiences, names, images), images
        ),
    )  # fmt: skip
    return build_strategy(config, section, stream, seed, ranks=ranks)


def learn(strategy: StructureStrategy, *numbers: int) -> StructureStrategy:
    """Train the experiences `numbers`, or all."""
    for number in numbers or range(len(strategy.stream.experiences)):
        strategy.train(strategy.stream.train[number], eval_streams=[])
    return strategy


def state_of(strategy: StructureStrategy) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in strategy.network.state_dict().items()}


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def predictions(strategy: StructureStrategy, structures: Iterable[str]) -> dict[str, Tensor]:
    volume = torch.from_numpy(normalised(np.random.default_rng(7).normal(size=SHAPE)))
    found = {name: torch.from_numpy(strategy.predict(volume, name)) for name in structures}
    # A network that died of its training would predict one number whatever happened to it.
    assert all(prediction.std() > 1e-3 for prediction in found.values())
    return found


def one_masked_image(samples: Sequence[Sample], folder: Path) -> list[Sample]:
    """Return the samples with masks, and of each structure's training images only the first.

    Of what is masked, the target is far off: only a mask that counts keeps it out of the loss.
    """
    few = [s for s in samples if s.split != "train" or s.image_id == f"{s.structure}-0"]
    random, masked = np.random.default_rng(0), []
    for number, sample in enumerate(few):
        mask = (random.random(sample.shape) > 0.3).astype(np.float32)
        target = np.where(mask > 0, np.load(sample.target), 1e4).astype(np.float32)
        paths = [folder / f"{number}-{part}.npy" for part in ("mask", "target")]
        for path, volume in zip(paths, (mask, target), strict=True):
            np.save(path, volume)
        masked.append(replace(sample, mask=paths[0], target=paths[1]))
    return masked
