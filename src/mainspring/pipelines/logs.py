"""The log of a step, bounded: its beginning and its end, with a marker where something was left out."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

CAP = 1 << 20
_REFRESH_S = 1.0


class CappedLog:
    """Keeps at most ``cap`` bytes (half head, half tail) in a file that can be read while it grows."""

    def __init__(self, path: Path, *, cap: int = CAP) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = path
        self._half = cap // 2
        self._head = 0
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._dropped = 0
        self._written_at = 0.0
        self._file = path.open("wb")

    def write(self, data: bytes) -> None:
        """Add output of the step. At most ``cap`` bytes are kept in memory and on disk, however much is written."""
        room = self._half - self._head
        if room > 0:
            self._file.write(data[:room])
            self._file.flush()
            self._head += min(room, len(data))
            data = data[room:]
        if not data:
            return
        self._tail.append(data)
        self._tail_size += len(data)
        while self._tail_size - len(self._tail[0]) >= self._half:
            gone = len(self._tail.popleft())
            self._tail_size -= gone
            self._dropped += gone
        now = time.monotonic()
        if now - self._written_at > _REFRESH_S:
            self._written_at = now
            self._write_tail()

    def close(self) -> int:
        """Write the tail and close; returns the size of the file in bytes."""
        if self._file.closed:
            return self.path.stat().st_size
        self._write_tail()
        self._file.close()
        return self.path.stat().st_size

    def _write_tail(self) -> None:
        tail = b"".join(self._tail)
        dropped = self._dropped + max(0, len(tail) - self._half)
        self._file.seek(self._head)
        self._file.truncate()
        if dropped:
            self._file.write(f"\n--- {dropped} bytes left out ---\n".encode())
        self._file.write(tail[-self._half :])
        self._file.flush()
