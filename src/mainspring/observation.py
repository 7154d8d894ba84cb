"""Observers of decisions: a running step records the decisions it makes, so that its effects on other rooms are stored with its
result.

Standard library only: the process of every step loads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

Observer = Callable[[str, dict[str, Any], object], None]
"""Called after a decision that succeeded, with the operation's id, its arguments and its result."""

_observing: ContextVar[Observer | None] = ContextVar("mainspring_observing", default=None)
_process: list[Observer] = []


def observer() -> Observer | None:
    """The observer of decisions made here; None if there is none."""
    return _observing.get() or (_process[-1] if _process else None)


@contextlib.contextmanager
def observing(notify: Observer, *, process: bool = False) -> Iterator[None]:
    """Call ``notify`` for the decisions made in this context; with ``process`` for those of every thread of this process."""
    token = _observing.set(notify)
    if process:
        _process.append(notify)
    try:
        yield
    finally:
        if process:
            _process.remove(notify)
        _observing.reset(token)
