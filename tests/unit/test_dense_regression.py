"""Benchmarks of datasets and tensors in memory: the same as those of a manifest, for ours and for every baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repmode_cl.scenarios import (  # isort: skip - it imports Avalanche quietly
    StructureStream,
    dense_regression_benchmark,
    structure_stream,
)

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from scipy.ndimage import gaussian_filter
from tiny_strategies import ARCHITECTURE, TRAINING
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from repmode_cl.config import Config, NetworkConfig, PatchConfig, StrategyConfig
from repmode_cl.config.strategy_schema import STRATEGY_NAMES
from repmode_cl.data.manifest import Row, write_manifest
from repmode_cl.errors import ConfigError, ManifestError, StructureError
from repmode_cl.nn import RepModeUNet
from repmode_cl.strategies import ExpertsFrozen
from repmode_cl.strategies.registry import build_strategy, strategy_class

SHAPE, PATCH = (6, 12, 12), (4, 8, 8)
NAMES = ("membrane", "nuclei", "vesicles")
STEPS = TRAINING.model_copy(update={"steps": 2, "base_steps": 2, "validate_every": 1})


def pair(seed: int, blur: float, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    signal = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 0.7).astype(np.float32)
    return torch.from_numpy(signal), torch.from_numpy(gaussian_filter(signal, blur))


def pairs(first: int, count: int, blur: float) -> list[tuple[Tensor, Tensor]]:
    return [pair(first + k, blur) for k in range(count)]


def data(names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    return {
        name: tuple(pairs(100 * k + 10 * part, (3, 1, 2)[part], 0.4 + k / 3) for part in range(3))
        for k, name in enumerate(names)
    }


def made(datasets: dict[str, Any] | None = None, **options: Any) -> StructureStream:
    options = {"base": NAMES[:1], "patch": PATCH, "patches": 4, **options}
    return dense_regression_benchmark(datasets or data(), **options)


class Volumes(Dataset[Any]):
    """A dataset of a user's own."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_it_is_the_benchmark_of_a_manifest_of_the_same_images(tmp_path: Path) -> None:
    rows = []
    for name, splits in data().items():
        for split, items in zip(("train", "val", "test"), splits, strict=True):
            for number, item in enumerate(items):
                paths = [tmp_path / f"{name}-{split}-{number}-{part}.npy" for part in ("signal", "target")]
                for path, volume in zip(paths, item, strict=True):
                    np.save(path, volume.numpy())
                rows.append(Row(0, name, paths[0], None, paths[1], None, split))
    write_manifest(tmp_path / "manifest.csv", rows)
    options: dict[str, Any] = {"base": NAMES[:1], "patch": PATCH, "patches": 4, "seed": 3}
    ours = made(cache=tmp_path / "memory", **options)
    theirs = structure_stream(tmp_path / "manifest.csv", cache=tmp_path / "cache", **options)
    assert ours.experiences == theirs.experiences == tuple((name,) for name in NAMES)
    assert ours.labels == theirs.labels
    for mine, other in zip(ours.patches, theirs.patches, strict=True):
        for k in range(len(mine)):
            assert all(torch.equal(a, b) for a, b in zip(mine[k], other[k], strict=True))
    for mine, other in zip(ours.test, theirs.test, strict=True):
        assert len(mine.dataset) == len(other.dataset) == 2
        for k in range(2):
            assert torch.equal(mine.dataset[k][1], other.dataset[k][1])


