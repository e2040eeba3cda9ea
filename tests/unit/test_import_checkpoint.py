"""Checkpoints of the paper's authors: equal outputs to a plain computation, growing, and files that are refused."""

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.data.voxel_size_check import check_voxel_size, trained_voxels
from repmode_cl.errors import ImageError, ModelError, StructureError
from repmode_cl.export.export_structure import export_structure
from repmode_cl.export.volumes import ParityVolume
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.nn.authors_state import network_of_authors_state
from repmode_cl.store import authors_checkpoint
from repmode_cl.workflows.import_checkpoint import import_checkpoint

TASKS = ("dna", "nucleolus", "mitochondria")
SMALL = {"voxel_size": None, "window": (16, 16, 16)}


def authors_state(width=2, depth=4, tasks=3, seed=0, forged=False):
    """A state dict with the names and shapes of the authors' network, written out here from their public code.

    Those of a forged one are views of a single number, which a file holds once.
    """
    generator = torch.Generator().manual_seed(seed)
    state = OrderedDict()

    def drawn(*shape):
        if forged:
            return torch.zeros(1).expand(shape)
        return torch.randn(shape, generator=generator) * 0.2

    def norm(name, channels):
        state[f"{name}.weight"] = drawn(channels) + 1
        state[f"{name}.bias"] = drawn(channels)
        state[f"{name}.running_mean"] = drawn(channels)
        state[f"{name}.running_var"] = drawn(channels).square() + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def mode(name, c_in, c_out, final=False):
        for expert, size in (("conv5x5", 5), ("conv3x3", 3), ("conv1x1", 1), ("avg3x3", 1), ("avg5x5", 1)):
            state[f"{name}.expert_{expert}_conv"] = drawn(c_out, c_in, size, size, size)
        for size in (3, 5):
            state[f"{name}.expert_avg{size}x{size}_pool"] = torch.ones(size, size, size) * (1.0 / size**3)
        if not final:
            norm(f"{name}.subsequent_layer.0", c_out)
        state[f"{name}.gate.weight"] = drawn(5 * c_out, tasks) * 5
        state[f"{name}.gate.bias"] = drawn(5 * c_out) * 5

    c_in = 1
    for level in range(1, depth + 1):
        c_out = width << (level - 1)
        block = f"encoder_block{level}"
        mode(f"{block}.conv_more.conv1", c_in, c_out)
        mode(f"{block}.conv_more.conv2", c_out, c_out)
        state[f"{block}.conv_down.0.weight"] = drawn(c_out, c_out, 2, 2, 2)
        norm(f"{block}.conv_down.1", c_out)
        c_in = c_out
    mode("bottle_block.conv1", c_in, 2 * c_in)
    mode("bottle_block.conv2", 2 * c_in, 2 * c_in)
    for level in range(depth, 0, -1):
        c_out = width << (level - 1)
        block = f"decoder_block{level}"
        state[f"{block}.convt.0.weight"] = drawn(2 * c_out, c_out, 2, 2, 2)
        norm(f"{block}.convt.1", c_out)
        mode(f"{block}.conv_less.conv1", 2 * c_out, c_out)
        mode(f"{block}.conv_less.conv2", c_out, c_out)
    mode("conv_out", width, 1, final=True)
    return state


