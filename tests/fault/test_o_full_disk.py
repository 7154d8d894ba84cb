"""A full disk: what frees space works, reading works, and a run says what it lost (O07, T13)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mainspring.errors import StorageFull
from mainspring.storage import failpoints
from mainspring.storage.objects import open_objects
from mainspring.storage.reserve import Reserve
from mainspring.storage.sql import open_store
from mainspring.testing.objects import noise
from mainspring.workspace import Workspace, open_workspace

STORY = """
import json, os, random, sys, warnings
from pathlib import Path
from mainspring.errors import MainspringError
from mainspring.workspace import open_workspace

warnings.simplefilter("ignore")
root = Path(sys.argv[1])
(root / "mainspring.toml").write_text('[project]\\nname = "shop"\\n')
chosen = random.Random(1)
said = {}

def fill():
    fd = os.open(root / f"filler{len(list(root.glob('filler*')))}", os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(fd, b"x" * 1024)
    except OSError:
        os.close(fd)

def outcome(action):
    try:
        return action()
    except MainspringError as error:
        return error.code

workspace = open_workspace(root)
run = workspace.tracking.start_run(capture=False, params={"depth": 3})
run.log_metric("before", 1.0)
run.flush()
commits = 0
while True:
    try:
        workspace.data.commit("d", {"x": [chosen.random() for _ in range(20_000)]})
    except MainspringError as error:
        said["commit"] = error.code
        break
    commits += 1
fill()
for step in range(20_000):
    run.log_metric("lost", step, step)
run.set_tag("note", "set on a full disk")
said["read"] = outcome(lambda: workspace.data.read("d", "1").num_rows)
said["delete"] = outcome(lambda: workspace.data.delete_version("d", "1", reason="full").number)
fill()
said["delete again"] = outcome(lambda: workspace.data.delete_version("d", "2", reason="full").number)
fill()
said["gc"] = outcome(lambda: workspace.base.objects.gc(grace_s=0).packs_removed > 0)
fill()
said["fsck"] = outcome(lambda: workspace.base.objects.fsck(read_data=True).ok)
run.finish(flush_s=1)
if sys.argv[2] == "dies":  # the run's end is in the note alone
    print(json.dumps(said | {"run": run.id}), flush=True)
    os._exit(0)
workspace.close()
fill()
again = open_workspace(root)
said["read after opening"] = outcome(lambda: again.data.read("d", "3").num_rows)
said["delete after opening"] = outcome(lambda: again.data.delete_version("d", "3", reason="full").number)
said["gc after opening"] = outcome(lambda: again.base.objects.gc(grace_s=0).packs_removed > 0)
again.close()
print(json.dumps(said | {"run": run.id}), flush=True)
"""

AFTER = """
import json, sys
from pathlib import Path
from mainspring.workspace import open_workspace
root = Path(sys.argv[1])
for filler in root.glob("filler*"):
    filler.unlink()
with open_workspace(root) as workspace:
    workspace.tracking.recover()
    run = workspace.tracking.get_run(run=sys.argv[2])
    chain = workspace.lineage.verify().ok
    left = [p.name for p in (root / ".mainspring/spool/shop").iterdir()]
    workspace.data.commit("d", {"x": [1, 2, 3]})
    reserve = (root / ".mainspring/reserve").stat().st_size
print(json.dumps({"status": run.status.value, "tags": run.tags, "metrics": sorted(run.metrics), "params": run.params, "chain": chain,
                  "left": left, "reserve": reserve > 100_000}))
"""


@pytest.fixture
def on_a_small_disk(tmp_path: Path) -> Callable[[str], list[Any]]:
    """Runs the two scripts above with a tmpfs of 6 MB; returns what each said."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=6m tmpfs '{disk}'"
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode
    ):
        pytest.skip("no mount namespaces here (unshare -rm)")

    def run(how: str) -> list[Any]:
        command = f'{mount} && said=$("$0" -c "$1" "$3" {how}) && echo "$said" && "$0" -c "$2" "$3" $(echo "$said" | sed \'s/.*"run": "//; s/".*//\')'
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", command, sys.executable, STORY, AFTER, str(disk)],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.mark.kernel(twin="test_o07_a_store_that_frees_space_may_use_the_reserve")
def test_o07_delete_and_gc_work_on_a_full_disk(on_a_small_disk: Callable[[str], list[Any]]) -> None:
    """O07. Seen red on version 0.1: ``delete`` and ``gc`` ended with "no space left", and the workspace did not even open."""
    said, after = on_a_small_disk("ends")
    assert said.pop("run")
    assert said == {
        "commit": "storage_full", "read": 20_000, "delete": 1, "delete again": 2, "gc": True, "fsck": True,
        "read after opening": 20_000, "delete after opening": 3, "gc after opening": True,
    }  # fmt: skip
    assert after["chain"]
    assert after["reserve"], "kept back again as soon as there is room"


