"""The widget that learns a structure from two layers: files, progress, cancelling, and sample data."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import offscreen
import pytest
from offscreen import until

offscreen.application()

from napari.components import ViewerModel  # noqa: E402 - after what it needs was seen to
from napari.layers import Image  # noqa: E402
from npe2 import PluginManifest  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from repmode_cl.cli.app import app  # noqa: E402
from repmode_cl.data.manifest import read_manifest  # noqa: E402
from repmode_cl.data.readers import open_image  # noqa: E402
from repmode_cl.errors import ImageError  # noqa: E402
from repmode_cl.model import Model  # noqa: E402
from repmode_cl.napari.add_widget import AddStructureWidget  # noqa: E402
from repmode_cl.napari.pair_files import write_pair  # noqa: E402
from repmode_cl.napari.sample_data import simulated_cells  # noqa: E402
from repmode_cl.napari.widget import PredictWidget  # noqa: E402

SHAPE, VOXELS = (6, 80, 64), (0.4, 0.2, 0.2)
LIGHT = np.random.default_rng(0).integers(0, 999, SHAPE, np.uint16)


@pytest.fixture
def panel(stored: Path, tmp_path: Path) -> Iterator[AddStructureWidget]:
    viewer = ViewerModel()
    viewer.add_image(LIGHT, name="light", scale=VOXELS, units=("um",) * 3)
    viewer.add_image(LIGHT * 2, name="golgi", scale=VOXELS, units=("um",) * 3)
    panel = AddStructureWidget(viewer)
    panel.target.setCurrentIndex(1)
    panel.name.setText("golgi_apparatus")
    (tmp_path / "model").symlink_to(stored)
    panel.path.setText(str(tmp_path / "model"))
    yield panel
    panel.stop()
    until(lambda: panel.process is None)
    panel.deleteLater()


def instead(panel: AddStructureWidget, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let another program stand for the command: its words come after the script."""
    monkeypatch.setattr(panel, "program", lambda: (sys.executable, "-c", script))


def test_two_layers_become_a_pair_of_which_one_end_is_held_out(tmp_path: Path) -> None:
    path = write_pair(tmp_path / "pair", "golgi_apparatus", LIGHT, LIGHT * 2, VOXELS, (1, 8, 9))
    manifest = read_manifest(path)
    assert [(row.structure, row.split, row.voxel_size) for row in manifest.rows] == [
        ("golgi_apparatus", "train", VOXELS), ("golgi_apparatus", "test", VOXELS),
    ]  # fmt: skip
    assert [row.region.y for row in manifest.rows if row.region is not None] == [(0, 54), (62, 80)]
    with open_image(manifest.rows[0].target) as image:
        np.testing.assert_array_equal(image.read(0), LIGHT * 2)
        assert image.voxel_size == pytest.approx(VOXELS)
    with pytest.raises(ImageError, match="both layers must show the same voxels"):
        write_pair(tmp_path / "pair", "golgi_apparatus", LIGHT, LIGHT[1:], VOXELS, (1, 8, 9))
    # The shortest layers that are taken, and a voxel less.
    short, least = LIGHT[:, :40, :41], LIGHT[:, :41, :40]
    manifest = read_manifest(write_pair(tmp_path / "pair", "golgi", least, least, None, (9, 9, 8)))
    assert [row.region.y for row in manifest.rows if row.region is not None] == [(0, 16), (25, 41)]
    with pytest.raises(
        ImageError, match=r"have 41 voxels along x.*; at least 42 are needed: 16 .* and 10 between"
    ):
        write_pair(tmp_path / "pair", "golgi", short, short, None, (9, 9, 10))


def test_a_structure_named_light_is_not_the_light(tmp_path: Path) -> None:
    [row, _] = read_manifest(write_pair(tmp_path, "light", LIGHT, LIGHT * 2, VOXELS, (1, 8, 9))).rows
    with open_image(row.signal) as light, open_image(row.target) as target:
        np.testing.assert_array_equal(light.read(0), LIGHT)
        np.testing.assert_array_equal(target.read(0), LIGHT * 2)


