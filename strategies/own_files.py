"""Import of a user's own Python files: strategies, plugins, loggers and functions that make networks."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from repmode_cl.errors import ConfigError, did_you_mean

__all__ = ["file_of", "import_file", "load_from_file"]


def file_of(name: str, section: str = "strategies") -> Path:
    """Return the file of ``path/to/file.py:Name``.

    Raises
    ------
    ConfigError
        If it is not there.
    """
    file = Path(name.rpartition(":")[0])
    if not file.is_file():
        raise ConfigError(f"{section}: {name}: there is no file {file}")
    return file


def import_file(name: str, section: str = "strategies") -> ModuleType:
    """Return the module of the file that ``path/to/file.py:Name`` names; it is run, as an import runs a module.

    Parameters
    ----------
    name
        File, and what is wanted of it.
    section
        Key of the configuration, for messages.

    Raises
    ------
    ConfigError
        If there is no such file, or it cannot be imported.
    """
    file = file_of(name, section)
    content = file.read_bytes()
    # Named by its content, so that two files of one name, or two versions of one file, are two modules.
    module_name = f"repmode_cl_own_{file.stem}_{hashlib.sha256(content).hexdigest()[:12]}"
    module = sys.modules.get(module_name)
    if module is not None:
        return module
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{section}: {name}: {file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise ConfigError(
            f"{section}: {name}: importing {file} failed: {type(error).__name__}: {error}"
        ) from error
    return module


def load_from_file(name: str, kind: type | None, what: str, section: str = "strategies") -> Any:
    """Return what ``path/to/file.py:Name`` names.

    Parameters
    ----------
    name
        File, and what is wanted of it.
    kind
        Class that it must be a subclass of; None wants something that can be called.
    what
        The same in words, for messages.
    section
        Key of the configuration, for messages.

    Raises
    ------
    ConfigError
        If there is no such file or name, the file cannot be imported, or it names something else.
    """
    module, wanted = import_file(name, section), name.rpartition(":")[2]
    value = getattr(module, wanted, None)
    fits = callable(value) if kind is None else isinstance(value, type) and issubclass(value, kind)
    if not fits:
        names = [key for key, one in vars(module).items() if callable(one) and not key.startswith("_")]
        problem = (
            f"has no {wanted}{did_you_mean(wanted, names)}"
            if value is None
            else f"has {wanted}, which is not"
        )
        raise ConfigError(f"{section}: {name}: {file_of(name, section)} {problem}: {what} is needed")
    return value