@pytest.mark.kernel(twin="test_t13_the_mark_of_a_dead_run_was_allocated_at_its_start")
def test_t13_a_run_that_ends_on_a_full_disk_is_marked(on_a_small_disk: Callable[[str], list[Any]]) -> None:
    """T13. Seen red on version 0.1: the run was "running" for ever, without a mark of what it had lost."""
    said, after = on_a_small_disk("dies")
    assert said["delete"] == 1
    assert after["status"] == "finished"
    assert after["tags"]["mainspring.degraded"].startswith("lost")
    assert "no space left" in after["tags"]["mainspring.degraded"]
    assert after["metrics"][0] == "before"
    assert after["params"] == {"depth": "3"}
    assert after["left"] == []


# ---- twins that need no privilege


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "mainspring.toml").write_text('[project]\nname = "shop"\n')
    return open_workspace(tmp_path)


def test_o07_a_store_that_frees_space_may_use_the_reserve(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a deletion or gc runs the reserve is given up, and it is there again afterwards. Seen red without ``freeing``."""
    reserve = tmp_path / ".mainspring/reserve"
    assert reserve.stat().st_size == reserve.stat().st_blocks * 512 >= 1 << 20, "allocated, not a hole"
    version = workspace.data.commit("d", {"x": [1]})
    seen: list[bool] = []
    monkeypatch.setattr(Reserve, "has_room", lambda _: False)
    monkeypatch.setattr(
        Reserve, "make", lambda self, extra=None: seen.append(reserve.exists()) or _make(self, extra)
    )
    workspace.data.delete_version("d", version.id, reason="full")
    workspace.tracking.operations.delete_run(run=workspace.tracking.operations.create_run().id)
    workspace.base.objects.gc(grace_s=0)
    assert seen == [False, False, False]
    assert reserve.exists()
    workspace.base.objects.gc(grace_s=0, dry_run=True)
    assert len(seen) == 3, "a dry run frees nothing"
    workspace.close()


_make = Reserve.make


def test_o07_gc_without_room_to_rewrite_still_removes_what_is_dead(tmp_path: Path) -> None:
    """Living blobs of a sparse pack need a new pack first. Seen red without the second plan: nothing was removed."""
    objects = open_objects("local", home=tmp_path)
    with objects.writing() as w:
        kept = [w.put(noise(60_000, seed=1))]
        w.put(noise(500_000, seed=2))
    with objects.writing() as w:
        w.put(noise(500_000, seed=3))
    failpoints.arm("objects.put.temp:enospc:1")
    try:
        report = objects.gc([kept[0].digest], grace_s=0)
    finally:
        failpoints.arm("")
    assert (report.packs_removed, report.packs_rewritten) == (1, 0)
    assert objects.read(kept[0].digest) == noise(60_000, seed=1)
    assert objects.fsck([kept[0].digest], read_data=True).ok
    assert objects.gc([kept[0].digest], grace_s=0).packs_rewritten == 1, "with room again"


def test_o07_a_gc_that_fails_for_space_leaves_nothing_behind(tmp_path: Path) -> None:
    """The rewritten pack fits, its index does not. Seen red without the removal of the new pack: the disk was fuller than before."""
    objects = open_objects("local", home=tmp_path)
    with objects.writing() as w:
        kept = w.put(noise(60_000, seed=1))
        w.put(noise(500_000, seed=2))
    before = sorted(p.name for p in (tmp_path / "objects/packs").iterdir())
    failpoints.arm("objects.put.temp:enospc:2")
    try:
        assert objects.gc([kept.digest], grace_s=0).packs_rewritten == 0
    finally:
        failpoints.arm("")
    assert sorted(p.name for p in (tmp_path / "objects/packs").iterdir()) == before
    failpoints.arm("objects.put.temp:enospc")
    try:
        with pytest.raises(StorageFull):
            objects.gc([kept.digest], grace_s=0)
    finally:
        failpoints.arm("")
    assert objects.fsck([kept.digest], read_data=True).ok


def test_o07_the_reserve_is_a_small_part_of_a_small_disk(tmp_path: Path) -> None:
    """And opening a database takes a part of it only. Seen red with nothing lent."""
    reserve = Reserve(tmp_path / "reserve")
    reserve.make()
    disk = os.statvfs(tmp_path)
    assert reserve.wanted == (tmp_path / "reserve").stat().st_size
    assert reserve.wanted <= disk.f_blocks * disk.f_frsize / 12
    assert reserve.lend()
    lent = (tmp_path / "reserve").stat().st_size
    assert 32 << 10 <= reserve.wanted - lent < 1 << 20
    reserve.make(extra=5 << 20)
    assert (tmp_path / "reserve").stat().st_size == reserve.wanted
    reserve.release()
    assert not (tmp_path / "reserve").exists()
    assert not reserve.lend()


def test_o07_a_schema_leaves_no_long_log_behind(tmp_path: Path) -> None:
    """The first checkpoint makes the database file grow by 600 KB: on a full disk there would be no room for it. Seen red on version 0.1."""
    store = open_store("sqlite", home=tmp_path)
    assert (tmp_path / "meta.db-wal").stat().st_size == 0
    store.close()


DIES = """
import os, sys, time, warnings
from mainspring.storage import failpoints
from mainspring.workspace import open_workspace
warnings.simplefilter("ignore")
workspace = open_workspace(sys.argv[1])
run = workspace.tracking.start_run(capture=False)
run.log_metric("before", 1.0)
run.flush(60)
failpoints.arm("journal.append:enospc,tracking.batch_marked:enospc")
for i in range(100):
    run.log_metric("lost", i, i)
run._retry_at = 0.0
run.log_metric("lost", 100, 100)
if sys.argv[2] == "finishes":
    run.finish(flush_s=0.1)
print(run.id, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("how", ["is killed", "finishes"])
def test_t13_the_mark_of_a_dead_run_was_allocated_at_its_start(tmp_path: Path, how: str) -> None:
    """Killed while its disk is full: whoever ingests the spool says so. Seen red on version 0.1: no mark, and no end."""
    (tmp_path / "mainspring.toml").write_text('[project]\nname = "shop"\n')
    open_workspace(tmp_path).close()
    child = subprocess.run(
        [sys.executable, "-c", DIES, str(tmp_path), how],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    run = child.stdout.strip()
    assert len(run) == 36, child.stderr
    (note,) = (tmp_path / ".mainspring/spool/shop" / run).glob("degraded-*")
    assert note.stat().st_size == 1024
    with open_workspace(tmp_path) as workspace:
        assert "mainspring.degraded" not in workspace.tracking.get_run(run=run).tags
        workspace.tracking.recover()
        stored = workspace.tracking.get_run(run=run)
        said = stored.tags["mainspring.degraded"]
        assert said.startswith("lost at least 10" if how == "is killed" else "lost at least 101 log calls")
        assert "no space left" in said
        assert stored.status.value == ("running" if how == "is killed" else "finished")
    assert not list((tmp_path / ".mainspring/spool/shop").iterdir())


def test_t13_what_must_not_be_lost_waits_in_memory(workspace: Workspace) -> None:
    """Params, tags and the end go to the store when only the spool's disk is full; numbers are counted. Seen red on version 0.1."""
    failpoints.arm("journal.append:enospc")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            run = workspace.tracking.start_run(capture=False, params={"depth": 3})
            run.set_tag("note", "kept")
            for step in range(10):
                run.log_metric("lost", step, step)
            assert run.finish(flush_s=60)
    finally:
        failpoints.arm("")
    stored = run.record()
    assert (stored.status.value, stored.params) == ("finished", {"depth": "3"})
    assert stored.tags["note"] == "kept"
    assert "lost 10 log calls" in stored.tags["mainspring.degraded"]
    assert not list(run._folder.parent.iterdir())
    workspace.close()


def test_t13_kept_records_go_to_the_spool_in_their_order_when_it_can_be_written(workspace: Workspace) -> None:
    """Seen red without writing the kept records first: the older tag stood."""
    failpoints.arm("journal.append:enospc")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with workspace.base.store.engine._lock:  # type: ignore[attr-defined] - nothing reaches the store meanwhile
            run = workspace.tracking.start_run(capture=False)
            run.set_tag("phase", "first")
            failpoints.arm("")
            run._retry_at = 0.0
            run.set_tag("phase", "second")
            assert run._kept == []
        run.log_metric("x", 1.0)
        assert run.finish(flush_s=60)
    assert run.record().tags["phase"] == "second"
    assert run.record().metrics["x"].number == 1.0
    workspace.close()


def test_t13_a_run_that_only_attached_is_marked_too(workspace: Workspace) -> None:
    """Seen red with the mark written for the run's owner alone: a step's process lost points in silence."""
    owner = workspace.tracking.start_run(capture=False)
    owner.flush(60)
    step = workspace.tracking.attach(owner.id)
    failpoints.arm("journal.append:enospc")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            step.log_metric("lost", 1.0)
            assert step.finish(flush_s=60)
    finally:
        failpoints.arm("")
    owner.finish(flush_s=60)
    assert "lost 1 log calls" in owner.record().tags["mainspring.degraded"]
    workspace.close()
