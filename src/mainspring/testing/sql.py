"""What every SQL engine must do below :class:`mainspring.storage.sql.Store`, and the leases above it.

Subclass in a test module and give the fixture; pytest collects the rest::

    class TestMine(SqlContract):
        @pytest.fixture
        def engine_url(self) -> str: ...

Only the tables ``settings``, ``leases`` and ``schema_version`` of the real schema are written.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mainspring.errors import Conflict, Fenced, NotFound
from mainspring.storage import failpoints
from mainspring.storage.leases import Leases
from mainspring.storage.sql import Store, Writer, open_store
from mainspring.storage.sql.migrations import LATEST, table_names
from mainspring.storage.sql.store import Value

_INSERT = "INSERT INTO settings (project, name, value) VALUES ('p', ?, ?)"

_FIRST_START = """
import sys
from pathlib import Path
from mainspring.storage.sql import open_store
store = open_store(sys.argv[1], home=Path(sys.argv[2]))
for number in range(int(sys.argv[4])):
    with store.write() as tx:
        tx.execute("INSERT INTO settings (project, name, value) VALUES ('p', ?, '')", f"{sys.argv[3]}-{number}")
store.close()
"""


def put(tx: Writer, name: str, value: str = "") -> None:
    tx.execute(_INSERT, name, value)


def settings(store: Store) -> dict[str, str]:
    """All settings of the store by name."""
    with store.read() as tx:
        return {r["name"]: r["value"] for r in tx.all("SELECT name, value FROM settings ORDER BY name")}


def run_in_threads(*work: Callable[[], object]) -> None:
    """Run the callables in threads of their own and wait for all."""
    threads = [threading.Thread(target=action) for action in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class SqlContract:
    """Needs a fixture ``engine_url``: what ``open_store`` takes, naming an empty database for each test."""

    @pytest.fixture
    def home(self, tmp_path: Path) -> Path:
        return tmp_path / "contract"

    @pytest.fixture
    def store(self, engine_url: str, home: Path) -> Iterator[Store]:
        opened = open_store(engine_url, home=home)
        yield opened
        opened.close()

    # --- transactions

    def test_a_committed_write_is_read(self, store: Store) -> None:
        with store.write() as tx:
            assert tx.execute(_INSERT, "a", "what's 100%?") == 1
        assert settings(store) == {"a": "what's 100%?"}

    def test_an_exception_rolls_everything_back(self, store: Store) -> None:
        with pytest.raises(ZeroDivisionError), store.write() as tx:
            put(tx, "a")
            _ = 1 / 0
        assert settings(store) == {}
        with store.write() as tx:
            put(tx, "b")
        assert settings(store) == {"b": ""}, "the connection is of use afterwards"

    def test_a_failed_statement_rolls_everything_back(self, store: Store) -> None:
        with pytest.raises(Exception, match=r"(?i)unique|duplicate"), store.write() as tx:
            put(tx, "a")
            put(tx, "a")
        assert settings(store) == {}

    def test_nested_writes_are_one_transaction(self, store: Store) -> None:
        with pytest.raises(ZeroDivisionError), store.write() as outer:
            put(outer, "a")
            with store.write() as inner:
                put(inner, "b")
            with store.read() as tx:
                assert tx.scalar("SELECT count(*) AS n FROM settings") == 2
            assert store.in_transaction
            _ = 1 / 0
        assert not store.in_transaction
        assert settings(store) == {}

    def test_many_threads_write_and_nothing_is_lost(self, store: Store) -> None:
        def work(number: int) -> None:
            for i in range(10):
                with store.write() as tx:
                    put(tx, f"{number}-{i}")

        run_in_threads(*(partial(work, n) for n in range(6)))
        assert len(settings(store)) == 60

    def test_a_reader_sees_a_snapshot(self, store: Store) -> None:
        with store.read() as tx:
            before = tx.scalar("SELECT count(*) AS n FROM settings")

            def write() -> None:
                with store.write() as other:
                    put(other, "a")

            run_in_threads(write)
            assert tx.scalar("SELECT count(*) AS n FROM settings") == before
        assert settings(store) == {"a": ""}

    def test_a_reader_never_sees_half_of_a_transaction(self, store: Store) -> None:
        seen: list[int] = []
        stop = threading.Event()

        def write() -> None:
            for i in range(20):
                with store.write() as tx:
                    put(tx, f"left {i}")
                    put(tx, f"right {i}")
            stop.set()

        def read() -> None:
            while not stop.is_set():
                seen.append(len(settings(store)))

        run_in_threads(write, read)
        assert not [n for n in seen if n % 2]
        assert len(settings(store)) == 40

    def test_a_reader_cannot_write(self, store: Store) -> None:
        with pytest.raises(Exception, match=r"(?i)read.?only"), store.engine.reading() as session:
            session.execute(_INSERT, ("a", ""))
        assert settings(store) == {}

    def test_before_commit_actions_run_inside_the_transaction(self, store: Store) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        with store.write() as tx:
            tx.before_commit(lambda: put(tx, "late"))
        assert settings(store) == {"late": ""}
        with pytest.raises(ZeroDivisionError), store.write() as tx:
            put(tx, "lost")
            tx.before_commit(fail)
        assert settings(store) == {"late": ""}

    # --- statements and values

    def test_percent_signs_and_question_marks_in_quotes_are_text(self, store: Store) -> None:
        with store.write() as tx:
            assert (
                tx.execute("INSERT INTO settings (project, name, value) VALUES ('p', '100%?', '%s ''?')") == 1
            )
            assert tx.scalar("SELECT value FROM settings WHERE name = '100%?'") == "%s '?"
        with store.read() as tx:
            assert (
                tx.scalar("SELECT count(*) AS n FROM settings WHERE name LIKE '100%' AND project = ?", "p")
                == 1
            )

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("TEXT", "é ☃ 漢字 \U0001f600 \n"),
            ("TEXT", ""),
            ("TEXT", None),
            ("BIGINT", 2**63 - 1),
            ("BIGINT", -(2**63)),
            ("DOUBLE PRECISION", 0.1),
            ("DOUBLE PRECISION", 1.7976931348623157e308),
            ("DOUBLE PRECISION", 5e-324),
            ("DOUBLE PRECISION", float("inf")),
            ("BYTEA", bytes(range(256))),
            ("BYTEA", b""),
        ],
    )
    def test_values_come_back_as_they_went(self, store: Store, column: str, value: Value) -> None:
        with store.write() as tx:
            tx.execute(f"CREATE TABLE contract_values (v {column})")
            tx.execute("INSERT INTO contract_values (v) VALUES (?)", value)
            back = tx.scalar("SELECT v FROM contract_values")
            tx.execute("DROP TABLE contract_values")
        assert back == value
        assert type(back) is type(value)

    def test_upsert_returning_and_counts(self, store: Store) -> None:
        upsert = (
            "INSERT INTO settings (project, name, value) VALUES ('p', 'n', ?) "
            "ON CONFLICT (project, name) DO UPDATE SET value = excluded.value WHERE settings.value <> excluded.value RETURNING value"
        )
        with store.write() as tx:
            assert tx.all(upsert, "1") == [{"value": "1"}]
            assert tx.all(upsert, "2") == [{"value": "2"}]
            assert tx.all(upsert, "2") == []
            tx.many(_INSERT, [(f"m{i}", "") for i in range(5)])
            assert tx.execute("UPDATE settings SET value = 'x' WHERE name LIKE 'm%'") == 5
            assert tx.execute("DELETE FROM settings WHERE name = ?", "none") == 0

    def test_an_absent_row_is_named(self, store: Store) -> None:
        with store.read() as tx:
            assert tx.first("SELECT name FROM settings") is None
            assert tx.scalar("SELECT name FROM settings") is None
            with pytest.raises(NotFound, match="setting 'a' does not exist"):
                tx.one("SELECT name FROM settings WHERE name = ?", "a", what="setting 'a'")

    # --- schema

    def test_opening_again_migrates_nothing_and_keeps_all_tables(self, engine_url: str, home: Path) -> None:
        first = open_store(engine_url, home=home)
        with first.engine.reading() as session:
            tables = table_names(session, first.engine.name)
        first.close()
        again = open_store(engine_url, home=home)
        with again.engine.reading() as session:
            assert table_names(session, again.engine.name) == tables
        with again.read() as tx:
            assert [
                r["version"] for r in tx.all("SELECT version FROM schema_version ORDER BY version")
            ] == list(range(1, LATEST + 1))
        assert {"events", "leases", "settings", "schema_version"} <= set(tables)
        again.close()

    def test_a_newer_schema_is_refused_untouched(self, engine_url: str, home: Path) -> None:
        store = open_store(engine_url, home=home)
        with store.write() as tx:
            tx.execute("INSERT INTO schema_version (version) VALUES (?)", LATEST + 1)
        store.close()
        with pytest.raises(Conflict, match="Upgrade"):
            open_store(engine_url, home=home)

    def test_a_migration_that_dies_in_the_middle_leaves_the_old_version(
        self, engine_url: str, home: Path
    ) -> None:
        failpoints.arm("sql.migrate.step:raise")
        try:
            with pytest.raises(RuntimeError, match="failpoint"):
                open_store(engine_url, home=home)
        finally:
            failpoints.arm("")
        store = open_store(engine_url, home=home)
        assert settings(store) == {}
        store.close()

    def test_processes_start_at_once_and_all_write(self, engine_url: str, home: Path) -> None:
        """The first start of several processes migrates once, and nothing that any of them writes is lost."""
        children = [
            subprocess.Popen([sys.executable, "-c", _FIRST_START, engine_url, str(home), str(n), "5"])
            for n in range(3)
        ]
        assert [child.wait(timeout=60) for child in children] == [0, 0, 0]
        store = open_store(engine_url, home=home)
        assert set(settings(store)) == {f"{n}-{i}" for n in range(3) for i in range(5)}
        store.close()

    def test_closing_twice_is_allowed(self, engine_url: str, home: Path) -> None:
        store = open_store(engine_url, home=home)
        store.close()
        store.close()

    # --- leases

    def test_a_lease_has_one_holder_and_a_growing_token(self, store: Store) -> None:
        leases = Leases(store)
        first = leases.acquire("gc", holder="a", ttl_s=60)
        with pytest.raises(Conflict, match="in use by a"):
            leases.acquire("gc", holder="b", ttl_s=60)
        leases.release(first)
        second = leases.acquire("gc", holder="b", ttl_s=60)
        assert second.token > first.token
        with pytest.raises(Fenced):
            leases.renew(first, ttl_s=60)
        with pytest.raises(Fenced), store.write() as tx:
            leases.check(tx, first)
        renewed = leases.renew(second, ttl_s=600)
        assert renewed.expires_us > second.expires_us
        with store.write() as tx:
            leases.check(tx, second)

    def test_releasing_a_lost_lease_takes_nothing_from_its_new_holder(self, store: Store) -> None:
        leases = Leases(store)
        lost = leases.acquire("run", holder="slow", ttl_s=0)
        leases.acquire("run", holder="quick", ttl_s=60)
        leases.release(lost)
        with pytest.raises(Conflict, match="in use by quick"):
            leases.acquire("run", holder="third", ttl_s=60)

    def test_r16_an_expired_lease_is_taken_and_the_late_holder_fenced(self, store: Store) -> None:
        """R16 in small. Seen red with the token check removed from Leases.check."""
        leases = Leases(store)
        slow = leases.acquire("run", holder="slow", ttl_s=0)
        leases.acquire("run", holder="quick", ttl_s=60)
        with pytest.raises(Fenced), store.write() as tx:
            put(tx, "late")
            leases.check(tx, slow)
        assert settings(store) == {}

    def test_of_many_takers_one_wins(self, store: Store) -> None:
        leases = Leases(store)
        won: list[str] = []
        start = threading.Barrier(6)

        def take(name: str) -> None:
            start.wait()
            try:
                leases.acquire("one", holder=name, ttl_s=60)
            except Conflict:
                return
            won.append(name)

        run_in_threads(*(partial(take, f"t{n}") for n in range(6)))
        assert len(won) == 1
