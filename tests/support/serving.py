"""A server of a tiny model, in this process or with a port, and images to send to it."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
import uvicorn
from starlette.testclient import TestClient

from repmode_cl.model import Model
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.serve.app import make_app
from repmode_cl.serve.models import ServedModels, open_models
from repmode_cl.serve.settings import ServeSettings

__all__ = ["SHAPE", "client", "image_bytes", "make_served_model", "served", "wait_for"]

#: Voxels (z, y, x) of images that are predicted in an instant.
SHAPE = (8, 12, 10)

ADDRESS = "http://127.0.0.1:8765"


def make_served_model(path: Path, window: tuple[int, int, int] = (8, 8, 8)) -> Path:
    network = RepModeUNet(
        Architecture(width=2, depth=1, experts=("conv3", "conv1")), ("dna", "cell_membrane"), seed=0
    )
    Model.create(
        path,
        network,
        voxel_size=(0.29, 0.29, 0.29),
        preprocessing={"order": 1},
        inference={"window": window, "overlap": 0.5, "batch": 1},
        provenance={"voxel_sizes": {"unknown": 0, "smallest": [0.29] * 3, "largest": [0.29] * 3}},
        metrics={"dna": {"r2": 0.7}},
    )
    return path


def image_bytes(
    shape: tuple[int, ...] = SHAPE, voxel: float | None = 0.29, axes: str = "ZYX", **metadata: Any
) -> bytes:
    """Return an OME-TIFF of noise as bytes."""
    image = np.random.default_rng(0).integers(0, 1000, shape).astype("uint16")
    sizes = {} if voxel is None else {f"PhysicalSize{axis}": voxel for axis in "ZYX"}
    out = io.BytesIO()
    tifffile.imwrite(
        out, image, ome=True, photometric="minisblack", metadata={"axes": axes, **sizes, **metadata}
    )
    return out.getvalue()


@contextlib.contextmanager
def client(model: Path, folder: Path, **settings: Any) -> Iterator[TestClient]:
    """Open a client of a server in this process."""
    folder.mkdir(exist_ok=True)
    app = make_app(ServeSettings(**settings), ServedModels(open_models([model]), torch.device("cpu")), folder)
    with TestClient(app, base_url=ADDRESS) as opened:
        yield opened


@contextlib.contextmanager
def served(model: Path, folder: Path, **settings: Any) -> Iterator[str]:
    """Serve on a free port from a thread, and yield the address."""
    folder.mkdir(exist_ok=True)
    app = make_app(ServeSettings(**settings), ServedModels(open_models([model]), torch.device("cpu")), folder)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wait_for(client: TestClient, job: dict[str, Any], *states: str) -> dict[str, Any]:
    """Wait until a prediction has one of these states, or has ended."""
    deadline = time.monotonic() + 60
    while job["state"] not in (*states, "finished", "failed", "cancelled"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
        job = client.get(f"/api/jobs/{job['id']}").json()
    return job
