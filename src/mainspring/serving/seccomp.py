"""A seccomp filter: refuses system calls that no model needs with EPERM (man 2 seccomp, filter mode).

Landlock does not cover these. For the network it knows TCP only (ABI 4), and no Unix sockets. Of files it protects contents and names,
but not modes, owners, times and attributes: it allows ``chmod`` on another's database. And it allows what one process may do to another
of the same user without a signal: limit its processor time (``prlimit``), change its priority, share memory. So such calls are refused
here, and also new namespaces, characters typed into the terminal that standard error may be, and, for processes that need no children,
new processes.

Written as classic BPF by hand, since no seccomp library is a dependency: load the architecture and the number of the call, compare,
refuse.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import sys
from collections.abc import Callable, Sequence

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE = 0, 4
_FIRST, _FIRST_HIGH, _SECOND = 16, 20, 24
"""Offsets of the low and the high half of the first argument, and of the low half of the second (little-endian)."""
_X32 = 0x40000000
_NAMESPACES = 0x7E020000 | 0x80  # CLONE_NEW*, time namespaces included
_THREAD = 0x00010000
_TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

_REFUSED: dict[str, tuple[int, int]] = {
    # Numbers on x86_64 and aarch64 (-1: it has no such call). New sockets and programs.
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "execve": (59, 221), "execveat": (322, 281), "io_uring_setup": (425, 425),
    # Access to other processes, and ways around checks by name.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    # Namespaces, mounts, the machine.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "quotactl": (179, 60), "swapon": (167, 224), "reboot": (169, 142),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    # Modes, owners, times and attributes of files, and notices about files: Landlock does not check these.
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1),
    "fchownat": (260, 54), "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469), "inotify_init": (253, -1), "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    # Memory, semaphores and queues shared by key or name, and the scheduling of other processes.
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191),
    "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "mq_unlink": (241, 181), "setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30),
}  # fmt: skip
_OWN_ONLY = {"prlimit64": (302, 261), "sched_setaffinity": (203, 122)}
"""Refused unless their first argument, a process id, is 0: the calling process."""
_CLONE, _CLONE3, _IOCTL = (56, 220), (435, 435), (16, 29)
_FORKS = ((57, -1), (58, -1))
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

_Step = tuple[int, int, int, int]


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
    """Refuse the calls of this module for good; False if the system cannot (not Linux, or an unknown processor)."""
    return _install(_call_rules)


def refuse_processes() -> bool:
    """Refuse new processes for good (threads may still be started); False if the system cannot."""
    return _install(_process_rules)


def _call_rules(which: int) -> list[_Step]:
    steps: list[_Step] = []
    for numbers in _REFUSED.values():
        if numbers[which] >= 0:
            steps += _if_call(numbers[which], [_refuse()])
    for numbers in _OWN_ONLY.values():
        other = [
            (_LOAD, 0, 0, _FIRST),
            (_EQUAL, 0, 2, 0),
            (_LOAD, 0, 0, _FIRST_HIGH),
            (_EQUAL, 1, 0, 0),
            _refuse(),
        ]
        steps += _if_call(numbers[which], [*other, _allow()])
    namespaces = [(_LOAD, 0, 0, _FIRST), (_ANY_BIT, 0, 1, _NAMESPACES), _refuse(), _allow()]
    steps += _if_call(_CLONE[which], namespaces)
    # The flags of clone3 are in memory, which a filter cannot read. After ENOSYS the C library calls clone.
    steps += _if_call(_CLONE3[which], [_refuse(errno.ENOSYS)])
    typing = [
        (_LOAD, 0, 0, _SECOND),
        *(s for k in _TERMINAL for s in ((_EQUAL, 0, 1, k), _refuse())),
        _allow(),
    ]
    return steps + _if_call(_IOCTL[which], typing)


def _process_rules(which: int) -> list[_Step]:
    steps = _if_call(_CLONE[which], [(_LOAD, 0, 0, _FIRST), (_ANY_BIT, 1, 0, _THREAD), _refuse(), _allow()])
    for numbers in _FORKS:
        if numbers[which] >= 0:
            steps += _if_call(numbers[which], [_refuse()])
    return steps


def _if_call(number: int, then: Sequence[_Step]) -> list[_Step]:
    """Steps that run ``then`` for the call with this number. ``then`` ends with a return, so the number is still loaded for what follows."""
    return [(_EQUAL, 0, len(then), number), *then]


def _refuse(error: int = errno.EPERM) -> _Step:
    return (_RETURN, 0, 0, _ERRNO | error)


def _allow() -> _Step:
    return (_RETURN, 0, 0, _ALLOW)


def _install(rules: Callable[[int], list[_Step]]) -> bool:
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _MACHINES:
        return False
    architecture, which = _MACHINES[machine]
    # Another architecture, or x32 on x86_64, has other numbers for the same calls: refused as a whole.
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        _refuse(),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        _refuse(),
        *rules(which),
        _allow(),
    ]
    code = (_Filter * len(program))(*(_Filter(*step) for step in program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    whole = _Program(len(program), code)
    return int(libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(whole), 0, 0)) == 0