def test_tensors_datasets_and_lists_are_the_same(tmp_path: Path) -> None:
    lists = data()
    stacked = {
        name: tuple(tuple(map(torch.stack, zip(*items, strict=True))) for items in splits)
        for name, splits in lists.items()
    }
    tensors = {name: tuple(TensorDataset(*one) for one in splits) for name, splits in stacked.items()}
    arrays = {
        name: tuple(tuple(tensor.numpy()[:, None] for tensor in one) for one in splits)
        for name, splits in stacked.items()
    }
    own = {name: tuple(Volumes(items) for items in splits) for name, splits in lists.items()}
    labelled = {
        name: tuple(AvalancheDataset([Volumes([(*item, 5) for item in items])]) for items in splits)
        for name, splits in lists.items()
    }
    expected = made(lists, cache=tmp_path)
    for datasets in (stacked, tensors, arrays, own, labelled):
        stream = made(datasets, cache=tmp_path)
        assert stream.images == expected.images
        assert stream.tests == expected.tests
    # Written once, by content: three signals and targets for training, one for validation, two for test, each.
    assert len(list((tmp_path / "volumes").glob("*.npy"))) == len(NAMES) * 6 * 2


def test_volumes_of_several_sizes_and_masks(tmp_path: Path) -> None:
    datasets = data(NAMES[:1])
    signal, target = pair(77, 0.5, (4, 16, 10))
    mask = torch.zeros(4, 16, 10)
    mask[:, 4:] = 3
    train, _, test = datasets[NAMES[0]]
    stream = made({NAMES[0]: (train, None, [*test, (signal, target, mask)])}, base=())
    assert len(stream.val[0].dataset) == 0
    _, weighted = stream.test[0].dataset[2][:2]
    assert weighted.shape == (2, 4, 16, 10)
    assert torch.equal(weighted[1], (mask > 0).float())
    assert not stream.patches[0].weighted


def test_what_is_named_again_comes_again() -> None:
    stream = made(order=["nuclei", "vesicles", "nuclei"])
    assert stream.experiences == (("membrane",), ("nuclei",), ("vesicles",), ("nuclei",))
    first, again = ({s.image_id for s in stream.images[k]} for k in (1, 3))
    assert len(first | again) == 3
    assert not first & again


FLAT = torch.randn(12, 12)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((FLAT, FLAT), r"nuclei, train item 0: signal has the shape \(12, 12\), a two-dimensional image"),
        ((FLAT[None], FLAT[None]), r"signal has the shape \(1, 12, 12\), a two-dimensional image"),
        ((FLAT[None, None], FLAT[None, None]), r"\(1, 1, 12, 12\), a two-dimensional image"),
        (
            (torch.randn(SHAPE), FLAT),
            r"nuclei, train item 0: target has the shape \(12, 12\), a two-dimensional",
        ),
        ((torch.randn(3, *SHAPE), torch.randn(SHAPE)), "a volume is .* with its one channel"),
        (
            (torch.randn(SHAPE), torch.randn(6, 12, 11)),
            r"the target has the shape \(6, 12, 11\), and the signal",
        ),
        ((torch.randn(SHAPE), torch.zeros(SHAPE)), "the target is 0 everywhere"),
        ((torch.full(SHAPE, torch.nan), torch.randn(SHAPE)), "signal holds values that are not finite"),
        ((torch.randn(SHAPE), 3), "target: found int: a volume is a tensor or an array"),
        (
            (torch.randn(SHAPE), torch.randn(SHAPE), torch.ones(2, 2, 2)),
            r"the mask has the shape \(2, 2, 2\)",
        ),
        ({"x": FLAT}, r"found dict: an item is \(signal, target\)"),
    ],
)
def test_what_is_no_volume_is_refused_by_name(item: Any, message: str) -> None:
    datasets = data()
    datasets["nuclei"] = ([item], None, datasets["nuclei"][2])
    with pytest.raises(ManifestError, match=message):
        made(datasets)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((pairs(0, 2, 1.0), pairs(2, 1, 1.0)), r"nuclei: found tuple: give a triple \(train, val, test\)"),
        (torch.randn(3, 2, *SHAPE), "found Tensor of the shape .*: give a triple"),
        ((torch.randn(2, *SHAPE), None, None), "nuclei, train: found Tensor of the shape"),
        ((iter(()), None, None), "nuclei, train: found tuple_iterator: give a dataset"),
        (
            ((torch.randn(2, *SHAPE), torch.randn(3, *SHAPE)), None, None),
            "signals, targets and masks are 2 and 3 volumes",
        ),
        (
            (pairs(900, 2, 1.0), None, pairs(901, 1, 1.0)),
            "nuclei, test item 0: its signal is also that of nuclei, train item 1: .* not be trained on and held out",
        ),
        ((None, None, pairs(900, 1, 1.0)), "no training image of 'nuclei'"),
    ],
)
def test_what_is_no_data_is_refused_by_name(parts: Any, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        made({**data(), "nuclei": parts})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"images_each": -1},
            "images_each -1: a whole number of at least 1 is needed, or None, which takes all",
        ),
        ({"images_each": 0}, "images_each 0: a whole number of at least 1"),
        (
            {"patches": 0},
            "patches 0: a whole number of at least 1 is needed, or None, which takes one of each",
        ),
        ({"patches": 1.5}, r"patches 1\.5: a whole number"),
        ({"images_each": True}, "images_each True: a whole number"),
        ({"order": "er"}, r"order 'er': found a text, .*a list of names .* a seed, .*such as \['er'\]"),
        ({"base": "er"}, r"base 'er': found a text, .*such as \['er'\]"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        made(cache=tmp_path / "cache", **wrong)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ConfigError, match=message):
        structure_stream(tmp_path / "none.csv", cache=tmp_path, **wrong)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    labelled = {
        name: tuple([(*item, np.int64(0)) for item in items] for items in splits)
        for name, splits in data().items()
    }
    expected = made(order=3, patches=2, images_each=1, cache=tmp_path)
    stream = made(labelled, order=np.int64(3), patches=np.int64(2), images_each=np.int64(1), cache=tmp_path)
    assert (stream.experiences, stream.images) == (expected.experiences, expected.images)
    assert [len(experience.dataset) for experience in stream.train] == [2, 2, 2]


