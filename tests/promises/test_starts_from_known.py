"""Structures that start from the known one that fits best: which that is, and that they begin as it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_strategies import STREAM, configured, differing, learn, make_samples, predictions, state_of
from torch import Tensor

from repmode_cl.config import StrategyConfig
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError, UnknownStructureError
from repmode_cl.nn import StructureUNet
from repmode_cl.strategies import StructureStrategy
from repmode_cl.strategies.plugins.checkpoint import StrategyCheckpoint

#: Kind -> strategy and its options: all that may start warm.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("experts_frozen", {}),
    "outside": ("experts_frozen", {"gate": "outside"}),
    "copy": ("warm_copy", {}),
    "copy_last": ("warm_copy", {"of": "multi_head", "head": "last"}),
    "copy_decoder": ("warm_copy", {"of": "multi_head"}),
    "lora": ("lora", {"rank": 2}),
    "adapter": ("adapter", {}),
    "ssf": ("ssf", {}),
    "norm_only": ("norm_only", {}),
}
EACH = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return make_samples(tmp_path_factory.mktemp("samples"))


def made(kind: str, samples: list[Sample], **more: Any) -> StructureStrategy:
    name, options = KINDS[kind]
    return configured(name, samples, **{"init_from": "best", **options, **more})


def errors_of(network: StructureUNet, samples: list[Sample], name: str) -> dict[str, float]:
    """Return each known structure's error over the whole training images of `name`, whose patches are a part of."""
    images = [one for one in samples if one.structure == name and one.split == "train"]
    found = {}
    for known in network.structures:
        plain = network.fuse(known).eval()
        with torch.no_grad():
            found[known] = float(
                np.mean(
                    [
                        (
                            plain(torch.from_numpy(np.load(one.signal))[None, None])[0, 0].numpy()
                            - np.load(one.target)
                        )
                        ** 2
                        for one in images
                    ]
                )
            )
    return found


@EACH
def test_a_structure_begins_as_the_known_one_that_fits_best(
    kind: str, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = learn(made(kind, samples), 0)
    begin_as, starts = strategy.begin_as, dict[str, tuple[str, dict[str, Tensor], Tensor]]()

    def spied(name: str, other: str) -> None:
        begin_as(name, other)
        strategy.network.eval()
        starts[name] = other, state_of(strategy), predictions(strategy, [name])[name]

    monkeypatch.setattr(strategy, "begin_as", spied)
    for number, (name,) in enumerate(STREAM[1:], start=1):
        errors = errors_of(strategy.network, samples, name)
        before, known = state_of(strategy), predictions(strategy, errors)
        learn(strategy, number)
        origin, state, begun = starts[name]
        assert strategy.started_from[name] == origin
        # It is chosen by patches, which are a sample of the images.
        assert errors[origin] <= 1.1 * min(errors.values())
        assert differing(before, state) == differing(before, state_of(strategy)) == set()
        # Within the softmax an expert is the best approximation of what is no addition's (`test_warm_start`), and the
        # scales and shifts of SSF start near 1 and 0.
        if kind not in ("ours", "ssf") or origin not in STREAM[0]:
            torch.testing.assert_close(begun, known[origin], atol=1e-5, rtol=1e-5)


@EACH
def test_chance_is_the_default_and_best_is_another_start(kind: str, samples: list[Sample]) -> None:
    assert made(kind, samples, init_from="none").init_from == "none"
    by_chance, best = (learn(made(kind, samples, init_from=how), 0, 1) for how in ("none", "best"))
    assert by_chance.started_from == {}
    assert list(best.started_from) == ["nucleolus"]
    assert differing(state_of(by_chance), state_of(best))


@pytest.mark.parametrize("kind", ["ours", "copy", "lora"])
def test_resumed_in_the_middle_it_is_the_same(kind: str, samples: list[Sample], tmp_path: Path) -> None:
    whole = learn(made(kind, samples), 0, 1, 2)
    broken = learn(made(kind, samples), 0, 1)
    checkpoint = StrategyCheckpoint(tmp_path)

    def save(strategy: Any) -> None:
        if strategy.progress.step == 2:
            checkpoint.save(strategy)

    broken.listeners.append(save)
    learn(broken, 2)
    again = made(kind, samples)
    checkpoint.resume(again)
    learn(again, 2)
    assert differing(state_of(whole), state_of(again)) == set()


@pytest.mark.parametrize("kind", ["copy", "copy_last", "lora"])
def test_networks_refuse_names_that_they_do_not_know(kind: str, samples: list[Sample]) -> None:
    network = learn(made(kind, samples), 0, 1).network
    with pytest.raises(UnknownStructureError):
        network.begin_as("dna", "nucleolus")
    with pytest.raises(UnknownStructureError):
        network.begin_as("nucleolus", "golgi_apparatus")


def test_what_cannot_start_warm_says_so(samples: list[Sample]) -> None:
    with pytest.raises(
        ValueError, match=r"init_from is an option of experts_frozen, warm_copy, .*, not of multi_net"
    ):
        StrategyConfig(name="multi_net", init_from="best")
    with pytest.raises(ValueError, match="none"):
        StrategyConfig(name="warm_copy", init_from="dna")
    kind = type(made("ours", samples))
    with pytest.raises(ConfigError, match="init_from: found 'dna': none or best is needed"):
        kind(init_from="dna")
    assert StrategyConfig(name="lora", init_from="best").title == "lora_k3_rank4_from_best"
    assert "init_from" not in StrategyConfig(name="lora").model_dump()
