"""The list of mutants can still be run: what each replaces is there, and so are the tests that must notice."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path("src/mainspring")
ROOMS = [
    "storage/sql/", "storage/objects/", "storage/journal.py", "storage/leases.py", "lineage/ledger.py", "lineage/audit.py",
    "data/", "tracking/spool.py", "tracking/search.py", "tracking/filters.py", "models/", "models/formats/", "pipelines/",
    "training/", "metrics/", "serving/", "deployments/", "monitoring/", "labels/", "loop/", "server/", "operations.py", "remote.py",
]  # fmt: skip
"""Every room, and by name those parts on which most depends."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("mutants_script", str(ROOT / "scripts" / "mutants"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look their module up
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
        del sys.modules[loader.name]
    return module


def test_every_mutant_can_be_run(script: ModuleType) -> None:
    assert [line for mutant in script.mutants() for line in script.problems(mutant)] == []


def test_an_entry_that_lost_its_place_is_named(script: ModuleType) -> None:
    """What a changed line, a renamed test and a change of nothing lead to."""
    good = script.mutants()[0]

    def told(**changes: object) -> str:
        fields = {"name": "m", "file": good.file, "find": good.find, "put": "x", "tests": ["tests/storage"]}
        return "; ".join(script.problems(script.Mutant(**(fields | changes))))

    assert told() == ""
    assert "stands 0 times" in told(find="nowhere in this file")
    assert "changes nothing" in told(put=good.find)
    assert "is gone" in told(file="src/mainspring/nothing.py")
    assert "is gone" in told(tests=["tests/storage/test_nothing.py"])
    assert "is gone" in told(tests=["tests/storage/test_store.py::test_nothing"])


def test_there_are_mutants_of_every_room(script: ModuleType) -> None:
    files = [Path(mutant.file).relative_to(SOURCE).as_posix() for mutant in script.mutants()]
    assert len(files) >= 60
    assert [room for room in ROOMS if not any(file.startswith(room) for file in files)] == []


def test_names_are_unique(script: ModuleType) -> None:
    names = [mutant.name for mutant in script.mutants()]
    assert len(set(names)) == len(names)
