"""Processes that hold one model each, and may be killed: what runs there.

::

    worker ─ nursery ─ keeper of package A ─ predictor of A      (and one for shadows)
                     └ keeper of package B ─ predictor of B

The nursery is forked from the worker before it has read its options (which hold the API key) and before it has threads. It imports
libraries, once, and forks keepers. It is not confined itself (a library reads what it likes while it is imported), touches no package,
and believes nothing of what the worker says but a digest, a format and three bounds. A keeper confines itself to its package, bounds its memory, loads, measures, and forks predictors,
which find the model loaded: to replace one that was killed takes a fork, not an import. Everybody here dies with its parent.
Nothing but msgpack of plain values goes back to the worker.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import os
import re
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from mainspring.errors import InvalidInput, MainspringError, Unavailable
from mainspring.serving.isolation import code_places
from mainspring.serving.options import ServeOptions
from mainspring.serving.sandbox import confine, die_with_parent
from mainspring.serving.seccomp import refuse_processes

MAX_MESSAGE = 32 << 10
LENGTH = struct.Struct("<I")
BATCH = 64
_PROBE_CPU_S = 3
_FILES = 256


_DIGEST = re.compile(r"[0-9a-f]{64}")


TOO_LARGE = Unavailable("the model does not fit into its memory limit")


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """What the worker may ask of the nursery: to keep one package of the bundle."""

    digest: str
    form: str
    memory_mb: int
    inline_ms: float
    max_rows: int
    deadline_s: float


def start_nursery(bundle: Path, *, sandbox: str, close: list[int]) -> socket.socket:
    """Fork the nursery; returns our end of its socket. Call it before threads are started and before secrets are read.

    ``close``: descriptors that it must not have.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    if os.fork() == 0:
        _child(parent, lambda: _nursery(theirs, bundle / "packages", sandbox), close=[ours.fileno(), *close])
    theirs.close()
    return ours


def _child(parent: int, work: Callable[[], None], *, close: list[int]) -> NoReturn:
    """Be a child process until ``work`` ends; never return into the parent's code."""
    status = 1
    try:
        die_with_parent(parent)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(
                number, signal.SIG_IGN
            )  # the parent decides; we end when its end of the socket closes
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1):  # the options come on one, what the server says of itself goes to the other
            os.dup2(null, standard)
        os.close(null)
        for fd in close:
            with contextlib.suppress(OSError):
                os.close(fd)
        work()
        status = 0
    except BaseException as error:  # noqa: BLE001 - the last thing this process says
        sys.stderr.write(
            f"mainspring serving: a model process ended: {type(error).__name__}: {str(error)[:300]}\n"
        )
    finally:
        sys.stderr.flush()
        os._exit(status)


