"""The widget in napari's window: an image layer, a model, structures; predicted, each becomes a layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

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
from repmode_cl.napari.layer_region import LayerRegion, select, stated_voxel_size
from repmode_cl.napari.layers import Placed, layer_of

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from repmode_cl.model import Model
    from repmode_cl.napari.predict_layer import Prediction, Request
    from repmode_cl.napari.worker import PredictionWorker

__all__ = ["PredictWidget"]


@dataclass
class _Run:
    """A prediction under way, and which structures are there already."""

    request: Request
    placed: Placed
    notes: tuple[str, ...]
    structures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join((f"predicted: {', '.join(self.structures) or 'nothing'}", *self.notes))


class PredictWidget(QWidget):
    """Predicts structures of an image layer and adds each as a layer.

    Parameters
    ----------
    napari_viewer
        Given by napari, which knows the name of this parameter.
    """

    def __init__(self, napari_viewer: ViewerModel) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.model: Model | None = None
        self.worker: PredictionWorker | None = None
        self._followed: Image | None = None
        self._run: _Run | None = None
        self._lay_out()
        self._follow_viewer()
        self.show_layers()

    def _lay_out(self) -> None:
        self.image = QComboBox()
        self.volume = _text()
        self.path = QLineEdit()
        self.path.setPlaceholderText("folder with model.json")
        self.browse = QPushButton("Browse…")
        self.about = _text()
        self.structures = QListWidget()
        self.voxels = QLineEdit()
        self.voxels.setPlaceholderText("z, y, x")
        self.voxels.setToolTip(
            "Voxel size of the image in µm. It is read from the layer's scale; correct it here."
        )
        self.force = QCheckBox("predict even if the voxel size does not fit")
        self.device = QComboBox()
        self.device.addItems(["auto", "cpu", "cuda"])
        self.predict = QPushButton("Predict")
        self.cancel = QPushButton("Cancel")
        self.cancel.setEnabled(False)
        self.bar = QProgressBar()
        self.bar.setVisible(False)
        self.message = _text()

        where = QHBoxLayout()
        where.addWidget(self.path)
        where.addWidget(self.browse)
        form = QFormLayout()
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow("image", self.image)
        form.addRow(self.volume)
        form.addRow("voxel size (µm)", self.voxels)
        form.addRow("model", where)
        form.addRow(self.about)
        form.addRow("structures", self.structures)
        form.addRow("device", self.device)
        form.addRow(self.force)
        buttons = QHBoxLayout()
        buttons.addWidget(self.predict)
        buttons.addWidget(self.cancel)
        whole = QVBoxLayout(self)
        whole.addLayout(form)
        whole.addLayout(buttons)
        whole.addWidget(self.bar)
        whole.addWidget(self.message)
        whole.addStretch()

        self.image.currentIndexChanged.connect(self._image_changed)
        self.path.editingFinished.connect(self.open_model)
        self.browse.clicked.connect(self._choose_folder)
        self.predict.clicked.connect(self.start)
        self.cancel.clicked.connect(self.stop)

    # -- what the viewer shows -----------------------------------------------------------------------------

    def _follow_viewer(self) -> None:
        # The viewer outlives a widget that is closed, and not every napari forgets what Qt has deleted: each of
        # these asks whether it is alive.
        layers = self.viewer.layers.events
        for event in (layers.inserted, layers.removed, layers.reordered):
            event.connect(self.show_layers)
        self.viewer.dims.events.point.connect(self.show_volume)

    def show_layers(self, event: object = None) -> None:
        """List the image layers, the chosen one kept if it is still there."""
        if not isalive(self):
            return
        chosen = self.layer
        images = [layer for layer in self.viewer.layers if isinstance(layer, Image)]
        self.image.blockSignals(True)
        self.image.clear()
        for layer in images:
            self.image.addItem(layer.name, layer)
            layer.events.name.connect(self.show_layers)  # again and again, and connected once
        kept = next((place for place, layer in enumerate(images) if layer is chosen), None)
        self.image.setCurrentIndex(kept if kept is not None else (0 if images else -1))
        self.image.blockSignals(False)
        if kept is None:
            self._image_changed()

    @property
    def layer(self) -> Image | None:
        """The chosen image layer."""
        found: Image | None = self.image.currentData()
        return found

    def _image_changed(self) -> None:
        """Follow the layer that is chosen now, and no longer the one before."""
        layer = self.layer
        for one, act in ((self._followed, "disconnect"), (layer, "connect")):
            if one is not None:
                for event in (one.events.scale, one.events.units, one.events.axis_labels):
                    getattr(event, act)(self.take_voxel_size)
        self._followed = layer
        self.take_voxel_size()

    def take_voxel_size(self, event: object = None) -> None:
        """Take the voxel size from the layer."""
        if not isalive(self):
            return
        self.voxels.clear()
        layer = self.layer
        if layer is not None:
            try:
                size = stated_voxel_size(layer, select(layer, self.viewer.dims.point))
            except ImageError:
                size = None  # the next line says why
            if size is not None:
                self.voxels.setText(", ".join(f"{part:.6g}" for part in size))
        self.show_volume()

    def show_volume(self, event: object = None) -> None:
        """Say which voxels would be predicted."""
        if not isalive(self):
            return
        if self.layer is None:
            self.volume.setText("open a stack first")
            return
        try:
            self.volume.setText(str(select(self.layer, self.viewer.dims.point)))
        except ImageError as error:
            self.volume.setText(str(error))

    # -- the model -----------------------------------------------------------------------------------------

    def _choose_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Model directory", self.path.text())
        if folder:
            self.path.setText(folder)
            self.open_model()

    def open_model(self) -> None:
        """Open the model that is named and list its structures; those that were ticked stay so."""
        ticked = self.ticked
        self.structures.clear()
        self.about.clear()
        self.model = None
        if not self.path.text().strip():
            return
        # Imported here: torch takes seconds, and until now nothing needed it.
        from repmode_cl.model import Model

        try:
            self.model = Model.open(Path(self.path.text().strip()))
        except RepmodeError as error:
            self._say(str(error), wrong=True)
            return
        self._say("")
        size = self.model.voxel_size
        on = (
            "each image's own grid"
            if size is None
            else f"{' x '.join(f'{part:g}' for part in size)} µm (z, y, x)"
        )
        self.about.setText(f"predicts on {on}")
        for name in self.model.structures:
            item = QListWidgetItem(name)
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
        """Begin to predict what is chosen; what will not do is said at once."""
        if self.worker is not None:
            return
        try:
            layer, selection, request = self._request()
            notes = request.notes()
        except RepmodeError as error:
            self._say(str(error), wrong=True)
            return
        from repmode_cl.napari.worker import PredictionWorker

        # The array as it is now: the layer may be given another while this one is predicted.
        data = layer.data[0] if layer.multiscale else layer.data
        self._run = _Run(request, Placed(layer, selection), notes)
        self.worker = worker = PredictionWorker(request, lambda: selection.read(data), selection.shape)
        worker.signals.progressed.connect(self._progressed)
        worker.signals.predicted.connect(self._predicted)
        worker.signals.stopped.connect(self._stopped)
        worker.signals.returned.connect(self._done)
        worker.signals.errored.connect(self._failed)
        worker.signals.finished.connect(self._finished)
        self.destroyed.connect(worker.quit)
        self._say("\n".join(notes))
        self.bar.setRange(0, 0)
        self.bar.setVisible(True)
        self.predict.setEnabled(False)
        self.cancel.setEnabled(True)
        worker.start()

    def _request(self) -> tuple[Image, LayerRegion, Request]:
        if self.layer is None:
            raise ImageError("there is no image layer; open a stack first")
        if self.model is None:
            raise RepmodeError("no model is open; name the folder of one")
        from repmode_cl.napari.predict_layer import Request

        selection = select(self.layer, self.viewer.dims.point)
        request = Request(
            self.model,
            self.ticked,
            _voxel_size(self.voxels.text()),
            self.layer.name,
            self.force.isChecked(),
            self.device.currentText(),
            f"state the right one above, or tick {self.force.text()!r}",
        )
        return self.layer, selection, request

    def stop(self) -> None:
        """Ask the prediction to end; it does after the batch of windows that it is at."""
        if self.worker is not None:
            self.worker.quit()
            self.cancel.setEnabled(False)
            self._say("cancelling…")

    def _progressed(self, done: int, total: int) -> None:
        self.bar.setRange(0, total)
        self.bar.setValue(done)

    def _predicted(self, prediction: Prediction) -> None:
        assert self._run is not None
        self._run.structures.append(prediction.structure)
        self.viewer.add_layer(layer_of(prediction, self._run.placed, self._run.request))

    def _stopped(self) -> None:
        self._say(f"cancelled; {self._run}")

    def _done(self, result: None) -> None:
        self._say(str(self._run))

    def _failed(self, error: Exception) -> None:
        if isinstance(error, RepmodeError):
            self._say(str(error), wrong=True)
            return
        self._say(f"{type(error).__name__}: {error}", wrong=True)
        # A defect: napari shows it with its traceback.
        notification_manager.receive_error(type(error), error, error.__traceback__)

    def _finished(self) -> None:
        self.worker = self._run = None
        self.bar.setVisible(False)
        self.predict.setEnabled(True)
        self.cancel.setEnabled(False)

    def _say(self, text: str, *, wrong: bool = False) -> None:
        self.message.setStyleSheet("color: #ff8080" if wrong else "")
        self.message.setText(text)


def _text() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label


def _voxel_size(text: str) -> tuple[float, float, float] | None:
    """Read ``z, y, x``; nothing means that nobody knows.

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
