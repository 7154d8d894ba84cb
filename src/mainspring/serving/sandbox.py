"""Confines the processes that run models: Landlock for the file system and TCP, seccomp for the rest, and resource limits.

Landlock (Linux 5.13; man 7 landlock) is set through three system calls without privileges and is inherited by threads and children
that start afterwards. What may be read is a list: the libraries (``isolation.code_places``), what ONNX Runtime and the C library read
about the processor, the time zones, and what the caller names. Nothing of the working directory, and nothing of ``/proc`` but the
description of the processor, so no other process's environment or memory. Nothing may be executed, no TCP connection opened or port
bound (ABI 4, Linux 6.7), no abstract socket used and no process outside signalled (ABI 6, Linux 6.12). ``seccomp`` refuses to make
sockets at all, and other calls that Landlock does not cover.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

from mainspring.errors import Unavailable
from mainspring.serving.isolation import code_places
from mainspring.serving.seccomp import refuse_processes, restrict_calls

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_PATH_BENEATH = 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _TRUNCATE = 1 << 5, 1 << 7, 1 << 8, 1 << 14
_READ = _READ_FILE | _READ_DIR
_WRITE = _READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _TRUNCATE
_ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_FILE_RIGHTS = _WRITE_FILE | _READ_FILE | _TRUNCATE
_NET = 0b11  # bind and connect
_SCOPED = 0b11  # abstract sockets and signals
_SYSTEM = (
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/dev/urandom",
    "/proc/cpuinfo",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/bus/pci/devices",  # a list of names: ONNX Runtime looks for accelerators, and warns if it cannot
)


class _RulesetAttr(ctypes.Structure):
    _fields_ = [
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    ]


class _PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def landlock_abi() -> int:
    """The ABI version of the kernel's Landlock; 0 if it has none."""
    if sys.platform != "linux":
        return 0
    return max(int(_libc().syscall(_CREATE, None, 0, 1)), 0)


def confine(*, read: list[Path], write: list[Path], mode: str, processes: bool = False) -> str:
    """Confine this process and its children for good; returns ``landlock`` or ``none``.

    ``read``: folders or files beside the libraries; ``write``: folders in which files may be made; ``processes``: whether it may start
    children (never other programs). A further call only removes rights. Call it before any thread is started, because a running
    thread stays as it was. Raises :class:`Unavailable` in mode ``require`` if the kernel has no Landlock.
    """
    if mode == "off":
        return "none"
    abi = landlock_abi()
    done = bool(abi) and _restrict(abi, read, write)
    if not done and mode == "require":
        raise Unavailable(
            "this kernel has no Landlock",
            next_step="Start 'mainspring serve --sandbox auto' to serve without it.",
        )
    restrict_calls()
    if not processes:
        refuse_processes()
    return "landlock" if done else "none"


def _restrict(abi: int, read: list[Path], write: list[Path]) -> bool:
    libc = _libc()
    handled = _ALL_BY_ABI[min(abi, 5)]
    attr = _RulesetAttr(handled, _NET if abi >= 4 else 0, _SCOPED if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = int(libc.syscall(_CREATE, ctypes.byref(attr), size, 0))
    if ruleset < 0:
        return False
    try:
        for path in [*read, *code_places(), *map(Path, _SYSTEM)]:
            _allow(libc, ruleset, path, _READ & handled)
        for path in [*write, Path(os.devnull)]:
            _allow(libc, ruleset, path, _WRITE & handled)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            return False
        return int(libc.syscall(_RESTRICT, ruleset, 0)) == 0
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, access: int) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            granted = access if path.is_dir() else access & _FILE_RIGHTS
            rule = _PathBeneathAttr(granted, fd)
            libc.syscall(_ADD, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
        finally:
            os.close(fd)


def limit_resources(*, memory_mb: int | None, files: int = 8192) -> None:
    """Set resource limits: no core dumps, at most ``files`` descriptors, and with ``memory_mb`` an address space of so many MiB."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    bound = files if hard == resource.RLIM_INFINITY else min(files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (bound, bound))
    if memory_mb is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends (V10). ``parent``: the process id of the parent."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before the call, so the kernel will not report it
        os._exit(1)
