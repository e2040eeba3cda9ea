"""Tests of the napari plugin's widget, used as a person does: in Qt without a screen."""

from __future__ import annotations

import threading
import warnings
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
from napari.utils.notifications import notification_manager  # noqa: E402
from qtpy.QtCore import Qt, QThread  # noqa: E402
from qtpy.QtWidgets import QFileDialog  # noqa: E402

from repmode_cl import Model, __version__  # noqa: E402
from repmode_cl.inference.display_colours import colour_of  # noqa: E402
from repmode_cl.napari import predict_layer, widget  # noqa: E402
from repmode_cl.napari.layer_region import LayerRegion  # noqa: E402
from repmode_cl.napari.layers import LayerPlacement  # noqa: E402
from repmode_cl.napari.widget import PredictWidget  # noqa: E402

SHAPE = (9, 14, 12)
VOXELS = (0.4, 0.2, 0.33)
DATA = np.random.default_rng(0).integers(100, 2000, (3, *SHAPE), np.uint16)


@pytest.fixture
def viewer() -> ViewerModel:
    viewer = ViewerModel()
    viewer.add_image(DATA[0], name="cells", scale=VOXELS, translate=(5, 6, 7), units=("um",) * 3)
    return viewer


@pytest.fixture
def opened(viewer: ViewerModel, stored: Path) -> Iterator[PredictWidget]:
    """Yield the widget with a model open and two structures ticked."""
    panel = PredictWidget(viewer)
    name_model(panel, stored)
    tick(panel, "dna", "mitochondria")
    yield panel
    panel.stop()
    until(lambda: panel.worker is None)
    panel.deleteLater()


def name_model(panel: PredictWidget, path: Path) -> None:
    panel.path.setText(str(path))
    panel.path.editingFinished.emit()


def tick(panel: PredictWidget, *names: str) -> None:
    for row in range(panel.structures.count()):
        item = panel.structures.item(row)
        item.setCheckState(Qt.CheckState.Checked if item.text() in names else Qt.CheckState.Unchecked)


def run(panel: PredictWidget) -> None:
    panel.predict.click()
    until(lambda: panel.worker is None)


def test_each_structure_becomes_a_layer_over_the_image(
    opened: PredictWidget, viewer: ViewerModel, stored: Path
) -> None:
    assert opened.voxels.text() == "0.4, 0.2, 0.33"
    assert opened.volume.text() == "9 x 14 x 12 voxels (z, y, x)"
    assert opened.about.text() == "predicts on 0.29 x 0.29 x 0.29 µm (z, y, x)"
    assert [opened.structures.item(row).text() for row in range(5)] == list(Model.open(stored).structures)
    run(opened)
    assert opened.message.text() == "predicted: dna, mitochondria"
    image, *added = viewer.layers
    assert [layer.name for layer in added] == ["dna of cells", "mitochondria of cells"]
    request = predict_layer.VolumeRequest(Model.open(stored), ("dna", "mitochondria"), VOXELS, "cells")
    expected = predict_layer.predict_volume(request, lambda: DATA[0], SHAPE)
    for layer, one in zip(added, expected, strict=True):
        np.testing.assert_array_equal(layer.data, one.values)
        np.testing.assert_array_equal(layer.extent.world, image.extent.world)
        assert (layer.units, layer.axis_labels) == (image.units, image.axis_labels)
        assert tuple(layer.contrast_limits) == pytest.approx(one.limits)
        assert tuple(layer.contrast_limits_range) == pytest.approx(one.extent)
        assert layer.blending == "additive"
        np.testing.assert_allclose(layer.colormap.map([0.0]), [[0, 0, 0, 1]])
        np.testing.assert_allclose(
            layer.colormap.map([1.0])[0, :3] * 255, colour_of(one.structure), atol=1e-3
        )
        made = layer.metadata["repmode-cl"]
        assert made["structure"] == one.structure
        assert made["structure_digest"] == Model.open(stored).entries[one.structure].digest
        assert made["version"] == __version__
        assert made["model"] == str(stored.absolute())
        assert made["values"] == "z-score units"
    assert not opened.bar.isVisibleTo(opened)
    # What it made is offered as an image too, and the choice stays.
    assert [opened.image.itemText(place) for place in range(opened.image.count())] == [
        layer.name for layer in viewer.layers
    ]
    assert opened.layer is image


