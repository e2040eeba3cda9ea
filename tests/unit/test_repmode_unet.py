"""The networks: parameter counts, mixed batches, odd sizes, additions, and exactly what is trainable."""

import copy
from functools import cache

import pytest
import torch

from repmode_cl.errors import ImageError, ModelError, StructureError, UnknownStructureError
from repmode_cl.nn import AdditionSpec, Architecture, PlainUNet, RepModeUNet, smallest_size
from repmode_cl.nn.experts import uninitialised_weights
from repmode_cl.nn.multi_head_unet import MultiHeadUNet

SMALL = Architecture(width=3, depth=2)


def grown(**spec):
    """Return a network of two base structures and two additions, with norms that differ from their start."""
    return copy.deepcopy(grown_once(AdditionSpec(**spec)))


@cache
def grown_once(spec):
    """Return that network itself, which no test may change."""
    network = RepModeUNet(SMALL, ("dna", "cell_membrane"), seed=0)
    network.add_structure("nucleolus", spec, seed=1)
    network.add_structure("mitochondria", spec, seed=2)
    with torch.no_grad():  # some passes in training mode: each norm's statistics become its own
        for step in range(12):
            for structure in network.structures:
                network(volumes(4, 8, 8, 8, seed=step), structure)
    return network.eval()


def volumes(n, *size, seed=0):
    return torch.randn(n, 1, *size, generator=torch.Generator().manual_seed(seed))


def count(module):
    return sum(p.numel() for p in module.parameters())


# At the paper's width (32 to 512 channels). M = 784,448 is the sum of C_in * C_out over the 19 MoDE blocks.
PAPER_COUNTS = {
    "repmode, 12 structures": 123_700_933 + 11 * 5 * 2945,
    "plain k3": 23_276_864,
    "plain k5": 100_152_768,
}
#: Of twelve structures.
MULTI_HEAD_COUNTS = {
    ("decoder", 3): 116_189_728,
    ("decoder", 5): 474_587_488,
    ("last", 3): 23_286_368,
    ("last", 5): 100_196_768,
}
ADDITION_COUNTS = {
    ("none", "own"): 2_111_493,
    ("none", "base"): 22_533,
    ("conv1", "own"): 2_898_886,
    ("conv1", "base"): 809_926,
    ("conv3", "own"): 23_294_534,
    ("conv3", "base"): 21_205_574,
    ("conv5", "own"): 100_170_438,
    ("conv5", "base"): 98_081_478,
    ("lowrank:8", "own"): 2_774_118,
    ("lowrank:8", "base"): 685_158,
}


@pytest.mark.slow
def test_parameter_counts_at_the_papers_width():
    twelve = [f"structure_{i}" for i in range(12)]
    assert count(RepModeUNet(Architecture(), twelve)) == PAPER_COUNTS["repmode, 12 structures"]
    assert count(PlainUNet(32, 4, 3)) == PAPER_COUNTS["plain k3"]
    assert count(PlainUNet(32, 4, 5)) == PAPER_COUNTS["plain k5"]
    for (head, kernel), expected in MULTI_HEAD_COUNTS.items():
        with uninitialised_weights():
            network = MultiHeadUNet(Architecture(), kernel, twelve, head=head)
        assert count(network) == expected


