"""Named places where a test may make the process die, fail or wait.

``MAINSPRING_FAILPOINTS=objects.pack.synced:kill`` kills the process there; ``name:action:n`` acts at the n-th pass
only. Actions: ``kill`` (SIGKILL), ``eio``, ``enospc``, ``raise``, ``sleep`` (1 s), ``pause`` (until a file named
``MAINSPRING_FAILPOINT_RELEASE`` exists). Without the variable a failpoint costs one dictionary look-up.

Every failpoint is declared with :func:`declare` at import of its module, so that a test can enumerate them and
assert that each was hit.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

_declared: set[str] = set()
_active: dict[str, tuple[str, int]] = {}
_hits: dict[str, int] = {}
_lock = threading.Lock()


def declare(*names: str) -> None:
    """Register failpoints, so that they can be listed and armed."""
    _declared.update(names)


def declared() -> frozenset[str]:
    """The names of all failpoints of the modules imported so far."""
    return frozenset(_declared)


def hits() -> dict[str, int]:
    """How often each failpoint was passed while any was armed."""
    return dict(_hits)


def arm(spec: str) -> None:
    """Arm from a specification ``name:action[:n]``, comma-separated; an empty one disarms all."""
    parsed: dict[str, tuple[str, int]] = {}
    for part in filter(None, (p.strip() for p in spec.split(","))):
        name, _, rest = part.partition(":")
        action, _, nth = rest.partition(":")
        parsed[name] = (action or "raise", int(nth or 0))
    with _lock:
        _active.clear()
        _hits.clear()
        _active.update(parsed)


def failpoint(name: str) -> None:
    """Pass the named point; acts only when armed."""
    if not _active:
        return
    with _lock:
        count = _hits[name] = _hits.get(name, 0) + 1
        action, nth = _active.get(name, ("", 0))
    if action and (nth in (0, count)):
        _act(name, action)


def _act(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action in {"eio", "enospc"}:
        number = errno.EIO if action == "eio" else errno.ENOSPC
        raise OSError(number, f"{os.strerror(number)} (failpoint {name})")
    elif action == "sleep":
        time.sleep(1)
    elif action == "pause":
        release = Path(os.environ["MAINSPRING_FAILPOINT_RELEASE"])
        while not release.exists():
            time.sleep(0.005)
    else:
        msg = f"failpoint {name}"
        raise RuntimeError(msg)


arm(os.environ.get("MAINSPRING_FAILPOINTS", ""))
