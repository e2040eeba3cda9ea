"""Settings of the server, its errors, and the tokens that it accepts."""

from __future__ import annotations

import ipaddress
import math
import secrets
from dataclasses import dataclass

from repmode_cl.errors import RepmodeError

__all__ = ["SHORTEST_TOKEN", "RequestError", "ServeSettings", "is_loopback", "is_unspecified", "new_token"]

#: Fewest characters of a token that a user makes up.
SHORTEST_TOKEN = 16


class RequestError(RepmodeError):
    """A request that is refused.

    Parameters
    ----------
    status
        HTTP status.
    message
        For the person at the browser.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name, which may stand for anything
        return False


def is_unspecified(host: str) -> bool:
    """Return whether an address stands for all addresses of this machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a name
        return False


def new_token() -> str:
    """Return a random token of 256 bits, for a URL."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True)
class ServeSettings:
    """Settings of the server.

    Attributes
    ----------
    host, port
        Address; port 0 takes a free one.
    token
        What a visitor must know; None lets everybody in, which only an address of this machine may do.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    max_upload
        Most bytes of one image.
    max_voxels
        Most voxels (z, y, x) of one channel of an image.
    max_stored
        Most bytes of all images and results that are held at once.
    max_waiting
        Most predictions that wait at once.
    keep_seconds
        Seconds after its last use until an image and its results are deleted.
    keep_downloaded_seconds
        The same, once a result was downloaded.
    stall_seconds
        Seconds without a byte after which an upload is given up.

    Raises
    ------
    RepmodeError
        If a number is out of range, the token is short, or there is none and other machines can reach the address.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    device: str = "auto"
    max_upload: int = 2 << 30
    max_voxels: int = 500_000_000
    max_stored: int = 20 << 30
    max_waiting: int = 20
    keep_seconds: float = 3600.0
    keep_downloaded_seconds: float = 300.0
    stall_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise RepmodeError(f"port {self.port}: a number from 0 (a free one) to 65535 is needed")
        for name in (
            "max_upload",
            "max_voxels",
            "max_stored",
            "keep_seconds",
            "keep_downloaded_seconds",
            "stall_seconds",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise RepmodeError(f"{name} {getattr(self, name)}: a positive, finite number is needed")
        if self.token is None and not is_loopback(self.host):
            raise RepmodeError(
                f"host {self.host}: other machines can reach this address, so that a token is needed"
            )
        if self.token is not None and (len(self.token) < SHORTEST_TOKEN or not self.token.isascii()):
            raise RepmodeError(
                f"the token has {len(self.token)} characters; at least {SHORTEST_TOKEN} plain ones (ASCII) are needed"
            )
