"""A seccomp filter: system calls that nothing here needs are refused with EPERM (man 2 seccomp, filter mode).

Landlock (ABI 4) knows TCP only, and no socket files. A process that was handed its sockets needs to make none: refusing ``socket`` and
``connect`` closes UDP, Unix sockets and everything to come. Written as classic BPF by hand, since no seccomp library is a dependency:
load the architecture and the number of the call, compare, refuse.
"""

from __future__ import annotations

import ctypes
import platform
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _EPERM = 0x7FFF0000, 0x00050000 | 1
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_X32 = 0x40000000

_CALLS = {
    # socket connect bind execve execveat ptrace process_vm_readv process_vm_writev bpf perf_event_open userfaultfd io_uring_setup
    # pidfd_getfd open_by_handle_at mount unshare setns add_key request_key keyctl
    "x86_64": (0xC000003E, (41, 42, 49, 59, 322, 101, 310, 311, 321, 298, 323, 425, 438, 304, 165, 272, 308, 248, 249, 250)),
    "aarch64": (0xC00000B7, (198, 203, 200, 221, 281, 117, 270, 271, 280, 241, 282, 425, 438, 265, 40, 97, 268, 217, 218, 219)),
}  # fmt: skip


class _Filter(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_uint16), ("filter", ctypes.POINTER(_Filter))]


def restrict_calls() -> bool:
    """Refuse new sockets, new programs and looking into other processes, for good; False where it cannot be done."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _CALLS:
        return False
    architecture, calls = _CALLS[machine]
    count = len(calls)
    program = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 0, count + 2, architecture),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, count, 0, _X32),
    ]
    program += [(_EQUAL, count - 1 - i, 0, number) for i, number in enumerate(calls[:-1])]
    program += [(_EQUAL, 0, 1, calls[-1]), (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    code = (_Filter * len(program))(*(_Filter(*step) for step in program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    whole = _Program(len(program), code)
    return int(libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(whole), 0, 0)) == 0
