"""Faults of the object store: kills, gc races, damaged bytes, full disks, order of durability (O01 O03 O04 O05 O07 O12 O18)."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mainspring.errors import Corrupt, MainspringError, NotFound, StorageFull, Unavailable
from mainspring.storage import failpoints
from mainspring.storage.objects import Objects, open_objects, writer
from mainspring.testing.objects import noise

ADD_POINTS = [
    "objects.add.looked_up", "objects.add.packed", "objects.put.temp", "objects.put.synced", "objects.put.published", "objects.put.done",
    "objects.flush.begin", "objects.flush.packs", "objects.flush.index", "objects.merge.written", "objects.merge.deleted",
]  # fmt: skip
GC_POINTS = [
    "objects.gc.marked",
    "objects.gc.packs",
    "objects.gc.index",
    "objects.gc.old_index",
    "objects.gc.deleted",
]

ADDER = """
import sys
from pathlib import Path
from mainspring.storage.objects import open_objects
from mainspring.testing.objects import noise
objects = open_objects("local", home=Path(sys.argv[1]))
first = int(sys.argv[2])
for i in range(first, first + int(sys.argv[3])):
    with objects.writing() as w:
        tree = w.tree({"small": w.put(b"%d" % i), "big": w.put(noise(700_000, seed=i)), "shared": w.put(noise(300_000, seed=-1))})
    print(tree.digest, flush=True)
"""

COLLECTOR = """
import sys
from pathlib import Path
from mainspring.storage.objects import open_objects
open_objects("local", home=Path(sys.argv[1])).gc(sys.argv[2:], grace_s=0)
print("collected", flush=True)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def reopen(home: Path) -> Callable[[], Objects]:
    return lambda: open_objects("local", home=home)


