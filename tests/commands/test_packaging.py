"""The wheel: one top-level package with everything in it, which works outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "repmode_cl": "repmode_cl",
    "strategies": "repmode_cl/strategies",
    "scenarios": "repmode_cl/scenarios",
    "configs": "repmode_cl/configs",
}
NOT_SHIPPED = {".pyc"}

#: The smallest benchmark that has everything: a base, an addition, three strategies.
TINY = (
    "data.simulate.fields=4", "data.simulate.shape=[12, 32, 32]", "stream.order=[nucleolus]", "network.width=2",
    "network.depth=1", "patch.size=[8, 16, 16]", "training.batch_size=2", "training.steps=2",
    "training.base_steps=null",
    "training.validate_every=2",
)  # fmt: skip


def pip(*arguments: str | Path, cwd: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", *map(str, arguments)],
        cwd=cwd, check=True, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A copy: building in the repository would leave a build folder there, whose remains get into later wheels.
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, ".", cwd=source)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the installed package, in place of the one that tests run from."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    return target


def python(installed: Path, cwd: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def command(installed: Path, cwd: Path, *arguments: str) -> str:
    # What the installed script does; the script itself does not look at PYTHONPATH's copy on every system.
    code = "import sys; from repmode_cl.cli.app import main; sys.argv[0] = 'repmode-cl'; main()"
    return python(installed, cwd, "-c", code, *arguments)


def test_one_top_level_package_with_every_source_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"repmode_cl"}
    sources = {
        f"{inside}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, inside in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in NOT_SHIPPED
    }
    assert {name for name in names if name.startswith("repmode_cl/")} == sources
    assert "repmode_cl/py.typed" in sources
    assert {"repmode_cl/configs/quickstart.yaml", "repmode_cl/report/page/templates/page.jinja"} <= sources
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_command_is_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [entry] = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        assert "repmode-cl = repmode_cl.cli.app:main" in archive.read(entry).decode()


@pytest.mark.slow
def test_installed_commands_work_outside_the_tree(installed: Path, tmp_path: Path) -> None:
    assert "repmode-cl bench quickstart" in command(installed, tmp_path, "--help")
    assert command(installed, tmp_path, "config", "quickstart") == (
        (ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8")
    )
    assert len(list(installed.glob("repmode_cl-*.dist-info"))) == 1
    code = (
        "import repmode_cl, repmode_cl.strategies, repmode_cl.scenarios, repmode_cl.configs as c\n"
        "print(repmode_cl.__file__, repmode_cl.strategies.__file__, repmode_cl.scenarios.__file__, c.__file__)\n"
        "from repmode_cl import add_structure, run_benchmark, structure_stream, Model"
    )
    files = python(installed, tmp_path, "-c", code).split()
    assert len(files) == 4
    assert all(Path(file).is_relative_to(installed) for file in files)


@pytest.mark.slow
def test_an_installed_benchmark_runs_outside_the_tree(installed: Path, tmp_path: Path) -> None:
    overrides = [part for item in TINY for part in ("--set", item)]
    out = command(installed, tmp_path, "bench", "quickstart", *overrides)
    assert "experts_frozen_small: R2" in out
    assert "forgetting 0.0 (bit-identical)" in out
    report = tmp_path / "runs" / "quickstart" / "report.html"
    assert out.rstrip().endswith(f"report: {report.relative_to(tmp_path)}")
    assert report.is_file()
    again = command(installed, tmp_path, "bench", "quickstart", *overrides, "--resume")
    assert again == out
