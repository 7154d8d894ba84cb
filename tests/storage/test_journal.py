"""The journal: what was appended comes back, whatever happened to the tail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.errors import Corrupt, InvalidInput, StorageFull, Unavailable
from mainspring.storage import failpoints
from mainspring.storage.journal import MAGIC, JournalReader, JournalWriter


def _read_all(folder: Path, prefix: str = "p", **limits: int) -> tuple[list[bytes], str, JournalReader]:
    reader = JournalReader(folder, prefix)
    records: list[bytes] = []
    cursor = ""
    while True:
        batch, cursor = reader.read(cursor, **limits)
        if not batch:
            return records, cursor, reader
        records += batch


def test_records_come_back_in_order_across_segments(tmp_path: Path) -> None:
    payloads = [f"record {i}".encode() * (i % 7) for i in range(500)]
    with JournalWriter(tmp_path, prefix="p", max_bytes=1000) as writer:
        for payload in payloads:
            writer.append(payload)
    assert len(list(tmp_path.glob("*.seg"))) > 5
    assert not list(tmp_path.glob("*.open"))
    for limits in ({}, {"max_records": 3}, {"max_bytes": 20}):
        records, _, reader = _read_all(tmp_path, **limits)
        assert records == payloads
        assert reader.torn == 0


def test_a_reader_follows_open_segments_of_several_writers(tmp_path: Path) -> None:
    first, second = JournalWriter(tmp_path, prefix="p"), JournalWriter(tmp_path, prefix="p")
    other = JournalWriter(tmp_path, prefix="q")
    reader, cursor, seen = JournalReader(tmp_path, "p"), "", []
    for i in range(20):
        first.append(b"a%d" % i)
        second.append(b"b%d" % i)
        other.append(b"c")
        if i == 10:
            first.rotate()
        batch, cursor = reader.read(cursor)
        seen += batch
    assert sorted(seen) == sorted([b"a%d" % i for i in range(20)] + [b"b%d" % i for i in range(20)])
    assert [s for s in seen if s[:1] == b"a"] == [b"a%d" % i for i in range(20)]
    assert reader.read(cursor) == ([], cursor)
    for writer in (first, second, other):
        writer.close()
    assert reader.read(cursor) == ([], cursor)


def test_what_was_consumed_can_be_removed_and_the_cursor_stays_small(tmp_path: Path) -> None:
    reader, cursor = JournalReader(tmp_path, "p"), ""
    for _ in range(5):
        with JournalWriter(tmp_path, prefix="p", max_bytes=64) as writer:
            for _ in range(10):
                writer.append(b"x" * 30)
        batch, cursor = reader.read(cursor)
        assert len(batch) == 10
        reader.remove(reader.behind(cursor))
        assert not reader.segments()
    assert reader.read(cursor) == ([], "")


def test_a_living_writers_segment_is_never_removed(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, prefix="p")
    writer.append(b"one")
    reader = JournalReader(tmp_path, "p")
    _, cursor = reader.read("")
    assert reader.behind(cursor) == []
    writer.close()
    assert [s.writer for s in reader.behind(cursor)] == [writer.writer]


@pytest.mark.parametrize("suffix", ["seg", "open"])
def test_t11_a_segment_torn_at_every_byte_loses_only_its_tail(tmp_path: Path, suffix: str) -> None:
    """T11: seen red with the CRC and length check of `_payload` removed."""
    payloads = [b"", b"a", b"second record", b"\x00" * 9, b"last"]
    with JournalWriter(tmp_path / "whole", prefix="p") as writer:
        for payload in payloads:
            writer.append(payload)
    whole = next((tmp_path / "whole").iterdir())
    data = whole.read_bytes()
    ends, at = [len(MAGIC)], len(MAGIC)
    for payload in payloads:
        at += 8 + len(payload)
        ends.append(at)
    for cut in range(len(data) + 1):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / f"{whole.stem}.{suffix}").write_bytes(data[:cut])
        records, _, reader = _read_all(folder)
        kept = sum(end <= cut for end in ends) - 1
        assert records == payloads[: max(kept, 0)]
        assert reader.torn == (0 if cut in (0, *ends) else 1)


def test_t11_zeros_after_the_end_are_not_records(tmp_path: Path) -> None:
    """T11: after a power cut a file may end in zeros. Seen red with a CRC that covers the payload alone."""
    with JournalWriter(tmp_path, prefix="p") as writer:
        writer.append(b"one")
    segment = next(tmp_path.iterdir())
    segment.write_bytes(segment.read_bytes() + bytes(64))
    records, _, reader = _read_all(tmp_path)
    assert records == [b"one"]
    assert (reader.torn, reader.torn_bytes) == (1, 64)


@settings(max_examples=60, deadline=None)
@given(position=st.integers(min_value=8), bit=st.integers(0, 7))
def test_m12_a_flipped_bit_is_never_a_wrong_record(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    """M12: seen red with the CRC check removed."""
    folder = tmp_path_factory.mktemp("flip")
    payloads = [b"alpha" * 3, b"beta", b"gamma" * 2]
    with JournalWriter(folder, prefix="p") as writer:
        for payload in payloads:
            writer.append(payload)
    segment = next(folder.iterdir())
    data = bytearray(segment.read_bytes())
    data[8 + position % (len(data) - 8)] ^= 1 << bit
    segment.write_bytes(data)
    records, _, reader = _read_all(folder)
    assert records == payloads[: len(records)]
    assert len(records) < 3
    assert reader.torn == 1


def test_kill_9_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mainspring.storage.journal import JournalWriter\n"
        "w = JournalWriter(Path(sys.argv[1]), prefix='p', max_bytes=4096)\n"
        "i = 0\n"
        "while True:\n"
        "    w.append(b'%d' % i); i += 1\n"
        "    if i % 100 == 0: sys.stdout.write(f'{i}\\n'); sys.stdout.flush()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        acked = 0
        while acked < 3000:
            acked = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
    records, _, reader = _read_all(tmp_path)
    assert records == [b"%d" % i for i in range(len(records))]
    assert len(records) >= acked
    assert reader.torn == 0
    assert not any(s.alive for s in reader.segments())


def test_a_full_disk_leaves_no_half_record_and_the_writer_goes_on(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, prefix="p")
    writer.append(b"before")
    failpoints.arm("journal.append:enospc")
    try:
        with pytest.raises(StorageFull):
            writer.append(b"lost")
    finally:
        failpoints.arm("")
    writer.append(b"after")
    writer.close()
    assert _read_all(tmp_path)[0] == [b"before", b"after"]


def test_a_short_write_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen red with the `ftruncate` of `_undo` removed: the half record hid everything behind it."""
    writer = JournalWriter(tmp_path, prefix="p")
    writer.append(b"before")
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
    with pytest.raises(StorageFull):
        writer.append(b"a long record that does not fit")
    monkeypatch.undo()
    writer.append(b"after")
    writer.close()
    assert _read_all(tmp_path)[0] == [b"before", b"after"]