def child(code: str, *args: object, points: str = "", release: Path | None = None) -> subprocess.Popen[str]:
    env = os.environ | {"MAINSPRING_FAILPOINTS": points, "MAINSPRING_FAILPOINT_RELEASE": str(release)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[list[str], str]:
    out, err = process.communicate(timeout=60)
    return out.split(), err


def read_all(objects: Objects, tree: str) -> None:
    for ref in objects.tree(tree).values():
        assert len(objects.read(ref.digest)) == ref.size


def every_pack(home: Path) -> list[Path]:
    return sorted((home / "objects/packs").iterdir())


MOST_INDEX_FILES = writer._MERGE_AT + writer._MERGE_SPREAD


# ---- O01: kills while adding


@pytest.mark.parametrize("point", ADD_POINTS)
def test_o01_killed_at_each_step_of_add(
    home: Path, reopen: Callable[[], Objects], point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen red with the index written before the packs (``flush``): an acknowledged or visible object was not readable."""
    prepared: list[str] = []
    if point.startswith("objects.merge"):
        monkeypatch.setattr(writer, "_MERGE_AT", 10_000)  # here nothing is merged: that is for the child
        objects = reopen()
        for i in range(MOST_INDEX_FILES):  # each process has a limit of its own within these
            with objects.writing() as w:
                prepared.append(w.put(b"earlier %d" % i).digest)
    nth = {"objects.add.looked_up": 5, "objects.add.packed": 3, "objects.put.temp": 3}.get(point, 1)
    process = child(ADDER, home, 0, 2, points=f"{point}:kill:{nth}")
    acked, _ = finish(process)
    assert process.returncode == -signal.SIGKILL, f"{point} was never reached"
    objects = reopen()
    report = objects.fsck([*acked, *prepared], read_data=True)
    assert report.ok, report.problems
    for tree in acked:
        read_all(objects, tree)
    again, err = finish(child(ADDER, home, 0, 2))
    assert len(again) == 2, err
    assert acked == again[: len(acked)]
    assert reopen().fsck([*again, *prepared], read_data=True).ok
    assert not reopen().fsck(again).leftover_temp or point.startswith("objects.put")


def test_o01_leftover_temporary_files_are_swept_when_old(home: Path, reopen: Callable[[], Objects]) -> None:
    """Seen red with the sweep at opening removed."""
    finish(child(ADDER, home, 0, 1, points="objects.put.temp:kill:2"))
    stale = list((home / "objects/tmp").iterdir())
    assert len(stale) == 1
    assert len(reopen().fsck().leftover_temp) == 1, "a young one may belong to a living process"
    os.utime(stale[0], (time.time() - 2 * 86400,) * 2)
    assert reopen().fsck().leftover_temp == ()
    assert not stale[0].exists()


@pytest.mark.parametrize("rounds", [8, pytest.param(150, marks=pytest.mark.soak)])
def test_o01_killed_at_random_moments(home: Path, reopen: Callable[[], Objects], rounds: int) -> None:
    """Every acknowledged object survives SIGKILL at any moment. Seen red with the index written before the packs."""
    rng = random.Random(20)
    acked: list[str] = []
    for number in range(rounds):
        process = child(ADDER, home, number * 1000, 1000)
        assert process.stdout is not None
        acked.append(process.stdout.readline().strip())
        time.sleep(rng.uniform(0, 0.08))
        process.kill()
        acked += finish(process)[0]
    acked = [a for a in acked if len(a) == 64]
    assert len(acked) >= rounds
    report = reopen().fsck(acked, read_data=True)
    assert report.ok, report.problems


# ---- O03: kills while collecting


@pytest.mark.parametrize("point", GC_POINTS)
def test_o03_killed_at_each_step_of_gc(home: Path, reopen: Callable[[], Objects], point: str) -> None:
    """Seen red with the old packs deleted before the new index is written."""
    trees, err = finish(child(ADDER, home, 0, 3))
    assert len(trees) == 3, err
    process = child(COLLECTOR, home, trees[1], points=f"{point}:kill")
    finish(process)
    assert process.returncode == -signal.SIGKILL
    assert reopen().fsck([trees[1]], read_data=True).ok
    read_all(reopen(), trees[1])
    assert finish(child(COLLECTOR, home, trees[1]))[0] == ["collected"]
    report = reopen().fsck([trees[1]], read_data=True)
    assert report.ok
    assert report.orphaned_packs == ()
    assert not reopen().has(trees[0])


# ---- O04: gc against add


HOLDER = """
import sys
from pathlib import Path
from mainspring.storage.objects import open_objects
from mainspring.storage.failpoints import failpoint, declare
objects = open_objects("local", home=Path(sys.argv[1]))
objects.has("0" * 64)  # an index from before
print("open", flush=True)
sys.stdin.readline()
with objects.writing() as w:
    print("pinned", flush=True)
    ref = w.put(b"condemned, but wanted again")
    w.flush()
    failpoint("test.before_reference")
    Path(sys.argv[2]).write_text(ref.digest)  # stands for the commit of a reference
print(ref.digest, flush=True)
"""


class _Actor:
    """A writer in another process that stops at a failpoint until released."""

    def __init__(self, home: Path, tmp_path: Path, point: str) -> None:
        self.roots = tmp_path / "roots"
        self._release = tmp_path / "release"
        env = os.environ | {
            "MAINSPRING_FAILPOINTS": f"{point}:pause" if point else "",
            "MAINSPRING_FAILPOINT_RELEASE": str(self._release),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(home), str(self.roots)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "open"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def release(self) -> str:
        self._release.touch()
        out, _ = self.process.communicate(timeout=60)
        return out.split()[-1]


def _with_roots(home: Path, roots: Path) -> Objects:
    """A store whose references are read at the moment gc asks for them, as from the database."""
    objects = open_objects("local", home=home)
    objects._references = lambda: roots.read_text().split() if roots.exists() else []
    return objects


@pytest.mark.parametrize(
    ("point", "stored_before"),
    [
        (p, False)
        for p in (
            "objects.add.looked_up",
            "objects.flush.begin",
            "objects.flush.packs",
            "objects.flush.index",
            "test.before_reference",
        )
    ]
    + [(p, True) for p in ("objects.add.looked_up", "test.before_reference")],
)
def test_o04_gc_waits_for_a_writer_that_has_looked(
    home: Path, tmp_path: Path, point: str, stored_before: bool
) -> None:
    """The writer has found (or not) an unreferenced object and stops at ``point``; gc must not take it away.

    Seen red with ``FilePins.exclusive`` not locking: gc removed the object, the reference dangled.
    """
    if stored_before:
        with open_objects("local", home=home).writing() as w:
            w.put(b"condemned, but wanted again")
    actor = _Actor(home, tmp_path, point)
    actor.start()
    assert actor.line() == "pinned"
    time.sleep(0.05)
    keeper = _with_roots(home, actor.roots)
    with pytest.raises(Unavailable):
        keeper.gc(grace_s=0, wait_s=0.05)
    digest = actor.release()
    keeper.gc(grace_s=0)
    assert open_objects("local", home=home).read(digest) == b"condemned, but wanted again"


@pytest.mark.parametrize("point", GC_POINTS)
def test_o04_a_writer_waits_for_gc_and_then_looks_again(home: Path, tmp_path: Path, point: str) -> None:
    """gc stops at ``point``; a writer whose index still names the condemned object must store it again.

    Seen red with the refresh after the pin removed from ``Objects.writing``, and with ``FilePins.shared`` not locking.
    """
    with open_objects("local", home=home).writing() as w:
        kept = w.put(b"kept").digest
        w.put(b"condemned, but wanted again")
    actor = _Actor(home, tmp_path, "")
    release = tmp_path / "release-gc"
    collector = child(COLLECTOR, home, kept, points=f"{point}:pause", release=release)
    lock = home / "locks/objects.lock"
    _until(lambda: _is_locked(lock))
    actor.start()
    time.sleep(0.1)
    assert not actor.roots.exists(), "the writer went on while gc was running"
    release.touch()
    assert finish(collector)[0] == ["collected"]
    digest = actor.release()
    objects = open_objects("local", home=home)
    assert objects.read(digest) == b"condemned, but wanted again"
    assert objects.read(kept) == b"kept"
    assert objects.fsck([digest, kept], read_data=True).ok


def test_o04_references_are_read_after_writers_are_held_off(home: Path, tmp_path: Path) -> None:
    """A list of roots from before is not enough. Seen red with ``references`` left out of ``Objects._all_roots``."""
    roots = tmp_path / "roots"
    keeper = _with_roots(home, roots)
    stale: list[str] = []
    with keeper.writing() as w:
        ref = w.put(b"committed just before gc began")
    roots.write_text(ref.digest)
    keeper.gc(stale, grace_s=0)
    assert keeper.read(ref.digest) == b"committed just before gc began"


@pytest.mark.parametrize("seeds", [30, pytest.param(1000, marks=pytest.mark.soak)])
def test_o04_random_interleavings_never_dangle(home: Path, tmp_path: Path, seeds: int) -> None:
    """A writer and gc alternate at random in two processes. Seen red with both locks of ``FilePins`` removed."""
    roots = tmp_path / "roots"
    roots.touch()
    code = f"""
import random, sys, time
from pathlib import Path
from mainspring.storage.objects import open_objects
rng = random.Random(int(sys.argv[3]))
objects = open_objects("local", home=Path(sys.argv[1]))
for i in range({seeds}):
    with objects.writing() as w:
        ref = w.put(b"content %d" % rng.randrange(5))
        time.sleep(rng.random() * 0.002)
        w.flush()
        Path(sys.argv[2]).write_text(ref.digest)
print("done")
"""
    writer = child(code, home, roots, 7)
    keeper = _with_roots(home, roots)
    collected = 0
    while writer.poll() is None:
        with contextlib.suppress(Unavailable):
            collected += keeper.gc(grace_s=0, wait_s=1).packs_removed
        for digest in roots.read_text().split():
            with contextlib.suppress(NotFound):  # the reference may have moved on since we read it
                keeper.read(digest)
    out, err = finish(writer)
    assert out == ["done"], err
    report = keeper.fsck(roots.read_text().split(), read_data=True)
    assert report.ok, report.problems
    assert collected, "gc never had anything to do: the test proves nothing"


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _is_locked(path: Path) -> bool:
    import fcntl

    if not path.exists():
        return False
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


# ---- O05: damaged bytes


def _flip(at: Callable[[int], int]) -> Callable[[bytearray, int, int], None]:
    def damage(pack: bytearray, offset: int, length: int) -> None:
        pack[offset + at(length)] ^= 0x01

    return damage


def _swap(pack: bytearray, offset: int, length: int) -> None:
    half = length // 2
    pack[offset : offset + length] = pack[offset + half : offset + length] + pack[offset : offset + half]


DAMAGES: dict[str, Callable[[bytearray, int, int], None]] = {
    "first byte": _flip(lambda n: 0),
    "middle byte": _flip(lambda n: n // 2),
    "last byte": _flip(lambda n: n - 1),
    "swapped halves": _swap,
    "zeroed": lambda pack, offset, length: pack.__setitem__(slice(offset, offset + length), bytes(length)),
}


@pytest.fixture
def stocked(reopen: Callable[[], Objects]) -> dict[str, str]:
    """A plain object, a chunked one, a neighbour, and a tree of them."""
    with reopen().writing() as w:
        refs = {
            "plain": w.put(noise(20_000, seed=1)),
            "chunked": w.put(noise(900_000, seed=2)),
            "neighbour": w.put(noise(30_000, seed=3)),
        }
        tree = w.tree(refs)
    return {name: ref.digest for name, ref in refs.items()} | {"tree": tree.digest}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("victim", ["plain", "chunk", "recipe", "tree"])
def test_o05_damage_is_detected_by_every_read_and_listed_exactly(
    home: Path, reopen: Callable[[], Objects], stocked: dict[str, str], damage: str, victim: str
) -> None:
    """Seen red with the digest check removed from ``_verify`` (plain, chunk, tree) and from ``Recipe.load`` (recipe)."""
    objects = reopen()
    name = {"chunk": "chunked", "recipe": "chunked"}.get(victim, victim)
    raw = bytes.fromhex(stocked[name])
    blob = objects.recipe(raw).entries[0][0] if victim == "chunk" else raw
    entry = objects.locate(blob)
    path = home / "objects/packs" / entry.pack
    pack = bytearray(path.read_bytes())
    DAMAGES[damage](pack, entry.offset, entry.length)
    path.write_bytes(pack)
    _read_is_corrupt(reopen(), stocked[name])
    for other in {"plain", "chunked", "neighbour", "tree"} - {name}:
        reopen().read(stocked[other])
    report = reopen().fsck(read_data=True)
    assert not report.ok
    assert [(p.kind, p.subject, p.objects) for p in report.problems] == [
        ("corrupt", blob.hex(), (stocked[name],))
    ]


def _read_is_corrupt(objects: Objects, digest: str) -> None:
    reads: list[Callable[[], Any]] = [
        lambda: objects.read(digest),
        lambda: list(objects.chunks(digest)),
        lambda: objects.open(digest).read(),
        lambda: objects.open(digest).read(10),
    ]
    for read in reads:
        with pytest.raises(Corrupt) as caught:
            read()
        assert len(caught.value.value or "") == 64, "the error names the digest"


@pytest.mark.parametrize("how", ["truncate", "empty", "extend", "delete", "swap"])
def test_o05_packs_of_the_wrong_length_or_place(home: Path, reopen: Callable[[], Objects], how: str) -> None:
    """Seen red with the size comparison removed from ``fsck`` (extend) and without ``_verify`` (the others)."""
    digests = []
    for seed in (1, 2):
        with reopen().writing() as w:
            digests.append(w.put(noise(50_000, seed=seed)).digest)
    objects = reopen()
    places = [home / "objects/packs" / objects.locate(bytes.fromhex(d)).pack for d in digests]
    data = places[0].read_bytes()
    if how == "delete":
        places[0].unlink()
    elif how == "swap":
        places[0].write_bytes(places[1].read_bytes())
        places[1].write_bytes(data)
    else:
        places[0].write_bytes({"truncate": data[:1000], "empty": b"", "extend": data + b"more"}[how])
    damaged = {"swap": digests, "extend": []}.get(how, digests[:1])
    for digest in damaged:
        with pytest.raises(Corrupt):
            reopen().read(digest)
    for digest in set(digests) - set(damaged):
        assert len(reopen().read(digest)) == 50_000
    report = reopen().fsck(digests, read_data=True)
    assert not report.ok
    listed = {d for p in report.problems for d in p.objects}
    assert listed == set(damaged)
    kinds = {p.kind for p in report.problems}
    assert (
        kinds
        == {
            "truncate": {"wrong_size", "corrupt"},
            "empty": {"wrong_size", "corrupt"},
            "extend": {"wrong_size", "corrupt"},
            "delete": {"missing"},
            "swap": {"corrupt"},
        }[how]
    )


def test_o05_a_damaged_index_is_named(
    home: Path, reopen: Callable[[], Objects], stocked: dict[str, str]
) -> None:
    """Seen red with the checksum test removed from ``IndexFile``."""
    (path,) = (home / "objects/index").iterdir()
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt) as caught:
        reopen().read(stocked["plain"])
    assert path.name in str(caught.value)
    report = reopen().fsck([stocked["tree"]])
    assert {p.kind for p in report.problems} == {"corrupt", "dangling"}


def test_o05_fsck_without_data_says_what_dangles(
    reopen: Callable[[], Objects], stocked: dict[str, str]
) -> None:
    report = reopen().fsck([stocked["tree"], "0" * 64])
    assert [(p.kind, p.subject) for p in report.problems] == [("dangling", "0" * 64)]


def test_o05_subsets_together_read_everything(reopen: Callable[[], Objects]) -> None:
    for seed in range(6):
        with reopen().writing() as w:
            w.put(noise(1000, seed=seed))
    whole = reopen().fsck(read_data=True).bytes_read
    parts = [reopen().fsck(read_data=True, subset=(n, 3)).bytes_read for n in (1, 2, 3)]
    assert sum(parts) == whole == reopen().stats().stored_bytes > 6000
    assert max(parts) < whole


# ---- O07: a full disk


FULL = """
import sys
from pathlib import Path
from mainspring.errors import StorageFull
from mainspring.storage.objects import open_objects
home, source = Path(sys.argv[1]), Path(sys.argv[2])
objects = open_objects("local", home=home)
with objects.writing() as w:
    small = w.put(b"fits")
try:
    with objects.writing() as w:
        ref = w.put(source)
except StorageFull as error:
    print("full", "bytes needed" in str(error), objects.read(small.digest) == b"fits", objects.fsck([small.digest], read_data=True).ok)
    print(objects.stats().packs, len(list((home / "objects/tmp").iterdir())))
    with objects.writing() as w:
        print("usable", w.put(b"still works").size)
"""


def test_o07_disk_full_twin(home: Path, tmp_path: Path, reopen: Callable[[], Objects]) -> None:
    """The failpoint twin. Seen red with ``abandon`` not called: an orphaned pack stayed."""
    source = tmp_path / "mine.bin"
    source.write_bytes(noise(3_000_000))
    objects = reopen()
    for point in ("objects.put.temp", "objects.put.synced", "objects.put.published"):
        failpoints.arm(f"{point}:enospc")
        try:
            with pytest.raises(StorageFull, match="bytes needed"), objects.writing() as w:
                w.put(source)
        finally:
            failpoints.arm("")
        assert source.read_bytes() == noise(3_000_000)
        assert reopen().stats().objects == 0
        assert list((home / "objects/tmp").iterdir()) == []
    failpoints.arm("objects.put.temp:enospc:2")  # the pack fits, the index does not
    try:
        with pytest.raises(StorageFull), objects.writing() as w:
            w.put(source)
    finally:
        failpoints.arm("")
    assert (reopen().stats().objects, reopen().stats().packs) == (0, 0)
    with objects.writing() as w:
        ref = w.put(source)
    assert reopen().read(ref.digest) == noise(3_000_000)


@pytest.mark.kernel
def test_o07_disk_full_on_a_real_small_disk(tmp_path: Path) -> None:
    """A tmpfs of 2 MB. Its twin is above. Seen red with ENOSPC left out of the full-disk errors."""
    disk, source = tmp_path / "disk", tmp_path / "mine.bin"
    disk.mkdir()
    source.write_bytes(noise(6_000_000))
    mount = f"mount -t tmpfs -o size=2m tmpfs '{disk}'"
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode
    ):
        pytest.skip("no mount namespaces here (unshare -rm)")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount + ' && exec "$0" -c "$1" "$2" "$3"', sys.executable, FULL, str(disk / "home"), str(source)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["full True True True", "1 0", "usable 11"], done.stderr
    assert source.read_bytes() == noise(6_000_000)


def test_o07_a_file_size_limit_is_a_full_disk_too(home: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE instead of a tmpfs: needs no privilege. Seen red with EFBIG left out of the full-disk errors."""
    source = tmp_path / "mine.bin"
    source.write_bytes(noise(6_000_000))
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n" + FULL
    out, err = finish(child(code, home, source))
    assert " ".join(out) == "full True True True 1 0 usable 11", err


# ---- O12: order of durability


def _orderly(events: list[tuple[str, str]]) -> None:
    """``events`` are (call, file) in order; checks write → fsync → link → fsync of the directory, packs before index."""
    published = [(i, name) for i, (call, name) in enumerate(events) if call == "link"]
    kinds = [Path(name).suffix for _, name in published]
    assert kinds[-2:] == [".pack", ".idx"], kinds
    for i, name in published:
        temp = events[i - 1][1]
        assert events[i - 1] == ("fsync", temp), (
            f"{name} was published before its bytes were synced: {events[max(0, i - 3) : i + 1]}"
        )
        assert ("write", temp) in events[:i]
        assert ("write", temp) not in events[i:]
        after = next(j for j in range(i + 1, len(events)) if events[j][0] in {"fsync", "link", "reply"})
        assert events[after] == ("fsync", str(Path(name).parent)), (
            f"{name}: its directory was not synced at once"
        )
    assert events[-1][0] == "reply"


def test_o12_order_of_durability_twin(
    home: Path, reopen: Callable[[], Objects], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records the calls. Seen red with each of the two fsyncs removed, and with the index put before the packs."""
    objects = reopen()
    events: list[tuple[str, str]] = []

    def path_of(fd: int) -> str:
        return str(Path(f"/proc/self/fd/{fd}").readlink())

    write, fsync, link = os.write, os.fsync, os.link

    def recorded_write(fd: int, data: Any) -> int:
        events.append(("write", path_of(fd)))
        return write(fd, data)

    def recorded_fsync(fd: int) -> None:
        fsync(fd)
        events.append(("fsync", path_of(fd)))

    def recorded_link(source: Any, target: Any, **options: Any) -> None:
        link(source, target, **options)
        events.append(("link", str(target)))

    monkeypatch.setattr(os, "write", recorded_write)
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "link", recorded_link)
    with objects.writing() as w:
        w.put(noise(10_000))
    events.append(("reply", ""))
    monkeypatch.undo()
    _orderly(events)


@pytest.mark.kernel
def test_o12_order_of_durability_by_strace(home: Path, tmp_path: Path) -> None:
    """What the kernel saw, before the reply is written. Seen red like its twin."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: type 'apt-get install strace'")
    log = tmp_path / "strace.log"
    done = subprocess.run(
        ["strace", "-f", "-y", "-e", "trace=write,fsync,link,linkat", "-o", str(log), sys.executable, "-c", ADDER, str(home), "0", "1"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if "ptrace" in done.stderr and done.returncode:
        pytest.skip("ptrace is not permitted here")
    assert len(done.stdout.strip()) == 64, done.stderr
    _orderly(list(_strace_events(log.read_text(), home.resolve(), done.stdout.strip())))


def _strace_events(log: str, home: Path, reply: str) -> Iterator[tuple[str, str]]:
    for line in log.splitlines():
        if (match := re.search(r"\b(write|fsync)\((\d+)<([^>]*)>", line)) is not None:
            if match[1] == "write" and reply[:16] in line:
                yield "reply", ""
            elif match[3].startswith(str(home)):
                yield match[1], match[3]
        elif (
            match := re.search(
                r"\blink(?:at)?\(.*\"([^\"]*)\", 0\)|\blinkat\(.*?\"[^\"]*\".*?\"([^\"]*)\"", line
            )
        ) is not None:
            yield "link", match[1] or match[2]


# ---- O18: gc and what is missing


def test_o18_gc_goes_on_and_reports_what_is_missing(home: Path, reopen: Callable[[], Objects]) -> None:
    """Seen red with ``mark`` raising on an absent object."""
    with reopen().writing() as w:
        lost = w.put(noise(40_000, seed=1))
    (pack,) = every_pack(home)
    with reopen().writing() as w:
        kept = w.put(noise(40_000, seed=2))
        dead = w.put(noise(40_000, seed=3))
        tree = w.tree({"lost": lost, "kept": kept})
    pack.unlink()
    report = reopen().gc([tree.digest, "f" * 64], grace_s=0)
    assert set(report.missing) == {lost.digest, "f" * 64}
    assert not reopen().has(dead.digest)
    assert reopen().read(kept.digest) == noise(40_000, seed=2)
    with reopen().writing() as w:  # and putting it again heals
        w.put(noise(40_000, seed=1))
    assert reopen().fsck([tree.digest], read_data=True).ok


def test_o18_gc_keeps_a_damaged_pack_that_it_cannot_rewrite(
    home: Path, reopen: Callable[[], Objects]
) -> None:
    """Seen red with the pack of a damaged blob deleted: the last chance to repair it would go."""
    with reopen().writing() as w:
        kept, other = w.put(noise(40_000, seed=1)), w.put(noise(200, seed=9))
        w.put(noise(200_000, seed=2))
    (pack,) = every_pack(home)
    data = bytearray(pack.read_bytes())
    data[reopen().locate(bytes.fromhex(kept.digest)).offset] ^= 1
    pack.write_bytes(data)
    report = reopen().gc([kept.digest, other.digest], grace_s=0)
    assert report.corrupt == (kept.digest,)
    assert pack.exists()
    assert reopen().read(other.digest) == noise(200, seed=9)
    with pytest.raises(MainspringError):
        reopen().read(kept.digest)


def test_o01_failpoints_of_this_room_are_all_proven() -> None:
    """A new failpoint without a test fails here."""
    import mainspring.storage.objects.gc  # noqa: F401 - declares its points

    elsewhere = {  # tests/storage/objects/test_repair.py, tests/storage/test_belonging.py
        "objects.repair.packs", "objects.repair.index", "objects.repair.deleted", "objects.bind.identified", "objects.bind.owned",
    }  # fmt: skip
    ours = {name for name in failpoints.declared() if name.startswith("objects.")}
    assert ours == set(ADD_POINTS) | set(GC_POINTS) | elsewhere
