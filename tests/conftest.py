"""What all levels of the tests share: the lab, the no-skips rule, and a summary by level.

The levels are the folders beside this file; tests/README.md tells what belongs where.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.netlab import Lab, sweep
from tests.support.processes import read_text

LEVELS = ("packaging", "unit", "conformance", "netns", "qemu")
MARKED = ("conformance", "netns", "qemu")
NEED_ROOT = ("netns", "qemu")

_ran: Counter[str] = Counter()
_seconds: defaultdict[str, float] = defaultdict(float)


def level_of(path: Path) -> str:
    """The level that a test file belongs to, "" for none."""
    parts = path.relative_to(Path(__file__).parent).parts
    return parts[0] if parts[0] in LEVELS else ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-must-run",
        action="store_true",
        help="a skipped test is a failed one, and so is a level that was asked for and has no test (as in CI)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each level runs under its own marker; a time-out in a namespace lets the fixtures clean up."""
    for item in items:
        level = level_of(item.path)
        if level in NEED_ROOT and os.geteuid() != 0 and not config.option.collectonly:
            raise pytest.UsageError(f"the tests of level {level} need root: sudo tests/run {level}")
        if level in MARKED:
            item.add_marker(level)
        if level in NEED_ROOT:
            given = item.get_closest_marker("timeout")
            seconds = given.args[0] if given else float(config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(seconds, method="signal"), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.config.getoption("--all-must-run"):
        report.outcome, report.longrepr = "failed", f"skipped, which counts as failed here: {report.longrepr}"
    if report.failed:
        report.sections += _lab_logs(getattr(item, "funcargs", {}).values())
    level = level_of(item.path)
    _seconds[level] += report.duration
    _ran[level] += report.when == "call"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and collector.config.getoption("--all-must-run"):
        report.outcome, report.longrepr = "failed", f"skipped, which counts as failed here: {report.longrepr}"
    return report


def _lab_logs(fixtures: Iterable[object]) -> list[tuple[str, str]]:
    """What the programs of a failed test's lab and the consoles of its machines said last."""
    folders = {fixture.folder for fixture in fixtures if isinstance(fixture, Lab)}
    logs = sorted(path for folder in folders for path in folder.glob("*.*") if path.is_file())
    return [(f"lab: {path.name}", read_text(path)[-4000:]) for path in logs]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.OK and _levels_without_tests(session.config):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.section("levels")
    for level in LEVELS:
        if _ran[level]:
            terminalreporter.write_line(f"{level:12} {_ran[level]:5} tests {_seconds[level]:7.1f} s")
    for level in _levels_without_tests(config):
        terminalreporter.write_line(f"{level:12} no test ran, which counts as a failure here")


def _levels_without_tests(config: pytest.Config) -> list[str]:
    """The levels that were asked for by their folders and had nothing to run, where all must run."""
    strict = config.getoption("--all-must-run") and not config.option.collectonly
    asked = {Path(argument).name for argument in config.args} if strict else set()
    return [level for level in LEVELS if level in asked and not _ran[level]]


@pytest.fixture(scope="session")
def _swept() -> None:
    """Namespaces that a killed run left behind are gone."""
    sweep()


@pytest.fixture
def lab(_swept: None, tmp_path: Path) -> Iterator[Lab]:
    """A LAN in network namespaces, removed after the test; logs lie in ``tmp_path / "lab"``."""
    with Lab(tmp_path / "lab") as lab:
        yield lab
