"""Images that each strategy sees, and its evaluation on whole volumes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_strategies import BASE, BUILD, STRUCTURES, build, learn
from torch import Tensor

from repmode_cl.data.sample import Sample
from repmode_cl.evaluation.image_quality import figure_names

EACH = pytest.mark.parametrize("name", BUILD)


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


def test_further_measures_are_added_to_the_figures_where_they_are_asked_for(samples: list[Sample]) -> None:
    strategy = build("experts_frozen", samples)
    learn(strategy, 0)
    test = [strategy.stream.test[0]]
    plain = strategy.evaluate(test)
    with strategy.measuring(("psnr", "segmentation"), None):
        measured = strategy.evaluate(test)
        images = strategy.image_figures
    for name, figures in measured.items():
        assert {key: figures[key] for key in plain[name]} == plain[name]
        assert figures.keys() - plain[name].keys() == set(figure_names(("psnr", "segmentation")))
        tested = [sample for sample in samples if (sample.structure, sample.split) == (name, "test")]
        ranges = [float(np.ptp(np.load(sample.target).astype(np.float32))) for sample in tested]
        expected = [
            10 * math.log10(size**2 / image["mse"]) for size, image in zip(ranges, images[name], strict=True)
        ]
        assert [image["psnr"] for image in images[name]] == pytest.approx(expected)
        assert figures["psnr"] == pytest.approx(np.mean(expected))
    assert strategy.evaluate(test) == plain
