"""The rules that keep the layers apart: who imports whom, what an import costs, how long a file may be."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import repmode_cl

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("repmode_cl", "strategies", "scenarios", "configs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

#: Modules that everything may use; `base` stands for them below.
BASE = {"alone", "closing", "devices", "errors", "files", "processes", "progress", "structures"}

#: Layer -> layers that it may import. The arrows of the README's architecture section, and nothing else.
ARROWS = {
    "base": {"base"},
    "config": {"base"},
    "nn": {"base"},
    "data": {"base", "config"},
    "store": {"base", "nn"},
    "training": {"base", "config", "data", "store"},
    "inference": {"base", "data"},
    "evaluation": {"base"},
    "perf": {"base", "nn", "data", "store", "training", "inference", "top"},
    "report": {"base", "config", "evaluation"},
    "napari": {"base", "data", "store", "inference", "top"},
    "scenarios": {"base", "config", "data", "training"},
    "strategies": {
        "base", "config", "nn", "data", "store", "training", "inference", "evaluation", "report", "scenarios",
    },
    "cli": {
        "base", "config", "nn", "data", "store", "training", "inference", "evaluation", "perf", "report", "strategies",
        "top",
    },
    "__main__": {"cli"},
    "configs": set(),
    "top": set(),
}  # fmt: skip

#: What a layer may import besides, but only within functions or for type checkers.
LATER = {
    "store": {"inference"},  # Model.predict
    "inference": {"store", "top"},  # predict_file takes a model's folder; files say which version wrote them
    "top": {"store", "strategies", "scenarios"},  # the lazy exports
}


def python_files() -> list[Path]:
    return sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "repmode_cl" else ("repmode_cl", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    second = module.split(".")[1] if "." in module else "top"
    return "base" if second in BASE else second


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each imported module of a file, and whether importing the file imports it at once."""

    def walk(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            now = at_once and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                now = False
            if isinstance(child, ast.Import):
                yield from ((alias.name, now) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative imports hide which layer is meant"
                assert child.module is not None
                # `from repmode_cl import files` names a module, or a package's own member.
                whole = [f"{child.module}.{alias.name}" for alias in child.names]
                yield from (
                    (name, now) for name in (whole if child.module == "repmode_cl" else [child.module])
                )
            else:
                yield from walk(child, now)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


@pytest.mark.parametrize("path", python_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_arrows(path: Path) -> None:
    own = layer_of(module_of(path))
    for name, at_once in imports(path):
        root = name.split(".")[0]
        assert root not in ("strategies", "scenarios", "configs"), f"{name}: import it from repmode_cl"
        if root != "repmode_cl":
            continue
        layer = layer_of(name)
        if layer.startswith("__"):  # from repmode_cl import __version__
            layer = "top"
        allowed = ARROWS[own] | {own} | (set() if at_once else LATER.get(own, set()))
        assert layer in allowed, f"{own} imports {name}{'' if at_once else ' (within a function)'}"


def test_the_core_never_imports_avalanche() -> None:
    for path in python_files():
        if path.relative_to(ROOT).parts[0] == "repmode_cl":
            assert not [name for name, _ in imports(path) if name.split(".")[0] == "avalanche"], path


def test_arrows_have_no_circle() -> None:
    order: list[str] = []
    while len(order) < len(ARROWS):
        free = [
            layer for layer, needs in ARROWS.items() if layer not in order and needs - {layer} <= set(order)
        ]
        assert free, f"a circle among {sorted(set(ARROWS) - set(order))}"
        order += free


def loaded_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_is_light() -> None:
    loaded = loaded_after("import repmode_cl; dir(repmode_cl); repmode_cl.__version__")
    assert not loaded & {"torch", "avalanche", "numpy", "scipy", "pydantic", "tifffile"}


def test_no_core_module_loads_avalanche() -> None:
    core = [
        module_of(path)
        for path in python_files()
        # Of the viewer's plugin one reads that it does not: importing it takes a Qt.
        if layer_of(module_of(path)) not in ("strategies", "scenarios", "napari")
    ]
    assert len(core) > 50
    loaded = loaded_after("import " + ", ".join(core))
    assert set(core) <= loaded
    assert not loaded & {"avalanche", "repmode_cl.strategies", "repmode_cl.scenarios"}


@pytest.mark.parametrize("path", python_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_short_and_say_why_they_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), "a module docstring says why the file exists"


def test_exports_are_listed_and_there() -> None:
    assert repmode_cl.Model.__module__ == "repmode_cl.store.model"
    assert set(repmode_cl.__all__) <= set(dir(repmode_cl))
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        repmode_cl.Modle  # noqa: B018


def test_version_is_stated_once() -> None:
    assert repmode_cl.__version__ == PROJECT["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{repmode_cl.__version__}]" in changelog or "## [Unreleased]" in changelog


def test_pyproject_lists_every_package() -> None:
    folders = {path.parent for path in python_files()}
    assert {path.parent for path in python_files() if path.name == "__init__.py"} == folders
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted({module_of(folder / "__init__.py") for folder in folders})
    mapping = PROJECT["tool"]["setuptools"]["package-dir"]
    assert all((ROOT / folder / "__init__.py").is_file() for folder in mapping.values())


def test_every_library_that_is_imported_is_declared() -> None:
    declared = {re.split(r"[^\w-]", line)[0].lower() for line in PROJECT["project"]["dependencies"]}
    # Where the name to import is not the name to install, and what comes with one that is declared.
    names = {
        "avalanche": "avalanche-lib",
        "yaml": "pyyaml",
        "markupsafe": "jinja2",
        "pydantic_core": "pydantic",
        "PIL": "pillow",
        "psutil": "avalanche-lib",
    }
    used = {name.split(".")[0] for path in python_files() for name, _ in imports(path)}
    # The last are used where they are installed: a codec, a cluster's client, what prediction is compared with, the
    # viewer of the plugin, and what reads further formats.
    optional = {"imagecodecs", "distributed", "monai", "napari", "qtpy", "zarr", "fsspec", "pylibCZIrw"}
    foreign = used - set(sys.stdlib_module_names) - {"repmode_cl"} - optional
    assert {names.get(name, name) for name in foreign} <= declared


def test_a_skip_for_an_unnamed_reason_fails_where_asked(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "conftest.py").write_bytes((ROOT / "tests" / "conftest.py").read_bytes())
    real = "real images are not part of the repository"
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        f"@pytest.mark.skip(reason={real!r})\ndef test_named(): pass\n"
        "@pytest.mark.skip(reason='just so')\ndef test_unnamed(): pass\n"
        "def test_fine(): pass\n"
    )

    def run(*arguments: str) -> tuple[int, str]:
        environment = {key: value for key, value in os.environ.items() if key != "CI"}
        # Those of other packages are not asked, and take seconds to import.
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    assert run("--no-unexpected-skips", "-k", "not unnamed")[0] == 0
    code, output = run("--no-unexpected-skips")
    assert code == 1
    assert "test_unnamed: just so" in output
