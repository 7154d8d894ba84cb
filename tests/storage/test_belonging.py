"""A database and an object store belong together: one without the other is refused, and nothing is removed (issue 5, O08)."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from mainspring.cli.main import app
from mainspring.errors import Conflict, Corrupt, MainspringError
from mainspring.storage.leases import Leases
from mainspring.storage.objects import open_objects
from mainspring.storage.sql import open_store
from mainspring.workspace import open_workspace

OBJECTS = Path(".mainspring/objects")
META = Path(".mainspring/meta.db")


def make(root: Path, *, rows: int = 3) -> str:
    """A workspace with one dataset; returns the version's id."""
    root.mkdir()
    (root / "mainspring.toml").write_text('[project]\nname = "shop"\n')
    with open_workspace(root) as workspace:
        return str(workspace.data.commit("flights", {"delay": list(range(rows))}).id)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "shop"
    make(root)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of a workspace with objects."""
    return Path(shutil.copytree(made, tmp_path / "shop"))


def stored(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted((root / OBJECTS).rglob("*")) if p.is_file()
    }


def remove(root: Path) -> None:
    (root / META).unlink()


def empty(root: Path) -> None:
    (root / META).write_bytes(b"")


def cut(root: Path) -> None:
    data = (root / META).read_bytes()
    (root / META).write_bytes(data[: len(data) // 2])


def behead(root: Path) -> None:
    (root / META).write_bytes((root / META).read_bytes()[:40])


def scribble(root: Path) -> None:
    (root / META).write_bytes(b"PK\x03\x04 not a database" * 500)


def other_program(root: Path) -> None:
    (root / META).unlink()
    with sqlite3.connect(root / META) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    connection.close()


def no_tables(root: Path) -> None:
    (root / META).unlink()
    with sqlite3.connect(root / META) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
        connection.execute("DROP TABLE songs")
    connection.close()


def other_workspace(root: Path) -> None:
    make(root.parent / "other", rows=7)
    shutil.copy(root.parent / "other" / META, root / META)


def new_database(root: Path) -> None:
    """As version 0.1 left it: opened beside packs, it made a database of its own without a word."""
    (root / META).unlink()
    open_store("sqlite", home=root / ".mainspring").close()


def unbound(root: Path) -> None:
    """The store and the marker as version 0.1 wrote them."""
    (root / OBJECTS / "owner.json").unlink()
    marker = root / ".mainspring/workspace.json"
    marker.write_text(json.dumps({k: v for k, v in json.loads(marker.read_text()).items() if k != "id"}))


LOST: list[tuple[Callable[[Path], None], str]] = [
    (remove, "is missing"),
    (empty, "is an empty file"),
    (cut, "is cut off"),
    (behead, "less than its header"),
    (scribble, "is not a SQLite database"),
    (other_program, "another program"),
    (no_tables, "has no tables"),
    (other_workspace, "belongs to another database"),
    (new_database, "belongs to another database"),
]


@pytest.mark.parametrize(("lose", "words"), LOST, ids=[lose.__name__ for lose, _ in LOST])
@pytest.mark.parametrize("bound", [True, False], ids=["bound", "as 0.1 left it"])
def test_o08_a_lost_database_is_no_new_workspace(
    root: Path, lose: Callable[[Path], None], words: str, *, bound: bool
) -> None:
    """O08. Seen red on version 0.1: all but ``scribble`` and ``behead`` opened, and ``gc --yes --grace 0`` removed every object."""
    before = stored(root)
    lose(root)
    if not bound:
        unbound(root)
        before.pop(str(OBJECTS / "owner.json"))
        words = {"new_database": "knows nothing of the objects", "other_workspace": "another workspace"}.get(
            lose.__name__, words
        )
    with pytest.raises(MainspringError, match=words) as refused:
        open_workspace(root)
    assert refused.value.code in {"corrupt", "conflict"}
    assert "--start-anew" in str(refused.value.next_step) or "put that one back" in str(
        refused.value.next_step
    )
    for command in (["doctor"], ["fsck"], ["fsck", "--repair"], ["gc", "--yes", "--grace", "0"]):
        assert CliRunner().invoke(app, ["-C", str(root), *command], standalone_mode=False).return_value in (
            None,
            1,
        )
    assert stored(root) == before


def test_o08_a_log_without_its_database_is_kept(root: Path) -> None:
    """SQLite removes a log beside an empty database, and with it what was committed. Seen red without the look at the log."""
    unbound(root)
    shutil.rmtree(root / OBJECTS)
    log = root / ".mainspring/meta.db-wal"
    log.write_bytes(b"committed")
    empty(root)
    with pytest.raises(Corrupt, match=r"its log meta\.db-wal is here"):
        open_workspace(root)
    assert log.read_bytes() == b"committed"


def test_o08_a_workspace_without_objects_knows_its_database_too(tmp_path: Path) -> None:
    """Runs without artifacts live in the database alone. Seen red with packs as the only evidence."""
    root = tmp_path / "shop"
    root.mkdir()
    (root / "mainspring.toml").write_text('[project]\nname = "shop"\n')
    open_workspace(root).close()
    shutil.rmtree(root / OBJECTS)
    remove(root)
    with pytest.raises(Corrupt, match=r"workspace\.json names it"):
        open_workspace(root)


def test_o08_the_database_of_another_workspace_is_named(root: Path) -> None:
    """Database and objects both come from another place. Seen red without the refusal in ``_record_database``."""
    make(root.parent / "other")
    shutil.copy(root.parent / "other" / META, root / META)
    shutil.rmtree(root / OBJECTS)
    shutil.copytree(root.parent / "other" / OBJECTS, root / OBJECTS)
    with pytest.raises(Conflict, match="the database of another workspace"):
        open_workspace(root)


@pytest.mark.parametrize("name", ["format.json", "owner.json"])
def test_o08_a_lost_file_of_the_store_is_made_again_from_the_database(root: Path, name: str) -> None:
    """Seen red on version 0.1 for format.json: a new one with another id and no word."""
    before = stored(root)
    file = root / OBJECTS / name
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"0", b"1", 1))
    with pytest.raises(Corrupt, match=f"{name} is damaged") as damaged:
        open_workspace(root)
    assert "fsck --repair" in str(damaged.value.next_step)
    file.unlink()
    if name == "format.json":  # a lost owner is written again by itself: the database names this store
        with pytest.raises(Corrupt, match=r"has lost its format\.json"):
            open_workspace(root)
    done = CliRunner().invoke(app, ["-C", str(root), "fsck", "--repair", "--json"], standalone_mode=False)
    assert done.return_value == 0
    assert json.loads(done.stdout)["repaired"] == [name]
    assert stored(root) == before


def test_o08_objects_of_another_workspace_are_refused(root: Path) -> None:
    """Seen red without ``_check_same``: they were called damaged, and a repair wrote over their format.json."""
    make(root.parent / "other")
    for put in ("format.json", None):
        shutil.rmtree(root / OBJECTS)
        shutil.copytree(root.parent / "other" / OBJECTS, root / OBJECTS)
        if put is not None:
            (root / OBJECTS / "owner.json").unlink()
        before = stored(root)
        with pytest.raises(Conflict, match="another"):
            open_workspace(root)
        assert isinstance(
            CliRunner().invoke(app, ["-C", str(root), "fsck", "--repair"], standalone_mode=False).exception,
            Conflict,
        )
        assert stored(root) == before


def test_o08_an_old_workspace_is_bound_at_its_first_opening(root: Path) -> None:
    """Its database knows the objects, so it may take the store; and gc works as before. Seen red without ``_claim``."""
    unbound(root)
    with sqlite3.connect(root / META) as connection:
        connection.execute("DELETE FROM settings WHERE project = ''")
    connection.close()
    with open_workspace(root) as workspace:
        owner = workspace.base.objects.owner
        assert workspace.base.objects.gc(grace_s=0).objects_kept >= 2
    assert owner in (root / OBJECTS / "owner.json").read_text()
    assert json.loads((root / ".mainspring/workspace.json").read_text())["id"] == owner
    with open_workspace(root) as workspace:
        assert workspace.base.objects.owner == owner
        assert workspace.data.read("flights").num_rows == 3


def test_o08_gc_by_a_younger_database_needs_the_explicit_word(root: Path) -> None:
    """Seen red without ``check_age``: everything was removed."""
    remove(root)
    packs = sorted((root / OBJECTS / "packs").iterdir())
    run = CliRunner().invoke(app, ["-C", str(root), "fsck", "--start-anew"], standalone_mode=False)
    assert run.return_value == 0
    collect = ["-C", str(root), "gc", "--yes", "--grace", "0"]
    for arguments in (collect, [*collect[:2], "gc"]):
        refused = CliRunner().invoke(app, arguments, standalone_mode=False)
        assert isinstance(refused.exception, Conflict)
        assert "made after 1 of the packs" in str(refused.exception)
        assert "--even-if-younger" in str(refused.exception)
    assert sorted((root / OBJECTS / "packs").iterdir()) == packs
    assert CliRunner().invoke(app, [*collect, "--even-if-younger"], standalone_mode=False).exception is None
    assert not list((root / OBJECTS / "packs").iterdir())


def test_o08_starting_anew_keeps_the_old_database_and_refuses_a_sound_one(root: Path) -> None:
    """Seen red with the old file removed instead of set aside."""
    with pytest.raises(Conflict, match="opens as it is"):
        CliRunner().invoke(
            app, ["-C", str(root), "fsck", "--start-anew"], standalone_mode=False, catch_exceptions=False
        )
    cut(root)
    damaged = (root / META).read_bytes()
    assert (
        CliRunner().invoke(app, ["-C", str(root), "fsck", "--start-anew"], standalone_mode=False).return_value
        == 0
    )
    (aside,) = (root / ".mainspring").glob("meta.db.lost-*")
    assert aside.read_bytes() == damaged
    with open_workspace(root) as workspace:
        assert workspace.data.commit("flights", {"delay": [0, 1, 2]}).number == 1


def test_o08_the_objects_of_a_database_are_collected_through_it_alone(root: Path) -> None:
    """Seen red without the owner: a store opened without its database removed everything but the roots it was given."""
    with pytest.raises(Conflict, match="only the database"):
        open_objects("local", home=root / ".mainspring").gc(grace_s=0)
    with pytest.raises(Conflict, match="only the database"):
        open_objects("local", home=root / ".mainspring").gc(grace_s=0, even_if_younger=True)


def test_o08_two_databases_on_one_store(tmp_path: Path) -> None:
    """Two workspaces whose objects are in one place: the second is refused, also when both start at the same moment. Seen red without the second look in ``_claim``."""
    for shared in (tmp_path / "one", tmp_path / "two"):
        shared.mkdir()
        (shared / "objects").symlink_to(tmp_path / "bucket")
    (tmp_path / "bucket").mkdir()
    results: dict[str, str] = {}
    barrier = threading.Barrier(2)

    def start(name: str) -> None:
        store = open_store("sqlite", home=tmp_path / name)
        barrier.wait()
        try:
            results[name] = str(open_objects("local", home=tmp_path / name, leases=Leases(store)).owner)
        except Conflict as error:
            results[name] = error.message
        finally:
            store.close()

    threads = [threading.Thread(target=start, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted("another database" in found for found in results.values()) == [False, True]


FIRST = """
import sys
from mainspring.workspace import open_workspace
open_workspace(sys.argv[1]).close()
"""


@pytest.mark.parametrize(
    "point", ["sql.after_commit", "objects.put.published", "objects.bind.identified", "objects.bind.owned"]
)
@pytest.mark.parametrize("nth", [1, 2])
def test_a_first_start_that_is_killed_is_no_lost_workspace(
    first_starts: Path, point: str, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was written before the kill, the next start goes on from there."""
    monkeypatch.setenv("MAINSPRING_FAILPOINTS", f"{point}:kill:{nth}")
    subprocess.run([sys.executable, "-c", FIRST, str(first_starts)], check=False)
    monkeypatch.delenv("MAINSPRING_FAILPOINTS")
    with open_workspace(first_starts) as workspace:
        owner = workspace.base.objects.owner
        workspace.data.commit("d", {"x": [1]})
        assert workspace.base.objects.gc(grace_s=0).objects_kept
    with open_workspace(first_starts) as workspace:
        assert workspace.base.objects.owner == owner


@pytest.fixture
def first_starts(tmp_path: Path) -> Path:
    root = tmp_path / "many"
    root.mkdir()
    (root / "mainspring.toml").write_text('[project]\nname = "shop"\n')
    return root


def test_o08_many_first_starts_at_once_make_one_workspace(first_starts: Path) -> None:
    """Seen red on version 0.1: the threads of one process shared the marker's temporary file."""
    barrier = threading.Barrier(6)
    owners: list[str | None] = []
    failures: list[BaseException] = []

    def start(number: int) -> None:
        barrier.wait()
        try:
            with open_workspace(first_starts) as workspace:
                workspace.data.commit(f"d{number}", {"x": [number]})
                owners.append(workspace.base.objects.owner)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(set(owners)) == 1
    with open_workspace(first_starts) as workspace:
        assert workspace.base.objects.owner == owners[0]
        assert {workspace.data.list_versions(f"d{n}").items[0].number for n in range(6)} == {1}
