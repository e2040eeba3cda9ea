"""Cost of imports, and declared packages and lists; who may import whom is in the contracts of pyproject.toml."""

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

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("repmode_cl", "strategies", "scenarios", "configs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def python_files() -> list[Path]:
    return sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "repmode_cl" else ("repmode_cl", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, at once or within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


def test_no_import_is_relative() -> None:
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: relative imports hide which package is meant"


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
        if [*module_of(path).split("."), ""][1]
        not in ("strategies", "scenarios", "benchmark", "workflows", "napari")
    ]
    assert len(core) > 50
    loaded = loaded_after("import " + ", ".join(core))
    assert set(core) <= loaded
    assert not loaded & {"avalanche", "repmode_cl.strategies", "repmode_cl.scenarios"}


@pytest.mark.parametrize("path", python_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_say_why_they_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "a module docstring says why the file exists"


def test_exports_are_listed_and_there() -> None:
    assert repmode_cl.Model.__module__ == "repmode_cl.model"
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
    }
    used = {name.split(".")[0] for path in python_files() for name in imports(path)}
    # The last are used where they are installed: a codec, a cluster's client, what prediction is compared with, the
    # viewer of the plugin, what reads further formats, a search's proposals, a logger that Avalanche brings, and what
    # writes packages and signatures.
    optional = {"imagecodecs", "distributed", "monai", "napari", "qtpy", "zarr", "fsspec", "pylibCZIrw"}
    optional |= {"optuna", "wandb", "bioimageio", "cryptography", "liffile", "nd2"}
    # The server of the web page, with what it brings; measures of pictures and objects.
    optional |= {"starlette", "uvicorn", "anyio", "skimage"}
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
