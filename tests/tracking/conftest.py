"""A project on real storage, for the tests of this room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from mainspring.clock import SystemClock
from mainspring.lineage import Foundation, Ledger
from mainspring.storage.leases import Leases
from mainspring.storage.sql import open_store
from mainspring.tracking import Tracking


def found(home: Path, project: str = "default") -> Foundation:
    store = open_store("sqlite", home=home)
    leases = Leases(store)
    try:
        from mainspring.storage.objects import open_objects

        objects = open_objects("local", home=home, leases=leases)
    except ImportError:
        objects = cast("Any", None)
    clock = SystemClock()
    return Foundation(
        project=project,
        home=home,
        store=store,
        objects=objects,
        ledger=Ledger(store, project=project, clock=clock),
        leases=leases,
        clock=clock,
    )


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Foundation]:
    made = found(tmp_path / "home")
    yield made
    made.store.close()


@pytest.fixture
def tracking(base: Foundation) -> Tracking:
    return Tracking(base)
