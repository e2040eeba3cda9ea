"""Location of an image: a path on this machine, or a URL, which stays text because paths fold its slashes."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["as_location", "is_url"]

# Two letters at least: C:// is a drive.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(location: str | Path) -> bool:
    """Return whether a location is a URL, such as ``s3://bucket/image.zarr``."""
    return isinstance(location, str) and _URL.match(location) is not None


def as_location(location: str | Path) -> Path | str:
    """Return a URL as it is (without spaces around it), anything else as a path."""
    if isinstance(location, str) and is_url(location.strip()):
        return location.strip().rstrip("/")
    return Path(location)
