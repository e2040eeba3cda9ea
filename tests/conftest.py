"""Rules for every test: its number of threads, and that no test is skipped unnoticed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.main import get_command

if TYPE_CHECKING:
    from tiny_run import Done
    from victims import Harness

    from repmode_cl.data.sample import Sample

#: The only reasons for which a test may be skipped where the suite's own dependencies are installed.
ALLOWED_SKIPS = (
    "real images are not part of the repository",
    "Windows sends no Ctrl-C to a process group",
    "Windows has no signal that kills",
    "chromium is not installed",
    "cubic, of the extra quality, is not installed",
    "the interrupted addition was made with POSIX paths",
)

# Before torch is imported, here and in the processes that tests start: the networks are tiny, starting threads would
# cost more than they compute, and the suite runs in two processes, whose threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Imported where they are used: most test files need neither Avalanche nor these.


@pytest.fixture(scope="session", autouse=True)
def one_worker() -> Iterator[None]:
    """Let whatever is given no number of workers read and write images in this process.

    For a few tiny images, starting a process for each processor takes a hundred times as long as the work, and the
    suite runs in two processes already. Tests of workers name their number.
    """
    modules = (
        import_module("repmode_cl.utils.process_pool"),
        import_module("repmode_cl.data.phantom.simulate"),
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "workers_here", lambda: 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_parser() -> Iterator[None]:
    """Let `CliRunner` make the parser of all commands once: making it takes longer than most commands."""
    with pytest.MonkeyPatch.context() as patch:
        # Where typer has another name for it, tests take a minute longer.
        patch.setattr("typer.testing._get_command", cache(get_command), raising=False)
        yield


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Return prepared images of four structures."""
    from tiny_strategies import make_samples

    return make_samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a manifest of images of four structures."""
    from tiny_run import make_manifest

    return make_manifest(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def done(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Return an uninterrupted benchmark of these images."""
    from tiny_run import run_tiny

    return run_tiny(manifest, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model with a base of two and three additions, which no test may change."""
    from stored_model import make_model

    return make_model(tmp_path_factory.mktemp("store") / "model")


@pytest.fixture
def model_path(stored: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be changed."""
    return Path(shutil.copytree(stored, tmp_path / "model"))


@pytest.fixture(scope="session")
def harness(stored: Path) -> Iterator[Harness]:
    """Return a server of processes that are killed, or that the disk fails, while they change a model."""
    from killing import Crew
    from victims import Harness

    # Not below pytest's own folder, into which other users may not look.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with Crew(folder) as crew:
            yield Harness(folder, stored, crew)


_skips = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-unexpected-skips",
        action="store_true",
        default=os.environ.get("CI", "").lower() == "true",
        help="fail if a test is skipped for a reason that tests/conftest.py does not name (default with CI=true)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_skips] = {}
    config.pluginmanager.register(_SkipWatch(config.stash[_skips]), "skip-watch")


class _SkipWatch:
    """Writes down every skip, of tests and of whole files, with its reason."""

    def __init__(self, skips: dict[str, str]) -> None:
        self.skips = skips

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skips[report.nodeid] = _reason(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skips[report.nodeid] = _reason(report)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def _unexpected(config: pytest.Config) -> dict[str, str]:
    if not config.getoption("--no-unexpected-skips"):
        return {}
    return {test: why for test, why in config.stash[_skips].items() if why not in ALLOWED_SKIPS}


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    if _unexpected(session.config) and session.exitstatus in (
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    unexpected = _unexpected(config)
    if unexpected:
        terminalreporter.section(
            "skipped, but not for a reason named in tests/conftest.py: this fails", red=True
        )
        for test, why in unexpected.items():
            terminalreporter.line(f"{test}: {why}")
