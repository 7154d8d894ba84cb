"""A project on real storage, for the tests of this room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.clock import SystemClock
from mainspring.lineage import Foundation, Ledger
from mainspring.storage.leases import Leases
from mainspring.storage.objects import open_objects
from mainspring.storage.sql import open_store
from mainspring.tracking import Tracking


def found(home: Path, project: str = "default", url: str = "sqlite") -> Foundation:
    store = open_store(url, home=home)
    leases = Leases(store)
    objects = open_objects("local", home=home, leases=leases)
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
def both(store_url: str, tmp_path: Path) -> Iterator[Tracking]:
    """The room on SQLite and on PostgreSQL."""
    made = found(tmp_path / "both", url=store_url)
    yield Tracking(made)
    made.store.close()


@pytest.fixture
def tracking(base: Foundation) -> Tracking:
    return Tracking(base)
