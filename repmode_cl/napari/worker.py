"""Prediction in its own thread, so that the viewer stays usable: it reports progress and can be stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from napari.qt.threading import WorkerBase, WorkerBaseSignals
from numpy.typing import NDArray
from qtpy.QtCore import Signal

from repmode_cl.napari.predict_layer import VolumeRequest, predict_volume

__all__ = ["PredictionWorker"]


class _Stopped(Exception):  # noqa: N818 - nothing went wrong
    pass


class _Signals(WorkerBaseSignals):
    #: Windows done and their total.
    progressed = Signal(int, int)
    #: A `PredictedVolume`.
    predicted = Signal(object)
    stopped = Signal()


class PredictionWorker(WorkerBase):
    """A run of `predict_volume`; its signals arrive in the thread that made it.

    `quit` stops it after the current batch of windows, and so does the end of napari.

    Parameters
    ----------
    request, read, shape
        As in `predict_volume`.
    """

    def __init__(
        self, request: VolumeRequest, read: Callable[[], NDArray[Any]], shape: Sequence[int]
    ) -> None:
        super().__init__(SignalsClass=_Signals)
        self._request, self._read, self._shape = request, read, shape

    def work(self) -> None:
        """Predict; an error becomes the signal ``errored``."""
        try:
            for prediction in predict_volume(self._request, self._read, self._shape, progress=self._report):
                self._raise_if_stopped()
                self.signals.predicted.emit(prediction)
        except _Stopped:
            self.signals.stopped.emit()

    def _report(self, done: int, total: int) -> None:
        self._raise_if_stopped()
        self.signals.progressed.emit(done, total)

    def _raise_if_stopped(self) -> None:
        if self.abort_requested:
            raise _Stopped
