"""Extras of this package: their libraries, and the commands that install them."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from repmode_cl.errors import RepmodeError

__all__ = ["install_command", "require_library"]

_ROOT = Path(__file__).parents[2]


def install_command(extra: str) -> str:
    """Return the command that installs an extra: of the clone that this package runs from, or of the installed package.

    Parameters
    ----------
    extra
        Its name in pyproject.toml, such as ``czi``.
    """
    project = _ROOT / "pyproject.toml"
    # The package may also lie in a project of somebody else, who has a pyproject.toml too.
    if project.is_file() and 'name = "repmode-cl"' in project.read_text(encoding="utf-8"):
        return f"pip install -e '.[{extra}]' (in {_ROOT})"
    return f"pip install 'repmode-cl[{extra}]'"


def require_library(name: str, extra: str, purpose: str) -> ModuleType:
    """Return a library that only an extra of this package brings.

    Parameters
    ----------
    name
        Of the module, such as ``onnxruntime``.
    extra
        The extra that installs it.
    purpose
        What it is needed for, for the message.

    Raises
    ------
    RepmodeError
        If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise RepmodeError(f"{purpose} needs {error.name}: {install_command(extra)}") from error
