"""Both kinds of pin: writers share, gc is alone, a lost hold is noticed."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from mainspring.errors import Fenced, Unavailable
from mainspring.lineage import Foundation
from mainspring.storage.leases import Leases
from mainspring.storage.objects import open_objects
from mainspring.storage.objects.pins import FilePins, Pins, PostgresPins
from mainspring.storage.sql import open_store


@pytest.fixture(params=["file", "postgres"])
def pins(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Pins]:
    """Each call makes what another process would have."""
    if request.param == "file":
        return lambda: FilePins(tmp_path / "objects.lock")
    url = str(request.getfixturevalue("postgres_url"))

    def make() -> Pins:
        store = open_store(url, home=tmp_path)
        request.addfinalizer(store.close)
        return PostgresPins(store.engine, key=zlib.crc32(url.encode()))

    return make


def test_writers_share(pins: Callable[[], Pins]) -> None:
    one, other = pins(), pins()
    with one.shared() as first, other.shared() as second, one.shared() as third:
        first()
        second()
        third()


def test_o04_gc_is_refused_while_any_writer_holds(pins: Callable[[], Pins]) -> None:
    """Seen red with ``exclusive`` not locking."""
    writer, keeper = pins(), pins()
    with writer.shared():
        with writer.shared():
            pass
        with pytest.raises(Unavailable), keeper.exclusive(wait_s=0.05):
            pytest.fail("gc ran beside a writer")
    with keeper.exclusive(wait_s=5) as check:
        check()


def test_o04_a_writer_waits_for_gc(pins: Callable[[], Pins]) -> None:
    """Seen red with ``shared`` not locking."""
    writer, keeper = pins(), pins()
    done = threading.Event()

    def write() -> None:
        with writer.shared():
            done.set()

    with keeper.exclusive(wait_s=5):
        thread = threading.Thread(target=write)
        thread.start()
        assert not done.wait(0.2)
    assert done.wait(10)
    thread.join()


def test_o04_a_lost_connection_is_noticed_before_anything_is_committed(
    postgres_url: str, tmp_path: Path
) -> None:
    """Seen red with ``PostgresPins._check_session`` not querying."""
    import psycopg

    store = open_store(postgres_url, home=tmp_path / "home")
    objects = open_objects("local", home=tmp_path / "home", leases=Leases(store))
    with pytest.raises(Fenced), objects.writing() as w:
        ref = w.put(b"never visible")
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
            )
    assert not objects.has(ref.digest)
    with objects.writing() as w:
        ref = w.put(b"the next one works")
    assert objects.read(ref.digest) == b"the next one works"
    store.close()


def test_o04_gc_keeps_what_the_database_refers_to(foundation: Foundation) -> None:
    """Roots given by the caller are not all: another project's references count too. Seen red without ``references``."""
    objects = foundation.objects
    with objects.writing() as w:
        kept, dead = w.put(b"kept"), w.put(b"dead")
        tree = w.tree({"kept": kept})
        with foundation.ledger.decision() as d:
            d.refer(tree.digest, "dataset:x")
            d.done(None)
    report = objects.gc([], grace_s=0)
    assert report.objects_removed == 1
    assert objects.read(kept.digest) == b"kept"
    assert not objects.has(dead.digest)
    assert objects.fsck([], read_data=True).ok
