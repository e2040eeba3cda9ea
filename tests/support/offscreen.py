"""Qt and OpenGL without a screen: what tests of the napari plugin need.

Qt's platform "offscreen" has no OpenGL, which a napari window cannot do without. Mesa computes it in software, in a
separate context: what napari draws with is then there, and its canvas can be read, though Qt cannot show it.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

__all__ = ["application", "canvas", "opengl", "picture", "until"]

# Before Qt and PyOpenGL are imported. A person's own settings of napari are neither read nor written.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ["NAPARI_CONFIG"] = ""
if sys.platform == "linux":
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")

#: EGL's number for a display without any window system (EGL_PLATFORM_SURFACELESS_MESA).
_SURFACELESS = 0x31DD

_kept: list[Any] = []


def application() -> Any:
    """Return the one QApplication, with napari imported.

    Skips where Qt's libraries cannot be loaded. With CI=true that fails, as every reason does that
    ``conftest.py`` does not name.
    """
    if not _kept:
        try:
            from qtpy.QtWidgets import QApplication
        except ImportError as error:
            pytest.skip(f"Qt cannot be loaded: {error}", allow_module_level=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # napari's own business with its libraries
            import napari.layers
            import napari.qt.threading
            import napari.viewer  # noqa: F401
        _kept.append(QApplication.instance() or QApplication([]))
    return _kept[0]


def opengl() -> None:
    """Make a context current in this thread; skips, and fails with CI=true, where there is none."""
    if sys.platform != "linux" or len(_kept) > 1:
        return
    try:
        from OpenGL import EGL
        from OpenGL.EGL.EXT.platform_base import eglGetPlatformDisplayEXT

        display = eglGetPlatformDisplayEXT(_SURFACELESS, EGL.EGL_DEFAULT_DISPLAY, None)
        EGL.eglInitialize(display, EGL.EGLint(), EGL.EGLint())
        configs, count = (EGL.EGLConfig * 1)(), EGL.EGLint()
        wanted = [EGL.EGL_SURFACE_TYPE, EGL.EGL_PBUFFER_BIT, EGL.EGL_RENDERABLE_TYPE, EGL.EGL_OPENGL_BIT]
        EGL.eglChooseConfig(display, (EGL.EGLint * 5)(*wanted, EGL.EGL_NONE), configs, 1, count)
        EGL.eglBindAPI(EGL.EGL_OPENGL_API)
        context = EGL.eglCreateContext(display, configs[0], EGL.EGL_NO_CONTEXT, None)
        size = (EGL.EGLint * 5)(EGL.EGL_WIDTH, 64, EGL.EGL_HEIGHT, 64, EGL.EGL_NONE)
        surface = EGL.eglCreatePbufferSurface(display, configs[0], size)
        EGL.eglMakeCurrent(display, surface, surface, context)
    except Exception as error:  # PyOpenGL's own, an import, or an attribute that a library lacks
        pytest.skip(f"there is no OpenGL in software: {error!r}")
    _kept.append((display, context, surface))


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Let Qt work until something is true."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError("it never became true")
        _work()
        time.sleep(0.005)
    _work()


def _work() -> None:
    from qtpy.QtCore import QEvent

    app = application()
    app.processEvents()
    # Only an event loop, which tests have not, deletes what is to be deleted later.
    app.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)


def canvas(viewer: Any) -> NDArray[np.uint8]:
    """Return what the canvas of a napari viewer shows: uint8 (rows, columns, RGBA)."""
    _work()
    shown = viewer.window._qt_viewer.canvas
    # Qt, which draws nothing, does not tell it its size.
    drawn: NDArray[np.uint8] = shown._scene_canvas.render(size=(shown.native.width(), shown.native.height()))
    return drawn


def picture(viewer: Any) -> Any:
    """Return the whole window of a napari viewer as a QImage: what Qt draws, and the canvas in its place."""
    from qtpy.QtCore import QPoint
    from qtpy.QtGui import QImage, QPainter

    drawn = np.ascontiguousarray(canvas(viewer))
    window, native = viewer.window._qt_window, viewer.window._qt_viewer.canvas.native
    image = window.grab().toImage()
    painter = QPainter(image)
    inside = QImage(
        drawn.data, drawn.shape[1], drawn.shape[0], 4 * drawn.shape[1], QImage.Format.Format_RGBA8888
    )
    painter.drawImage(native.mapTo(window, QPoint(0, 0)), inside)
    painter.end()
    return image