@pytest.mark.parametrize(("expert", "resampling"), ADDITION_COUNTS)
def test_parameter_counts_of_one_addition_at_the_papers_width(expert, resampling):
    # The count is linear in each block's sizes: channels at width 32 are computed, not built, to spare memory.
    widths = [32, 64, 128, 256, 512]
    pairs = [
        (1, 32),
        (32, 32),
        (32, 64),
        (64, 64),
        (64, 128),
        (128, 128),
        (128, 256),
        (256, 256),
        (256, 512),
        (512, 512),
        (512, 256),
        (256, 256),
        (256, 128),
        (128, 128),
        (128, 64),
        (64, 64),
        (64, 32),
        (32, 32),
        (32, 1),
    ]
    per_pair = {
        "none": lambda i, o: 0,
        "conv1": lambda i, o: i * o,
        "conv3": lambda i, o: 27 * i * o,
        "conv5": lambda i, o: 125 * i * o,
        "lowrank:8": lambda i, o: 8 * (27 * i + o),
    }[expert]
    rows = 5 if expert == "none" else 6
    norms = 2 * (sum(o for _, o in pairs[:-1]) + 2 * sum(widths[:-1]))
    layers = sum(8 * w * w for w in widths[:-1]) + sum(8 * 2 * w * w for w in widths[:-1])
    by_hand = (
        sum(per_pair(i, o) + rows * o for i, o in pairs) + norms + (layers if resampling == "own" else 0)
    )
    assert by_hand == ADDITION_COUNTS[expert, resampling]

    network = RepModeUNet(
        Architecture(width=4, depth=4, experts=("conv1", "avg3", "avg5", "conv3", "lowrank:1")), ["dna"]
    )
    network.add_structure("nucleolus", AdditionSpec(expert=expert, resampling=resampling))
    small = [(max(1, i // 8), max(1, o // 8)) for i, o in pairs]
    small_norms = 2 * (sum(o for _, o in small[:-1]) + 2 * sum(w // 8 for w in widths[:-1]))
    expected = sum(per_pair(i, o) + rows * o for i, o in small) + small_norms
    expected += layers // 64 if resampling == "own" else 0
    assert sum(network.get_parameter(n).numel() for n in network.train_only(["nucleolus"])) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("expert", "resampling"), ADDITION_COUNTS)
def test_additions_built_at_the_papers_width_have_the_counts_written_out(expert, resampling):
    network = RepModeUNet(Architecture(), ["dna"])
    network.add_structure("nucleolus", AdditionSpec(expert=expert, resampling=resampling))
    trained = network.train_only(["nucleolus"])
    assert sum(network.get_parameter(n).numel() for n in trained) == ADDITION_COUNTS[expert, resampling]


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"sees": "all"},
        {"norm": "base"},
        {"resampling": "base"},
        {"expert": "none"},
        {"expert": "conv5"},
        {"expert": "lowrank:1"},
    ],
)
def test_mixed_batch_equals_one_structure_at_a_time_in_evaluation(spec):
    network = grown(**spec)
    names = ["dna", "mitochondria", "nucleolus", "cell_membrane", "mitochondria", "dna"]
    x = volumes(6, 8, 12, 8)
    with torch.no_grad():
        mixed = network(x, names)
        single = torch.cat([network(x[i : i + 1], name) for i, name in enumerate(names)])
    assert float((mixed - single).norm() / single.norm()) <= 1e-5
    assert not torch.allclose(network(x, "dna"), network(x, "mitochondria"))


def test_mixed_training_batch_of_the_base_shares_one_batch_norm():
    network = RepModeUNet(SMALL, ("dna", "cell_membrane"))
    network.train()
    x = volumes(4, 8, 8, 8)
    network(x, ["dna", "cell_membrane", "dna", "cell_membrane"])
    norm = network.encoder[0][0].norm.base
    assert norm.num_batches_tracked == 1
    # Rows of one batch: its mean is over the samples of both structures.
    network.add_structure("nucleolus")
    with pytest.raises(StructureError, match="cannot be mixed in a training batch"):
        network(x, ["dna", "nucleolus", "dna", "nucleolus"])


@pytest.mark.parametrize("structure", ["dna", "nucleolus", "mitochondria"])
@pytest.mark.parametrize(
    "spec", [{}, {"sees": "all", "expert": "lowrank:2"}, {"norm": "base", "resampling": "base"}]
)
def test_fused_network_predicts_the_same_bits(structure, spec):
    network = grown(**spec)
    x = volumes(2, 9, 8, 13)
    with torch.no_grad():
        assert torch.equal(network.fuse(structure)(x), network(x, structure))


def test_seeing_all_earlier_additions_widens_only_the_new_row():
    network = grown(sees="all")
    assert network.additions["mitochondria"].needs == ("nucleolus",)
    labels = list(network.gate_weights("mitochondria")["head"])
    assert labels == ["conv5", "conv3", "conv1", "avg3", "avg5", "of nucleolus", "of mitochondria"]
    assert list(network.gate_weights("nucleolus")["head"])[-1] == "of nucleolus"
    assert len(network.gate_weights("dna")["head"]) == 5
    for weights in network.gate_weights("mitochondria").values():
        assert torch.allclose(sum(weights.values()), torch.ones_like(weights["conv5"]))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_smallest_size_works_and_one_less_is_refused(depth):
    network = PlainUNet(1, depth, 3).eval()
    least = smallest_size(depth)
    with torch.no_grad():
        for size in (least, least + 1, (1 << depth) + 1):
            assert network(volumes(1, size, least, least + 2)).shape == (1, 1, size, least, least + 2)
    with pytest.raises(ImageError, match=f"needs at least {least} along each axis"):
        network(volumes(1, least, least - 1, least))


def test_padding_is_a_reflection():
    network = PlainUNet(2, 2, 3, seed=1).eval()
    x = volumes(1, 8, 6, 8)
    with torch.no_grad():
        padded = torch.cat([x[..., 1:2, :], x, x[..., 4:5, :]], dim=3)
        assert torch.equal(network(x), network(padded)[..., 1:-1, :])


def test_an_unknown_structure_is_refused_and_never_replaced_by_another():
    network = grown()
    for call in (
        lambda: network(volumes(1, 8, 8, 8), "nucleolous"),
        lambda: network.fuse("nucleolous"),
        lambda: network.kernels("nucleolous"),
        lambda: network.train_only(["nucleolous"]),
    ):
        with pytest.raises(UnknownStructureError, match="did you mean 'nucleolus'"):
            call()
    with pytest.raises(StructureError, match="2 structures for 1 samples"):
        network(volumes(1, 8, 8, 8), ["dna", "dna"])


@pytest.mark.parametrize("name", ["dna", "nucleolus", "Nucleolus", "a.b", "", "keys", "own", "base", "2nd"])
def test_names_that_cannot_be_added(name):
    network = grown()
    if name == "own":
        network.add_structure(name)  # a name like any other
        assert network.owned_names("own")
        return
    with pytest.raises(StructureError):
        network.add_structure(name)


@pytest.mark.parametrize(
    "spec", [{}, {"norm": "base"}, {"resampling": "base"}, {"expert": "none"}, {"sees": "all"}]
)
def test_trainable_names_of_an_addition(spec):
    network = grown(**spec)
    names = network.train_only(["mitochondria"])
    blocks = [name for name, _ in network.named_mode_blocks()]
    expected = {f"{b}.own.mitochondria.gate" for b in blocks}
    if spec.get("expert") != "none":
        expected |= {f"{b}.own.mitochondria.expert.weight" for b in blocks}
    normed = blocks[:-1] + [name for name, _ in network.named_resampling()]
    if spec.get("norm") != "base":
        expected |= {f"{s}.norm.own.mitochondria.{k}" for s in normed for k in ("weight", "bias")}
    if spec.get("resampling") != "base":
        expected |= {f"{name}.own.mitochondria.weight" for name, _ in network.named_resampling()}
    assert names == expected
    assert {n for n, p in network.named_parameters() if p.requires_grad} == expected
    network.train()
    training = {n for n, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm3d) and m.training}
    assert training == (
        {f"{s}.norm.own.mitochondria" for s in normed} if spec.get("norm") != "base" else set()
    )