def test_the_slider_chooses_and_the_prediction_stays_there(
    opened: PredictWidget, viewer: ViewerModel
) -> None:
    angle = np.deg2rad(30)
    turn = np.eye(4)
    turn[2:, 2:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    film = viewer.add_image(
        DATA,
        name="film",
        scale=(2, *VOXELS),
        translate=(10, 0, 1, 2),
        rotate=turn,
        shear=[0.1, 0, 0, 0, 0, 0],
    )
    opened.image.setCurrentText("film")
    viewer.dims.set_point(0, 14)
    assert opened.volume.text() == "9 x 14 x 12 voxels (z, y, x), axis 0 at 2 of 0 to 2"
    tick(opened, "dna")
    run(opened)
    added = viewer.layers["dna of film"]
    assert added.data.shape == (1, *SHAPE)
    # Each of its voxels lies where the same voxel of the film does.
    for corner in ((0, 0, 0), (8, 13, 11), (3, 0, 11)):
        np.testing.assert_allclose(added.data_to_world((0, *corner)), film.data_to_world((2, *corner)))
    [same] = predict_layer.predict_volume(
        predict_layer.VolumeRequest(opened.model, ("dna",), VOXELS, ""), lambda: DATA[2], SHAPE
    )
    np.testing.assert_array_equal(added.data[0], same.values)
    viewer.add_image(DATA, name="longer", scale=(100, *VOXELS))
    viewer.dims.set_point(0, 100)
    run(opened)
    assert "slider of axis 0 stands outside of the layer 'film'" in opened.message.text()
    assert opened.volume.text() == opened.message.text()


def test_all_time_points_become_one_layer(opened: PredictWidget, viewer: ViewerModel) -> None:
    assert not opened.all_times.isEnabled(), "the layer has no axis of time"
    film = viewer.add_image(
        np.moveaxis(DATA, 0, 1)[None],
        name="film",
        scale=(1, 0.4, 2, 0.2, 0.33),
        translate=(0, 1, 10, 0, 2),
        axis_labels=("c", "z", "t", "y", "x"),
    )
    viewer.dims.set_point(2, 14)
    opened.image.setCurrentText("film")
    assert opened.all_times.isEnabled()
    opened.all_times.click()
    assert opened.volume.text() == "9 x 14 x 12 voxels (z, y, x), axis t at 0 to 2"
    seen: list[np.ndarray] = []
    viewer.layers.events.inserted.connect(lambda event: seen.append(event.value.data.copy()))
    run(opened)
    assert opened.message.text() == ("predicted: dna (3 of 3 time points), mitochondria (3 of 3 time points)")
    added = viewer.layers["dna of film"]
    np.testing.assert_array_equal(added.extent.world, film.extent.world)
    assert added.data.shape == film.data.shape
    assert np.isnan(seen[0][:, :, 1:]).all(), "what is not predicted yet does not look like nothing"
    for number in range(3):
        request = predict_layer.VolumeRequest(opened.model, ("dna",), VOXELS, "")
        [same] = predict_layer.predict_volume(request, lambda number=number: DATA[number], SHAPE)
        np.testing.assert_array_equal(added.data[0, :, number], same.values)
    low, high = added.contrast_limits_range
    assert (low, high) == pytest.approx((added.data.min(), added.data.max()))
    assert "axis t at 0 to 2" in added.metadata["repmode-cl"]["selection"]
    # Of two further axes without such a name none is time.
    viewer.add_image(np.stack([DATA, DATA]), name="unnamed", scale=(1, 1, *VOXELS))
    opened.image.setCurrentText("unnamed")
    assert not opened.all_times.isEnabled()


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")  # napari shows such images not quite rightly
def test_an_image_that_is_turned_in_any_way_is_met() -> None:
    turn = np.eye(4)
    turn[0, 0], turn[0, 2], turn[2, 0], turn[2, 2] = 0.6, -0.8, 0.8, 0.6
    affine = np.eye(5)
    affine[:4, 4] = 1, 2, 3, 4
    film = Image(DATA, scale=(2, *VOXELS), translate=(5, 6, 7, 8), rotate=turn, affine=affine)
    placement = LayerPlacement(film, LayerRegion(SHAPE, (1, 2, 3), (2, None, None, None), ()))
    added = Image(np.zeros((1, *SHAPE)), **placement.layer_options)
    for corner in ((0, 0, 0), (8, 13, 11), (3, 0, 11)):
        np.testing.assert_allclose(added.data_to_world((0, *corner)), film.data_to_world((2, *corner)))


def test_progress_is_shown_and_cancelling_ends_it(
    opened: PredictWidget, viewer: ViewerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, threads, window = threading.Semaphore(0), [], predict_layer.sliding_window

    def slow(*given: Any, progress: Any, **settings: Any) -> Any:
        def report(done: int, total: int) -> None:
            threads.append(QThread.currentThread())
            go_on.acquire()
            progress(done, total)

        return window(*given, progress=report, **settings)

    monkeypatch.setattr(predict_layer, "sliding_window", slow)
    opened.predict.click()
    until(lambda: threads)
    assert threads[0] is not offscreen.application().thread()
    assert not opened.predict.isEnabled()
    assert opened.cancel.isEnabled()
    assert opened.bar.isVisibleTo(opened)
    until(lambda: opened.bar.maximum() > 0)
    total = opened.bar.maximum()
    opened.start()  # as a second click would be: nothing happens
    for done in range(2):
        go_on.release()
        until(lambda before=done: opened.bar.value() > before)
    windows = total // 2
    for _ in range(windows):  # enough for the first structure
        go_on.release()
    until(lambda: len(viewer.layers) == 2)
    assert opened.bar.value() < total
    before = len(threads)
    opened.cancel.click()
    assert opened.message.text() == "cancelling…"
    assert not opened.cancel.isEnabled()
    for _ in range(10):
        go_on.release()
    until(lambda: opened.worker is None)
    assert len(threads) - before <= 2  # at once, not at the end
    assert opened.message.text() == "cancelled; predicted: dna"
    assert [layer.name for layer in viewer.layers] == ["cells", "dna of cells"]
    assert opened.predict.isEnabled()
    assert not opened.cancel.isEnabled()
    assert not opened.bar.isVisibleTo(opened)
    monkeypatch.undo()
    run(opened)
    assert opened.message.text() == "predicted: dna, mitochondria"


def test_a_widget_that_is_closed_ends_its_prediction(
    viewer: ViewerModel, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = PredictWidget(viewer)
    name_model(panel, stored)
    tick(panel, "dna")
    go_on, ended, window = threading.Event(), threading.Event(), predict_layer.sliding_window

    def slow(*given: Any, **settings: Any) -> Any:
        assert go_on.wait(60)
        try:
            return window(*given, **settings)
        finally:
            ended.set()

    monkeypatch.setattr(predict_layer, "sliding_window", slow)
    panel.predict.click()
    until(lambda: panel.bar.maximum() > 0)
    worker = panel.worker
    panel.deleteLater()
    until(lambda: worker.abort_requested)
    go_on.set()
    until(ended.is_set)
    until(lambda: worker not in worker._worker_set)
    assert [layer.name for layer in viewer.layers] == ["cells"]
    viewer.add_image(DATA[1])  # nobody is there any more to list it
    viewer.layers["cells"].scale = (1, 2, 3)
    viewer.dims.set_point(0, 1)


def test_layers_come_and_go(viewer: ViewerModel) -> None:
    panel = PredictWidget(viewer)
    cells = viewer.layers["cells"]
    viewer.add_labels(np.zeros(SHAPE, int))
    viewer.add_image(DATA[1], name="other", scale=(0.5, 0.5, 0.5))
    assert [panel.image.itemText(place) for place in range(panel.image.count())] == ["cells", "other"]
    assert panel.layer is cells
    panel.voxels.setText("9, 9, 9")
    cells.name = "field"
    assert panel.image.currentText() == "field"
    assert panel.voxels.text() == "9, 9, 9"  # a correction by hand stays
    cells.scale = (0.3, 0.1, 0.1)
    assert panel.voxels.text() == "0.3, 0.1, 0.1"
    cells.units = ("nm",) * 3
    assert panel.voxels.text() == "0.0003, 0.0001, 0.0001"
    viewer.layers.remove("field")
    assert panel.image.currentText() == "other"
    assert panel.voxels.text() == "0.5, 0.5, 0.5"
    panel.voxels.setText("9, 9, 9")
    cells.scale = (7, 7, 7)  # no longer here
    assert panel.voxels.text() == "9, 9, 9"
    viewer.layers.clear()
    assert panel.layer is None
    assert panel.volume.text() == "open a stack first"
    panel.predict.click()
    assert panel.message.text() == "there is no image layer; open a stack first"
    viewer.add_image(DATA[0, 0], name="flat")
    assert "a stack is needed" in panel.volume.text()
    assert panel.voxels.text() == ""
    panel.deleteLater()


def test_models_are_named_or_chosen(
    viewer: ViewerModel, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = PredictWidget(viewer)
    panel.predict.click()
    assert panel.message.text() == "no model is open; name the folder of one"
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(stored))
    panel.browse.click()
    assert panel.structures.count() == 5
    tick(panel, "nucleolus")
    # Cancelled, and the same again: nothing is lost.
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: "")
    panel.browse.click()
    name_model(panel, stored)
    assert panel.ticked == ("nucleolus",)
    name_model(panel, tmp_path)
    assert str(tmp_path) in panel.message.text()
    assert (panel.model, panel.structures.count(), panel.about.text()) == (None, 0, "")
    name_model(panel, stored)
    assert panel.message.text() == ""
    run(panel)
    assert panel.message.text() == "no structure is chosen; choose at least one"
    panel.deleteLater()


def test_the_voxel_size_is_asked_for(opened: PredictWidget, viewer: ViewerModel) -> None:
    for text, message in {
        "": "cells: no voxel size is stated",
        "3, 0.3, 0.3": "coarser on z",
        "0.3, 0.3": "voxel size '0.3, 0.3': three positive numbers in µm are needed",
        "0.3, -1, 0.3": "three positive numbers",
        "a, b, c": "three positive numbers",
    }.items():
        opened.voxels.setText(text)
        run(opened)
        assert message in opened.message.text()
    assert len(viewer.layers) == 1
    opened.voxels.setText("3 x 0.3 x 0.3")
    run(opened)
    assert opened.message.text().endswith(f"state the right one above, or tick {opened.force.text()!r}")
    opened.force.setChecked(True)
    tick(opened, "dna")
    run(opened)
    result, note = opened.message.text().split("\n")
    assert result == "predicted: dna"
    assert "coarser on z" in note
    assert viewer.layers[-1].metadata["repmode-cl"]["voxel_size_um_zyx"] == (3.0, 0.3, 0.3)


def test_what_goes_wrong_in_the_thread_is_shown(
    opened: PredictWidget, viewer: ViewerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Any] = []
    monkeypatch.setattr(notification_manager, "receive_error", lambda *error: received.append(error))
    viewer.add_image(np.full(SHAPE, 7, np.uint8), name="dark", scale=VOXELS)
    opened.image.setCurrentText("dark")
    run(opened)
    assert opened.message.text().startswith("dark: every voxel is 7")
    assert received == []

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr(predict_layer, "sliding_window", broken)
    opened.image.setCurrentText("cells")
    run(opened)
    assert opened.message.text() == "RuntimeError: a defect"
    assert received[0][0] is RuntimeError
    assert opened.predict.isEnabled()
    assert len(viewer.layers) == 2


def test_the_layer_may_change_while_it_is_predicted(opened: PredictWidget, viewer: ViewerModel) -> None:
    opened.predict.click()
    cells = viewer.layers["cells"]
    cells.data = np.zeros((2, 3, 4))
    viewer.layers.remove(cells)
    until(lambda: opened.worker is None)
    assert opened.message.text() == "predicted: dna, mitochondria"
    assert viewer.layers[0].data.shape == SHAPE


def test_a_real_viewer_finds_the_plugin_and_shows_what_it_predicts(stored: Path, tmp_path: Path) -> None:
    offscreen.opengl()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # napari's own business with its libraries
        import napari

        viewer = napari.Viewer(show=False)
        try:
            viewer.add_image(DATA[0], name="cells", scale=VOXELS, units=("um",) * 3, visible=False)
            dock, panel = viewer.window.add_plugin_dock_widget("repmode-cl", "Predict structures")
            assert type(panel) is widget.PredictWidget
            name_model(panel, stored)
            tick(panel, "nucleolus")
            assert not offscreen.canvas(viewer)[..., :3].any()
            run(panel)
            assert panel.message.text() == "predicted: nucleolus"
            viewer.reset_view()
            drawn = offscreen.canvas(viewer)[..., :3].reshape(-1, 3)
            lit = drawn[drawn.max(axis=1) > 40].astype(float)
            assert len(lit) > 10_000
            # Every pixel that is lit has the structure's colour, brighter or darker.
            colour = np.array(colour_of("nucleolus"), float)
            np.testing.assert_allclose(
                lit / lit.max(axis=1, keepdims=True), np.tile(colour / colour.max(), (len(lit), 1)), atol=0.05
            )
            # To be looked at: the last of pytest's own folders keeps it.
            assert offscreen.picture(viewer).save(str(tmp_path / "window.png"))
            viewer.window.remove_dock_widget(dock)
            until(lambda: True)
            viewer.add_image(DATA[1], name="later")
        finally:
            viewer.close()
            until(lambda: True)


def test_the_manifest_is_right() -> None:
    from npe2 import PluginManifest

    manifest = PluginManifest.from_distribution("repmode-cl")
    manifest.validate_imports()
    contribution, adding = manifest.contributions.widgets
    assert contribution.display_name == "Predict structures"
    assert adding.display_name == "Add a structure"
    [sample] = manifest.contributions.sample_data
    assert sample.display_name == "Simulated cells"
    commands = {command.id: command for command in manifest.contributions.commands}
    assert set(commands) == {contribution.command, adding.command, sample.command}
    command = commands[contribution.command]
    assert command.python_name == f"{PredictWidget.__module__}:{PredictWidget.__qualname__}"
