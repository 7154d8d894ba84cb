"""No process outlives its test: whatever a test starts, directly or through others, ends with it, however the test ends.

Three layers, each for the failure of the one before:

1. Every pytest process adopts orphans (Linux: ``PR_SET_CHILD_SUBREAPER``). After each test, descendants that the test has
   added are killed, and a test that passed fails if it left any. Processes of wider fixtures (a database server) stay.
2. A worker that dies leaves its descendants to the controller, which kills them when the node is down and at the end.
3. A guardian process holds one end of a pipe. When the controller itself is gone, the guardian kills every process whose
   environment carries this session's mark.

Loaded by ``scripts/run-tests`` with ``-p children``. Elsewhere than on Linux it does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

MARK = "MAINSPRING_TEST_SESSION"
SETTLE_S = float(os.environ.get("MAINSPRING_TEST_SETTLE_S", "60"))
"""Seconds that processes of a test may take to end by themselves after it."""

_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform == "linux"
_GUARDIAN = """
import os, signal, sys
mark = sys.argv[1].encode()
sys.stdin.buffer.read()  # until every writer of the pipe is gone
for _ in range(3):
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if mark in file.read():
                        os.kill(int(name), signal.SIGKILL)
            except OSError:
                pass
"""


def descendants(root: int) -> dict[int, str]:
    """All processes below ``root`` that still run, with their command lines."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    parents.setdefault(int(parent), []).append(int(entry.name))
    found: dict[int, str] = {}
    queue = list(parents.get(root, []))
    while queue:
        pid = queue.pop()
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            found[pid] = words.decode("utf-8", "replace").strip()[:160]
        queue += parents.get(pid, [])
    return found


def end(pids: dict[int, str]) -> None:
    """Kill these processes and reap those that are, or become, ours."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.waitpid(pid, os.WNOHANG)


class Children:
    """Follows the descendants of this pytest process."""

    def __init__(self, allowed: set[int]) -> None:
        self._allowed = allowed
        """Processes that wider fixtures, or pytest itself, may keep."""

    def left(self) -> dict[int, str]:
        """What is neither allowed nor below something allowed (a database server has children of its own)."""
        found = descendants(os.getpid())
        kept: set[int] = set()
        for pid in self._allowed & set(found):
            kept |= {pid, *descendants(pid)}
        return {pid: words for pid, words in found.items() if pid not in kept and not _serves_us(pid, words)}

    def _reap(self) -> None:
        """Take the status of adopted processes that have ended; nobody else would."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in self._allowed:
                with contextlib.suppress(OSError, ValueError, IndexError):
                    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                    if state == "Z" and int(parent) == os.getpid():
                        os.waitpid(int(entry.name), os.WNOHANG)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        if fixturedef.scope == "function":
            return (yield)
        before = set(descendants(os.getpid()))
        try:
            return (yield)
        finally:
            self._allowed |= set(descendants(os.getpid())) - before

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        try:
            result = yield
        except BaseException:
            end(self.left())
            raise
        left = _settled(self)
        self._reap()
        if left:
            end(left)
            pytest.fail(f"{item.nodeid} left processes behind: {left}", pytrace=False)
        return result


def _settled(children: Children, within_s: float = SETTLE_S) -> dict[int, str]:
    """What is left once processes that are just ending have ended."""
    deadline = time.monotonic() + within_s
    while (left := children.left()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _serves_us(pid: int, words: str) -> bool:
    """Helpers that live as long as this process and end with it: multiprocessing's, and the warm server of pipelines."""
    if "multiprocessing.resource_tracker" in words or "multiprocessing.forkserver" in words:
        return True
    if "mainspring.pipelines.forkserver" not in words:
        return False
    with contextlib.suppress(OSError):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        owners = [v for v in variables if v.startswith(b"MAINSPRING_PIPELINE_OWNER=")]
        return any(f"/{os.getpid()}/".encode() in owner for owner in owners)
    return False


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


class _Controller:
    """Kills what dead workers left, and everything at the end."""

    def __init__(self) -> None:
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-c", _GUARDIAN, os.environ[MARK]],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={},
        )

    @property
    def guardian(self) -> int:
        return self._guardian.pid

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """What a dead worker left is ours now: children that are neither workers (execnet's bootstrap) nor the guardian."""
        kept = {self._guardian.pid}
        for pid, words in descendants(os.getpid()).items():
            if _parent(pid) == os.getpid() and "exec(eval(sys.stdin.readline()))" in words:
                kept |= {pid, *descendants(pid)}
        end({pid: words for pid, words in descendants(os.getpid()).items() if pid not in kept})

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        everything = descendants(os.getpid())
        everything.pop(self._guardian.pid, None)
        end(everything)
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        self._guardian.wait()


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def pytest_configure(config: pytest.Config) -> None:
    if not _LINUX:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    own: set[int] = set()
    if not _is_worker(config):
        os.environ[MARK] = uuid.uuid4().hex
        # A bare SIGTERM (a time limit around the whole run) ends the session as Ctrl-C does, so that fixtures end too.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        controller = _Controller()
        own.add(controller.guardian)
        config.pluginmanager.register(controller, "children_controller")
    if _is_worker(config) or not getattr(config.option, "numprocesses", None):
        config.pluginmanager.register(Children(own), "children_follower")
