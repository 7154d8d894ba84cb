"""Cut points and the recipe format: frozen for ever."""

from __future__ import annotations

import io

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.errors import Conflict, Corrupt
from mainspring.storage.objects.chunking import Recipe, RepositoryFormat
from mainspring.testing.objects import noise

FORM = RepositoryFormat.fresh()


def test_golden_cut_points() -> None:
    """If this fails, the chunker has changed and nothing new would be shared with stored data: pin it, do not edit this."""
    data = noise(400_000, seed=42)
    assert blake3.blake3(data).hexdigest()[:16] == "afac450c23aff4dd"
    assert [len(c) for c in FORM.table.cut(data)] == [
        12905,
        30323,
        16662,
        15088,
        13355,
        14742,
        13378,
        14907,
        7720,
        15824,
        18534,
        16074,
        13173,
        13852,
        29880,
        12412,
        14071,
        12686,
        12873,
        12409,
        19068,
        15103,
        14069,
        10450,
        13502,
        16128,
        812,
    ]
    assert [len(c) for c in FORM.opaque.cut(noise(4_000_000, seed=43))] == [
        510801,
        1220954,
        523134,
        869411,
        875700,
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300_000), st.integers(0, 1000), st.booleans())
def test_chunks_together_are_the_data(length: int, seed: int, zeros: bool) -> None:
    data = bytes(length) if zeros else noise(length, seed=seed)
    for cutting in (FORM.table, FORM.opaque):
        chunks = [bytes(c) for c in cutting.cut(data)]
        assert b"".join(chunks) == data
        assert [bytes(c) for c in cutting.cut_stream(io.BytesIO(data))] == chunks
        assert all(len(c) <= cutting.largest for c in chunks)
        assert all(len(c) > cutting.smallest // 2 for c in chunks[:-1])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.integers(0, 2**32 - 1)), max_size=20),
    st.integers(0, 2**63),
)
def test_recipes_come_back(entries: list[tuple[bytes, int]], size: int) -> None:
    recipe = Recipe(digest=b"d" * 32, size=size, level=1, entries=tuple(entries))
    assert Recipe.load(recipe.dump(), b"d" * 32) == recipe
    with pytest.raises(Corrupt):
        Recipe.load(recipe.dump(), b"e" * 32)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_recipe_is_never_followed(data: st.DataObject) -> None:
    good = Recipe(digest=b"d" * 32, size=7, level=1, entries=((b"a" * 32, 3), (b"b" * 32, 4))).dump()
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(bad), good[:at]):
        with pytest.raises(Corrupt):
            Recipe.load(damaged, b"d" * 32)


def test_format_file_comes_back_and_a_newer_one_is_refused() -> None:
    assert RepositoryFormat.load(FORM.dump()) == FORM
    with pytest.raises(Conflict, match="newer"):
        RepositoryFormat.load(b'{"format":"mainspring-objects","version":2}')
    with pytest.raises(Corrupt):
        RepositoryFormat.load(b'{"format":"other"}')
