"""A version's step in Python: run among the SQL files, in their transaction, with memory that does not grow with the tables.

A database of version 1 is made with its own SQL, on both engines; then this program opens it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.storage import failpoints
from mainspring.storage.sql import Store, migrations, open_store

V002 = Path(migrations.__file__).parent / "v002"
ADD_RUN = (
    "INSERT INTO runs (id, project, num, experiment, name, status, started_us, created_us, created_by, source, batches)"
    " VALUES (?, ?, ?, ?, ?, 'finished', ?, ?, 'local', '{}', 0)"
)
ADD_EXPERIMENT = "INSERT INTO experiments (project, name, created_us, tags) VALUES (?, ?, ?, ?)"


@pytest.fixture
def old(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A database of version 1."""
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "LATEST", 1)
        store = open_store(store_url, home=tmp_path / "home")
    yield store
    store.close()


def fill(store: Store, runs: int) -> dict[int, tuple[str, str]]:
    """Runs in two projects with experiments of the same names; returns project and experiment of each by its number."""
    expected = {}
    with store.write() as tx:
        # The names are made in another order than that of their first runs.
        for project in ("shop", "other"):
            tx.many(ADD_EXPERIMENT, [(project, name, 5, '{"a":"b"}') for name in ("a", "b", "c", "never")])
        for num in range(1, runs + 1):
            project, experiment = ("shop", "other")[num % 2], "cba"[num * 7 % 3]
            expected[num] = (project, experiment)
        tx.many(
            ADD_RUN,
            [
                (f"run-{num}", project, num, name, f"n{num}", num, num)
                for num, (project, name) in expected.items()
            ],
        )
    return expected


def experiments_of(store: Store) -> dict[int, tuple[str, str]]:
    with store.read() as tx:
        rows = tx.all(
            "SELECT r.num AS num, e.project AS project, e.name AS name FROM runs r JOIN experiments e ON e.id = r.experiment AND e.project = r.project"
        )
    return {int(row["num"]): (row["project"], row["name"]) for row in rows}


def version(store: Store) -> int:
    with store.read() as tx:
        return int(tx.scalar("SELECT max(version) AS v FROM schema_version"))


def test_experiments_get_ids_and_runs_name_them_by_these(
    old: Store, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of seven runs. Seen red with the last run of each batch left out of the rewriting."""
    expected = fill(old, 50)
    with old.write() as tx:  # a run whose experiment was lost: it keeps the name
        tx.execute(ADD_RUN, "run-51", "shop", 51, "lost", "n51", 51, 51)
    expected[51] = ("shop", "lost")
    step = migrations.importlib.import_module("mainspring.storage.sql.migrations.v002.21_experiments")
    monkeypatch.setattr(step, "BATCH", 7)
    new = open_store(store_url, home=tmp_path / "home")
    assert version(new) == migrations.LATEST
    assert experiments_of(new) == expected
    with new.read() as tx:
        rows = tx.all("SELECT * FROM experiments ORDER BY id")
        first = {
            (r["project"], r["experiment"]): int(r["first"])
            for r in tx.all(
                "SELECT project, experiment, min(num) AS first FROM runs GROUP BY project, experiment"
            )
        }
    used = [first[row["project"], row["id"]] for row in rows if (row["project"], row["id"]) in first]
    assert used == sorted(used), "ids are in the order of the first runs"
    assert [row["name"] for row in rows[-2:]] == ["never", "never"]
    assert len({row["id"] for row in rows}) == len(rows) == 9
    assert {row["tags"] for row in rows if row["name"] != "lost"} == {'{"a":"b"}'}
    new.close()


@pytest.mark.parametrize("at", range(1, len([f for f in V002.iterdir() if f.suffix in {".sql", ".py"}]) + 1))
def test_a_failure_after_any_file_leaves_version_1(
    old: Store, store_url: str, tmp_path: Path, at: int
) -> None:
    """Seen red with each file of the version committed by itself."""
    expected = fill(old, 20)
    failpoints.arm(f"sql.migrate.file:raise:{at}")
    try:
        with pytest.raises(RuntimeError, match="failpoint"):
            open_store(store_url, home=tmp_path / "home")
    finally:
        failpoints.arm("")
    assert version(old) == 1
    with old.read() as tx:
        rows = tx.all("SELECT * FROM runs")
        assert {int(r["num"]): (r["project"], r["experiment"]) for r in rows} == expected
        assert set(tx.all("SELECT * FROM experiments")[0]) == {"project", "name", "created_us", "tags"}
    new = open_store(store_url, home=tmp_path / "home")
    assert experiments_of(new) == expected
    new.close()


def test_a_kill_after_the_python_step_leaves_version_1(old: Store, store_url: str, tmp_path: Path) -> None:
    expected = fill(old, 20)
    files = sorted(f.name for f in V002.iterdir() if f.suffix in {".sql", ".py"})
    code = (
        "import sys; from pathlib import Path; from mainspring.storage.sql import open_store; from mainspring.storage import failpoints;"
        f"failpoints.arm('sql.migrate.file:kill:{files.index('21_experiments.py') + 1}');"
        "open_store(sys.argv[1], home=Path(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, store_url, str(tmp_path / "home")], check=False, timeout=300
    )
    assert done.returncode == -signal.SIGKILL
    assert version(old) == 1
    new = open_store(store_url, home=tmp_path / "home")
    assert (version(new), experiments_of(new)) == (migrations.LATEST, expected)
    new.close()


def test_a_version_has_at_most_one_step_in_python() -> None:
    for folder in sorted(V002.parent.glob("v[0-9]*")):
        assert len(list(folder.glob("*.py"))) <= 1, folder.name


MEASURED = """
import importlib, sys, time
from pathlib import Path
from mainspring.storage.sql import migrations, open_store

def peak():  # of this program alone: getrusage() counts what its parent had before the exec
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])

importlib.import_module("mainspring.storage.sql.migrations.v002.21_experiments")
before, began = peak(), time.perf_counter()
open_store("sqlite", home=Path(sys.argv[1])).close()
print(peak() - before, time.perf_counter() - began)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_100_000_runs_are_migrated_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table alone is four times the memory allowed. Seen red with all runs read at once."""
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "LATEST", 1)
        store = open_store("sqlite", home=tmp_path / "home")
    with store.write() as tx:
        tx.many(ADD_EXPERIMENT, [("p", f"e{i}", i, "{}") for i in range(1000)])
        tx.many(
            ADD_RUN,
            ((f"run-{i:032}", "p", i, f"e{i % 1000}", "x" * 1000, i, i) for i in range(1, 100_001)),
        )
    store.close()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "home")], check=True, timeout=600, capture_output=True
    )
    grown, seconds = (float(n) for n in done.stdout.split())
    with capsys.disabled():
        print(f"\n100,000 runs migrated to version 2: {seconds:.1f} s, {grown / 1024:.0f} MiB more memory")
    assert grown < 30 * 1024
    new = open_store("sqlite", home=tmp_path / "home")
    with new.read() as tx:
        assert (
            tx.scalar("SELECT count(*) AS n FROM runs r JOIN experiments e ON e.id = r.experiment") == 100_000
        )
    new.close()
