"""What holds for every test: how many threads, and that no test is skipped unnoticed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

#: The only reasons for which a test may be skipped where the suite's own dependencies are installed.
ALLOWED_SKIPS = ("real images are not part of the repository",)

# Before torch is imported, here and in the processes that tests start: the networks are tiny, and on a machine
# with many cores starting threads would cost more than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "2")

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
