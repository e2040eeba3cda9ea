"""The variants of the network in the paper's Table 2: against torch's own layers, stored, grown, and predicted."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from repmode_cl.errors import ConfigError, ModelError, StructureError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet, fold_structure
from repmode_cl.nn.copied_networks import CopiedRepModeUNet
from repmode_cl.nn.layerwise_forward import predict_float64
from repmode_cl.nn.warm_start import warm_start
from repmode_cl.perf.reference_variants import merged_kernel
from repmode_cl.store import record_files

BASE = ("dna", "golgi", "actin")
VARIANTS = {
    "repeats": {"experts": ("conv1", "conv3", "conv1", "conv1")},
    "two averages": {"experts": ("avg3", "avg3")},
    "encoder": {"scope": "encoder"},
    "decoder": {"scope": "decoder", "experts": ("conv3", "avg3")},
    "sigmoid": {"gating": "sigmoid"},
    "gauss": {"embedding": "gauss"},
    "two layers": {"gate": "two_layer"},
    "all": {"experts": ("conv3", "conv1", "conv1"), "scope": "encoder", "gating": "sigmoid",
            "embedding": "gauss", "gate": "two_layer"},
}  # fmt: skip


def made(seed=0, **choices):
    network = RepModeUNet(Architecture(width=2, depth=1, **choices), BASE, seed=seed)
    with torch.no_grad():
        network(volumes(3), list(BASE))  # so that norms have statistics of their own
    return network


def volumes(n, seed=0):
    return torch.randn(n, 1, 8, 6, 8, generator=torch.Generator().manual_seed(seed))


def branches(block, x, weights):
    """The sum of the block's experts, each computed by torch's own layers, weighed by (T, C_out)."""
    total = 0
    for (label, expert), share in zip(block.experts.items(), weights, strict=True):
        size = int(label.split("_")[0][-1])
        if label.startswith("avg"):
            part = F.avg_pool3d(F.pad(x, [size // 2] * 6), size, 1)
            part = F.conv3d(part, expert.weight)
        else:
            part = F.conv3d(x, expert.weight, padding=size // 2)
        total = total + part * share[:, None, None, None]
    return total


def logits_by_hand(network, block, name):
    """The gate's logits by matrix products with the structure's code."""
    place = BASE.index(name)
    code = torch.eye(len(BASE), dtype=torch.float64)[place]
    if network.architecture.embedding == "gauss":
        code = network.codes.vectors[place]
    gate = block.task_gate
    if gate is None:
        return block.gates[name]
    if network.architecture.gate == "two_layer":
        code = F.relu(F.linear(code, gate.hidden_weight, gate.hidden_bias))
    return F.linear(code, gate.weight, gate.bias).reshape(len(block.experts), block.c_out)


def forward_by_hand(network, x, name):
    """The whole network in evaluation mode, branch by branch."""
    architecture = network.architecture

    def normed(x, norm):
        return F.relu(
            F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        )

    def block(x, path):
        module = network.get_submodule(path)
        part = "encoder" if path.startswith(("encoder", "bottleneck")) else "decoder"
        if architecture.scope in ("both", part):
            logits = logits_by_hand(network, module, name)
            weights = torch.sigmoid(logits) if architecture.gating == "sigmoid" else torch.softmax(logits, 0)
        else:
            assert len(module.experts) == 1
            weights = torch.ones(1, module.c_out, dtype=x.dtype)
        x = branches(module, x, weights)
        return x if path == "head" else normed(x, module.norm.base)

    skip = block(block(x, "encoder.0.0"), "encoder.0.1")
    x = normed(F.conv3d(skip, network.down[0].base.weight, stride=2), network.down[0].norm.base)
    x = block(block(x, "bottleneck.0"), "bottleneck.1")
    x = normed(F.conv_transpose3d(x, network.up[0].base.weight, stride=2), network.up[0].norm.base)
    return block(block(block(torch.cat([skip, x], 1), "decoder.0.0"), "decoder.0.1"), "head")


@pytest.mark.parametrize("choices", VARIANTS.values(), ids=VARIANTS)
def test_equals_separate_branches_in_float64_with_the_same_gradients(choices):
    network = made(**choices).double().eval()
    x = volumes(2).double()
    for name in BASE:
        parameters = [p for n, p in network.named_parameters() if ".gates." not in n or n.endswith(name)]
        ours, theirs = network(x, name), forward_by_hand(network, x, name)
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
        gradients = [
            torch.autograd.grad(out.square().sum(), parameters, allow_unused=True) for out in (ours, theirs)
        ]
        for one, other in zip(*gradients, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.allclose(one, other, rtol=1e-8, atol=1e-10)
        assert torch.allclose(predict_float64(network, name, x[:1]), theirs[:1], rtol=1e-10, atol=1e-12)


def test_an_input_dependent_gate_equals_branches_weighed_for_each_sample():
    network = made(gate="input").double().eval()
    x = volumes(2).double()
    seen = []

    def compare(module, arguments, output):
        [x, _] = arguments
        for sample, result in zip(x, output, strict=True):
            gate = module.input_gate
            logits = F.linear(sample.mean((1, 2, 3)), gate.weight, gate.bias)
            weights = torch.softmax(logits.reshape(len(module.experts), -1), 0)
            part = branches(module, sample[None], weights)
            norm = module.norm
            if norm is not None:
                norm = norm.base
                part = F.relu(
                    F.batch_norm(
                        part, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
                    )
                )
            assert torch.allclose(part[0], result, rtol=1e-10, atol=1e-12)
            seen.append(module)

    for _, block in network.named_mode_blocks():
        block.register_forward_hook(compare)
    mixed = network(x, ["dna", "golgi"])
    assert len(seen) == 2 * 7
    # No structure is an input anywhere.
    assert torch.equal(network(x, "golgi"), network(x, "dna"))
    assert torch.equal(network.predictor("dna")(x), mixed)
    assert not torch.equal(mixed[:1], network(x[:1] * 0.5, "dna"))


@pytest.mark.parametrize("choices", VARIANTS.values(), ids=VARIANTS)
def test_grows_fuses_and_warm_starts(choices):
    network = made(**choices)
    before = {name: network.fuse(name)(volumes(1)) for name in BASE}
    network.add_structure("mito", AdditionSpec(expert="conv5"))
    network.add_structure("membrane", AdditionSpec(gate="outside", sees="all"))
    assert warm_start(network, "mito", "golgi")[0] == "gate rows"
    values = network.base_values("membrane")
    assert set(values) == {name for names in network.owned_groups("membrane").values() for name in names}
    network.eval()
    x = volumes(2)
    with torch.no_grad():
        for name in network.structures:
            assert torch.equal(network.fuse(name)(x), network(x, name))
            folded = fold_structure(network, name)(x)
            assert torch.allclose(folded, network(x, name), rtol=1e-3, atol=1e-4)
        for name in BASE:
            assert torch.equal(network.fuse(name)(volumes(1)), before[name])
        mixed = network(torch.cat([x, x]), ["dna", "mito", "membrane", "dna"])
        single = torch.cat(
            [network(x[i % 2, None], n) for i, n in enumerate(["dna", "mito", "membrane", "dna"])]
        )
        assert torch.allclose(mixed, single, rtol=1e-4, atol=1e-5)
    gated = [name for name, block in network.named_mode_blocks() if block.gated]
    assert set(network.gate_weights("mito")) == set(gated)
    # A plain block has nothing of an addition but its norm.
    for name, block in network.named_mode_blocks():
        assert ("mito" in block.own) == (name in gated)
        assert block.norm is None or "mito" in block.norm.own


def test_outside_the_gate_an_addition_begins_as_the_mean_of_the_base_in_every_variant():
    for choices in VARIANTS.values():
        network = made(**choices)
        network.add_structure("mito", AdditionSpec(gate="outside"))
        for _, block in network.named_mode_blocks():
            if block.gated:
                rows = torch.stack([block.visible(name)[1] for name in BASE])
                assert torch.allclose(block.addition("mito").gate, rows.mean(0))


def test_repeated_experts_keep_the_first_name_and_draw_their_own_weights():
    block = made(experts=("conv1", "conv3", "conv1")).head
    assert list(block.experts) == ["conv1", "conv3", "conv1_2"]
    assert not torch.equal(block.experts["conv1"].weight, block.experts["conv1_2"].weight)
    assert [shape for *_, shape in [merged_kernel(e).shape for e in block.experts.values()]] == [1, 3, 1]
    assert list(made(experts=("conv1", "conv3")).head.experts) == ["conv1", "conv3"]


def test_codes_are_drawn_once_and_not_trained():
    network = made(embedding="gauss", seed=3)
    assert network.codes.vectors.shape == (3, 3)
    assert torch.equal(network.codes.vectors, made(embedding="gauss", seed=3).codes.vectors)
    assert not torch.equal(network.codes.vectors, made(embedding="gauss", seed=4).codes.vectors)
    assert "codes.vectors" not in dict(network.named_parameters())
    drawn = RepModeUNet(Architecture(1, 1, embedding="gauss"), [f"s{i}" for i in range(40)]).codes.vectors
    assert abs(float(drawn.mean())) < 0.1
    assert abs(float(drawn.std()) - 1) < 0.1
    assert network.head.task_gate.weight.shape == (5, 3)
    assert made(gate="two_layer").head.task_gate.weight.shape == (5, 6)


def test_a_structure_joins_the_base_by_a_free_row_unless_there_is_none():
    for choices in ({"embedding": "gauss"}, {"gate": "two_layer"}, {"scope": "decoder"}):
        network = made(**choices)
        network.add_base_structure("mito")
        assert network.head.gates["mito"].shape == (5, 1)
        assert torch.equal(network.eval().fuse("mito")(volumes(1)), network(volumes(1), "mito"))
    network = made(gate="input")
    network.add_base_structure("mito")
    network.train_only(["mito"])
    assert not [name for name in network.state_dict() if "mito" in name]
    assert torch.equal(network.eval()(volumes(1), "mito"), network(volumes(1), "dna"))


@pytest.mark.parametrize("choices", [*VARIANTS.values(), {"gate": "input"}], ids=[*VARIANTS, "input"])
def test_a_copy_begins_as_the_base_with_free_rows(choices):
    network = CopiedRepModeUNet(Architecture(width=2, depth=1, **choices), BASE)
    network.add_copy("mito", seed=1)
    copy = network.copies["mito"]
    base, own = network.base_parts(), copy.state_dict()
    same = {name for name in own if name in base and torch.equal(own[name], base[name])}
    fresh = {f"{n}.gates.mito" for n, b in network.named_mode_blocks() if b.gated}
    assert own.keys() - same == (set() if network.architecture.gate == "input" else fresh)
    with torch.no_grad():
        assert torch.equal(network.eval()(volumes(1), "mito"), network.predictor("mito")(volumes(1)))


def stored(path, network):
    return Model.create(
        path,
        network,
        voxel_size=None,
        preprocessing={"normalisation": "z-score per image", "order": 1},
        inference={"window": [8, 8, 8], "overlap": 0.5, "batch": 1},
    )


@pytest.mark.parametrize("choices", VARIANTS.values(), ids=VARIANTS)
def test_stored_models_verify_predict_and_grow_and_earlier_programs_refuse_them(
    tmp_path, monkeypatch, choices
):
    network = made(**choices).eval()
    network.add_structure("mito")
    model = stored(tmp_path / "model", network)
    assert model.verify().ok
    document = json.loads((tmp_path / "model" / "model.json").read_text())
    assert document["version"] == 3
    again = Model.open(tmp_path / "model").network()
    assert again.architecture == network.architecture
    with torch.no_grad():
        for name in network.structures:
            assert torch.equal(again(volumes(1), name), network(volumes(1), name))
    volume = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    assert np.isfinite(model.predict(volume, "mito")).all()
    monkeypatch.setattr(record_files, "MODEL_VERSIONS", (1, 2))
    with pytest.raises(ModelError, match="version"):
        Model.open(tmp_path / "model")


def test_models_of_before_state_nothing_new(tmp_path):
    stored(tmp_path / "model", made().eval())
    document = json.loads((tmp_path / "model" / "model.json").read_text())
    assert document["version"] == 1
    assert set(document["architecture"]) == {"width", "depth", "experts"}


def test_a_gate_of_the_input_says_what_it_cannot_do_and_what_works(tmp_path):
    network = made(gate="input").eval()
    for call in (
        lambda: network.fuse("dna"),
        lambda: network.kernels("dna"),
        lambda: network.gate_weights("dna"),
        lambda: network.add_structure("mito"),
        lambda: fold_structure(network, "dna"),
        lambda: stored(tmp_path / "model", network),
    ):
        with pytest.raises(StructureError, match=r"depend(s)? on the input \(network.gate: input\)"):
            call()
    with pytest.raises(StructureError, match=r"strategy joint.*linear or two_layer can"):
        network.fuse("dna")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"experts": ()}, "at least one"),
        ({"scope": "bottleneck"}, "both or encoder or decoder"),
        ({"gating": "relu"}, "softmax or sigmoid"),
        ({"embedding": "hash"}, "onehot or gauss"),
        ({"gate": "three"}, "linear or two_layer or input"),
        ({"gate": "input", "embedding": "gauss"}, "reads no structure"),
    ],
)
def test_choices_that_do_not_exist_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        Architecture(**choices)


def test_parameters_of_each_row_of_table_2():
    """Width 2, depth 1, three structures, by hand: C_in C_out of the blocks is 2, 4 | 8, 16 | 8, 4, 2."""

    def count(**choices):
        return sum(
            p.numel() for n, p in made(**choices).named_parameters() if "norm" not in n and "base" not in n
        )

    products = {"encoder": 2 + 4 + 8 + 16, "decoder": 8 + 4 + 2}
    channels = {"encoder": 2 + 2 + 4 + 4, "decoder": 2 + 2 + 1}
    both, c = sum(products.values()), sum(channels.values())
    experts = 125 + 27 + 3
    assert count() == experts * both + 5 * 3 * c
    assert count(scope="encoder") == (
        experts * products["encoder"] + 15 * channels["encoder"] + 125 * products["decoder"]
    )
    assert count(scope="decoder") == (
        experts * products["decoder"] + 15 * channels["decoder"] + 125 * products["encoder"]
    )
    assert count(experts=("conv5", "conv3", "conv1", "conv1", "conv1")) == count()
    assert count(experts=("conv3", "conv1", "avg3"), scope="encoder") == (
        29 * products["encoder"] + 9 * channels["encoder"] + 27 * products["decoder"]
    )
    assert count(embedding="gauss") == experts * both + 5 * (3 + 1) * c
    assert count(gate="two_layer") == experts * both + 7 * (3 + 1) * 6 + 5 * (6 + 1) * c
    inputs = (1 * 2 + 2 * 2) + (2 * 4 + 4 * 4) + (4 * 2 + 2 * 2) + 2 * 1
    assert count(gate="input") == experts * both + 5 * (inputs + c)


def test_a_strategy_that_grows_refuses_a_gate_of_the_input():
    from repmode_cl.config import Config, NetworkConfig, StrategyConfig, TrainingConfig
    from repmode_cl.strategies.registry import strategy_class, strategy_section

    section = StrategyConfig(name="experts_frozen")
    config = Config(name="x", network=NetworkConfig(gate="input"), training=TrainingConfig(steps=1))
    with pytest.raises(ConfigError, match="no fused kernel"):
        strategy_class(section).check(config, strategy_section(section), (("dna",), ("golgi",)))