def reference(state, x, task, depth=4):
    """The function of the authors' network in evaluation mode, from their state dict, expert by expert."""
    state = {name: t.double() if t.is_floating_point() else t for name, t in state.items()}

    def normed(name, x):
        mean, variance, weight, bias = (
            state[f"{name}.{key}"][:, None, None, None]
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (variance + 1e-5).sqrt() * weight + bias).clamp_min(0)

    def mode(name, x):
        one_hot = torch.zeros(state[f"{name}.gate.weight"].shape[1], dtype=torch.float64)
        one_hot[task] = 1
        logits = F.linear(one_hot, state[f"{name}.gate.weight"], state[f"{name}.gate.bias"]).view(5, -1)
        shares = logits.exp() / logits.exp().sum(0)
        total = 0
        for share, expert, size in zip(
            shares, ("conv5x5", "conv3x3", "conv1x1", "avg3x3", "avg5x5"), (5, 3, 1, 3, 5), strict=True
        ):
            weight = state[f"{name}.expert_{expert}_conv"]
            if expert.startswith("avg"):
                padded = F.pad(x, [size // 2] * 6)
                part = F.conv3d(F.avg_pool3d(padded, size, 1), weight)
            else:
                part = F.conv3d(x, weight, padding=size // 2)
            total = total + share[:, None, None, None] * part
        return total if name == "conv_out" else normed(f"{name}.subsequent_layer.0", total)

    skips = []
    for level in range(1, depth + 1):
        block = f"encoder_block{level}"
        x = mode(f"{block}.conv_more.conv2", mode(f"{block}.conv_more.conv1", x))
        skips.append(x)
        x = normed(f"{block}.conv_down.1", F.conv3d(x, state[f"{block}.conv_down.0.weight"], stride=2))
    x = mode("bottle_block.conv2", mode("bottle_block.conv1", x))
    for level in range(depth, 0, -1):
        block = f"decoder_block{level}"
        x = F.conv_transpose3d(x, state[f"{block}.convt.0.weight"], stride=2)
        x = torch.cat([skips.pop(), normed(f"{block}.convt.1", x)], 1)
        x = mode(f"{block}.conv_less.conv2", mode(f"{block}.conv_less.conv1", x))
    return mode("conv_out", x)


def checkpoint(state):
    """What the authors' code saves."""
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    optimizer = torch.optim.Adam(parameters)
    parameters[0].grad = torch.ones(2)
    optimizer.step()
    return {
        "nn_module": "RepMode",
        "opts": argparse.Namespace(adopted_datasets=["dna", "fibrillarin", "tom20"], gpu_ids=-1, lr=1e-4),
        "nn_state": state,
        "optimizer_state": optimizer.state_dict(),
        "count_iter": 12,
        "count_epoch": 3,
    }


def saved(tmp_path, content, name="theirs.p"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_outputs_equal_a_plain_computation_in_float64(depth):
    state = authors_state(depth=depth)
    network = network_of_authors_state(state, TASKS, 1 << 30).double()
    assert (network.width, network.depth) == (2, depth)
    x = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        for task, name in enumerate(TASKS):
            expected = reference(state, x, task, depth)
            assert expected.std() > 1e-3
            # Their rows are sums of float32 numbers, rounded once when they are stored: 1e-6 of a logit.
            exact = {
                f"{ours}": (
                    state[f"{theirs}.gate.weight"][:, task].double() + state[f"{theirs}.gate.bias"].double()
                )
                for ours, theirs in places(depth)
            }
            for block, row in exact.items():
                network.get_parameter(f"{block}.gates.{name}").copy_(row.view(5, -1))
            assert torch.allclose(network(x, name), expected, rtol=1e-9, atol=1e-10)


def places(depth):
    for level in range(depth):
        for i in (0, 1):
            yield f"encoder.{level}.{i}", f"encoder_block{level + 1}.conv_more.conv{i + 1}"
            yield f"decoder.{level}.{i}", f"decoder_block{level + 1}.conv_less.conv{i + 1}"
    yield "bottleneck.0", "bottle_block.conv1"
    yield "bottleneck.1", "bottle_block.conv2"
    yield "head", "conv_out"


def test_rows_are_a_column_and_the_bias():
    state = authors_state(depth=1)
    network = network_of_authors_state(state, TASKS, 1 << 30)
    for task, name in enumerate(TASKS):
        row = state["conv_out.gate.weight"][:, task] + state["conv_out.gate.bias"]
        assert torch.equal(network.head.gates[name], row.view(5, 1))
    assert network.base_structures == TASKS


@pytest.mark.parametrize("kind", ["whole", "bare", "parallel"])
def test_a_file_becomes_a_model_that_verifies_predicts_and_grows(tmp_path, kind):
    state = authors_state(depth=2)
    content = {
        "whole": checkpoint(state),
        "bare": state,
        "parallel": {f"module.{n}": t for n, t in state.items()},
    }
    model = import_checkpoint(saved(tmp_path, content[kind]), tmp_path / "model", TASKS, **SMALL)
    assert model.verify().ok
    assert model.structures == TASKS
    assert model.architecture.depth == 2
    assert model.preprocessing["before_resampling"] is True
    volume = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    expected = reference(state, torch.from_numpy(volume).double()[None, None], 1, 2)[0, 0]
    found = model.predict(volume, "nucleolus")
    assert np.allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)
    network = model.network()
    network.add_structure("golgi", AdditionSpec(), seed=0)
    model.add("golgi", network)
    assert Model.open(tmp_path / "model").verify().ok
    assert np.array_equal(Model.open(tmp_path / "model").predict(volume, "nucleolus"), found)


def test_a_model_of_a_file_is_exported(tmp_path):
    state = authors_state(depth=1)
    model = import_checkpoint(saved(tmp_path, state), tmp_path / "model", TASKS, **SMALL)
    values = np.random.default_rng(0).normal(size=(10, 11, 12)).astype(np.float32)
    path = tmp_path / "nucleolus.onnx"
    export_structure(model, "nucleolus", path, "onnx", ParityVolume("cells.tif", False, values, values))
    x = np.random.default_rng(1).normal(size=(1, 1, 8, 10, 12)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [there] = session.run(None, {"transmitted_light": x})
    expected = reference(state, torch.from_numpy(x).double(), TASKS.index("nucleolus"), 1)
    assert np.allclose(there, expected.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "nucleolus,dna,mitochondria",
            "in the order nucleolus, dna, mitochondria, and the authors' code numbers its tasks in the alphabetical "
            "order of their data sets: dna (dna), nucleolus (fibrillarin), mitochondria (tom20)",
        ),
        # A name that is not of their collection says nothing of its place.
        ("tom20,mine,dna", "the alphabetical order of their data sets: dna (dna), tom20"),
    ],
)
def test_structures_in_an_order_that_their_code_cannot_have_are_refused(tmp_path, names, message):
    file = saved(tmp_path, checkpoint(authors_state(depth=1)))
    arguments = ["import", "checkpoint", str(file), str(tmp_path / "model"), "--structures", names]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "model").exists()


def test_by_the_command(tmp_path):
    file = saved(tmp_path, checkpoint(authors_state(depth=1)))
    arguments = ["import", "checkpoint", str(file), str(tmp_path / "model"), "--window", "8,16,16"]
    result = CliRunner().invoke(app, [*arguments, "--structures", ",".join(TASKS)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "base of 3 structure(s), width 2, depth 1" in result.output
    assert Model.open(tmp_path / "model").inference == {
        "window": [8, 16, 16],
        "overlap": 0.5,
        "batch": 8,
        "weights": "authors",
    }


def test_a_window_that_the_network_cannot_take_is_not_stored(tmp_path):
    file = saved(tmp_path, authors_state())
    with pytest.raises(
        ModelError, match=r"window \[8, 1, 8\].* takes no fewer than \d+ voxels along each axis"
    ):
        import_checkpoint(file, tmp_path / "model", TASKS, voxel_size=None, window=(8, 1, 8))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("window", ["8,16", "8,16,0", "8,16,sixteen", ""])
def test_a_window_that_is_none_is_refused_by_the_command(tmp_path, window):
    file = saved(tmp_path, checkpoint(authors_state(depth=1)))
    arguments = ["import", "checkpoint", str(file), str(tmp_path / "model"), "--structures", ",".join(TASKS)]
    result = CliRunner().invoke(app, [*arguments, "--window", window], catch_exceptions=False)
    assert result.exit_code == 2
    assert "give three numbers of voxels" in " ".join(result.output.split())
    assert not (tmp_path / "model").exists()


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("place", ["opts", "state", "instead"])
def test_a_hostile_file_is_refused_and_nothing_of_it_is_run(tmp_path, place):
    target = tmp_path / "made by the file"
    content = checkpoint(authors_state(depth=1))
    if place == "opts":
        content["opts"].gpu_ids = Hostile(target)
    elif place == "state":
        content["nn_state"]["conv_out.gate.bias"] = Hostile(target)
    else:
        content = Hostile(target)
    file = saved(tmp_path, content)
    with pytest.raises(ModelError, match=r"its pickle names '(posix|nt)\.mkdir'.* nothing of it was run"):
        import_checkpoint(file, tmp_path / "model", TASKS, **SMALL)
    assert not target.exists()
    assert not (tmp_path / "model").exists()


def rewritten(file, change, compression=zipfile.ZIP_STORED):
    """Write the archive again with its pickle changed."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return file


def test_a_pickle_that_would_take_memory_is_refused_before_it_does(tmp_path):
    file = saved(tmp_path, authors_state(depth=1))
    bomb = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R."
    with pytest.raises(ModelError, match=r"names 'builtins\.bytearray'"):
        import_checkpoint(rewritten(file, lambda _: bomb), tmp_path / "model", TASKS, **SMALL)
    newer = pickle.dumps(OrderedDict(a=1), protocol=4)
    with pytest.raises(ModelError, match="STACK_GLOBAL"):
        import_checkpoint(rewritten(file, lambda _: newer), tmp_path / "model", TASKS, **SMALL)


def test_compressed_archives_and_other_files_are_refused(tmp_path):
    file = saved(tmp_path, authors_state(depth=1))
    rewritten(file, lambda data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="compressed"):
        import_checkpoint(file, tmp_path / "model", TASKS, **SMALL)
    other = tmp_path / "other.p"
    other.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelError, match="cut short or damaged"):
        import_checkpoint(other, tmp_path / "model", TASKS, **SMALL)
    with pytest.raises(ModelError, match="does not exist"):
        import_checkpoint(tmp_path / "none.p", tmp_path / "model", TASKS, **SMALL)
    torch.save([1, 2], other)
    with pytest.raises(ModelError, match="neither a state dict nor"):
        import_checkpoint(other, tmp_path / "model", TASKS, **SMALL)


def test_archives_of_other_sizes_than_torch_writes_are_refused(tmp_path, monkeypatch):
    def refused(content, message):
        file = saved(tmp_path, authors_state(depth=1))
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in content:
                archive.writestr(name, data)
        if "claims" in message:
            # The directory's size of the entry, which stands before its name: four bytes at 24 of its record.
            data = bytearray(file.read_bytes())
            place = data.rindex(b"PK\x01\x02")
            data[place + 20 : place + 28] = 2 * (1 << 30).to_bytes(4, "little")
            file.write_bytes(data)
        with pytest.raises(ModelError, match=message):
            import_checkpoint(file, tmp_path / "model", TASKS, **SMALL)
        assert not (tmp_path / "model").exists()

    refused([("a/data.pkl", b"."), ("b/data.pkl", b".")], "has no pickle, several, or one that is too large")
    refused([("a/data", b".")], "has no pickle")
    refused([("a/data.pkl", b".")], "claims more bytes than it has")
    monkeypatch.setattr(authors_checkpoint, "_LARGEST_PICKLE", 3)
    refused([("a/data.pkl", b"....")], "one that is too large")
    monkeypatch.setattr(authors_checkpoint, "_MOST_ENTRIES", 2)
    refused([(str(number), b"") for number in range(3)], "has 3 entries, more than any network has tensors")


@pytest.mark.parametrize("code", [b"i", b"\x82"])
def test_other_ways_to_name_things_are_refused(tmp_path, code):
    """INST and EXT1 name what they call in other places than GLOBAL does."""
    pickled = {b"i": b"(ios\nmkdir\n.", b"\x82": b"\x82\x01."}[code]
    file = rewritten(saved(tmp_path, authors_state(depth=1)), lambda _: pickled)
    with pytest.raises(ModelError, match=r"its pickle names '(INST|EXT1)\..*nothing of it was run"):
        import_checkpoint(file, tmp_path / "model", TASKS, **SMALL)


def test_images_of_the_authors_collection_fit_and_coarser_ones_do_not(tmp_path):
    file = saved(tmp_path, checkpoint(authors_state(depth=1)))
    model = import_checkpoint(file, tmp_path / "model", TASKS)
    trained = trained_voxels(model.entries["dna"].provenance, model.voxel_size)
    for size in ((0.29, 0.108, 0.108), (0.29, 0.29, 0.29)):
        assert check_voxel_size(size, trained, "image.tif") is None
    with pytest.raises(ImageError, match="coarser on z, y, x"):
        check_voxel_size((1.0, 1.0, 1.0), trained, "image.tif")
    other = import_checkpoint(file, tmp_path / "other", TASKS, voxel_size=(1.0, 1.0, 1.0))
    assert not trained_voxels(other.entries["dna"].provenance, other.voxel_size).recorded


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_refused(tmp_path, part):
    file = saved(tmp_path, checkpoint(authors_state(depth=1)))
    data = file.read_bytes()
    file.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ModelError, match="cut short or damaged"):
        import_checkpoint(file, tmp_path / "model", TASKS, **SMALL)
    assert not (tmp_path / "model").exists()


def test_tensors_larger_than_the_file_are_refused_before_memory_is_taken(tmp_path):
    state = authors_state(width=1 << 15, depth=1, forged=True)  # 1.3e11 numbers in a kernel, were they there
    with pytest.raises(ModelError, match="more than its file"):
        import_checkpoint(saved(tmp_path, state), tmp_path / "model", TASKS, **SMALL)
    state = authors_state(depth=2)
    with pytest.raises(ModelError, match="more than its file"):
        network_of_authors_state(state, TASKS, sum(t.numel() for t in state.values()))


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    file = saved(tmp_path, authors_state(depth=1))
    rows, larger = b"K\x05K\x03\x86", b"M\xff\x7fK\x03\x86"  # (5, 3) of the last gate, and (32767, 3)
    changed = []

    def forge(data):
        changed.append(data.count(rows))
        return data.replace(rows, larger)

    with pytest.raises(ModelError, match="storage that is not resizable"):
        import_checkpoint(rewritten(file, forge), tmp_path / "model", TASKS, **SMALL)
    assert changed == [1]
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("encoder_block1.conv_down.1.bias"),
            r"lacks the tensor 'encoder_block1.conv_down.1.bias'",
        ),
        (lambda s: s.update({"more": torch.zeros(1)}), "has a tensor 'more'"),
        (lambda s: s.pop("conv_out.gate.weight"), "no state of the network of RepMode's authors"),
        (
            lambda s: s.update({"conv_out.gate.weight": torch.zeros(5)}),
            "the shapes of its first and last block are not those",
        ),
        (lambda s: s.update({"conv_out.gate.weight": torch.zeros(5, 0)}), "first or last block is empty"),
        (
            lambda s: s.update({"conv_out.gate.bias": torch.zeros(6)}),
            r"'conv_out.gate.bias' is torch.float32 \(6,\)",
        ),
        (
            lambda s: s.update({"conv_out.gate.bias": torch.zeros(5).half()}),
            r"'conv_out.gate.bias' is torch.float16",
        ),
        (lambda s: s.update({"conv_out.gate.bias": "text"}), "'conv_out.gate.bias' is str"),
        (
            lambda s: s.update({"conv_out.expert_avg3x3_pool": torch.ones(3, 3, 3)}),
            "not the average over 3 x 3 x 3",
        ),
    ],
)
def test_other_states_are_refused_by_name(tmp_path, change, message):
    state = authors_state(depth=1)
    change(state)
    with pytest.raises(ModelError, match=message):
        import_checkpoint(saved(tmp_path, state), tmp_path / "model", TASKS, **SMALL)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            float("nan"),
            "theirs.p: the checkpoint's 'conv_out.gate.bias' holds numbers that are not finite: it is",
        ),
        (
            float("inf"),
            "theirs.p: the checkpoint's 'conv_out.gate.bias' holds numbers that are not finite: it is",
        ),
        (-3e38, "theirs.p cannot become a model: the network predicts numbers that are not finite"),
    ],
)
def test_numbers_that_are_not_finite_are_refused_with_the_file_and_the_tensor(tmp_path, value, message):
    state = authors_state(depth=1)
    if value == -3e38:
        state["conv_out.expert_conv5x5_conv"][:] = value
    else:
        state["conv_out.gate.bias"][0] = value
    with pytest.raises(ModelError, match=message):
        import_checkpoint(saved(tmp_path, checkpoint(state)), tmp_path / "model", TASKS, **SMALL)
    assert not (tmp_path / "model" / "registry.json").exists()


def test_structures_are_as_many_as_tasks_and_the_folder_is_new(tmp_path):
    file = saved(tmp_path, authors_state(depth=1))
    with pytest.raises(ModelError, match="has 3 tasks, and 2 structures are named"):
        import_checkpoint(file, tmp_path / "model", TASKS[:2], **SMALL)
    with pytest.raises(StructureError, match="named twice"):
        import_checkpoint(file, tmp_path / "model", ("dna", "dna", "golgi"), **SMALL)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    with pytest.raises(ModelError, match="exists already"):
        import_checkpoint(file, tmp_path / "model", TASKS, **SMALL)
