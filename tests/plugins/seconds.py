"""Says at the end how many seconds of test time each room took, beside its budget (``tests/budget.toml``).

It says and does not judge: a machine with other work on it is slow, not broken. Loaded by ``scripts/run-tests`` with
``-p seconds``.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

BUDGET = Path(__file__).parents[1] / "budget.toml"
_SLOWEST = 10


class Seconds:
    """Adds up set-up, call and clean-up of every test, by the folder below ``tests`` that it is in."""

    def __init__(self, budget: dict[str, float]) -> None:
        self.budget = budget
        self.rooms: dict[str, float] = defaultdict(float)
        self.tests: dict[str, float] = defaultdict(float)

    def see(self, nodeid: str, seconds: float) -> None:
        parts = nodeid.partition("::")[0].split("/")
        self.rooms[parts[1] if len(parts) > 2 else "tests"] += seconds
        self.tests[nodeid] += seconds

    def lines(self) -> list[str]:
        """One line a room, slowest first, then the slowest tests."""
        lines = ["seconds per room (budget in tests/budget.toml, of two quiet cores):"]
        for room, took in sorted(self.rooms.items(), key=lambda item: -item[1]):
            budget = self.budget.get(room)
            beside = "no budget" if budget is None else f"of {budget:5.0f}"
            over = "  over" if budget is not None and took > budget else ""
            lines.append(f"  {took:7.1f} {beside}  {room}{over}")
        slowest = sorted(self.tests.items(), key=lambda item: -item[1])[:_SLOWEST]
        return [*lines, "slowest tests:", *(f"  {took:7.1f}  {test}" for test, took in slowest)]


class _Controller:
    def __init__(self) -> None:
        self._seconds = Seconds(tomllib.loads(BUDGET.read_text())["seconds"])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds.see(report.nodeid, report.duration)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for line in self._seconds.lines():
            terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Controller(), "seconds_controller")
