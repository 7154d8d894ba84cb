"""Seconds per room are summed over set-up, call and clean-up, and said beside the room's budget."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

FILE = Path(__file__).parents[1] / "plugins" / "seconds.py"
SPEC = importlib.util.spec_from_file_location("seconds_plugin", FILE)
assert SPEC is not None
assert SPEC.loader is not None
MODULE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)


def test_a_room_is_a_folder_and_what_is_over_its_budget_says_so() -> None:
    seen = MODULE.Seconds({"data": 3.0, "loop": 9.0})
    for nodeid, took in (
        ("tests/data/test_a.py::test_one", 1.0),
        ("tests/data/test_a.py::test_one", 2.5),
        ("tests/loop/test_b.py::test_two", 2.0),
        ("tests/test_house.py::test_three", 0.5),
    ):
        seen.see(nodeid, took)
    rooms = [line.split() for line in seen.lines()[1:4]]
    assert rooms == [
        ["3.5", "of", "3", "data", "over"],
        ["2.0", "of", "9", "loop"],
        ["0.5", "no", "budget", "tests"],
    ]
    assert "3.5  tests/data/test_a.py::test_one" in seen.lines()[5]


def test_every_folder_of_tests_has_a_budget_and_they_add_up_to_a_quarter_of_an_hour() -> None:
    budget = tomllib.loads(MODULE.BUDGET.read_text())["seconds"]
    folders = {file.parent.name for file in MODULE.BUDGET.parent.glob("*/test_*.py")}
    assert set(budget) == folders | {"tests"}
    assert sum(seconds for folder, seconds in budget.items() if folder != "engines") <= 2 * 15 * 60
