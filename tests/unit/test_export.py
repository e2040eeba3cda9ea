"""An exported network predicts what the model does, says where it comes from, and is refused otherwise."""

from __future__ import annotations

import gc
import io
import json
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tifffile
import torch
from PIL import Image
from stored_model import another
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import ImageError, RepmodeError, StructureError
from repmode_cl.export import export_structure as exporting
from repmode_cl.export.bioimageio_package import BlockSize, block_sizes, check_packable
from repmode_cl.export.description import Attribution, Citation, Person
from repmode_cl.export.export_structure import export_paths, export_structure
from repmode_cl.export.layers import check_exportable
from repmode_cl.export.onnx_graph import METADATA, OPSET, make_onnx
from repmode_cl.export.parity import FACTOR, largest_difference, tolerance_of
from repmode_cl.export.runtimes import onnx_network
from repmode_cl.export.verify_onnx import verify_onnx
from repmode_cl.export.volumes import ParityVolume, part_of_image, simulated_volume
from repmode_cl.inference.options import PredictionOptions
from repmode_cl.model import Model
from repmode_cl.nn import Architecture, FoldedUNet, RepModeUNet
from repmode_cl.nn.conditioned_unet import OneStructure
from repmode_cl.nn.dodnet import DoDNet


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def volume_of(shape: tuple[int, int, int] = (11, 12, 12)) -> ParityVolume:
    values = noise(shape)
    return ParityVolume("cells.tif", False, values, values)


