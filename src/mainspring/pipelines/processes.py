"""Whole process trees on Linux: who descends from whom, and how nobody survives.

``killpg`` misses a child that called ``setsid``. So the process of a step is a *subreaper*: whatever is orphaned below it
becomes its child instead of leaving the tree. And every process of a run carries a cookie in its initial environment, by
which the orphans of a runner that was killed are found later.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

COOKIE = "MAINSPRING_PIPELINE_RUN"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Adopt orphaned descendants of this process; False where the system cannot (then only the cookie finds them)."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> bool:
    """Be killed by the kernel when the parent (its forking thread) ends."""
    return _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Direct children, zombies included."""
    try:
        found: list[int] = []
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
        return found
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return [p for p, (parent, _) in _table().items() if parent == pid]


def descendants(pid: int) -> list[int]:
    """All living processes below ``pid``; zombies are left out but their children are not."""
    table = _table()
    below: dict[int, list[int]] = {}
    for child, (parent, _) in table.items():
        below.setdefault(parent, []).append(child)
    found, waiting = [], [pid]
    while waiting:
        for child in below.get(waiting.pop(), ()):
            waiting.append(child)
            if table[child][1] not in "ZX":
                found.append(child)
    return found


def kill_tree(pid: int, *, patience_s: float = 5.0) -> None:
    """SIGKILL ``pid`` and everything below it. It is stopped first, so that it adopts orphans until the last is gone."""
    send(pid, signal.SIGSTOP)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        living = descendants(pid)
        if not living:
            break
        for one in living:
            send(one, signal.SIGKILL)
        time.sleep(0.002)
    send(pid, signal.SIGKILL)


def kill_tree_below(pid: int, *, patience_s: float = 5.0) -> None:
    """SIGKILL everything below ``pid`` (this process or one that waits), but not ``pid`` itself."""
    deadline = time.monotonic() + patience_s
    while (living := descendants(pid)) and time.monotonic() < deadline:
        for one in living:
            send(one, signal.SIGKILL)
        time.sleep(0.002)


def with_cookie(value: str) -> list[int]:
    """Processes (but this one) whose initial environment names this run."""
    wanted = f"{COOKIE}={value}".encode()
    found = []
    for pid in _pids():
        if pid == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def kill_by_cookie(value: str, *, patience_s: float = 5.0) -> int:
    """Kill every process of a run whose runner is gone, until none is left; returns how many there were."""
    killed: set[int] = set()
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        living = [p for p in with_cookie(value) if _state(p) not in "ZX"]
        if not living:
            break
        killed.update(living)
        for pid in living:
            send(pid, signal.SIGKILL)
        time.sleep(0.005)
    return len(killed)


def identity(pid: int | None = None) -> str:
    """``boot/namespace/pid/start``: names a process for good, across reuse of its number."""
    pid = pid or os.getpid()
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return f"-/-/{pid}/-"
    start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{boot.read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}/{pid}/{start}"


def is_dead(name: str) -> bool:
    """Whether the process of this :func:`identity` is known to be dead; False when it cannot be known from here."""
    here = identity().split("/")
    there = name.split("/")
    if len(there) != 4 or here[0] == "-" or here[:2] != there[:2] or not there[2].isdigit():
        return False
    with contextlib.suppress(OSError):
        return identity(int(there[2])) != name or _state(int(there[2])) in "ZX"
    return True


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _prctl(option: int, value: int) -> bool:
    with contextlib.suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0)
    return False


def _pids() -> list[int]:
    try:
        return [int(p) for p in os.listdir("/proc") if p.isdigit()]  # noqa: PTH208 - names only, and often
    except FileNotFoundError:
        return []


def _table() -> dict[int, tuple[int, str]]:
    """``{pid: (parent, state)}`` of all processes."""
    found = {}
    for pid in _pids():
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[pid] = (int(fields[1]), fields[0])
    return found


def _state(pid: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"
