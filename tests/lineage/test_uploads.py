"""Uploads: bytes in and out, for one project only, until they expire."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import mainspring.lineage.uploads as module
from mainspring.errors import InvalidInput, NotFound, TooLarge
from mainspring.lineage import Foundation
from mainspring.lineage.uploads import Uploads


def fetched(uploads: Uploads, digest: str) -> bytes:
    return b"".join(uploads.get(digest=digest).chunks)


def test_bytes_come_back_and_twice_is_once(foundation_on_each_engine: Foundation) -> None:
    uploads = Uploads(foundation_on_each_engine)
    body = [b"a" * 100_000, b"", b"b" * 3]
    one = uploads.put(body=body)
    assert uploads.put(body=iter(body)) == one
    assert (one.size, fetched(uploads, one.digest)) == (100_003, b"".join(body))
    assert uploads.get(digest=one.digest).size == 100_003
    empty = uploads.put(body=[])
    assert (empty.size, fetched(uploads, empty.digest)) == (0, b"")


def test_a_tree_is_made_of_what_was_put(foundation: Foundation, tmp_path: Path) -> None:
    uploads = Uploads(foundation)
    stored = uploads.put(body=[b"x"])
    tree = uploads.create_tree(files={"deep/f": stored})
    assert foundation.objects.tree(tree.digest) == {"deep/f": stored}
    with pytest.raises(InvalidInput):
        uploads.create_tree(files={"../f": stored})
    with pytest.raises(InvalidInput, match="another size"):
        uploads.create_tree(files={"f": type(stored)(digest=stored.digest, size=2)})


@pytest.mark.parametrize("digest", ["0" * 64, "", "x" * 64, "../../etc/passwd", "A" * 64])
def test_a04_only_what_this_project_refers_to_is_readable(foundation: Foundation, digest: str) -> None:
    """Seen red without the look-up in ``object_refs`` (see also tests/data/test_operations.py)."""
    with pytest.raises(NotFound, match="in this project"):
        Uploads(foundation).get(digest=digest)


def test_an_object_that_is_stored_but_not_ours_is_not_found(foundation: Foundation) -> None:
    with foundation.objects.writing() as writer:
        stray = writer.put(b"nobody's")
    with pytest.raises(NotFound):
        Uploads(foundation).get(digest=stray.digest)


def test_expired_uploads_are_let_go_and_kept_ones_stay(foundation: Foundation) -> None:
    uploads = Uploads(foundation)
    loose, kept = uploads.put(body=[b"loose"]), uploads.put(body=[b"kept"])
    with foundation.ledger.decision() as decision:
        decision.refer(kept.digest, "model_version:m@1")
    assert uploads.expire_uploads(older_than_s=3600) == 0
    assert uploads.expire_uploads(older_than_s=0) == 2
    with pytest.raises(NotFound):
        uploads.get(digest=loose.digest)
    assert fetched(uploads, kept.digest) == b"kept"
    with pytest.raises(InvalidInput):
        uploads.expire_uploads(older_than_s=-1)


def test_d_a_body_without_end_is_cut_off(foundation: Foundation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen red without the limit in ``BodyStream``: it read until the test's time limit."""
    monkeypatch.setattr(module, "MAX_UPLOAD", 1 << 20)

    def endless() -> Iterator[bytes]:
        while True:
            yield b"\0" * 65536

    with pytest.raises(TooLarge):
        Uploads(foundation).put(body=endless())
    with foundation.store.read() as tx:
        assert tx.all("SELECT * FROM object_refs") == []


def test_a_body_that_fails_midway_leaves_no_reference(foundation: Foundation) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise InvalidInput("the upload broke off")

    with pytest.raises(InvalidInput, match="broke off"):
        Uploads(foundation).put(body=broken())
    with foundation.store.read() as tx:
        assert tx.all("SELECT * FROM uploads") == []