@pytest.fixture(scope="module")
def exported(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an ONNX file of an addition that sees another one, which no test may change."""
    path = tmp_path_factory.mktemp("onnx") / "mitochondria.onnx"
    export_structure(Model.open(stored), "mitochondria", path, "onnx", volume_of())
    return path


@pytest.mark.parametrize("shape", [(1, 1, 2, 4, 6), (3, 1, 8, 2, 10)])
def test_a_runtime_without_this_package_predicts_the_same(
    stored: Path, exported: Path, shape: tuple[int, ...]
) -> None:
    model = Model.open(stored)
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    [given], [result] = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, given.type) == (
        "transmitted_light",
        ["batch", 1, "z", "y", "x"],
        "tensor(float)",
    )
    assert (result.name, result.shape) == ("prediction", ["batch", 1, "z", "y", "x"])
    x = noise(shape)
    with torch.no_grad():
        expected = model.fused("mitochondria")(torch.from_numpy(x)).numpy()
    [there] = session.run(None, {"transmitted_light": x})
    assert largest_difference(there, expected) <= tolerance_of(model.entries["mitochondria"])
    assert np.abs(expected).max() > 0.01  # not a network of dead units


def test_a_file_says_whose_it_is_and_what_was_measured(stored: Path, exported: Path) -> None:
    model, proto = Model.open(stored), onnx.load(exported)
    [text] = [one.value for one in proto.metadata_props if one.key == METADATA]
    facts = json.loads(text)
    entry = model.entries["mitochondria"]
    assert (facts["structure"], facts["structure_digest"]) == ("mitochondria", entry.digest)
    assert facts["base_digest"] == model.base_digest
    needed = ("nucleolus", "tight_junction")
    assert facts["needs"] == [{"name": name, "digest": model.entries[name].digest} for name in needed]
    assert facts["voxel_size_zyx_um"] == [0.29, 0.29, 0.29]
    assert facts["preprocessing"] == {"order": 1}
    assert facts["network"] == {"width": 2, "depth": 1, "size_multiple": 2, "norms": "folded"}
    parity = facts["parity"]
    assert parity["tolerance"] == FACTOR * entry.proof.float32_error
    assert 0 < parity["probe"]["difference"] <= parity["tolerance"] < 1e-4
    assert 0 < parity["image"]["difference"] <= parity["tolerance"]
    assert parity["image"]["voxels_zyx"] == [11, 12, 12]
    assert parity["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    assert [(one.domain, one.version) for one in proto.opset_import] == [("", OPSET)]
    assert {node.op_type for node in proto.graph.node} == {"Conv", "ConvTranspose", "Concat", "Relu"}


def test_the_same_network_gives_the_same_bytes(stored: Path, exported: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    export_structure(Model.open(stored), "mitochondria", again, "onnx", volume_of())
    assert again.read_bytes() == exported.read_bytes()


def test_norms_that_are_not_folded_are_exported_as_norms(stored: Path) -> None:
    network = Model.open(stored).network(["nucleolus"]).fuse("nucleolus")
    proto = make_onnx(network, "nucleolus")
    assert sum(node.op_type == "BatchNormalization" for node in proto.graph.node) == 8
    x = torch.from_numpy(noise((2, 1, 6, 8, 10)))
    with torch.no_grad():
        there = onnx_network(proto.SerializeToString(), network.depth)(x)
        assert largest_difference(there.numpy(), network(x).numpy()) < 1e-5


def test_parity_that_is_broken_refuses_the_export_and_leaves_nothing(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(network: FoldedUNet, name: str) -> onnx.ModelProto:
        proto = make_onnx(network, name)
        [weight] = [one for one in proto.graph.initializer if one.name == "bottleneck.1.weight"]
        values = onnx.numpy_helper.to_array(weight) * np.float32(1.001)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return proto

    monkeypatch.setitem(exporting._FORMATS, "onnx", (spoiled, *exporting._FORMATS["onnx"][1:]))
    with pytest.raises(
        RepmodeError, match=r"nucleolus is not exported: .* differs .* allowed are .* nothing was"
    ):
        export_structure(Model.open(stored), "nucleolus", tmp_path / "n.onnx", "onnx", volume_of())
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_dies_leaves_nothing(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(exporting._FORMATS, "onnx", (*exporting._FORMATS["onnx"][:2], dying))
    with pytest.raises(KeyboardInterrupt):
        export_structure(Model.open(stored), "nucleolus", tmp_path / "n.onnx", "onnx", volume_of())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("folded", [True, False])
def test_a_program_of_torch_predicts_the_same_and_checks_sizes(
    stored: Path, tmp_path: Path, folded: bool
) -> None:
    from repmode_cl.export.runtimes import torch_network
    from repmode_cl.export.torch_program import load_program, make_program, save_program

    model, path = Model.open(stored), tmp_path / "dna.pt2"
    if folded:
        export_structure(model, "dna", path, "torch", volume_of())
        module, text = load_program(path)
        assert json.loads(text)["structure_digest"] == model.entries["dna"].digest
        network = model.fused("dna")
    else:
        network = model.network([]).fuse("dna")
        save_program(make_program(network, "dna"), path, "{}")
        module, _ = load_program(path)
    x = torch.from_numpy(noise((1, 1, 8, 2, 12)))
    with torch.no_grad():
        assert largest_difference(module(x).numpy(), network(x).numpy()) < 1e-6
        odd = torch.from_numpy(noise((1, 1, 7, 9, 3)))
        padded = torch_network(path, network.depth)(odd)
        assert largest_difference(padded.numpy(), network(odd).numpy()) < 1e-6
    with pytest.raises((AssertionError, RuntimeError), match="2"):
        module(odd)


def test_networks_without_fixed_kernels_are_refused_by_name() -> None:
    shape = Architecture(width=2, depth=1, experts=("conv3",))
    gated = RepModeUNet(
        Architecture(width=2, depth=1, experts=("conv3", "conv1"), gate="input"), ("dna", "er")
    )
    for network, message in (
        (gated, r"RepModeUNet cannot be exported: its gates depend on the input \(network.gate: input\)"),
        (RepModeUNet(shape, ("dna",)), "RepModeUNet cannot be exported: it is not fused yet"),
        (
            OneStructure(DoDNet(shape, 3, ("dna",)), "dna"),
            "DoDNet cannot be exported: its weights or norms are",
        ),
        (torch.nn.Identity(), "Identity cannot be exported: it computes more than a plain U-Net"),
    ):
        with pytest.raises(StructureError, match=message):
            check_exportable(network)


def changed(exported: Path, path: Path, change: str) -> Path:
    proto = onnx.load(exported)
    if change == "weight":
        [weight] = [one for one in proto.graph.initializer if one.name == "head.weight"]
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[0] += 0.5
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    elif change == "graph":
        proto.graph.node[0].attribute[0].ints[0] += 2
        proto.graph.node.insert(1, onnx.helper.make_node("Identity", ["transmitted_light"], ["copy"]))
    elif change == "digest":
        text = proto.metadata_props[0].value
        facts = json.loads(text)
        facts["structure_digest"] = "0" * 64
        proto.metadata_props[0].value = json.dumps(facts)
    elif change == "metadata":
        del proto.metadata_props[:]
    path.write_bytes(proto.SerializeToString()[: -40 if change == "cut" else None])
    return path


def test_an_exported_file_is_verified_against_the_model(stored: Path, exported: Path, tmp_path: Path) -> None:
    comparison = verify_onnx(Model.open(stored), exported)
    assert comparison.ok
    assert "the same weights, bit for bit; prediction by onnxruntime" in comparison.detail
    for change, problem in (
        ("weight", "its weights differ by"),
        ("graph", "its graph is not the one that this version exports"),
        ("digest", "another structure: 00000000 in the file"),
    ):
        comparison = verify_onnx(Model.open(stored), changed(exported, tmp_path / "changed.onnx", change))
        assert problem in comparison.problem
    for change in ("metadata", "cut"):
        with pytest.raises(RepmodeError, match="export"):
            verify_onnx(Model.open(stored), changed(exported, tmp_path / "changed.onnx", change))


def test_verify_knows_a_file_of_an_earlier_version(model_path: Path, exported: Path) -> None:
    model = Model.open(model_path)
    words = ["verify", str(model_path), "--level", "files", "--against", str(exported)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "mitochondria  the same weights, bit for bit" in done.output
    model.add("mitochondria", another(model, "mitochondria", 7), replace=True)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "mitochondria differs" in done.output
    assert "another structure" in done.output
    model.remove("mitochondria")
    with pytest.raises(RepmodeError, match="holds 'mitochondria', and"):
        verify_onnx(Model.open(model_path), exported)


def image(path: Path, voxel: float) -> Path:
    stack = (1000 + 50 * noise((2, 20, 40, 40), 1)).astype(np.uint16)
    sizes = {f"PhysicalSize{axis}": voxel for axis in "ZYX"}
    channels = {"Channel": {"Name": ["bright", "dna"]}}
    tifffile.imwrite(path, stack, ome=True, metadata={"axes": "CZYX", **channels, **sizes})
    return path


def test_the_middle_of_an_image_is_compared(stored: Path, tmp_path: Path) -> None:
    model, path = Model.open(stored), image(tmp_path / "cells.ome.tif", 0.29)
    part = part_of_image(model, "dna", path, PredictionOptions(channel="bright"))
    # One and a half windows of 8.
    assert (part.name, part.simulated, part.prepared.shape) == ("cells.ome.tif", False, (12, 12, 12))
    middle = tifffile.imread(path)[0, 4:16, 14:26, 14:26]
    np.testing.assert_array_equal(part.intensities, middle)
    np.testing.assert_allclose(part.prepared, (middle - middle.mean()) / middle.std(), atol=1e-5)
    finer = part_of_image(model, "dna", image(tmp_path / "fine.ome.tif", 0.2), PredictionOptions(channel=0))
    assert finer.intensities.shape == finer.prepared.shape == (12, 12, 12)
    with pytest.raises(ImageError, match="2 channels; give that of transmitted light"):
        part_of_image(model, "dna", path, PredictionOptions())
    with pytest.raises(ImageError, match=r"1\.5"):
        part_of_image(model, "dna", image(tmp_path / "coarse.ome.tif", 0.6), PredictionOptions(channel=0))


@pytest.fixture(scope="module")
def package(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a package, which no test may change."""
    path = tmp_path_factory.mktemp("package") / "mitochondria.zip"
    values = (1000 + 50 * noise((11, 12, 5))).astype(np.float32)
    volume = ParityVolume("cells.tif", False, values, (values - 1000) / 50)
    attribution = Attribution(
        (Person("Ada Lovelace", "London"),),
        "cc-by-4.0",
        (Citation("Notes", doi="10.1000/182"),),
        "Cells of our lab",
    )
    export_structure(Model.open(stored), "mitochondria", path, "bioimageio", volume, attribution)
    return path


@pytest.fixture
def files_closed() -> Iterator[None]:
    """Let the garbage collector close the files that bioimageio.spec leaves open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@pytest.mark.slow
@pytest.mark.usefixtures("files_closed")
def test_a_package_states_what_the_format_has_a_place_for(stored: Path, package: Path) -> None:
    from bioimageio.spec import load_description

    model, description = Model.open(stored), load_description(package)
    given, result = description.inputs[0], description.outputs[0]
    assert [(a.id, a.scale, a.unit) for a in given.axes[2:]] == [(a, 0.29, "micrometer") for a in "zyx"]
    # Windows of 8 that overlap by a half: 2 voxels at each end are halo, and the least block is more than both.
    assert [(a.size.min, a.size.step) for a in given.axes[2:]] == [(6, 2)] * 3
    assert [a.halo for a in result.axes[2:]] == [2, 2, 2]
    z_score = given.preprocessing[1]
    assert (z_score.id, z_score.kwargs.axes) == ("zero_mean_unit_variance", ["channel", "z", "y", "x"])
    assert [(one.name, one.affiliation) for one in description.authors] == [("Ada Lovelace", "London")]
    assert description.license == "CC-BY-4.0"
    assert description.cite[0].doi == "10.1000/182"
    assert "RepMode" in description.cite[1].text
    assert description.parent.id == f"repmode-cl/base-{model.base_digest}"
    assert description.training_data.description.startswith("Cells of our lab.")
    assert description.weights.onnx.opset_version == OPSET
    facts = description.config.repmode_cl
    assert facts["structure_digest"] == model.entries["mitochondria"].digest
    [tolerance] = description.config.bioimageio.reproducibility_tolerance
    assert tolerance.relative_tolerance == 0
    assert 0 < tolerance.absolute_tolerance < 1e-4
    with zipfile.ZipFile(package) as archive:
        light = np.load(io.BytesIO(archive.read("test_input.npy")))
        assert light.shape == (1, 1, 8, 8, 6)  # mirrored where the volume was too small
        with Image.open(io.BytesIO(archive.read("cover.png"))) as cover:
            assert cover.size == (512, 256)
        assert "## Validation" in archive.read("README.md").decode()
        assert {"mitochondria.onnx", "test_output.npy"} <= set(archive.namelist())


@pytest.mark.slow
@pytest.mark.usefixtures("files_closed")
def test_a_package_passes_the_test_of_its_own_library_and_predicts_in_blocks(
    stored: Path, package: Path
) -> None:
    import bioimageio.core as core

    assert core.test_model(package).status == "passed"
    values = (1000 + 50 * noise((14, 10, 12), 3)).astype(np.float32)
    model = Model.open(stored)
    # It mirrors the halo around the image, and z-scores both together.
    padded = np.pad(values, 2, mode="symmetric")
    z_scored = ((padded - padded.mean(dtype=np.float64)) / padded.std(dtype=np.float64)).astype(np.float32)
    with torch.no_grad():
        expected = model.fused("mitochondria")(torch.from_numpy(z_scored)[None, None])[0, 0].numpy()
    expected = expected[2:-2, 2:-2, 2:-2]
    whole = core.predict(model=package, inputs=values[None, None])
    [there] = [member.data.to_numpy()[0, 0] for member in whole.members.values()]
    assert largest_difference(there, expected) < 1e-5
    blocks = core.predict(model=package, inputs=values[None, None], blocksize_parameter=1)
    [there] = [member.data.to_numpy()[0, 0] for member in blocks.members.values()]
    assert there.shape == values.shape
    # In blocks it z-scores the image first, and mirrors then: blocks of 8 keep their middle 4.
    z_scored = ((values - values.mean(dtype=np.float64)) / values.std(dtype=np.float64)).astype(np.float32)
    block = np.pad(z_scored, 2, mode="symmetric")[:8, :8, :8]
    with torch.no_grad():
        expected = model.fused("mitochondria")(torch.from_numpy(block)[None, None])[0, 0].numpy()
    assert largest_difference(there[:4, :4, :4], expected[2:6, 2:6, 2:6]) < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("files_closed")
def test_a_package_that_fails_its_test_is_refused(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The description is right, and its test tensor is not what the file predicts."""
    from repmode_cl.export import bioimageio_package

    def wrong(*arguments: object) -> np.ndarray:
        return predict(*arguments) * np.float32(1.01)

    predict = bioimageio_package._predict
    monkeypatch.setattr(bioimageio_package, "_predict", wrong)
    attribution = Attribution((Person("Ada"),), "MIT")
    with pytest.raises(RepmodeError, match=r"the test of bioimageio.core .* says .*disagree"):
        export_structure(
            Model.open(stored), "mitochondria", tmp_path / "m.zip", "bioimageio", volume_of(), attribution
        )
    assert list(tmp_path.iterdir()) == []


def test_a_package_needs_people_a_licence_and_an_image(stored: Path, tmp_path: Path) -> None:
    words = ["export", str(stored), str(tmp_path / "dna.zip"), "--structure", "dna"]
    for more, message in (
        ([], "name one with --image"),
        (["--image", "cells.tif"], "give --author and --licence"),
        (["--image", "cells.tif", "--author", "Ada"], "give --licence, such as"),
        (
            ["--image", "cells.tif", "--author", "Ada", "--licence", "cc-by-40"],
            "--licence 'cc-by-40': no identifier of SPDX that bioimage.io knows (did you mean 'CC-BY-4.0'?)",
        ),
    ):
        done = CliRunner().invoke(app, [*words, *more])
        assert done.exit_code == 2
        assert message in done.output.replace("\n", " ")
        assert len(done.output) < 1000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("files_closed")
def test_what_the_format_refuses_is_told_in_a_line(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(RepmodeError, match=r"bioimageio\.spec refuses it: name: .*") as refused:
        export_structure(
            Model.open(stored),
            "mitochondria",
            tmp_path / "m.zip",
            "bioimageio",
            volume_of(),
            Attribution((Person("Ada/Lovelace"),), "MIT"),
        )
    assert len(str(refused.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--licence", "MIT", "--author", "Ada"],
            "--author, --licence: written into bioimage.io packages (.zip)",
        ),
        (["--channel", "0", "--t", "0", "--force"], "--channel, --t, --force: said of an image"),
    ],
)
def test_options_that_would_not_be_used_are_refused(
    more: list[str], message: str, stored: Path, tmp_path: Path
) -> None:
    done = CliRunner().invoke(
        app, ["export", str(stored), str(tmp_path / "dna.onnx"), "--structure", "dna", *more]
    )
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_preprocessing_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    recipe = {"normalisation": "z-score between percentiles", "order": 1, "percentiles": [1.0, 99.0]}
    shape = Architecture(width=2, depth=1, experts=("conv3",))
    inference = {"window": (8, 8, 8), "overlap": 0.0, "batch": 1}
    model = Model.create(
        tmp_path / "m",
        RepModeUNet(shape, ("dna",)),
        voxel_size=None,
        preprocessing=recipe,
        inference=inference,
    )
    with pytest.raises(RepmodeError, match=r"no preprocessing; export it as \.onnx"):
        check_packable(model, Attribution((Person("Ada"),), "MIT"))


def test_blocks_keep_what_windows_keep() -> None:
    assert block_sizes((32, 128, 128), 0.5, 4) == (
        BlockSize(32, 16, 8),
        BlockSize(80, 16, 32),
        BlockSize(80, 16, 32),
    )
    assert block_sizes((8, 8, 8), 0.0, 1)[0] == BlockSize(2, 2, 0)
    block = BlockSize(80, 16, 32)
    assert [block.size_for(extent, 128) for extent in (20, 80, 100, 127, 128, 500)] == [
        80,
        80,
        96,
        112,
        128,
        128,
    ]


def test_a_simulated_field_stands_in_for_an_image(stored: Path) -> None:
    volume = simulated_volume(Model.open(stored))
    assert volume.simulated
    assert volume.prepared.shape == (12, 16, 16)
    assert abs(float(volume.prepared.mean())) < 1e-4


def test_the_command_writes_one_file_for_each_structure(stored: Path, tmp_path: Path) -> None:
    path = image(tmp_path / "cells.ome.tif", 0.29)
    words = [
        "export",
        str(stored),
        str(tmp_path / "{structure}-v1.onnx"),
        "--image",
        str(path),
        "--channel",
        "0",
    ]
    names = ["--structure", "dna", "--structure", "nucleolus"]
    done = CliRunner().invoke(app, [*words, *names])
    assert done.exit_code == 0, done.output
    assert sorted(one.name for one in tmp_path.glob("*.onnx")) == ["dna-v1.onnx", "nucleolus-v1.onnx"]
    assert done.output.count("allowed are") == 2
    again = CliRunner().invoke(app, [*words, *names])
    assert again.exit_code == 2
    assert "is there already" in again.output
    none = CliRunner().invoke(app, words)
    assert "give --structure NAME" in none.output
    wrong = CliRunner().invoke(app, ["export", str(stored), str(tmp_path / "a.onnx"), "--structure", "dnaa"])
    assert wrong.exit_code == 2
    assert "did you mean 'dna'" in wrong.output


def test_names_of_files_choose_the_format(tmp_path: Path) -> None:
    assert export_paths("a.onnx", ["dna"], None) == ((Path("a.onnx"),), "onnx")
    assert export_paths("a.PT2", ["dna"], "torch") == ((Path("a.PT2"),), "torch")
    assert export_paths("out", ["dna", "er"], None) == ((Path("out/dna.onnx"), Path("out/er.onnx")), "onnx")
    assert export_paths("out", ["dna"], "torch") == ((Path("out/dna.pt2"),), "torch")
    for out, names, format_, message in (
        ("a.tif", ["dna"], None, "the suffix chooses the format, one of .onnx, .pt2, .zip"),
        ("a.onnx", ["dna"], "torch", "a .onnx file is of the format onnx, not torch"),
        ("a.onnx", ["dna", "er"], None, "each structure needs a file"),
    ):
        with pytest.raises(RepmodeError, match=message):
            export_paths(out, names, format_)


def test_a_missing_library_is_named_with_its_extra(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RepmodeError, match=r"needs onnxruntime: pip install .*\[export\]"):
        export_structure(Model.open(stored), "dna", tmp_path / "dna.onnx", "onnx", volume_of())
    assert list(tmp_path.iterdir()) == []
