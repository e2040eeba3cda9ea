"""The server's process: its folder, its socket, and its end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvicorn

from repmode_cl.errors import RepmodeError
from repmode_cl.serve.app import make_app
from repmode_cl.serve.models import ServedModels, open_models
from repmode_cl.serve.settings import ServeSettings, is_unspecified
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.locks import exclusive, is_locked

__all__ = ["run_server", "server_folder"]

_PREFIX = "repmode-cl-serve-"

# Seconds that requests have to end after Ctrl-C.
_GRACE_SECONDS = 3


def run_server(paths: Sequence[Path], settings: ServeSettings, ready: Callable[[str], None]) -> None:
    """Serve models until Ctrl-C or SIGTERM, and delete all images and results then.

    Parameters
    ----------
    paths
        Folders of models.
    settings
        Of the server.
    ready
        Called with the address once the server can be reached: of a server on all addresses of this machine, with its
        name.

    Raises
    ------
    RepmodeError
        If a model cannot be opened, or the address not be used.
    """
    models = ServedModels(open_models(paths), resolve_device(settings.device))
    with contextlib.closing(_bind(settings)) as listening, server_folder() as folder:
        # Port 0 has become another one, which the name of the cookie holds.
        settings = dataclasses.replace(settings, port=listening.getsockname()[1])
        config = uvicorn.Config(
            make_app(settings, models, folder),
            log_level="warning",
            access_log=False,  # addresses hold tokens
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        # Nobody else can open 0.0.0.0.
        host = socket.gethostname() if is_unspecified(settings.host) else settings.host
        ready(f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/")
        # Raised again by uvicorn once all is closed; stopping is how a server ends.
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def _bind(settings: ServeSettings) -> socket.socket:
    """Return a socket that listens, so that an address that cannot be used is reported before models are loaded."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        listening = socket.socket(family)
    except OSError as error:
        raise RepmodeError(
            f"host {settings.host}: no address of this machine ({error.strerror or error})"
        ) from None
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise RepmodeError(
            f"port {settings.port} of {settings.host} cannot be used ({error.strerror or error}); give another "
            "--port, or 0 for a free one"
        ) from None
    return listening


@contextlib.contextmanager
def server_folder() -> Iterator[Path]:
    """Make a folder that only this user can read, and remove it at the end; remove what a killed server left.

    Yields
    ------
    Path
        An empty folder.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if (left / "lock").is_file() and is_locked(left / "lock") is False:
            shutil.rmtree(left, ignore_errors=True)
    root = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with exclusive(root / "lock", f"{root} is in use", error=RepmodeError):
            folder = root / "images"
            folder.mkdir()
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