def test_names_are_those_of_structures() -> None:
    with pytest.raises(
        StructureError, match=r"'Cell-Membrane' cannot be used \(did you mean 'cell_membrane'"
    ):
        made({"Cell-Membrane": data()["nuclei"]})
    with pytest.raises(ManifestError, match="datasets is empty"):
        dense_regression_benchmark({})


def test_the_loop_learns_it() -> None:
    stream = made(patches=8)
    strategy = ExpertsFrozen(model=RepModeUNet(ARCHITECTURE, NAMES[:1]), train_mb_size=2, device="cpu")
    for experience in stream.train_stream:
        strategy.train(experience)
    assert set(strategy.evaluate(stream.test_stream)) == set(NAMES)


#: Strategies of every kind: ours, all weights, separate and copied networks, memories, importances, a teacher, joint
#: training, a network that is conditioned.
SOME = (
    "experts_frozen", "fine_tuning", "multi_net", "warm_copy", "replay", "ewc", "lwf", "joint", "cumulative", "dodnet",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in STRATEGY_NAMES]
)
def test_every_strategy_learns_it(name: str) -> None:
    options = StrategyConfig(name=name)
    config = Config(
        name="memory",
        network=NetworkConfig(width=4, depth=1, experts=ARCHITECTURE.experts),
        patch=PatchConfig(size=PATCH),
        training=STEPS,
        strategies=(options,),
    )
    datasets, base = data(NAMES[:2]), NAMES[:1]
    if strategy_class(options).regroup((base, NAMES[1:2]), options)[0] != (base, NAMES[1:2]):
        base = NAMES[:2]  # joint training learns all at once
    stream = made(datasets, base=base)
    strategy = build_strategy(config, options, stream, 0)
    for experience in stream.train_stream:
        strategy.train(experience)
    figures = strategy.evaluate(stream.test_stream)
    assert set(figures) == set(NAMES[:2])
    assert all(np.isfinite(one["mse"]) for one in figures.values())
    seen = {structure for counts in strategy.trained_patches.values() for structure, _ in counts}
    assert seen == set(NAMES[:2])
