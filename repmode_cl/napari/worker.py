"""Prediction in its own thread, so that the viewer stays usable: it reports progress and can be stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
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
    #: A `PredictedVolume`, and the number of the volume that it is of.
    predicted = Signal(object, int)
    stopped = Signal()


class PredictionWorker(WorkerBase):
    """A run of `predict_volume`; its signals arrive in the thread that made it.

    `quit` stops it after the current batch of windows, and so does the end of napari.

    Parameters
    ----------
    request, shape
        As in `predict_volume`.
    reads
        Each returns a volume of `shape`, as `read` there; they are predicted in this order.
    """

    def __init__(
        self, request: VolumeRequest, reads: Sequence[Callable[[], NDArray[Any]]], shape: Sequence[int]
    ) -> None:
        super().__init__(SignalsClass=_Signals)
        self._request, self._reads, self._shape, self._number = request, reads, shape, 0

    def work(self) -> None:
        """Predict; an error becomes the signal ``errored``."""
        try:
            for number, read in enumerate(self._reads):
                self._number = number
                # The memory for the results of all volumes is taken with the first.
                request = replace(self._request, volumes=1) if number else self._request
                for prediction in predict_volume(request, read, self._shape, progress=self._report):
                    self._raise_if_stopped()
                    self.signals.predicted.emit(prediction, number)
        except _Stopped:
            self.signals.stopped.emit()

    def _report(self, done: int, total: int) -> None:
        self._raise_if_stopped()
        self.signals.progressed.emit(self._number * total + done, len(self._reads) * total)

    def _raise_if_stopped(self) -> None:
        if self.abort_requested:
            raise _Stopped
