"""repmode-cl: learn to predict one fluorescent structure after another from transmitted light, and forget none.

The names below are imported on first use: torch takes seconds to import and avalanche more, and most commands need
neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from repmode_cl.version import __version__

if TYPE_CHECKING:
    from repmode_cl.benchmark import run_benchmark
    from repmode_cl.model import Model
    from repmode_cl.scenarios import structure_stream
    from repmode_cl.workflows.add_structure import add_structure
    from repmode_cl.workflows.compare_structure import compare_structure

__all__ = ["Model", "add_structure", "compare_structure", "run_benchmark", "structure_stream", "__version__"]

#: Exported name -> module that defines it.
_MODULES = {
    "Model": "repmode_cl.model",
    "add_structure": "repmode_cl.workflows.add_structure",
    "compare_structure": "repmode_cl.workflows.compare_structure",
    "run_benchmark": "repmode_cl.benchmark",
    "structure_stream": "repmode_cl.scenarios",
}


def __getattr__(name: str) -> Any:
    """Import an exported name from the module that defines it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
