"""Widget in napari's window: choose an image layer, a model and structures; each prediction becomes a layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.components import ViewerModel
from napari.layers import Image
from napari.utils.notifications import notification_manager
from qtpy.compat import isalive
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.napari.layer_region import (
    LayerRegion,
    TimePoints,
    region_at_sliders,
    stated_voxel_size,
    time_points,
)
from repmode_cl.napari.layers import LayerPlacement, prediction_layer, set_time_point

# These import torch, which takes seconds: the widget opens without it.
if TYPE_CHECKING:
    from repmode_cl.model import Model
    from repmode_cl.napari.predict_layer import PredictedVolume, VolumeRequest
    from repmode_cl.napari.worker import PredictionWorker

__all__ = ["PredictWidget"]


@dataclass
class _RunningPrediction:
    """A running prediction, and the structures that are finished."""

    request: VolumeRequest
    placement: LayerPlacement
    notes: tuple[str, ...]
    times: TimePoints | None = None
    finished: list[str] = field(default_factory=list)
    layers: dict[tuple[str, bool], Image] = field(default_factory=dict)

    def __str__(self) -> str:
        names = list(dict.fromkeys(self.finished))
        if self.times is not None:
            total = len(self.times.regions)
            names = [f"{name} ({self.finished.count(name)} of {total} time points)" for name in names]
        return "\n".join((f"predicted: {', '.join(names) or 'nothing'}", *self.notes))


class PredictWidget(QWidget):
    """A widget that predicts structures of an image layer and adds each as a layer.

    Parameters
    ----------
    napari_viewer
        Passed by napari, by the name of this parameter.
    """

    def __init__(self, napari_viewer: ViewerModel) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.model: Model | None = None
        self.worker: PredictionWorker | None = None
        self._connected_layer: Image | None = None
        self._running: _RunningPrediction | None = None
        self._add_controls()
        self._connect_viewer()
        self.list_layers()

    def _add_controls(self) -> None:
        self.image = QComboBox()
        self.volume = _text()
        self.path = QLineEdit()
        self.path.setPlaceholderText("folder with model.json")
        self.browse = QPushButton("Browse…")
        self.about = _text()
        self.structures = QListWidget()
        self.verdicts = _text()
        self.all_times = QCheckBox("all time points")
        self.all_times.setToolTip("Predict every position of the time axis, in place of the slider's.")
        self.voxels = QLineEdit()
        self.voxels.setPlaceholderText("z, y, x")
        self.voxels.setToolTip(
            "Voxel size of the image in µm. It is read from the layer's scale; correct it here."
        )
        self.force = QCheckBox("predict even if the voxel size does not fit")
        self.confidence = QCheckBox("confidence: a further layer, which takes several times as long")
        self.device = QComboBox()
        self.device.addItems(["auto", "cpu", "cuda"])
        self.predict = QPushButton("Predict")
        self.cancel = QPushButton("Cancel")
        self.cancel.setEnabled(False)
        self.bar = QProgressBar()
        self.bar.setVisible(False)
        self.message = _text()

        model_row = QHBoxLayout()
        model_row.addWidget(self.path)
        model_row.addWidget(self.browse)
        form = QFormLayout()
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow("image", self.image)
        form.addRow(self.volume)
        form.addRow(self.all_times)
        form.addRow("voxel size (µm)", self.voxels)
        form.addRow("model", model_row)
        form.addRow(self.about)
        form.addRow("structures", self.structures)
        form.addRow(self.verdicts)
        form.addRow("device", self.device)
        form.addRow(self.force)
        form.addRow(self.confidence)
        buttons = QHBoxLayout()
        buttons.addWidget(self.predict)
        buttons.addWidget(self.cancel)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addLayout(buttons)
        layout.addWidget(self.bar)
        layout.addWidget(self.message)
        layout.addStretch()

        self.image.currentIndexChanged.connect(self._image_changed)
        self.all_times.toggled.connect(self.show_volume)
        self.path.editingFinished.connect(self.open_model)
        self.browse.clicked.connect(self._choose_folder)
        self.predict.clicked.connect(self.start)
        self.cancel.clicked.connect(self.stop)

    # -- image layers --------------------------------------------------------------------------------------

    def _connect_viewer(self) -> None:
        # The viewer outlives a widget that is closed, and not every napari forgets what Qt has deleted: each of
        # these asks whether it is alive.
        layers = self.viewer.layers.events
        for event in (layers.inserted, layers.removed, layers.reordered):
            event.connect(self.list_layers)
        self.viewer.dims.events.point.connect(self.show_volume)

    def list_layers(self, event: object = None) -> None:
        """List the image layers; the chosen one stays chosen if it still exists."""
        if not isalive(self):
            return
        chosen = self.layer
        images = [layer for layer in self.viewer.layers if isinstance(layer, Image)]
        self.image.blockSignals(True)
        self.image.clear()
        for layer in images:
            self.image.addItem(layer.name, layer)
            layer.events.name.connect(self.list_layers)  # connected once, however often it is called
        index = next((number for number, layer in enumerate(images) if layer is chosen), None)
        self.image.setCurrentIndex(index if index is not None else (0 if images else -1))
        self.image.blockSignals(False)
        if index is None:
            self._image_changed()

    @property
    def layer(self) -> Image | None:
        """The chosen image layer."""
        layer: Image | None = self.image.currentData()
        return layer

    def _image_changed(self) -> None:
        """Connect to the events of the chosen layer, and no longer to those of the one before."""
        for event in _voxel_size_events(self._connected_layer):
            event.disconnect(self.read_voxel_size)
        self._connected_layer = self.layer
        for event in _voxel_size_events(self.layer):
            event.connect(self.read_voxel_size)
        self.read_voxel_size()

    def read_voxel_size(self, event: object = None) -> None:
        """Read the voxel size from the layer."""
        if not isalive(self):
            return
        self.voxels.clear()
        layer = self.layer
        if layer is not None:
            try:
                size = stated_voxel_size(layer, region_at_sliders(layer, self.viewer.dims.point))
            except ImageError:
                size = None  # `show_volume` shows the reason
            if size is not None:
                self.voxels.setText(", ".join(f"{part:.6g}" for part in size))
        self.show_volume()

    def show_volume(self, event: object = None) -> None:
        """Show which voxels would be predicted."""
        if not isalive(self):
            return
        times = None
        if self.layer is None:
            self.volume.setText("open a stack first")
        else:
            try:
                region = region_at_sliders(self.layer, self.viewer.dims.point)
                times = time_points(self.layer, region)
                self.volume.setText(str(times if times and self.all_times.isChecked() else region))
            except ImageError as error:
                self.volume.setText(str(error))
        self.all_times.setEnabled(times is not None)

    # -- the model -----------------------------------------------------------------------------------------

    def _choose_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Model directory", self.path.text())
        if folder:
            self.path.setText(folder)
            self.open_model()

    def open_model(self) -> None:
        """Open the named model and list its structures; ticked ones stay ticked."""
        ticked = self.ticked
        self.structures.clear()
        self.about.clear()
        self.verdicts.clear()
        self.model = None
        if not self.path.text().strip():
            return
        # Imported here: it imports torch, which takes seconds and is not needed before.
        from repmode_cl.model import Model

        try:
            self.model = Model.open(Path(self.path.text().strip()))
        except RepmodeError as error:
            self._show_message(str(error), error=True)
            return
        self._show_message("")
        size = self.model.voxel_size
        grid = (
            "each image's own grid"
            if size is None
            else f"{' x '.join(f'{part:g}' for part in size)} µm (z, y, x)"
        )
        self.about.setText(f"predicts on {grid}")
        entries = self.model.entries
        self.verdicts.setText("\n".join(f"{name}: {entry.verdict.text}" for name, entry in entries.items()))
        for name in self.model.structures:
            item = QListWidgetItem(name)
            item.setToolTip(entries[name].verdict.text)
            item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable)
            item.setCheckState(Qt.CheckState.Checked if name in ticked else Qt.CheckState.Unchecked)
            self.structures.addItem(item)

    @property
    def ticked(self) -> tuple[str, ...]:
        """Structures to predict, in the model's order."""
        items = [self.structures.item(row) for row in range(self.structures.count())]
        return tuple(item.text() for item in items if item.checkState() == Qt.CheckState.Checked)

    # -- predicting ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the prediction; a choice that cannot be predicted is refused at once."""
        if self.worker is not None:
            return
        try:
            layer, region, request, times = self._request()
            notes = request.check()
        except RepmodeError as error:
            self._show_message(str(error), error=True)
            return
        # Imported here, as the model is.
        from repmode_cl.napari.worker import PredictionWorker

        # The array as it is now: the layer may get another while this one is predicted.
        data = layer.data[0] if layer.multiscale else layer.data
        regions = (region,) if times is None else times.regions
        self._running = _RunningPrediction(request, LayerPlacement(layer, regions[0]), notes, times)
        self.worker = worker = PredictionWorker(
            request, [partial(one.read, data) for one in regions], region.shape
        )
        worker.signals.progressed.connect(self._progressed)
        worker.signals.predicted.connect(self._predicted)
        worker.signals.stopped.connect(self._stopped)
        worker.signals.returned.connect(self._done)
        worker.signals.errored.connect(self._failed)
        worker.signals.finished.connect(self._finished)
        self.destroyed.connect(worker.quit)
        self._show_message("\n".join(notes))
        self.bar.setRange(0, 0)
        self.bar.setVisible(True)
        self.predict.setEnabled(False)
        self.cancel.setEnabled(True)
        worker.start()

    def _request(self) -> tuple[Image, LayerRegion, VolumeRequest, TimePoints | None]:
        if self.layer is None:
            raise ImageError("there is no image layer; open a stack first")
        if self.model is None:
            raise RepmodeError("no model is open; name the folder of one")
        # Imported here, as the model is.
        from repmode_cl.napari.predict_layer import VolumeRequest

        region = region_at_sliders(self.layer, self.viewer.dims.point)
        times = time_points(self.layer, region) if self.all_times.isChecked() else None
        request = VolumeRequest(
            self.model,
            self.ticked,
            _voxel_size(self.voxels.text()),
            self.layer.name,
            self.force.isChecked(),
            self.device.currentText(),
            f"state the right one above, or tick {self.force.text()!r}",
            self.confidence.isChecked(),
            1 if times is None else len(times.regions),
        )
        return self.layer, region, request, times

    def stop(self) -> None:
        """Stop the prediction; it ends after its current batch of windows."""
        if self.worker is not None:
            self.worker.quit()
            self.cancel.setEnabled(False)
            self._show_message("cancelling…")

    def _progressed(self, done: int, total: int) -> None:
        self.bar.setRange(0, total)
        self.bar.setValue(done)

    def _predicted(self, prediction: PredictedVolume, number: int) -> None:
        running = self._running
        assert running is not None
        if not prediction.confidence:
            running.finished.append(prediction.structure)
        if running.times is not None and number:
            # Of a layer that was closed meanwhile too: nobody sees it.
            layer = running.layers[prediction.structure, bool(prediction.confidence)]
            set_time_point(layer, prediction, running.times, number)
            return
        layer = prediction_layer(prediction, running.placement, running.request, running.times)
        running.layers[prediction.structure, bool(prediction.confidence)] = layer
        self.viewer.add_layer(layer)

    def _stopped(self) -> None:
        self._show_message(f"cancelled; {self._running}")

    def _done(self, result: None) -> None:
        self._show_message(str(self._running))

    def _failed(self, error: Exception) -> None:
        if isinstance(error, RepmodeError):
            self._show_message(str(error), error=True)
            return
        self._show_message(f"{type(error).__name__}: {error}", error=True)
        # A defect of the program: napari shows it with its traceback.
        notification_manager.receive_error(type(error), error, error.__traceback__)

    def _finished(self) -> None:
        self.worker = self._running = None
        self.bar.setVisible(False)
        self.predict.setEnabled(True)
        self.cancel.setEnabled(False)

    def _show_message(self, text: str, *, error: bool = False) -> None:
        self.message.setStyleSheet("color: #ff8080" if error else "")
        self.message.setText(text)


def _voxel_size_events(layer: Image | None) -> tuple[Any, ...]:
    """Return the events of a layer after which its voxel size may be another."""
    return () if layer is None else (layer.events.scale, layer.events.units, layer.events.axis_labels)


def _text() -> QLabel:
    """Return a label for text that a person may select."""
    label = QLabel()
    label.setWordWrap(True)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label


def _voxel_size(text: str) -> tuple[float, float, float] | None:
    """Read ``z, y, x``; an empty text is an unknown voxel size.

    Raises
    ------
    RepmodeError
        If it is not three positive numbers.
    """
    if not text.strip():
        return None
    try:
        z, y, x = (float(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        z = y = x = 0.0
    if not all(0 < part < float("inf") for part in (z, y, x)):
        raise RepmodeError(
            f"voxel size {text!r}: three positive numbers in µm are needed, such as 0.29, 0.11, 0.11"
        )
    return z, y, x
