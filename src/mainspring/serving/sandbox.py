"""The worker's cage: Landlock over the file system where the kernel has it, resource limits everywhere.

Landlock (Linux 5.13; man 7 landlock) is set through three system calls without privileges and is inherited by threads made
afterwards. The worker may read the bundle, the interpreter and the libraries, write only the bundle's log folder, and (ABI 4, Linux 6.7)
open no outgoing TCP connection and bind no port: it was handed its socket.
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

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15
_NET = 0b11  # bind and connect
_SYSTEM = (
    "/usr",
    "/lib",
    "/lib64",
    "/lib32",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/null",
    "/dev/urandom",
    "/proc",
    "/sys/devices/system",
)


class _RulesetAttr(ctypes.Structure):
    _fields_ = [("handled_access_fs", ctypes.c_uint64), ("handled_access_net", ctypes.c_uint64)]


class _PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def landlock_abi() -> int:
    """The kernel's Landlock version, 0 without."""
    if sys.platform != "linux":
        return 0
    return max(int(_libc().syscall(_CREATE, None, 0, 1)), 0)


def confine(*, read: list[Path], write: list[Path], mode: str) -> str:
    """Confine this process; returns ``landlock`` or ``none``.

    Call it before any thread is started. Raises :class:`Unavailable` in mode ``require`` if the kernel cannot.
    """
    if mode == "off":
        return "none"
    abi = landlock_abi()
    if abi and _restrict(abi, read, write):
        return "landlock"
    if mode == "require":
        raise Unavailable("this kernel has no Landlock", next_step="Use --sandbox auto to serve without it.")
    return "none"


def _restrict(abi: int, read: list[Path], write: list[Path]) -> bool:
    libc = _libc()
    handled = _ALL_BY_ABI[min(abi, 5)]
    attr = _RulesetAttr(handled, _NET if abi >= 4 else 0)
    size = ctypes.sizeof(attr) if abi >= 4 else 8
    ruleset = int(libc.syscall(_CREATE, ctypes.byref(attr), size, 0))
    if ruleset < 0:
        return False
    try:
        libraries = [
            Path(p)
            for p in {
                sys.prefix,
                sys.base_prefix,
                sys.exec_prefix,
                *filter(os.path.isdir, sys.path),
                *_SYSTEM,
            }
        ]
        for path in [*read, *libraries]:
            _allow(libc, ruleset, path, _READ & handled)
        for path in write:
            _allow(libc, ruleset, path, handled & ~_EXECUTE)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            return False
        return int(libc.syscall(_RESTRICT, ruleset, 0)) == 0
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, access: int) -> None:
    with contextlib.suppress(FileNotFoundError, PermissionError):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            granted = access if path.is_dir() else access & _FILE_RIGHTS
            rule = _PathBeneathAttr(granted, fd)
            libc.syscall(_ADD, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
        finally:
            os.close(fd)


def limit(*, memory_mb: int | None, files: int = 8192) -> None:
    """Resource limits: no core dumps, a bounded number of descriptors, and an address space if asked for."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    bound = files if hard == resource.RLIM_INFINITY else min(files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (bound, bound))
    if memory_mb is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends (V10)."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
