"""What makes an acknowledged write durable, seen on the real connections and calls: each line of it has a test that fails without it."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mainspring.storage.journal import JournalWriter
from mainspring.storage.objects import LocalBytes
from mainspring.storage.sql import Store, open_store
from mainspring.storage.sql.sqlite import SqliteEngine


@pytest.fixture
def opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, list[sqlite3.Connection]]]:
    """A store, and every connection that it opens: real ones, kept by their maker as well."""
    made: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def kept(*arguments: object, **options: object) -> sqlite3.Connection:
        made.append(connect(*arguments, **options))  # type: ignore[call-overload]
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", kept)
    store = open_store("sqlite", home=tmp_path / "home")
    yield store, made
    store.close()


def write(store: Store, name: str) -> None:
    with store.write() as tx:
        tx.execute("INSERT INTO settings (project, name, value) VALUES ('p', ?, '')", name)


def pragma(connection: sqlite3.Connection, name: str) -> object:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def test_t07_every_connection_is_safe(opened: tuple[Store, list[sqlite3.Connection]]) -> None:
    """T07. Seen red with ``synchronous=OFF``, with ``synchronous=NORMAL``, and with ``wal_autocheckpoint`` left at 1000."""
    store, made = opened
    write(store, "a")
    with store.read() as one, store.read() as two:
        assert one.scalar("SELECT count(*) AS n FROM settings") == two.scalar(
            "SELECT count(*) AS n FROM settings"
        )
    store.close()
    write(store, "b")  # a connection of its own after a close
    with store.read():
        pass
    alive = []
    for connection in made:
        try:
            connection.execute("SELECT 1")
        except sqlite3.ProgrammingError:  # closed above
            continue
        alive.append(connection)
    assert len(alive) >= 2
    for connection in alive:
        assert pragma(connection, "synchronous") == 2, (
            "FULL: the log is synced before a commit is acknowledged"
        )
        assert pragma(connection, "wal_autocheckpoint") == 0, "checkpoints are ours, under the lock"
        assert pragma(connection, "journal_mode") == "wal"
        assert pragma(connection, "foreign_keys") == 1
    assert min(int(str(pragma(c, "query_only"))) for c in alive) == 0
    assert sum(int(str(pragma(c, "query_only"))) for c in alive) == len(alive) - 1, "one connection writes"


def test_t07_a_write_begins_immediate_and_under_the_lock(tmp_path: Path) -> None:
    """T07. Seen red with ``BEGIN`` and with ``BEGIN DEFERRED``: another program's writer could come in between."""
    store = open_store("sqlite", home=tmp_path)
    try:
        with store.write() as tx:
            tx.scalar("SELECT 1 AS n")  # nothing is written yet
            other = sqlite3.connect(tmp_path / "meta.db", timeout=0, isolation_level=None)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            other.close()
    finally:
        store.close()


def test_t07_two_engines_never_hold_the_lock_at_once(tmp_path: Path) -> None:
    """Also when one of them comes back within its turn. Seen red with ``_try_lock`` answering yes."""
    engines = [SqliteEngine(tmp_path / "meta.db", lock=tmp_path / "write.lock") for _ in range(3)]
    inside, most, rounds = [0], [0], [0]
    guard = threading.Lock()

    def work(engine: SqliteEngine) -> None:
        for _ in range(60):
            with engine._lock:
                with guard:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    rounds[0] += 1
                time.sleep(0)  # let the others run, if anything lets them
                with guard:
                    inside[0] -= 1

    threads = [threading.Thread(target=work, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], rounds[0]) == (1, 180)
    for engine in engines:
        engine.close()


