"""A chunked object is checked as a whole: sound chunks in another order, or another number of them, are another object (O05)."""

from __future__ import annotations

from pathlib import Path

import blake3
import pytest

from mainspring.errors import Corrupt
from mainspring.storage.objects import open_objects
from mainspring.storage.objects.chunking import Recipe
from mainspring.storage.objects.index import RAW, RECIPE, dump_index, new_index_name
from mainspring.storage.objects.pack import Pack, pack_key


@pytest.mark.parametrize("how", ["as it was", "swapped", "one too few", "one twice"])
def test_o05_sound_chunks_in_a_wrong_list_are_no_object(tmp_path: Path, how: str) -> None:
    """The list has a checksum of its own and states the size. Seen red without the digest of the whole in ``chunks``."""
    first, second = b"a" * 5_000, b"b" * 5_000
    whole = blake3.blake3(first + second).digest()
    names = [(blake3.blake3(part).digest(), len(part)) for part in (first, second)]
    entries = {
        "as it was": names,
        "swapped": names[::-1],
        "one too few": names[:1],
        "one twice": [names[0], names[0]],
    }[how]
    pack = Pack()
    for (digest, size), part in zip(names, (first, second), strict=True):
        pack.add(digest, part, kind=RAW, size=size)
    recipe = Recipe(digest=whole, size=10_000, level=1, entries=tuple(entries))
    pack.add(whole, recipe.dump(), kind=RECIPE, size=10_000)
    objects = open_objects("local", home=tmp_path)
    rows = dict(pack.entries)
    objects.store.put(pack_key(pack.name), pack.seal())
    objects.store.put(f"index/{new_index_name()}", dump_index(rows, {pack.name: pack.size}))
    if how == "as it was":
        assert objects.read(whole.hex()) == first + second
        return
    with pytest.raises(Corrupt, match="order or number"):
        objects.read(whole.hex())
    assert whole in objects.index.damaged, "and whoever has the bytes stores them anew"
