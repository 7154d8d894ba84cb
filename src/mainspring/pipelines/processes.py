"""Whole process trees on Linux: listing descendants, and killing all of them.

``killpg`` misses a child that called ``setsid``. So the process of a step is a *subreaper*: whatever is orphaned below it
becomes its child instead of leaving the tree. And every process of a run carries a cookie in its initial environment, by
which the orphans of a runner that was killed are found later. The warm server outlives a run: it carries its owner instead,
and a step forked from it writes the run's cookie over the empty one (:func:`set_cookie`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

COOKIE = "MAINSPRING_PIPELINE_RUN"
OWNER = "MAINSPRING_PIPELINE_OWNER"
"""Names the process (:func:`identity`) for which a warm server works."""

COOKIE_BYTES = 64
"""Bytes of its environment that a warm server reserves for the cookie of a step."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Adopt orphaned descendants of this process; False where the system has no subreapers (then only the cookie finds them)."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> bool:
    """Be killed by the kernel when the parent (its forking thread) ends."""
    return _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Direct children, zombies included."""
    try:
        pids: list[int] = []
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids += map(int, (task / "children").read_text().split())
        return pids
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return [p for p, (parent, _) in _read_table().items() if parent == pid]


def descendants(pid: int) -> list[int]:
    """All living processes below ``pid``; zombies are left out but their children are not."""
    table = _read_table()
    below: dict[int, list[int]] = {}
    for child, (parent, _) in table.items():
        below.setdefault(parent, []).append(child)
    pids, waiting = [], [pid]
    while waiting:
        for child in below.get(waiting.pop(), ()):
            waiting.append(child)
            if table[child][1] not in "ZX":
                pids.append(child)
    return pids


def kill_tree(pid: int, *, patience_s: float = 5.0) -> None:
    """SIGKILL ``pid`` and everything below it.

    ``pid`` is stopped first and killed last: as a subreaper it keeps adopting orphans until none is left. Gives up after
    ``patience_s`` seconds.
    """
    send_signal(pid, signal.SIGSTOP)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        living = descendants(pid)
        if not living:
            break
        for child in living:
            send_signal(child, signal.SIGKILL)
        time.sleep(0.002)
    send_signal(pid, signal.SIGKILL)


def kill_tree_below(pid: int, *, patience_s: float = 5.0) -> None:
    """SIGKILL everything below ``pid``, but not ``pid`` itself."""
    deadline = time.monotonic() + patience_s
    while (living := descendants(pid)) and time.monotonic() < deadline:
        for child in living:
            send_signal(child, signal.SIGKILL)
        time.sleep(0.002)


def find_by_cookie(value: str) -> list[int]:
    """Processes other than this one whose initial environment names the run ``value``."""
    wanted = f"{COOKIE}={value}".encode()
    pids = []
    for pid in _list_pids():
        if pid == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                pids.append(pid)
    return pids


def kill_by_cookie(value: str, *, patience_s: float = 5.0) -> int:
    """Kill every process of a run whose runner is gone, until none is left; returns how many there were."""
    killed: set[int] = set()
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        living = [p for p in find_by_cookie(value) if _read_state(p) not in "ZX"]
        if not living:
            break
        killed.update(living)
        for pid in living:
            send_signal(pid, signal.SIGKILL)
        time.sleep(0.005)
    return len(killed)


def set_cookie(value: str) -> bool:
    """Make :func:`find_by_cookie` find this process, forked from a warm server, for the run ``value``; False if that fails.

    ``/proc/<pid>/environ`` shows the memory where the kernel put the environment at ``exec``. After the fork this process has a
    private copy of it, which is overwritten here.
    """
    os.environ[COOKIE] = value  # for the processes that this one starts
    raw = value.encode()
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[47]), int(fields[48])  # env_start and env_end, proc(5)
        marker = f"{COOKIE}=".encode()
        at = (
            ctypes.string_at(start, end - start).find(b"\0" + marker)
            if end > start and len(raw) <= COOKIE_BYTES
            else -1
        )
        if at >= 0:
            ctypes.memmove(start + at + 1 + len(marker), raw.ljust(COOKIE_BYTES, b"\0"), COOKIE_BYTES)
            return True
    return False


def kill_ownerless(*, patience_s: float = 5.0) -> int:
    """Kill warm servers (and what they started) whose owner is known to be dead; returns how many processes there were."""
    marker = f"{OWNER}=".encode()
    killed: set[int] = set()
    dead: dict[str, bool] = {}
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        living = []
        for pid in _list_pids():
            with contextlib.suppress(OSError):
                for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    owner = (
                        entry[len(marker) :].decode("utf-8", "replace") if entry.startswith(marker) else ""
                    )
                    if owner and dead.setdefault(owner, is_dead(owner)) and _read_state(pid) not in "ZX":
                        living.append(pid)
        living = [p for p in living if p != os.getpid()]
        if not living:
            break
        killed.update(living)
        for pid in living:
            send_signal(pid, signal.SIGKILL)
        time.sleep(0.005)
    return len(killed)


def identity(pid: int | None = None) -> str:
    """``boot/namespace/pid/start``: a name of a process that is never used again, unlike its pid."""
    pid = pid or os.getpid()
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return f"-/-/{pid}/-"
    start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{boot.read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}/{pid}/{start}"


def is_dead(name: str) -> bool:
    """Whether the process of this :func:`identity` is known to be dead; False also if that is unknown (another machine or namespace)."""
    here = identity().split("/")
    there = name.split("/")
    if len(there) != 4 or here[0] == "-" or here[:2] != there[:2] or not there[2].isdigit():
        return False
    with contextlib.suppress(OSError):
        return identity(int(there[2])) != name or _read_state(int(there[2])) in "ZX"
    return True


def send_signal(pid: int, number: int) -> None:
    """Send a signal; a process that has ended, or may not be signalled, is ignored."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _prctl(option: int, value: int) -> bool:
    with contextlib.suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0)
    return False


def _list_pids() -> list[int]:
    try:
        return [int(p) for p in os.listdir("/proc") if p.isdigit()]  # noqa: PTH208 - names only, and often
    except FileNotFoundError:
        return []


def _read_table() -> dict[int, tuple[int, str]]:
    """``{pid: (parent, state)}`` of all processes."""
    table = {}
    for pid in _list_pids():
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            table[pid] = (int(fields[1]), fields[0])
    return table


def _read_state(pid: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"