def test_trainable_names_of_the_base():
    network = RepModeUNet(SMALL, ("dna", "cell_membrane"))
    everything = {name for name, _ in network.named_parameters()}
    assert network.train_only(["dna", "cell_membrane"]) == everything
    assert everything - network.train_only(["dna"]) == {
        n for n in everything if n.endswith("gates.cell_membrane")
    }
    network.add_base_structure("nucleolus")
    left_out = {n for n, _ in network.named_parameters()} - network.train_only(["nucleolus"])
    assert left_out == {n for n in everything if ".gates." in n}
    network.add_structure("mitochondria")
    with pytest.raises(StructureError, match="the base cannot be trained any more: mitochondria depend"):
        network.train_only(["dna"])
    with pytest.raises(StructureError, match="trained by itself"):
        network.train_only(["dna", "mitochondria"])
    with pytest.raises(StructureError, match="cannot join the base"):
        network.add_base_structure("desmosome")


def test_own_norms_and_layers_start_from_the_bases():
    network = grown(expert="none")
    state = network.structure_state("nucleolus")
    fresh = RepModeUNet(SMALL, ("dna",), seed=5)
    fresh.add_structure("nucleolus", AdditionSpec(expert="none"))
    assert set(state) == set(fresh.structure_state("nucleolus"))
    for key, value in fresh.structure_state("nucleolus").items():
        if not key.endswith("gate"):
            layer, leaf = key.rsplit(".", 1)
            assert torch.equal(value, fresh.state_dict()[f"{layer}.base.{leaf}"])


