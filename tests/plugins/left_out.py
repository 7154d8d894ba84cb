"""Says at the end what was left out and why; with ``MAINSPRING_CI`` set, anything left out is a failure.

A test marked ``kernel`` may be left out if its twin passed: the test named in ``kernel(twin="test_...")``, or one of the
same file that carries the same id (``test_o07_...``). Loaded by ``scripts/run-tests`` with ``-p left_out``.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

_ID = re.compile(r"test_([a-z]\d\d)_")


class LeftOut:
    """Collects outcomes in the process that prints the summary."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.skipped: dict[str, tuple[str, str | None]] = {}
        """Test -> reason, and for a kernel test its twin ("" if it has none to name)."""
        self.passed: set[str] = set()
        self.soak = 0

    def see(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            twin = next((v for k, v in report.user_properties if k == "kernel twin"), None)
            self.skipped[report.nodeid] = (reason.removeprefix("Skipped: "), twin)
        elif report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def excused(self, nodeid: str) -> bool:
        """A kernel test whose twin passed."""
        twin = self.skipped[nodeid][1]
        if twin is None:
            return False
        file, _, name = nodeid.partition("::")
        identity = _ID.match(name)
        for other in self.passed:
            place, _, candidate = other.partition("::")
            candidate = candidate.partition("[")[0]
            if twin and candidate == twin:
                return True
            if not twin and identity and place == file and candidate.startswith(identity[0]):
                return True
        return False

    def failures(self) -> list[str]:
        return sorted(n for n in self.skipped if not self.excused(n)) if self.strict else []

    def lines(self) -> list[str]:
        if not self.skipped:
            return [f"left out: nothing ({self.soak} soak tests belong to `make soak`)"]
        reasons = Counter(reason for reason, _ in self.skipped.values())
        lines = [f"left out: {len(self.skipped)} ({self.soak} soak tests belong to `make soak`)"]
        lines += [f"  {count} x {reason}" for reason, count in reasons.most_common()]
        lines += [f"  a failure here, since MAINSPRING_CI is set: {nodeid}" for nodeid in self.failures()]
        return lines


_KEY: pytest.StashKey[LeftOut] = pytest.StashKey()


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_KEY] = LeftOut(strict=bool(os.environ.get("MAINSPRING_CI")))
    if not _is_worker(config):
        config.pluginmanager.register(_Controller(config.stash[_KEY]), "left_out_controller")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("kernel")
        if mark is not None:  # user properties travel with the report, marks do not
            item.user_properties.append(("kernel twin", str(mark.kwargs.get("twin", ""))))


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("soak") is not None:
            item.config.stash[_KEY].soak += 1


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _is_worker(session.config):
        session.config.workeroutput["soak"] = session.config.stash[_KEY].soak  # type: ignore[attr-defined]
    elif session.config.stash[_KEY].failures() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


class _Controller:
    def __init__(self, seen: LeftOut) -> None:
        self._seen = seen

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seen.see(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._seen.soak = max(self._seen.soak, getattr(node, "workeroutput", {}).get("soak", 0))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._seen.skipped[report.nodeid] = (reason.removeprefix("Skipped: "), None)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for line in self._seen.lines():
            terminalreporter.write_line(line, yellow=bool(self._seen.skipped))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed may hold lone surrogates; the channel between workers takes only UTF-8 and would end the session."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
