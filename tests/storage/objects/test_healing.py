"""What was damaged is stored again when somebody puts the same bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mainspring.errors import Corrupt
from mainspring.storage.objects import Objects, open_objects


def _spoil(home: Path, data: bytes) -> None:
    """Change these bytes wherever a pack holds them."""
    for pack in (home / "objects" / "packs").iterdir():
        stored = pack.read_bytes()
        at = stored.find(data)
        if at >= 0:
            pack.chmod(0o600)
            pack.write_bytes(stored[:at] + bytes(b ^ 0xFF for b in data) + stored[at + len(data) :])


def _put(objects: Objects, data: bytes) -> str:
    with objects.writing() as writer:
        return writer.put(data).digest


@pytest.mark.parametrize("size", [500, 3_000_000], ids=["blob", "chunked"])
@pytest.mark.parametrize("same_process", [True, False])
def test_o05_a_damaged_object_heals_when_its_bytes_are_put_again(
    tmp_path: Path, size: int, same_process: bool
) -> None:
    """O05: seen red with ``note_damage`` doing nothing (the writer finds the row and stores nothing)."""
    objects = open_objects("local", home=tmp_path)
    data = random.Random(1).randbytes(size)
    digest = _put(objects, data)
    other = _put(objects, b"bystander" * 50)
    _spoil(tmp_path, data[:64])
    with pytest.raises(Corrupt):
        objects.read(digest)
    writer = objects if same_process else open_objects("local", home=tmp_path)
    assert _put(writer, data) == digest
    assert writer.read(digest) == data
    fresh = open_objects("local", home=tmp_path)
    assert fresh.read(digest) == data, "another process must find the sound copy"
    assert objects.read(digest) == data
    assert not list((tmp_path / "objects" / "index").glob("*.bad"))
    report = fresh.gc([digest, other], grace_s=0, min_live=1.0)
    assert report.corrupt == ()
    assert open_objects("local", home=tmp_path).fsck([digest, other], read_data=True).ok


def test_what_is_sound_is_not_stored_twice_because_of_damage_elsewhere(tmp_path: Path) -> None:
    objects = open_objects("local", home=tmp_path)
    bad, good = random.Random(1).randbytes(400), random.Random(2).randbytes(2_000_000)
    digest = _put(objects, bad)
    _put(objects, good)
    _spoil(tmp_path, bad)
    with pytest.raises(Corrupt):
        objects.read(digest)
    before = objects.stats().stored_bytes
    _put(objects, good)
    assert objects.stats().stored_bytes == before
