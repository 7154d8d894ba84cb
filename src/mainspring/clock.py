"""Policy time comes from an injected clock; latency does not.

*Policy* (windows, cooldowns, label delay, schedules) reads a :class:`Clock`, so the loop can be replayed
deterministically. Latency, deadlines and lease expiry use the machine's own monotonic clock.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Clock(Protocol):
    """The source of policy time."""

    def now(self) -> datetime:
        """The current policy time, timezone-aware, UTC."""
        ...


class SystemClock:
    """The machine's wall clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class ManualClock:
    """A clock that moves only when it is set, and never backwards.

    >>> clock = ManualClock(datetime(2013, 1, 1, tzinfo=UTC))
    >>> clock.advance(timedelta(days=1)).isoformat()
    '2013-01-02T00:00:00+00:00'
    """

    def __init__(self, start: datetime) -> None:
        self._now = _aware(start)
        self._lock = threading.Lock()

    def now(self) -> datetime:
        return self._now

    def set(self, moment: datetime) -> datetime:
        """Move to ``moment``; an earlier one is ignored. Returns the current time."""
        with self._lock:
            self._now = max(self._now, _aware(moment))
            return self._now

    def advance(self, by: timedelta) -> datetime:
        return self.set(self._now + by)


def to_us(moment: datetime) -> int:
    """Microseconds since the epoch: how times are stored.

    >>> to_us(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
    1000000
    """
    return (_aware(moment) - EPOCH) // _MICROSECOND


def from_us(us: int) -> datetime:
    """The inverse of :func:`to_us`, exact."""
    return EPOCH + timedelta(microseconds=us)


def monotonic() -> float:
    """Seconds on the machine's monotonic clock, for deadlines and latency only."""
    return time.monotonic()


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        msg = f"a time without a zone is ambiguous: {moment!r}; add tzinfo=datetime.UTC"
        raise ValueError(msg)
    return moment.astimezone(UTC)