def test_the_command_learns_from_what_is_written(
    panel: AddStructureWidget, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half a patch of the model between the parts, in the voxels of the layers, which are others."""
    monkeypatch.setattr("repmode_cl.napari.sample_data._SHAPE", (8, 60, 40))
    panel.viewer.layers.clear()
    for data, options, _ in simulated_cells():
        panel.viewer.add_image(data, **options | {"scale": (0.29, 0.2, 0.2)})
    panel.target.setCurrentIndex(3)
    panel.path.setText(str(shutil.copytree(stored, tmp_path / "own")))
    panel.name.setText("golgi_apparatus")
    panel.steps.setValue(2)
    manifest = panel._write()
    assert [row.region.y for row in read_manifest(manifest).rows if row.region] == [(0, 38), (44, 60)]
    done = CliRunner().invoke(app, panel.words(manifest))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "own" / "pending" / "golgi_apparatus").is_dir()
    assert "verdict of golgi_apparatus: " in done.output


def test_progress_is_shown_and_what_was_learned_is_staged(
    panel: AddStructureWidget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = (
        "import sys; print('golgi: started, 20 steps', file=sys.stderr); "
        "print('golgi: after step 10: R2 0.1', file=sys.stderr); print('verdict of golgi_apparatus: weak'); "
        "open(sys.argv[3] + '.words', 'w').write(' '.join(sys.argv[1:]))"
    )
    monkeypatch.chdir(tmp_path)
    instead(panel, monkeypatch, script)
    panel.steps.setValue(20)
    panel.add.click()
    assert not panel.add.isEnabled()
    until(lambda: panel.process is None)
    assert (panel.bar.maximum(), panel.bar.value()) == (20, 10)
    assert "golgi_apparatus is staged; the model is as it was" in panel.message.text()
    assert "verdict of golgi_apparatus: weak" in panel.message.text()
    manifest = tmp_path / "model-from-napari" / "golgi_apparatus" / "manifest.csv"
    words = " ".join(panel.words(manifest))
    assert (
        words == f"add {tmp_path / 'model'} --structure golgi_apparatus --data {manifest} --stage --steps 20"
    )
    assert read_manifest(manifest).structures == ("golgi_apparatus",)


def test_cancelling_ends_the_command(panel: AddStructureWidget, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(panel, monkeypatch, "import time; print('started, 9 steps', flush=True); time.sleep(60)")
    panel.add.click()
    until(lambda: "9 steps" in panel.message.text())
    panel.cancel.click()
    until(lambda: panel.process is None)
    assert "cancelled; the same choice continues" in panel.message.text()
    assert panel.add.isEnabled()


def test_errors_are_shown(panel: AddStructureWidget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    instead(panel, monkeypatch, "import sys; print('error: no such thing'); sys.exit(2)")
    panel.add.click()
    until(lambda: panel.process is None)
    assert panel.message.text() == "error: no such thing"
    monkeypatch.setattr(panel, "program", lambda: (str(tmp_path / "nothing"),))
    panel.add.click()
    until(lambda: panel.process is None)
    assert "could not be run" in panel.message.text()
    panel.target.setCurrentIndex(0)
    panel.add.click()
    assert "choose two image layers" in panel.message.text()
    panel.target.setCurrentIndex(1)
    panel.path.setText(str(tmp_path))
    panel.add.click()
    assert "no model is there" in panel.message.text()


def test_sample_data_open_as_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repmode_cl.napari.sample_data._SHAPE", (8, 48, 40))
    layers = [Image(data, **options) for data, options, _ in simulated_cells()]
    assert [layer.name for layer in layers] == [
        "simulated transmitted light", "simulated dna", "simulated cell membrane", "simulated nucleolus",
    ]  # fmt: skip
    assert {layer.data.shape for layer in layers} == {(8, 48, 40)}
    assert tuple(layers[0].scale) == (0.29, 0.29, 0.29)
    assert [layer.visible for layer in layers] == [True, False, False, False]


def test_the_manifest_names_what_is_there() -> None:
    import repmode_cl.napari

    manifest = PluginManifest.from_file(Path(repmode_cl.napari.__file__).with_name("napari.yaml"))
    contributed = manifest.contributions
    assert {one.display_name for one in contributed.widgets or ()} == {
        "Predict structures",
        "Add a structure",
    }
    found: dict[str, Any] = {one.id: one.python_name for one in contributed.commands or ()}
    for name in found.values():
        module, _, attribute = str(name).partition(":")
        assert hasattr(__import__(module, fromlist=[attribute]), attribute)


def test_verdicts_stand_below_the_structures(stored: Path) -> None:
    panel = PredictWidget(ViewerModel())
    panel.path.setText(str(stored))
    panel.open_model()
    entries = Model.open(stored).entries
    assert panel.verdicts.text().splitlines() == [
        f"{name}: {entry.verdict.text}" for name, entry in entries.items()
    ]
    assert panel.structures.item(0).toolTip() == entries["dna"].verdict.text
    panel.deleteLater()
