"""A user's own strategy: a class in a file of theirs, named by the configuration."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from repmode_cl.strategies.base import StructureStrategy

from repmode_cl.errors import ConfigError
from repmode_cl.files import sha256_file

__all__ = ["file_digest", "load_strategy"]


def load_strategy(name: str) -> type[StructureStrategy]:
    """Return the class that ``path/to/file.py:ClassName`` names; the file is run, as an import runs a module.

    Raises
    ------
    ConfigError
        If there is no such file or class, the file cannot be imported, or the class is no `StructureStrategy`.
    """
    file, wanted = _file_of(name), name.rpartition(":")[2]
    content = file.read_bytes()
    # Named by its content, so that two files of one name, or two states of one file, are two modules.
    module_name = f"repmode_cl_own_{file.stem}_{hashlib.sha256(content).hexdigest()[:12]}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None:
            raise ConfigError(f"strategies: {name}: {file} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise ConfigError(
                f"strategies: {name}: importing {file} failed: {type(error).__name__}: {error}"
            ) from error
    found = getattr(module, wanted, None)
    if not isinstance(found, type) or not issubclass(found, StructureStrategy):
        own = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, StructureStrategy)
            and value.__module__ == module_name
        ]
        what = (
            f"has no {wanted}"
            if found is None
            else f"has {wanted}, which is no subclass of StructureStrategy"
        )
        raise ConfigError(f"strategies: {name}: {file} {what}; its strategies are {', '.join(own) or 'none'}")
    return found


def file_digest(name: str) -> str:
    """Return the SHA-256 of the file of a user's own strategy.

    Raises
    ------
    ConfigError
        If the file is not there.
    """
    return sha256_file(_file_of(name))


def _file_of(name: str) -> Path:
    file = Path(name.rpartition(":")[0])
    if not file.is_file():
        raise ConfigError(f"strategies: {name}: there is no file {file}")
    return file
