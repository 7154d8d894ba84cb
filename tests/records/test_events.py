"""Kinds of events are declared in one place: all of them are recorded by somebody, and nothing else is."""

from __future__ import annotations

import ast
import re
import typing
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import mainspring
from mainspring.loop import apply
from mainspring.pipelines import rows
from mainspring.records.events import THINGS, EventKind, describe
from mainspring.records.lineage import Event
from mainspring.records.loop import LoopDecision
from mainspring.records.pipelines import RunState
from mainspring.server.pages.describe import describe_event
from mainspring.tracking import operations as tracking

SOURCE = Path(mainspring.__file__).parent
TONES = {"good", "warn", "bad", "idle", "busy"}


def _modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in SOURCE.rglob("*.py"):
        if path != SOURCE / "records" / "events.py":
            yield path, ast.parse(path.read_text())


def _named(module: ast.Module) -> Iterator[str]:
    """Members that a module hands on: to the ledger, to a function of its own or from a table; not those it compares with."""
    compared = {
        id(node)
        for c in ast.walk(module)
        if isinstance(c, ast.Compare)
        for node in ast.walk(c)
        if node is not c
    }
    for node in ast.walk(module):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "EventKind"
            and id(node) not in compared
        ):
            yield node.attr


def test_every_declared_kind_is_recorded_somewhere() -> None:
    """Seen red on the list of words before: it had "gate.failed", which nobody records. Red with a member more, too."""
    named = {name for _, module in _modules() for name in _named(module)}
    assert named == {kind.name for kind in EventKind}


def test_no_call_records_a_kind_put_together_from_text() -> None:
    """mypy takes only members; a cast or a call of ``EventKind`` beside the ledger's own would get around it. Seen red with
    ``EventKind(f"run.{status}")``."""
    for path, module in _modules():
        for call in ast.walk(module):
            made = (
                isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "EventKind"
            )
            assert not made or path == SOURCE / "lineage" / "ledger.py", path


def test_queries_ask_for_kinds_that_exist() -> None:
    """Seen red with "dataset.commited" in a query of ``models/objections.py``: it found nothing, and nobody noticed."""
    kinds, seen = set(EventKind), 0
    for path, module in _modules():
        for node in ast.walk(module):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and " events " in node.value + " "
            ):
                for clause in re.findall(r"kind (?:=|IN) \(?((?:'[^']*'[, ]*)+)", node.value):
                    asked = set(re.findall(r"'([^']*)'", clause))
                    assert asked <= kinds, (path, asked - kinds)
                    seen += len(asked)
    assert seen >= 4


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        (apply._KINDS, set(typing.get_args(typing.get_type_hints(LoopDecision)["action"]))),
        (rows._ENDED, set(typing.get_args(RunState)) - {"running"}),
        (
            tracking._ENDED,
            set(typing.get_args(typing.get_type_hints(tracking.Tracking.finish_run)["status"])),
        ),
    ],
)
def test_kinds_that_depend_on_a_value_are_there_for_each(
    table: dict[str, EventKind], wanted: set[str]
) -> None:
    assert set(table) == wanted
    assert all(kind.endswith(f".{value}") for value, kind in table.items())


def test_the_table_is_sound() -> None:
    assert all(kind.words and kind.tone in TONES for kind in EventKind)
    assert all(re.fullmatch(r"[a-z]+\.[a-z_]+", kind) for kind in EventKind)
    assert {f"{kind.split('.')[0]}." for kind in EventKind} - set(THINGS) == {"event."}


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("dataset.committed", {"dataset": "visits", "number": 3, "rows": 12345}, "visits version 3, 12,345 rows"),
        ("dataset.committed", {"dataset": "photos", "number": 1, "rows": None}, "photos version 1"),
        ("dataset.committed", {"dataset": "v", "number": 1, "rows": 1, "message": "March"}, "March"),
        ("dataset.committed", {"dataset": "v", "number": 1, "rows": "many"}, "v version 1"),
        ("feedback.received", {"accepted": 3, "parked": 0, "edges": [["a", "b", "c"]]}, "3 accepted"),
        ("step.finished", {"pipeline": "train", "step": "fit"}, "train: fit"),
        ("step.failed", {"step": "fit", "message": "no rows"}, "no rows"),
        ("run.started", {"name": None, "experiment": "trees"}, "trees"),
        ("loop.job_finished", {"version": 4}, "version 4"),
        ("loop.job_finished", {"error": "it died"}, "it died"),
        ("alert.opened", {"kind": "drift", "subject": "age", "deployment": "d", "detail": "psi 0.4"}, "drift of age in d: psi 0.4"),
        ("model.alias_set", {"alias": "champion", "version": 2, "reason": "better"}, "champion is version 2 now: better"),
        ("model.alias_set", {"alias": "a", "version": 2, "reason": "r", "override": True, "overridden": ["x", "y"]},
         "a is version 2 now: r (in spite of: x; y)"),
        ("holdout.used", {"purpose": "gate"}, "gate"),
        ("run.tagged", {}, ""),
    ],
)  # fmt: skip
def test_details_are_read_from_the_data(kind: str, data: dict[str, Any], words: str) -> None:
    assert describe(kind, data).detail == words


def test_an_event_of_a_newer_program_can_be_read() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    newer = Event(
        seq=9, id="x", at=now, wall=now, kind="invoice.sent_out", subject="invoice:1", actor="ann", operation="", data={"reason": "due"},
        prev="", hash="",
    )  # fmt: skip
    told = describe_event(newer)
    assert (told.words, told.tone, told.detail) == ("Invoice: sent out", "idle", "due")
