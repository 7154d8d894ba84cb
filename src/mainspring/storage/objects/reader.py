"""Random access to a chunked object."""

from __future__ import annotations

import io
import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from mainspring.storage.objects.chunking import Recipe

_READ_AHEAD = 1 << 20


class _Blobs(Protocol):
    def blobs(self, digests: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]: ...


class ObjectReader(io.RawIOBase):
    """Reads by chunks and caches the last ones read. Not safe for concurrent use by several threads."""

    def __init__(self, objects: _Blobs, recipe: Recipe) -> None:
        self._objects = objects
        self._recipe = recipe
        self._starts = [0, *itertools.accumulate(length for _, length in recipe.entries)]
        self._at = 0
        self._cached = (0, b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._recipe.size}[whence]
        if base + offset < 0:
            msg = f"negative position {base + offset}"
            raise ValueError(msg)
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._at >= self._recipe.size or not view:
            return 0
        start, data = self._cached
        if not start <= self._at < start + len(data):
            start, data = self._cached = self._load(self._at, max(len(view), 1))
        part = memoryview(data)[self._at - start :][: len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)

    def _load(self, position: int, length: int) -> tuple[int, bytes]:
        first = bisect_right(self._starts, position) - 1
        last = first + 1
        while last < len(self._recipe.entries) and self._starts[last] < position + min(length, _READ_AHEAD):
            last += 1
        digests = [digest for digest, _ in self._recipe.entries[first:last]]
        return self._starts[first], b"".join(data for _, data in self._objects.blobs(digests))
