"""Every kind of event that some room records has its words, and no words wait for an event that never comes."""

from __future__ import annotations

import ast
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import mainspring
from mainspring.lineage import audit
from mainspring.records.loop import LoopDecision
from mainspring.records.pipelines import RunState
from mainspring.server.pages.describe import _WORDS
from mainspring.tracking.operations import Tracking

SOURCE = Path(mainspring.__file__).parent
KIND = re.compile(r"[a-z]+\.[a-z_]+")


def _endings(prefix: str) -> set[str]:
    """What may stand after a prefix, where a kind is put together from a value: from the value's type."""
    if prefix == "loop.":
        return set(typing.get_args(typing.get_type_hints(LoopDecision)["action"]))
    if prefix == "run.":
        return set(typing.get_args(typing.get_type_hints(Tracking.finish_run)["status"]))
    assert prefix == "pipeline.", f"how does a kind that begins with {prefix!r} go on?"
    return set(typing.get_args(RunState)) - {"running"}


def _recorded(module: ast.Module) -> Iterator[str]:
    """Kinds that the calls of ``Decision.event`` in a module may record."""
    constants = {
        n.value for n in ast.walk(module) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }
    for call in ast.walk(module):
        if not (
            isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "event"
        ):
            continue
        if not (isinstance(call.func.value, ast.Name) and call.func.value.id in {"d", "decision", "self"}):
            continue
        match call.args[0]:
            case ast.Constant(value=str() as kind):
                yield kind
            case ast.IfExp(body=ast.Constant(value=str() as one), orelse=ast.Constant(value=str() as other)):
                yield from (one, other)
            case ast.JoinedStr(values=[ast.Constant(value=str() as prefix), ast.FormattedValue()]):
                yield from (prefix + ending for ending in _endings(prefix))
            case ast.Name():  # handed in from the same module
                yield from (c for c in constants if KIND.fullmatch(c) and c.split(".")[0] in _things(module))
            case other:
                raise AssertionError(f"a kind that this test cannot read: {ast.unparse(other)}")


def _things(module: ast.Module) -> set[str]:
    """The things whose events a module with handed-in kinds records."""
    names = {n.name for n in ast.walk(module) if isinstance(n, ast.ClassDef)}
    return {"deployment"} if "Deploy" in names else {"model"} if "Models" in names else {"run"}


def test_every_event_has_words_and_all_words_have_an_event() -> None:
    """Seen red: "gate.failed" had words and is recorded nowhere ("gate.stopped" is); twenty kinds had none."""
    recorded = {
        kind
        for path in SOURCE.rglob("*.py")
        if "demo" not in path.parts
        for kind in _recorded(ast.parse(path.read_text()))
    }
    assert len(recorded) > 30
    # The audit names these two itself: edges of version 1 are sealed once, and a row that cannot be read is shown as damaged.
    assert recorded | {audit.SEALED, audit.DAMAGED} == set(_WORDS)
