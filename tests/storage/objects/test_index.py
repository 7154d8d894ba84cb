"""The index: sorted, verified, merged."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.errors import Corrupt
from mainspring.storage.objects.index import RAW, TREE, Entry, Index, IndexFile, dump_index

entries_of = st.dictionaries(
    st.binary(min_size=32, max_size=32),
    st.builds(
        Entry,
        st.integers(0, 3),
        st.sampled_from(["p1", "p2"]),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**63),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(entries_of)
def test_every_row_is_found_again(entries: dict[bytes, Entry]) -> None:
    file = IndexFile("x.idx", dump_index(entries, {"p1": 1, "p2": 2}))
    assert dict(file) == entries
    assert all(file.find(d) == e for d, e in entries.items())
    assert file.find(b"\xff" * 32) == entries.get(b"\xff" * 32)
    assert file.packs == {
        p: n for p, n in {"p1": 1, "p2": 2}.items() if any(e.pack == p for e in entries.values())
    }


def test_digests_with_an_equal_beginning_are_told_apart() -> None:
    entries = {b"\x00" * 8 + bytes([i]) * 24: Entry(RAW, "p", i, 1, 1) for i in range(50)}
    file = IndexFile("x.idx", dump_index(entries, {"p": 1}))
    assert [file.find(d) for d in entries] == list(entries.values())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_changed_byte_is_noticed(at: int, by: int) -> None:
    data = bytearray(dump_index({bytes([i]) * 32: Entry(RAW, "p", i, 1, 1) for i in range(9)}, {"p": 1}))
    data[at % len(data)] ^= by
    with pytest.raises(Corrupt):
        IndexFile("x.idx", bytes(data))


def test_a_tree_flag_in_any_file_counts() -> None:
    digest = b"t" * 32
    plain = IndexFile("1.idx", dump_index({digest: Entry(RAW, "p", 0, 1, 1)}, {"p": 1}))
    flagged = IndexFile("2.idx", dump_index({digest: Entry(RAW | TREE, "p", 0, 1, 1)}, {"p": 1}))
    assert not Index([plain]).is_tree(digest)
    for order in ([plain, flagged], [flagged, plain]):
        assert Index(order).is_tree(digest)


def test_large_files_are_searched_in_place() -> None:
    rng = random.Random(1)
    entries = {rng.randbytes(32): Entry(RAW, "p", i, 1, 1) for i in range(5000)}
    index = Index([IndexFile("1.idx", dump_index(entries, {"p": 1}))])
    assert not index._hashed
    assert all(index.find(d) == e for d, e in entries.items())
    assert index.find(rng.randbytes(32)) is None
