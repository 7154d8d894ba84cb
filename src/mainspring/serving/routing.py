"""Which target answers: weighted, and stable per key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import blake3

T = TypeVar("T")

_SPAN = float(1 << 53)


def position(key: str) -> float:
    """A stable place in [0, 1) for a routing key: the first 53 bits of its BLAKE3.

    >>> position("a") == position("a"), 0 <= position("b") < 1
    (True, True)
    """
    return (int.from_bytes(blake3.blake3(key.encode()).digest(length=8), "big") >> 11) / _SPAN


def edges(weights: Sequence[float]) -> list[float]:
    """Upper bounds of each target's share, the last one exactly 1.

    >>> edges([0.75, 0.25])
    [0.75, 1.0]
    """
    total, bounds = 0.0, []
    for weight in weights:
        total += weight
        bounds.append(total)
    if bounds:
        bounds[-1] = 1.0
    return bounds


def choose(bounds: Sequence[float], key: str) -> int:
    """The index of the target that answers ``key``.

    Shares are laid out in the order of the table with the champion last, so that a canary growing from 1 % to 10 % keeps
    the keys it had.
    """
    place = position(key)
    for index, bound in enumerate(bounds):
        if place < bound:
            return index
    return len(bounds) - 1
