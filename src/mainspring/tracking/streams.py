"""A stream of pieces read as a file: how an upload's body reaches the object store."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any


class Stream(io.RawIOBase):
    """A readable binary file over an iterable of bytes; holds one piece at a time."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        super().__init__()
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
