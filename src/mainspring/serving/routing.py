"""Chooses the target that answers a request: by weight, and always the same for one key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import blake3

T = TypeVar("T")

_SPAN = float(1 << 53)


def position(key: str) -> float:
    """A stable position in [0, 1) for a routing key: the first 53 bits of its BLAKE3, as many as a float64 holds exactly.

    >>> position("a") == position("a"), 0 <= position("b") < 1
    (True, True)
    """
    return (int.from_bytes(blake3.blake3(key.encode()).digest(length=8), "big") >> 11) / _SPAN


def share_bounds(weights: Sequence[float]) -> list[float]:
    """Upper bounds of the targets' shares of [0, 1); the last is exactly 1, whatever the rounding of the sum.

    >>> share_bounds([0.75, 0.25])
    [0.75, 1.0]
    """
    total, bounds = 0.0, []
    for weight in weights:
        total += weight
        bounds.append(total)
    if bounds:
        bounds[-1] = 1.0
    return bounds


def choose_target(bounds: Sequence[float], key: str) -> int:
    """The index of the target that answers ``key``.

    The champion's share is the last: so a canary that grows from 1 % to 10 % keeps the keys that it had.
    """
    at = position(key)
    for index, bound in enumerate(bounds):
        if at < bound:
            return index
    return len(bounds) - 1
