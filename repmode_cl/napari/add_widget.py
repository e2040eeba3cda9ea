"""Widget in napari's window: learn a structure from two layers, in a separate process, and stage it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from napari.components import ViewerModel
from napari.layers import Image
from qtpy.compat import isalive
from qtpy.QtCore import QProcess
from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.napari.layer_region import region_at_sliders, stated_voxel_size
from repmode_cl.napari.pair_files import needed_gap, write_pair
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.command_text import command_line

__all__ = ["AddStructureWidget"]

_TOTAL, _STEP = re.compile(r"started, ([\d,]+) steps"), re.compile(r"after step ([\d,]+)")


class AddStructureWidget(QWidget):
    """A widget that learns a structure from two layers by ``repmode-cl add --stage``.

    The model is not changed: what was learned is staged, for a person to accept or discard.

    Parameters
    ----------
    napari_viewer
        Passed by napari, by the name of this parameter.
    """

    def __init__(self, napari_viewer: ViewerModel) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.process: QProcess | None = None
        self.text = ""
        self._cancelled = False
        self.light, self.target = QComboBox(), QComboBox()
        self.path, self.name = QLineEdit(), QLineEdit()
        self.path.setPlaceholderText("folder with model.json")
        self.name.setPlaceholderText("such as nucleolus")
        self.steps = QSpinBox()
        self.steps.setRange(0, 1_000_000)
        self.steps.setSpecialValueText("as the base")
        self.add = QPushButton("Learn and stage")
        self.cancel = QPushButton("Cancel")
        self.cancel.setEnabled(False)
        self.bar = QProgressBar()
        self.bar.setVisible(False)
        self.message = QLabel()
        self.message.setWordWrap(True)
        form = QFormLayout()
        for title, control in (
            ("transmitted light", self.light),
            ("fluorescence", self.target),
            ("structure", self.name),
            ("model", self.path),
            ("steps", self.steps),
        ):
            form.addRow(title, control)
        buttons = QHBoxLayout()
        buttons.addWidget(self.add)
        buttons.addWidget(self.cancel)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addLayout(buttons)
        layout.addWidget(self.bar)
        layout.addWidget(self.message)
        layout.addStretch()
        self.add.clicked.connect(self.start)
        self.cancel.clicked.connect(self.stop)
        events = self.viewer.layers.events
        for event in (events.inserted, events.removed, events.reordered):
            event.connect(self.list_layers)
        self.list_layers()

    def list_layers(self, event: object = None) -> None:
        """List the image layers in both boxes; the chosen ones stay chosen if they still exist."""
        if not isalive(self):
            return
        images = [layer for layer in self.viewer.layers if isinstance(layer, Image)]
        for box in (self.light, self.target):
            chosen = box.currentData()
            box.clear()
            for layer in images:
                box.addItem(layer.name, layer)
            box.setCurrentIndex(
                next((n for n, layer in enumerate(images) if layer is chosen), 0 if images else -1)
            )

    def words(self, manifest: Path) -> list[str]:
        """Return the words of the command, after the program."""
        words = ["add", self.path.text().strip(), "--structure", self.name.text().strip()]
        words += ["--data", str(manifest), "--stage"]
        return [*words, *(["--steps", str(self.steps.value())] if self.steps.value() else [])]

    def start(self) -> None:
        """Write the two layers to files, and start the training in a separate process."""
        if self.process is not None:
            return
        try:
            manifest = self._write()
        except (RepmodeError, OSError) as error:
            self._show(str(error), error=True)
            return
        self._cancelled, self.text = False, ""
        self.process = process = QProcess(self)
        process.setProcessChannelMode(QProcess.ProcessChannelMode.MergedChannels)
        process.readyReadStandardOutput.connect(self._read)
        process.finished.connect(self._finished)
        process.errorOccurred.connect(self._failed)
        self.bar.setRange(0, 0)
        self.bar.setVisible(True)
        self.add.setEnabled(False)
        self.cancel.setEnabled(True)
        self._show(f"{command_line(*self.words(manifest))}")
        program, *arguments = self.program()
        process.start(program, [*arguments, *self.words(manifest)])

    def program(self) -> Sequence[str]:
        """Return the program that knows the commands of ``repmode-cl``."""
        return (sys.executable, "-m", "repmode_cl")

    def _write(self) -> Path:
        light, target = self.light.currentData(), self.target.currentData()
        if light is None or target is None or light is target:
            raise ImageError(
                "choose two image layers: the transmitted light, and the fluorescence of the structure"
            )
        path = Path(self.path.text().strip())
        if not (path / "model.json").is_file():
            raise RepmodeError(
                f"{self.path.text().strip() or 'no folder'}: no model is there; name the folder of one"
            )
        model = ModelSnapshot.open(path)
        regions = [region_at_sliders(layer, self.viewer.dims.point) for layer in (light, target)]
        volumes = [
            region.read(layer.data[0] if layer.multiscale else layer.data)
            for region, layer in zip(regions, (light, target), strict=True)
        ]
        name = self.name.text().strip()
        folder = path.with_name(f"{path.name}-from-napari") / (name or "unnamed")
        voxel_size = stated_voxel_size(light, regions[0])
        return write_pair(folder, name, volumes[0], volumes[1], voxel_size, needed_gap(model, voxel_size))

    def stop(self) -> None:
        """Stop the training; its last checkpoint stays, and the same choice continues from there."""
        if self.process is not None:
            self._cancelled = True
            self.cancel.setEnabled(False)
            self.process.terminate()

    def _read(self) -> None:
        if self.process is None:
            return
        self.text += bytes(self.process.readAllStandardOutput().data()).decode(errors="replace")
        totals, steps = _TOTAL.findall(self.text), _STEP.findall(self.text)
        if totals:
            self.bar.setRange(0, int(totals[-1].replace(",", "")))
            self.bar.setValue(int(steps[-1].replace(",", "")) if steps else 0)
        lines = [line for line in self.text.splitlines() if line.strip()]
        if lines:
            self._show(lines[-1])

    def _failed(self, error: object) -> None:
        # `_finished` reports a command that a signal ends, too.
        if self.process is not None and error == QProcess.ProcessError.FailedToStart:
            self._show(f"the command could not be run: {self.process.errorString()}", error=True)
            self._end()

    def _finished(self, code: int, status: object = None) -> None:
        if self.process is None:
            return
        self._read()
        model, name = self.path.text().strip(), self.name.text().strip()
        lines = [line for line in self.text.splitlines() if line.strip()]
        if self._cancelled:
            self._show(
                "cancelled; the same choice continues, and "
                f"{command_line('discard', model, name)} removes what was begun"
            )
        elif code:
            self._show("\n".join(lines[-3:]) or f"the command ended with code {code}", error=True)
        else:
            verdict = next((line for line in lines if line.startswith("verdict of ")), "")
            self._show(
                "\n".join(
                    filter(
                        None,
                        (
                            f"{name} is staged; the model is as it was. {command_line('accept', model, name)} takes it",
                            verdict,
                        ),
                    )
                )
            )
        self._end()

    def _end(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.deleteLater()
        self.bar.setVisible(False)
        self.add.setEnabled(True)
        self.cancel.setEnabled(False)

    def _show(self, text: str, *, error: bool = False) -> None:
        self.message.setStyleSheet("color: #ff8080" if error else "")
        self.message.setText(text)

    def closeEvent(self, event: object) -> None:  # noqa: N802 - Qt's name
        """Stop a training with the widget."""
        self.stop()
