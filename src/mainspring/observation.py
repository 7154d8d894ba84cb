"""Who is told what decisions came to: a running step is, so that its effects on other rooms are known with its result.

Standard library only: the process of every step loads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

Observer = Callable[[str, dict[str, Any], object], None]
"""Told of a decision that ends with a result: the operation, its arguments, the result."""

_observing: ContextVar[Observer | None] = ContextVar("mainspring_observing", default=None)
_process: list[Observer] = []


def observer() -> Observer | None:
    """Who is to be told of a decision made here."""
    return _observing.get() or (_process[-1] if _process else None)


@contextlib.contextmanager
def observing(told: Observer, *, process: bool = False) -> Iterator[None]:
    """Tell ``told`` of the decisions made in this context; with ``process`` in every thread of this process."""
    token = _observing.set(told)
    if process:
        _process.append(told)
    try:
        yield
    finally:
        if process:
            _process.remove(told)
        _observing.reset(token)