def test_states_by_owner_cover_everything_and_load_back():
    network = grown(sees="all")
    owned = [set(network.owned_names(name)) for name in network.additions]
    assert set(network.base_state()) | set().union(*owned) == set(network.state_dict())
    assert sum(map(len, owned)) + len(network.base_state()) == len(network.state_dict())
    other = RepModeUNet(SMALL, ("dna", "cell_membrane"), seed=99)
    other.load_base_state(network.base_state())
    for name, spec in network.additions.items():
        other.add_structure(name, spec, seed=77)
        other.load_structure_state(name, network.structure_state(name))
    other.eval()
    x = volumes(1, 8, 8, 8)
    with torch.no_grad():
        for name in network.structures:
            assert torch.equal(network(x, name), other(x, name))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("head.gate"), "'head.gate' is missing"),
        (lambda s: s.update(more=torch.zeros(1)), "'more' does not belong"),
        (lambda s: s.update({"head.gate": torch.zeros(2, 1)}), r"'head.gate' is torch.float32 \(2, 1\)"),
        (lambda s: s.update({"head.gate": s["head.gate"].double()}), "is torch.float64"),
    ],
)
def test_a_wrong_state_is_refused_before_anything_changes(spoil, message):
    network = grown()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    state = {k: v + 1 for k, v in network.structure_state("nucleolus").items()}
    spoil(state)
    with pytest.raises(ModelError, match=message):
        network.load_structure_state("nucleolus", state)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_building_does_not_touch_the_global_generator_and_is_seeded():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, two = grown(), grown()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )
    other = RepModeUNet(SMALL, ("dna",), seed=1).state_dict()["head.gates.dna"]
    assert not torch.equal(other, RepModeUNet(SMALL, ("dna",), seed=2).state_dict()["head.gates.dna"])


def test_dropping_an_addition_undoes_it():
    network = RepModeUNet(Architecture(2, 1), ["dna"])
    before = copy.deepcopy(network.state_dict())
    network.add_structure("nucleolus")
    network.add_structure("mitochondria", AdditionSpec(sees="all"))
    with pytest.raises(StructureError, match="'nucleolus' cannot be dropped: mitochondria need its experts"):
        network.drop_structure("nucleolus")
    with pytest.raises(UnknownStructureError):
        network.drop_structure("dna")
    network.drop_structure("mitochondria")
    network.drop_structure("nucleolus")
    assert network.structures == ("dna",)
    after = network.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    network.add_structure("nucleolus")
