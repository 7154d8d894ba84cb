"""Where files are cut into chunks, and how an object made of chunks is described.

The cut points depend on the content only (FastCDC; Xia et al. 2020, doi:10.1109/TPDS.2020.2984632), so an insertion
changes the chunks around it and no others. Sizes and seed are part of the repository format: they never change in
a store, since other sizes would give other chunks, and nothing would be shared with the stored ones.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import blake3
import msgspec

from mainspring.errors import Conflict, Corrupt, InvalidInput
from mainspring.records.base import Record, from_json, new_id, to_json

if TYPE_CHECKING:
    from pyfastcdc import FastCDC

KIB, MIB = 1 << 10, 1 << 20


class Cutting(Record, frozen=True):
    """FastCDC parameters, in bytes. The mean chunk is about ``average + smallest``."""

    average: int
    smallest: int
    largest: int
    normalisation: int
    seed: int

    def cutter(self) -> FastCDC:
        from pyfastcdc import FastCDC

        return FastCDC(
            self.average,
            min_size=self.smallest,
            max_size=self.largest,
            normalized_chunking=self.normalisation,  # type: ignore[arg-type]
            seed=self.seed,
        )

    def cut(self, data: bytes | memoryview) -> Iterator[memoryview]:
        """The chunks of ``data``, in order, together exactly ``data``."""
        for chunk in self.cutter().cut_buf(data):
            yield chunk.data

    def cut_stream(self, stream: BinaryIO) -> Iterator[memoryview]:
        """The same for a stream; a chunk is valid until the next one is read."""
        for chunk in self.cutter().cut_stream(stream):
            yield chunk.data


class RepositoryFormat(Record, frozen=True):
    """``format.json`` of a store: written once, when it is made."""

    id: str
    table: Cutting
    opaque: Cutting
    pack_bytes: int
    format: str = "mainspring-objects"
    version: int = 1
    check: str = ""
    """A digest of the other fields, which detects a changed byte; empty in stores of version 0.1 (their database keeps a copy)."""

    @classmethod
    def fresh(cls) -> RepositoryFormat:
        form = cls(
            id=new_id(),
            table=Cutting(
                average=12 * KIB, smallest=4 * KIB, largest=64 * KIB, normalisation=2, seed=0x6D61696E
            ),
            opaque=Cutting(
                average=768 * KIB, smallest=256 * KIB, largest=4 * MIB, normalisation=2, seed=0x6D61696E
            ),
            pack_bytes=32 * MIB,
        )
        return msgspec.structs.replace(form, check=form.compute_check())

    def dump(self) -> bytes:
        return to_json(self)

    def compute_check(self) -> str:
        """A digest of the other fields, 16 hexadecimal digits."""
        return blake3.blake3(to_json(msgspec.structs.replace(self, check=""))).hexdigest()[:16]

    @classmethod
    def load(cls, data: bytes) -> RepositoryFormat:
        """Raises :class:`Conflict` for a store that a newer program made (nothing is read or written then), :class:`Corrupt` for a damaged file."""
        try:
            head: Any = from_json(data)
        except InvalidInput as error:
            raise _bad_format(error.message) from None
        if not isinstance(head, dict) or head.get("format") != "mainspring-objects":
            raise _bad_format("not a format file of an object store")
        if isinstance(head.get("version"), int) and head["version"] > 1:
            raise Conflict(
                "a newer program made this object store",
                value=head.get("version"),
                place="format.json",
                next_step="Upgrade mainspring; nothing was touched.",
            )
        try:
            form: RepositoryFormat = from_json(data, cls)
        except InvalidInput as error:
            raise _bad_format(error.message) from None
        if form.version != 1 or (form.check and (form.check != form.compute_check() or form.dump() != data)):
            raise _bad_format("its check does not agree")
        return form


def _bad_format(why: str) -> Corrupt:
    return Corrupt(
        f"the object store's format.json is damaged: {why}",
        place="format.json",
        next_step="Run 'mainspring fsck --repair': the database keeps a copy.",
    )


_HEAD = struct.Struct("<8sB7xQ32s")
_ENTRY = struct.Struct("<32sI")
_MAGIC = b"MSRCP001"
_CHECK = 32
MAX_RECIPE_BYTES = 16 * KIB


class Recipe(Record, frozen=True):
    """An object made of chunks. At level 2 the chunks hold the entries of level 1, so long recipes share bytes too."""

    digest: bytes
    size: int
    level: int
    entries: tuple[tuple[bytes, int], ...]

    def dump(self) -> bytes:
        """The stored form: header, entries, and a BLAKE3 of both, so that a damaged recipe is detected before it is used."""
        body = _HEAD.pack(_MAGIC, self.level, self.size, self.digest) + dump_entries(self.entries)
        return body + blake3.blake3(body).digest()

    @classmethod
    def load(cls, data: bytes, digest: bytes) -> Recipe:
        """The recipe of the object ``digest``. Raises :class:`Corrupt` if it is damaged or belongs to another object."""
        body, check = data[:-_CHECK], data[-_CHECK:]
        if len(data) < _HEAD.size + _CHECK or blake3.blake3(body).digest() != check:
            raise Corrupt(
                "the list of chunks of an object is damaged",
                value=digest.hex(),
                next_step="Restore it, or push it again from another copy.",
            )
        magic, level, size, owner = _HEAD.unpack_from(body)
        if magic != _MAGIC or owner != digest or level not in (1, 2):
            raise Corrupt(
                "the list of chunks belongs to another object",
                value=digest.hex(),
                next_step="Run 'mainspring fsck'.",
            )
        return cls(digest=digest, size=size, level=level, entries=load_entries(body[_HEAD.size :], digest))


def dump_entries(entries: tuple[tuple[bytes, int], ...]) -> bytes:
    return b"".join(_ENTRY.pack(digest, length) for digest, length in entries)


def load_entries(data: bytes, digest: bytes) -> tuple[tuple[bytes, int], ...]:
    if len(data) % _ENTRY.size:
        raise Corrupt(
            "the list of chunks of an object is cut off",
            value=digest.hex(),
            next_step="Run 'mainspring fsck'.",
        )
    return tuple(_ENTRY.iter_unpack(data))
