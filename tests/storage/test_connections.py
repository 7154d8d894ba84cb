"""Connections of the two engines: as many as are used at once, never waiting for one another without need."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from mainspring.errors import Conflict
from mainspring.storage.sql import Store, open_store


def test_threads_that_come_and_go_leave_no_connections(store: Store) -> None:
    """Seen red on both engines with one connection per thread kept until close: a server's threads come and go for weeks."""

    def read() -> None:
        with store.read() as tx:
            tx.scalar("SELECT max(version) AS v FROM schema_version")

    read()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3


def test_a_thread_may_read_while_it_reads(store: Store) -> None:
    """Seen red on SQLite with one connection per thread: a transaction within a transaction."""
    with store.read() as outer, store.read() as inner:
        assert outer.scalar("SELECT 1 AS n") == inner.scalar("SELECT 1 AS n") == 1


def test_a_broken_constraint_is_a_conflict(store: Store) -> None:
    """A08 on PostgreSQL, where two may insert at once. Seen red with the engines' own error let through: 500."""
    insert = "INSERT INTO chain_heads (project, seq, hash) VALUES ('p', 0, 'x')"
    with store.write() as tx:
        tx.execute(insert)
    with pytest.raises(Conflict, match="first"), store.write() as tx:
        tx.execute(insert)
    with store.read() as tx:
        assert tx.scalar("SELECT count(*) AS n FROM chain_heads") == 1


def test_a_store_works_again_after_close_while_a_reader_was_out(store: Store) -> None:
    with store.read() as tx:
        store.close()
        assert tx.scalar("SELECT 1 AS n") == 1
    with store.read() as tx:
        assert tx.scalar("SELECT 1 AS n") == 1


def test_t15_a_long_reader_does_not_hold_up_writers(tmp_path: Path) -> None:
    """T15. Seen red with the busy timeout left on around the checkpoint: every write took 30 seconds."""
    store = open_store("sqlite", home=tmp_path / "home")
    sql = "INSERT INTO chain_heads (project, seq, hash) VALUES (?, 0, ?)"
    try:
        with store.read() as reader:
            assert reader.scalar("SELECT count(*) AS n FROM chain_heads") == 0
            began = time.monotonic()
            for number in range(4):
                with store.write() as tx:
                    tx.execute(sql, str(number), "x" * (3 << 20))
            assert time.monotonic() - began < 10
            assert reader.scalar("SELECT count(*) AS n FROM chain_heads") == 0
        with store.write() as tx:
            tx.execute(sql, "last", "x")
        assert (tmp_path / "home" / "meta.db-wal").stat().st_size < (4 << 20), "and the log is cut afterwards"
    finally:
        store.close()
