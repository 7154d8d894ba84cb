"""Every byte counts: one that changed anywhere below the store is reported, and what can be made again is (O05, O18)."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mainspring.errors import Conflict, Corrupt
from mainspring.records.objects import FsckReport, ObjectRef
from mainspring.storage.leases import Leases
from mainspring.storage.objects import Objects, open_objects
from mainspring.storage.sql import open_store
from mainspring.testing.objects import noise

FLIPS = 150


def fill(objects: Objects) -> tuple[ObjectRef, ObjectRef]:
    """Two packs: a tree of small, chunked and empty files, and a tree whose bytes were stored as a plain file before."""
    with objects.writing() as w:
        tree = w.tree(
            {"a": w.put(b"one"), "empty": w.put(b""), "big": w.put(noise(40_000, seed=3), table=True)}
        )
    with objects.writing() as w:
        inner = {"late": w.put(noise(5_000, seed=4))}
        w.put(_as_plain(inner))
        w.flush()
        late = w.tree(inner)
    return tree, late


def _as_plain(entries: dict[str, ObjectRef]) -> bytes:
    from mainspring.storage.objects.trees import dump_tree

    return dump_tree(entries)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    home = tmp_path_factory.mktemp("made") / "home"
    store = open_store("sqlite", home=home)
    refs = fill(open_objects("local", home=home, leases=Leases(store)))
    store.close()
    return home, [ref.digest for ref in refs]


@pytest.fixture
def home(made: tuple[Path, list[str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "home"))


@pytest.fixture
def roots(made: tuple[Path, list[str]]) -> list[str]:
    return made[1]


def verdict(home: Path, roots: list[str]) -> FsckReport | None:
    """What a thorough check says; None if the store does not even open."""
    try:
        return open_objects("local", home=home).fsck(roots, read_data=True)
    except (Corrupt, Conflict):
        return None


def files(home: Path) -> list[Path]:
    return sorted(p for p in (home / "objects").rglob("*") if p.is_file() and p.stat().st_size)


def flip(path: Path, at: int, bit: int = 0) -> bytes:
    before = path.read_bytes()
    changed = bytearray(before)
    changed[at] ^= 1 << bit
    path.write_bytes(changed)
    return before


def test_o05_no_byte_of_the_store_changes_unnoticed(home: Path, roots: list[str]) -> None:
    """O05. Seen red on version 0.1: headers, tables and ends of packs, format.json, and blobs that no index lists."""
    assert len(files(home)) == 2 + 2 + 3
    whole = verdict(home, roots)
    assert whole is not None
    assert whole.ok, whole.problems
    chosen = random.Random(5)
    for path in files(home):
        size = path.stat().st_size
        edges = [*range(min(16, size)), *range(max(0, size - 120), size)]
        for at in {*edges, *(chosen.randrange(size) for _ in range(FLIPS))}:
            before = flip(path, at, chosen.randrange(8))
            report = verdict(home, roots)
            assert report is None or not report.ok, f"byte {at} of {path.name}"
            path.write_bytes(before)
            for mark in (home / "objects/index").glob("*.bad"):
                mark.unlink()


def test_o05_bytes_that_no_index_lists_are_checked_too(home: Path, roots: list[str]) -> None:
    """Seen red with the blobs of the index alone: a later repair would list them again."""
    for path in (home / "objects/index").iterdir():
        path.unlink()
    pack = files(home)[-1]
    flip(pack, 100)
    report = verdict(home, [])
    assert report is not None
    assert [p.detail for p in report.problems] == [
        "its stored bytes have another digest (nothing refers to it)"
    ]


@pytest.mark.parametrize("lost", ["flipped", "cut", "all"])
def test_o05_a_damaged_index_is_made_again_from_the_packs(home: Path, roots: list[str], lost: str) -> None:
    """Seen red on version 0.1, whose fsck could only report it."""
    indexes = sorted((home / "objects/index").iterdir())
    for path in indexes if lost == "all" else indexes[:1]:
        if lost == "cut":
            path.write_bytes(path.read_bytes()[:50])
        else:
            flip(path, path.stat().st_size // 2)
    report = verdict(home, roots)
    assert report is not None
    assert {"index/" + p.name for p in (indexes if lost == "all" else indexes[:1])} <= {
        p.subject for p in report.problems
    }
    with pytest.raises(Corrupt, match="index file is damaged") as damaged:
        open_objects("local", home=home).read("0" * 64)
    assert "fsck --repair" in str(damaged.value.next_step)
    objects = open_objects("local", home=home)
    assert len(objects.repair()) == (3 if lost == "all" else 1)
    assert objects.repair() == []
    mended = verdict(home, roots)
    assert mended is not None
    assert mended.ok, mended.problems
    for root in roots:
        for ref in objects.tree(root).values():
            assert len(objects.read(ref.digest)) == ref.size


def test_o05_a_tree_that_was_a_plain_file_first_is_a_tree_after_the_repair(
    home: Path, roots: list[str]
) -> None:
    """Only the index knew it. Seen red without the look at the contents: gc removed what the tree lists."""
    for path in (home / "objects/index").iterdir():
        flip(path, 20)
    store = open_store("sqlite", home=home)
    try:
        objects = open_objects("local", home=home, leases=Leases(store))
        objects.repair()
        objects.gc(roots, grace_s=0)
        for root in roots:
            for ref in objects.tree(root).values():
                assert len(objects.read(ref.digest)) == ref.size
    finally:
        store.close()


@pytest.mark.parametrize("at", [0, -1, -20, -60], ids=["header", "end", "digest of the table", "table"])
def test_o05_a_damaged_frame_is_written_anew_around_sound_blobs(
    home: Path, roots: list[str], at: int
) -> None:
    """Seen red on version 0.1, which reported nothing."""
    pack = min((home / "objects/packs").iterdir())
    flip(pack, at % pack.stat().st_size)
    report = verdict(home, roots)
    assert report is not None
    assert [p.subject for p in report.problems] == [f"packs/{pack.name}"]
    assert open_objects("local", home=home).repair() == [f"packs/{pack.name}"]
    mended = verdict(home, roots)
    assert mended is not None
    assert mended.ok, mended.problems
    assert not pack.exists()


def test_o05_a_damaged_blob_is_left_alone(home: Path, roots: list[str]) -> None:
    """With a damaged frame beside it: the pack stays, since another program may get more out of it. Seen red without ``check_blob``."""
    pack = min((home / "objects/packs").iterdir())
    flip(pack, 0)
    flip(pack, 2_000)
    before = pack.read_bytes()
    assert open_objects("local", home=home).repair() == []
    assert pack.read_bytes() == before
    report = verdict(home, roots)
    assert report is not None
    assert {p.kind for p in report.problems} == {"corrupt"}


REPAIR = """
import sys
from pathlib import Path
from mainspring.storage.objects import open_objects
open_objects("local", home=Path(sys.argv[1])).repair()
"""


@pytest.mark.parametrize("point", ["objects.repair.packs", "objects.repair.index", "objects.repair.deleted"])
def test_o05_a_repair_that_is_killed_is_done_by_the_next(
    home: Path, roots: list[str], point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen red with the old index files deleted before the new one is written."""
    flip(min((home / "objects/index").iterdir()), 20)
    flip(sorted((home / "objects/packs").iterdir())[1], 0)
    monkeypatch.setenv("MAINSPRING_FAILPOINTS", f"{point}:kill")
    assert (
        subprocess.run([sys.executable, "-c", REPAIR, str(home)], check=False).returncode == -signal.SIGKILL
    )
    open_objects("local", home=home).repair()
    report = verdict(home, roots)
    assert report is not None
    assert report.ok, report.problems