def test_t08_who_waits_comes_before_who_comes_back(tmp_path: Path) -> None:
    """T08. Seen red without the queue: the waiter slept while the other took the lock again, for seconds on a busy machine."""
    first, second = (SqliteEngine(tmp_path / "meta.db", lock=tmp_path / "write.lock") for _ in range(2))
    order: list[str] = []

    def wait() -> None:
        with second._lock:
            order.append("waited")

    with first._lock:
        thread = threading.Thread(target=wait)
        thread.start()
        with (tmp_path / "write.queue").open("r+") as queue:
            while True:  # until the other is the next in turn
                try:
                    fcntl.flock(queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    break
                fcntl.flock(queue, fcntl.LOCK_UN)
                time.sleep(0.001)
    first._lock._turn_ends = 0.0
    with first._lock:
        order.append("came back")
    thread.join()
    assert order == ["waited", "came back"]
    for engine in (first, second):
        engine.close()


def test_t08_a_turn_is_not_prolonged_by_using_it(tmp_path: Path) -> None:
    """Within its turn a process need not queue, so that the lock is not idle while the next one wakes; then it must. Seen red with the turn begun anew."""
    engine = SqliteEngine(tmp_path / "meta.db", lock=tmp_path / "write.lock")
    with engine._lock:
        pass
    assert 0 < engine._lock._turn_ends - time.monotonic() < 1
    engine._lock._turn_ends = ends = time.monotonic() + 3600
    with engine._lock:
        pass
    assert engine._lock._turn_ends == ends
    engine.close()


COMMITS = """
import os, sys
from pathlib import Path
from mainspring.storage.sql import open_store
store = open_store("sqlite", home=Path(sys.argv[1]))
for number in range(3):
    with store.write() as tx:
        tx.execute("INSERT INTO settings (project, name, value) VALUES ('p', ?, '')", str(number))
    os.write(1, b"committed\\n")
os._exit(0)
"""


@pytest.mark.kernel(twin="test_t07_every_connection_is_safe")
def test_t07_the_log_is_synced_before_a_commit_is_acknowledged(tmp_path: Path) -> None:
    """What the kernel saw. Seen red with ``synchronous=OFF`` and with ``synchronous=NORMAL``."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: type 'apt-get install strace'")
    log = tmp_path / "strace.log"
    command = ["strace", "-f", "-y", "-e", "trace=write,pwrite64,fsync,fdatasync", "-o", str(log)]
    done = subprocess.run(
        [*command, sys.executable, "-c", COMMITS, str(tmp_path / "home")],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    if "ptrace" in done.stderr and done.returncode:
        pytest.skip("ptrace is not permitted here")
    assert done.stdout.count("committed") == 3, done.stderr
    events = [
        "reply" if "committed" in line else "sync" if "sync(" in line else "write"
        for line in log.read_text().splitlines()
        if "committed" in line or re.search(r"(pwrite64|fdatasync|fsync)\(\d+<[^>]*meta\.db-wal>", line)
    ]
    replies = [i for i, event in enumerate(events) if event == "reply"]
    assert len(replies) == 3
    assert [events[i - 1] for i in replies] == ["sync"] * 3, events
    assert all("write" in events[a:b] for a, b in itertools.pairwise(replies)), "each commit wrote the log"


Synced = Callable[[], list[str]]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Synced:
    """The paths that were synced, in order; the calls are carried out."""
    seen: list[str] = []
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)

        def recorded(fd: int, real: Callable[[int], None] = real) -> None:
            seen.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
            real(fd)

        monkeypatch.setattr(os, name, recorded)
    return lambda: seen


def test_o12_what_is_deleted_stays_deleted(tmp_path: Path, synced: Synced) -> None:
    """gc removes an index before the packs it lists. Seen red without the sync of the directories in ``delete``."""
    store = LocalBytes(tmp_path / "objects")
    store.put("packs/a", b"x")
    store.put("index/a", b"x")
    synced().clear()
    store.delete(["packs/a", "index/a", "index/none"])
    assert {Path(path).name for path in synced()} == {"packs", "index"}


def test_t11_a_segment_and_its_name_survive_a_power_cut(tmp_path: Path, synced: Synced) -> None:
    """Seen red without either sync of the folder, and without the sync of the segment before its last name."""
    folder = tmp_path / "spool"
    writer = JournalWriter(folder, prefix="spool")
    writer.append(b"one")
    assert synced() == [str(folder)], "the new name"
    synced().clear()
    writer.sync()
    assert [Path(path).suffix for path in synced()] == [".open"]
    synced().clear()
    writer.append(b"two")
    writer.close()
    assert [Path(path).suffix for path in synced()] == [".open", ""]
    assert synced()[-1] == str(folder)


def test_t11_sync_bytes_bounds_what_a_power_cut_costs(tmp_path: Path, synced: Synced) -> None:
    """Seen red without the sync in ``append``."""
    with JournalWriter(tmp_path, prefix="log", sync_bytes=100) as writer:
        for _ in range(3):
            writer.append(b"x" * 42)  # 50 bytes with its frame
        assert [Path(path).suffix for path in synced()].count(".open") == 1
