"""Commands that install an extra of this package."""

from __future__ import annotations

from pathlib import Path

__all__ = ["install_command"]

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
