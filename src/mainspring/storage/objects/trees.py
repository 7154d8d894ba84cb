"""Tree objects: a canonical JSON list of paths, checked as a whole before any part of it is used (SAFETY P05)."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

import msgspec

from mainspring.errors import InvalidInput, TooLarge
from mainspring.records.base import check_path, to_json
from mainspring.records.objects import ObjectRef
from mainspring.storage.materialise import check_not_protected

MAX_ENTRIES = 500_000
MAX_TREE_BYTES = 256 << 20
MAX_OBJECT_BYTES = 1 << 44

_decoder = msgspec.json.Decoder(dict[str, ObjectRef])


def dump_tree(entries: Mapping[str, ObjectRef]) -> bytes:
    """The stored form, after every check of :func:`check_tree`."""
    check_tree(entries)
    return to_json(dict(entries))


def load_tree(data: bytes, *, place: str) -> dict[str, ObjectRef]:
    """Decode and check a tree. Raises :class:`InvalidInput` or :class:`TooLarge` for the whole of it, never a part."""
    if len(data) > MAX_TREE_BYTES or data.count(b'"digest"') > MAX_ENTRIES:
        raise _too_many(data.count(b'"digest"'), place)
    try:
        entries = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(
            f"not a tree: {error}", place=place, next_step="Ask for the digest of a tree."
        ) from None
    check_tree(entries, place=place)
    if to_json(entries) != data:  # a repeated path or field: decoding would silently take the last
        raise InvalidInput(
            "the tree is not in canonical form",
            place=place,
            next_step="It may repeat a path. Get the data from another copy.",
        )
    return entries


def check_tree(entries: Mapping[str, ObjectRef], *, place: str = "tree") -> None:
    """Refuse bad paths, paths that are one file on some file systems, a file that is also a directory, impossible sizes."""
    if len(entries) > MAX_ENTRIES:
        raise _too_many(len(entries), place)
    files: dict[str, str] = {}
    for path, ref in entries.items():
        check_path(path)
        check_not_protected(path)
        if not 0 <= ref.size <= MAX_OBJECT_BYTES:
            raise InvalidInput(
                "an impossible size",
                value=ref.size,
                place=f"{place}: {path}",
                next_step="Get the data from another copy.",
            )
        folded = _fold(path)
        if files.setdefault(folded, path) != path:
            raise InvalidInput(
                f"{files[folded]!r} and {path!r} are one file where case or accents do not count",
                place=place, next_step="Rename one of them.",
            )  # fmt: skip
    for folded, path in files.items():
        slash = folded.rfind("/")
        while slash > 0:
            if folded[:slash] in files:
                raise InvalidInput(
                    f"{files[folded[:slash]]!r} is a file and the directory of {path!r}",
                    place=place,
                    next_step="Rename one of them.",
                )
            slash = folded.rfind("/", 0, slash)


def _fold(path: str) -> str:
    return (
        unicodedata.normalize("NFC", unicodedata.normalize("NFKC", path).casefold())
        if not path.isascii()
        else path.lower()
    )


def _too_many(count: int, place: str) -> TooLarge:
    return TooLarge(
        f"a tree holds at most {MAX_ENTRIES} files",
        value=count,
        place=place,
        next_step="Put small files together, e.g. as one table or archive.",
    )
