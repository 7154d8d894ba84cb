"""What every byte store, and every object store above one, must do.

Subclass in a test module and give the fixture; pytest collects the rest::

    class TestMine(ByteStoreContract):
        @pytest.fixture
        def byte_store(self) -> ByteStore: ...
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import blake3
import pytest

from mainspring.errors import Conflict, InvalidInput, NotFound
from mainspring.storage.objects import ByteStore, Objects


def noise(length: int, seed: int = 0) -> bytes:
    """Incompressible bytes, the same for the same seed."""
    return random.Random(seed).randbytes(length)


class ByteStoreContract:
    """Needs a fixture ``byte_store``: an empty store for each test."""

    def test_what_is_put_is_got_whole_and_in_ranges(self, byte_store: ByteStore) -> None:
        byte_store.put("packs/a", b"0123456789")
        assert byte_store.get("packs/a") == b"0123456789"
        assert byte_store.get("packs/a", offset=3, length=4) == b"3456"
        assert byte_store.get("packs/a", offset=7) == b"789"
        assert byte_store.size("packs/a") == 10

    def test_a_range_beyond_the_end_gives_what_exists(self, byte_store: ByteStore) -> None:
        byte_store.put("packs/a", b"0123456789")
        assert byte_store.get("packs/a", offset=8, length=10) == b"89"
        assert byte_store.get("packs/a", offset=20, length=10) == b""

    def test_an_empty_value_is_a_value(self, byte_store: ByteStore) -> None:
        byte_store.put("packs/empty", b"")
        assert byte_store.get("packs/empty") == b""
        assert byte_store.size("packs/empty") == 0

    def test_put_creates_and_never_replaces(self, byte_store: ByteStore) -> None:
        byte_store.put("packs/a", b"first")
        with pytest.raises(Conflict):
            byte_store.put("packs/a", b"second")
        assert byte_store.get("packs/a") == b"first"

    def test_absent_things_are_not_found(self, byte_store: ByteStore) -> None:
        with pytest.raises(NotFound):
            byte_store.get("packs/none")
        with pytest.raises(NotFound):
            byte_store.get("packs/none", offset=1, length=2)
        with pytest.raises(NotFound):
            byte_store.size("packs/none")

    def test_list_gives_names_and_sizes_below_the_prefix(self, byte_store: ByteStore) -> None:
        assert list(byte_store.list("packs/")) == []
        byte_store.put("packs/a", b"1")
        byte_store.put("packs/b", b"22")
        byte_store.put("index/c", b"333")
        assert sorted(byte_store.list("packs/")) == [("packs/a", 1), ("packs/b", 2)]
        assert sorted(byte_store.list("index/")) == [("index/c", 3)]

    def test_delete_removes_many_and_forgives_absent_ones(self, byte_store: ByteStore) -> None:
        for name in "abc":
            byte_store.put(f"packs/{name}", b"x")
        byte_store.delete(["packs/a", "packs/none", "packs/c"])
        assert [key for key, _ in byte_store.list("packs/")] == ["packs/b"]
        byte_store.delete([])


class ObjectsContract:
    """Needs a fixture ``reopen``: each call opens the same store as another process would; the first finds it empty."""

    def test_bytes_are_named_by_their_blake3(self, reopen: Callable[[], Objects]) -> None:
        objects = reopen()
        with objects.writing() as w:
            ref = w.put(b"hello")
        assert (ref.digest, ref.size) == (blake3.blake3(b"hello").hexdigest(), 5)
        assert reopen().read(ref.digest) == b"hello"

    @pytest.mark.parametrize("length", [0, 1, 4095, 4097, 70_000, 300_000, 3_000_000])
    @pytest.mark.parametrize("table", [False, True])
    def test_every_size_comes_back(
        self, reopen: Callable[[], Objects], length: int, table: bool, tmp_path: Path
    ) -> None:
        data = noise(length, seed=length)
        path = tmp_path / "source.bin"
        path.write_bytes(data)
        with reopen().writing() as w:
            refs = {w.put(source, table=table) for source in (data, path, io.BytesIO(data))}
        assert len(refs) == 1
        digest = refs.pop().digest
        objects = reopen()
        assert objects.read(digest) == data
        assert objects.size(digest) == length
        with objects.open(digest) as file:
            assert file.read() == data
            file.seek(length // 3)
            assert file.read(1000) == data[length // 3 :][:1000]
            file.seek(-min(10, length), io.SEEK_END)
            assert file.read() == data[length - min(10, length) :]

    def test_nothing_is_visible_after_an_exception(self, reopen: Callable[[], Objects]) -> None:
        objects = reopen()
        with pytest.raises(ZeroDivisionError), objects.writing() as w:
            ref = w.put(noise(500_000))
            raise ZeroDivisionError
        assert not objects.has(ref.digest)
        assert not reopen().has(ref.digest)
        assert reopen().fsck(read_data=True).ok

    def test_a_read_inside_the_block_sees_what_was_put(self, reopen: Callable[[], Objects]) -> None:
        objects = reopen()
        with objects.writing() as w:
            ref = w.put(b"just now")
            assert objects.read(ref.digest) == b"just now"

    def test_a_reader_that_lacks_an_object_looks_again(self, reopen: Callable[[], Objects]) -> None:
        reader = reopen()
        assert not reader.has("0" * 64)
        with reopen().writing() as w:
            ref = w.put(b"written later by another")
        assert reader.read(ref.digest) == b"written later by another"

    def test_equal_bytes_are_stored_once(self, reopen: Callable[[], Objects]) -> None:
        data = noise(400_000)
        with reopen().writing() as w:
            w.put(data)
        before = reopen().stats()
        with reopen().writing() as w:
            w.put(data)
            w.put(data)
        assert reopen().stats() == before

    def test_an_insertion_stores_little(self, reopen: Callable[[], Objects]) -> None:
        data = noise(2_000_000)
        with reopen().writing() as w:
            w.put(data, table=True)
        before = reopen().stats().stored_bytes
        with reopen().writing() as w:
            w.put(data[:1_000_000] + b"inserted" + data[1_000_000:], table=True)
        assert reopen().stats().stored_bytes - before < 150_000

    def test_trees_list_their_files(self, reopen: Callable[[], Objects], tmp_path: Path) -> None:
        files = {"a.txt": b"a", "deep/er/b.bin": noise(300_000), "deep/empty": b""}
        with reopen().writing() as w:
            entries = {path: w.put(data) for path, data in files.items()}
            tree = w.tree(entries)
        objects = reopen()
        assert objects.tree(tree.digest) == entries
        objects.materialise(tree.digest, tmp_path / "out")
        assert {
            p.relative_to(tmp_path / "out").as_posix(): p.read_bytes()
            for p in (tmp_path / "out").rglob("*")
            if p.is_file()
        } == files

    def test_a_tree_of_absent_objects_is_refused(self, reopen: Callable[[], Objects]) -> None:
        from mainspring.records.objects import ObjectRef

        with pytest.raises(NotFound), reopen().writing() as w:
            w.tree({"a": ObjectRef(digest="0" * 64, size=1)})

    def test_absent_objects_and_bad_digests(self, reopen: Callable[[], Objects]) -> None:
        with pytest.raises(NotFound):
            reopen().read("0" * 64)
        for bad in ("", "../../etc/passwd", "0" * 63, "A" * 64):
            with pytest.raises(InvalidInput):
                reopen().read(bad)

    def test_gc_keeps_what_is_reached_and_removes_the_rest(self, reopen: Callable[[], Objects]) -> None:
        with reopen().writing() as w:
            kept = {f"f{i}": w.put(noise(50_000, seed=i)) for i in range(3)} | {
                "big": w.put(noise(2_000_000, seed=9))
            }
            tree = w.tree(kept)
            dead = [w.put(noise(2_000_000, seed=100)), w.put(b"dead")]
        objects, bystander = reopen(), reopen()
        assert bystander.has(dead[0].digest)
        plan = objects.gc([tree.digest], dry_run=True, grace_s=0)
        assert objects.has(dead[0].digest), "a dry run removes nothing"
        done = objects.gc([tree.digest], grace_s=0)
        assert (plan.objects_removed, plan.bytes_removed) == (done.objects_removed, done.bytes_removed)
        assert done.bytes_removed >= 2_000_004
        for ref in dead:
            assert not reopen().has(ref.digest)
            assert not bystander.has(ref.digest)
        for ref in (*kept.values(), tree):
            assert blake3.blake3(bystander.read(ref.digest)).hexdigest() == ref.digest
        assert reopen().fsck([tree.digest], read_data=True).ok
        again = objects.gc([tree.digest], grace_s=0)
        assert (again.objects_removed, again.packs_removed) == (0, 0)

    def test_gc_spares_what_is_young(self, reopen: Callable[[], Objects]) -> None:
        with reopen().writing() as w:
            ref = w.put(b"not referred to yet")
        assert reopen().gc(grace_s=3600).objects_removed == 0
        assert reopen().read(ref.digest) == b"not referred to yet"

    def test_many_flushes_keep_few_index_files(self, reopen: Callable[[], Objects]) -> None:
        objects, refs = reopen(), []
        for i in range(40):
            with objects.writing() as w:
                refs.append(w.put(f"object {i}".encode()))
        assert reopen().stats().index_files < 34
        assert [reopen().read(r.digest) for r in refs[:3]] == [b"object 0", b"object 1", b"object 2"]
        assert all(reopen().has(r.digest) for r in refs)
