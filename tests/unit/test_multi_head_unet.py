"""The Multi-Head network and its strategy: what is shared, and what each structure has to itself."""

from __future__ import annotations

import pytest
import torch
from tiny_strategies import ARCHITECTURE, BASE, configured, differing, learn, predictions, state_of

from repmode_cl.data.sample import Sample
from repmode_cl.errors import StructureError, UnknownStructureError
from repmode_cl.nn import MultiHeadUNet, PlainUNet, fold_norms

HEADS = pytest.mark.parametrize("head", ["decoder", "last"])


def network_of(head: str, seed: int = 0) -> MultiHeadUNet:
    network = MultiHeadUNet(ARCHITECTURE, 3, BASE, head=head, seed=seed)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean = torch.randn(module.num_features, generator=generator)
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return network.eval()


@HEADS
def test_a_head_has_the_layers_that_the_paper_gives_it(head: str) -> None:
    own = {name.split(".own.")[0] for name, _ in network_of(head).named_parameters() if ".own." in name}
    assert own == ({"up.0", "decoder.0.0", "decoder.0.1", "head"} if head == "decoder" else {"head"})
    # Each structure's path through the network is a plain U-Net.
    plain = {name: tensor.shape for name, tensor in PlainUNet(4, 1, 3).state_dict().items()}
    path = {
        name.replace(".own.dna.", "."): tensor.shape
        for name, tensor in network_of(head).state_dict().items()
        if ".own." not in name or ".own.dna." in name
    }
    assert path == plain


@HEADS
def test_a_mixed_batch_is_each_structure_by_itself(head: str) -> None:
    network, x = network_of(head), torch.randn(4, 1, 4, 8, 8)
    names = ["dna", "cell_membrane", "dna", "cell_membrane"]
    with torch.no_grad():
        mixed = network(x, names)
        for place, name in enumerate(names):
            single = network(x[place : place + 1], name)
            torch.testing.assert_close(mixed[place : place + 1], single, rtol=1e-4, atol=1e-5)
            plain = network.fuse(name)(x[place : place + 1])
            assert torch.equal(single, plain)
            torch.testing.assert_close(
                fold_norms(network.fuse(name))(x[place : place + 1]), plain, rtol=1e-3, atol=1e-4
            )
    assert not torch.allclose(network(x, "dna"), network(x, "cell_membrane"))


def test_heads_depend_only_on_seed_and_name() -> None:
    one = MultiHeadUNet(ARCHITECTURE, 3, ["dna"], seed=1)
    two = MultiHeadUNet(ARCHITECTURE, 3, ["cell_membrane", "dna"], seed=1)
    assert differing(one.state_dict(), two.state_dict()) == set()
    other = MultiHeadUNet(ARCHITECTURE, 3, ["dna"], seed=2)
    assert differing(one.state_dict(), other.state_dict())


def test_mistakes_are_named() -> None:
    network = network_of("decoder")
    with pytest.raises(UnknownStructureError, match="nucleolis"):
        network(torch.zeros(1, 1, 4, 8, 8), "nucleolis")
    with pytest.raises(StructureError, match="2 structures for 1"):
        network(torch.zeros(1, 1, 4, 8, 8), BASE)
    with pytest.raises(StructureError, match="has a head already"):
        network.add("dna", seed=0)
    with pytest.raises(StructureError, match="at least one"):
        network.train_only([])
    with pytest.raises(ValueError, match="kernel is 3 or 5"):
        MultiHeadUNet(ARCHITECTURE, 1)


@HEADS
def test_a_structure_trains_its_head_and_all_that_is_shared(samples: list[Sample], head: str) -> None:
    strategy = learn(configured("multi_head", samples, head=head), 0)
    for number, name in enumerate(("nucleolus", "mitochondria"), start=1):
        known = strategy.network.structures
        before, old = state_of(strategy), predictions(strategy, known)
        learn(strategy, number)
        after, now = state_of(strategy), predictions(strategy, known)
        shared = {n for n in before if ".own." not in n}
        assert strategy.trained == {
            n for n, _ in strategy.network.named_parameters() if n in shared or f".own.{name}." in n
        }
        # The heads of earlier structures stay as they are, their norms too; and all forget.
        assert differing(before, after) == shared
        assert all((old[structure] - now[structure]).abs().max() > 1e-3 for structure in known)
    assert strategy.network.structures == (*BASE, "nucleolus", "mitochondria")