def _nursery(control: socket.socket, packages: Path, sandbox: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are reaped by the kernel
    # Threads of a parent do not exist after a fork: libraries must start none while they are imported.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import mainspring.serving.table  # noqa: F401 - keepers find it loaded

    code_places()  # they cannot find out once they are confined
    memory = _open("/proc/self/statm")
    while True:
        data, fds, _, _ = socket.recv_fds(control, MAX_MESSAGE, 1)
        if not data:
            return
        asked = msgspec.json.decode(data, type=Asked)
        if not _DIGEST.fullmatch(asked.digest):
            return
        import_libraries(asked.form)
        size, parent = _size(memory), os.getpid()
        if os.fork() == 0:
            keep = functools.partial(
                _keeper, socket.socket(fileno=fds[0]), packages / asked.digest, sandbox, asked, size
            )
            _child(parent, keep, close=[control.fileno(), memory])
        os.close(fds[0])


def import_libraries(form: str) -> None:
    """Import what packages of a format need, as far as it is there: loading says what is missing, or that there is no such format."""
    from mainspring.models.formats.table import model_format, names

    for name in model_format(form).modules if form in names() else ():
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def memory_for(folder: Path, options: ServeOptions) -> int:
    """What the package in ``folder`` may allocate, in MiB. It needs its own size some times over to be parsed: that is no sign
    of anything."""
    return options.model_memory_mb + (4 * sum(f.stat().st_size for f in folder.iterdir()) >> 20)


def address_space() -> int | None:
    """Ours in bytes, None where the system does not tell. It must be asked before the process is confined."""
    memory = _open("/proc/self/statm")
    try:
        return _size(memory)
    finally:
        if memory >= 0:
            os.close(memory)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return -1


def _size(memory: int) -> int | None:
    """Our address space in bytes, None where the system does not tell."""
    if memory < 0:
        return None
    return int(os.pread(memory, 64, 0).split()[0]) * resource.getpagesize()


def _keeper(control: socket.socket, folder: Path, sandbox: str, asked: Asked, size: int | None) -> None:
    from mainspring.serving.table import open_version

    control.send(b'{"event":"begun"}')
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    confine(read=[folder], write=[], mode=sandbox, processes=True)
    bound_memory(size, asked.memory_mb)
    signal.alarm(math.ceil(asked.deadline_s))  # nobody else could end a load that hangs
    try:
        version, why = open_version(folder, asked.digest, inline_ms=asked.inline_ms, max_rows=asked.max_rows)
        if why is None and asked.max_rows and not _survives(lambda: version.try_rows(asked.max_rows)):
            why = f"{asked.max_rows} rows take more memory or time than a server's own process may spend"
        told: dict[str, Any] = {"event": "loaded", "why": why, "single_us": version.single_us}
    except MainspringError as error:
        told = {"event": "failed", "error": error.to_dict()}
    except MemoryError:
        told = {"event": "failed", "error": TOO_LARGE.to_dict()}
    control.send(json.dumps(told, default=str).encode()[:MAX_MESSAGE])
    signal.alarm(0)
    predictors: dict[str, int] = {}
    while told["event"] == "loaded":
        data, fds, _, _ = socket.recv_fds(control, MAX_MESSAGE, 1)
        for pid in predictors.values() if not data else [predictors.pop(data.decode(), 0)]:
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        if not data:
            return
        parent, stream = os.getpid(), socket.socket(fileno=fds[0])
        pid = os.fork()
        if pid == 0:
            _child(
                parent,
                functools.partial(_predict_forever, version, stream, sandbox),
                close=[control.fileno()],
            )
        predictors[data.decode()] = pid
        stream.close()


def bound_memory(size: int | None, memory_mb: int) -> None:
    """Let this process allocate ``memory_mb`` beside ``size``, the address space it has; write no core dump, open few files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    if size is not None:
        limit = size + (memory_mb << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _survives(work: Callable[[], None]) -> bool:
    """Whether ``work`` ends well in a child with our memory limit and a few seconds of processor time."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        with open(os.devnull, "w") as quiet:  # noqa: PTH123 - what it says about failing is expected
            sys.stderr = quiet
            resource.setrlimit(resource.RLIMIT_CPU, (_PROBE_CPU_S, _PROBE_CPU_S))
            _child(parent, work, close=[])
    return os.waitpid(pid, 0)[1] == 0


def _predict_forever(version: Any, stream: socket.socket, sandbox: str) -> None:
    """Answer requests, each a length and a msgpack ``[rows, columns]``, until the other end closes."""
    if sandbox != "off":
        refuse_processes()
    decode, encode = msgspec.msgpack.Decoder(tuple[int, dict[str, list[Any]]]).decode, msgspec.msgpack.encode
    with stream.makefile("rb") as incoming:
        while head := incoming.read(LENGTH.size):
            rows, columns = decode(incoming.read(LENGTH.unpack(head)[0]))
            try:
                reply = {"scores": version.scores(columns, rows)}
            except InvalidInput as error:
                reply = {"refused": error.to_dict()}
            except MainspringError as error:
                reply = {"error": error.message[:500]}
            except MemoryError:
                reply = {"error": "the model needs more memory than it may have"}
            data = encode(reply)
            stream.sendall(LENGTH.pack(len(data)) + data)
