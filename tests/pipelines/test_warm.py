"""One warm server for run after run: the same process, fresh project code, nothing loaded that starts threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mainspring.lineage import Foundation
from mainspring.pipelines import Pipelines, Runner, preload, processes, warm
from mainspring.records.base import from_json

CODE = """
import os
import helper
@step(cache=False)
def look() -> dict[str, int]:
    import numpy.random
    return {"server": os.getppid(), "value": helper.VALUE, "drawn": int(numpy.random.randint(1 << 30)), "threads": len(os.listdir("/proc/self/task"))}
@pipeline
def go(): look()
"""


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    warm.stop_idle()


def _look(runner: Runner, base: Foundation) -> dict[str, int]:
    run = runner.run("p.py:go")
    [step] = Pipelines(base).list_steps(run=run.id)
    found: dict[str, int] = from_json(base.objects.read(step.outputs[0].digest))
    return found


def test_runs_share_a_server_and_see_edits(
    runner: Runner, foundation: Foundation, write: Callable[[str, str], Path]
) -> None:
    write("helper.py", "VALUE = 1\n")
    write("p.py", CODE)
    first = _look(runner, foundation)
    write("helper.py", "VALUE = 20\n")
    second = _look(runner, foundation)
    assert first["server"] == second["server"]
    assert (first["value"], second["value"]) == (1, 20)
    assert first["drawn"] != second["drawn"]
    warm.stop_idle()
    assert processes._read_state(first["server"]) == "X"


def test_another_environment_means_another_server(
    runner: Runner, foundation: Foundation, write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("helper.py", "VALUE = 1\n")
    write("p.py", CODE)
    first = _look(runner, foundation)
    monkeypatch.setenv("SOMETHING", "else")
    assert _look(runner, foundation)["server"] != first["server"]


def test_only_installed_modules_are_loaded_ahead(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "mine.py").write_text("")
    monkeypatch.syspath_prepend(str(project))
    assert preload.is_installed("numpy.linalg")
    assert not preload.is_installed("mine")
    assert not preload.is_installed("no_such_module_anywhere")
