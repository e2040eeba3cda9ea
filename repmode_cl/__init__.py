"""repmode-cl: learn to predict one fluorescent structure after another from transmitted light, and forget none.

The names below are imported when they are first used: torch takes seconds to import and avalanche more, and
most commands need neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repmode_cl.scenarios import structure_stream
    from repmode_cl.store import Model
    from repmode_cl.strategies import add_structure, compare_structure, run_benchmark

__all__ = ["Model", "add_structure", "compare_structure", "run_benchmark", "structure_stream", "__version__"]

#: The same as in pyproject.toml, which a test sees to; reading installed metadata would slow every command.
__version__ = "0.1.0"

_HOME = {
    "Model": "repmode_cl.store",
    "add_structure": "repmode_cl.strategies",
    "compare_structure": "repmode_cl.strategies",
    "run_benchmark": "repmode_cl.strategies",
    "structure_stream": "repmode_cl.scenarios",
}


def __getattr__(name: str) -> Any:
    """Import an exported name from where it is defined."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
