"""Bytes in pieces: a body that arrives piece by piece read as a file, and a file given out piece by piece.

How the body of an upload travels between rooms, processes and machines: a piece at a time, never the whole in memory.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from mainspring.errors import TooLarge

PIECE = 1 << 20
"""Bytes of a piece that is read from a file."""


def read_pieces(path: Path) -> Iterator[bytes]:
    """The bytes of a file, at most :data:`PIECE` at a time."""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


class BodyStream(io.RawIOBase):
    """A stream of byte pieces as a readable binary file, one piece at a time; raises :class:`TooLarge` past ``limit`` bytes."""

    def __init__(self, pieces: Iterable[bytes], *, limit: int) -> None:
        super().__init__()
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")
        self._allowance = limit
        self._limit = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._allowance -= len(piece)
            if self._allowance < 0:
                raise TooLarge(
                    "the upload is too large", value=f"more than {self._limit} bytes", next_step="Split it."
                )
            self._rest = memoryview(piece)
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
