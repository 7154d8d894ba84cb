"""Spans of time: windows are aligned to the epoch in UTC, so there is no gap and no doubled hour when clocks change."""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.clock import from_us
from mainspring.records.base import Duration, seconds


@dataclass(frozen=True)
class Span:
    """``[start_us, end_us)`` of one deployment."""

    deployment: str
    start_us: int
    end_us: int

    @property
    def id(self) -> str:
        """Derived from deployment, start and length: the same span always has the same id."""
        start = from_us(self.start_us).strftime("%Y%m%dT%H%M%S")
        return f"{self.deployment}.{start}.{self.length // 1_000_000}"

    @property
    def length(self) -> int:
        return self.end_us - self.start_us


def length_us(duration: Duration) -> int:
    """A policy's window length in microseconds; at least a second."""
    return max(1_000_000, int(seconds(duration)) * 1_000_000)


def span_of(deployment: str, at_us: int, window: Duration) -> Span:
    """The span that holds the moment ``at_us``."""
    length = length_us(window)
    start = at_us - at_us % length
    return Span(deployment, start, start + length)