def test_a_failed_fsync_gives_the_segment_up(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, prefix="p")
    writer.append(b"one")
    failpoints.arm("journal.sync:eio")
    try:
        with pytest.raises(Unavailable):
            writer.sync()
    finally:
        failpoints.arm("")
    writer.append(b"two")
    writer.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert _read_all(tmp_path)[0] == [b"one", b"two"]


def test_after_a_fork_the_child_writes_segments_of_its_own(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, prefix="p")
    writer.append(b"parent")
    pid = os.fork()
    if pid == 0:
        writer.append(b"child")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    writer.append(b"parent again")
    writer.close()
    records, _, reader = _read_all(tmp_path)
    assert sorted(records) == [b"child", b"parent", b"parent again"]
    assert len({s.writer for s in reader.segments()}) == 2


def test_many_threads_share_a_writer(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, prefix="p", max_bytes=2000)

    def work(name: int) -> None:
        for i in range(200):
            writer.append(b"%d:%d" % (name, i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert sorted(_read_all(tmp_path)[0]) == sorted(b"%d:%d" % (n, i) for n in range(4) for i in range(200))


def test_bad_prefix_bad_cursor_and_newer_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        JournalWriter(tmp_path, prefix="../x")
    with pytest.raises(InvalidInput):
        JournalReader(tmp_path, "p").read("nonsense")
    (tmp_path / "p-aa-00000000.seg").write_bytes(MAGIC[:7] + b"\x09")
    with pytest.raises(Corrupt):
        JournalReader(tmp_path, "p").read("")
    writer = JournalWriter(tmp_path, prefix="p")
    writer.close()
    with pytest.raises(Unavailable):
        writer.append(b"late")


def test_appends_and_rotation_go_on_during_a_sync(tmp_path: Path) -> None:
    """Seen red with the lock of appends held over the fdatasync: the first append waited a second."""
    writer = JournalWriter(tmp_path, prefix="p", max_bytes=64)
    writer.append(b"one")
    failpoints.arm("journal.sync:sleep:1")
    try:
        syncing = threading.Thread(target=writer.sync)
        syncing.start()
        while not failpoints.hits():
            time.sleep(0.001)
        start = time.monotonic()
        for number in range(20):
            writer.append(b"%02d" % number * 4)
        assert time.monotonic() - start < 0.7
        syncing.join()
    finally:
        failpoints.arm("")
    writer.close()
    records, _ = JournalReader(tmp_path, "p").read()
    assert records == [b"one", *(b"%02d" % n * 4 for n in range(20))]
    assert {p.suffix for p in tmp_path.iterdir()} == {".seg"}
