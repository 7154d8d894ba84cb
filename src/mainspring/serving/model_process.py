"""Processes that hold one model each and may be killed; this module is the code that runs in them.

::

    worker ─ nursery ─ keeper of package A ─ predictor of A      (and one for shadows)
                     └ keeper of package B ─ predictor of B

The nursery is forked from the worker before the worker reads its options (which hold the API key) and before it has threads. It
imports the libraries once, and forks keepers. It is not confined itself, because libraries read other files while they are imported;
but it touches no package, and takes nothing from the worker but a digest, a format and bounds. A keeper confines itself to its package,
bounds its memory, loads and measures the model, and forks predictors, which have the model loaded already: replacing one that was killed
takes a fork, not an import. Each of these processes ends when its parent does. Only msgpack of plain values goes back to the worker.
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
_PROBE_CPU_S = 3
_FILES = 256


_DIGEST = re.compile(r"[0-9a-f]{64}")


TOO_LARGE = Unavailable("the model does not fit into its memory limit")


class KeepRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The worker's message to the nursery: start a keeper of one package. Sizes in MiB, times in milliseconds and seconds."""

    digest: str
    form: str
    memory_mb: int
    inline_ms: float
    max_rows: int
    deadline_s: float


def start_nursery(bundle: Path, *, sandbox: str, close: list[int]) -> socket.socket:
    """Fork the nursery; returns the worker's end of its socket. Call it before threads are started and before secrets are read.

    ``close``: descriptors that the nursery must not have.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    if os.fork() == 0:
        _run_child(
            parent, lambda: _run_nursery(theirs, bundle / "packages", sandbox), close=[ours.fileno(), *close]
        )
    theirs.close()
    return ours


def _run_child(parent: int, work: Callable[[], None], *, close: list[int]) -> NoReturn:
    """Run ``work`` in a child process after a fork, then exit; never returns into the parent's code."""
    status = 1
    try:
        die_with_parent(parent)
        # The parent decides: this process ends when the parent's end of the socket closes.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        # Stdin has the options with the key, and on stdout the server announces itself: a model gets neither.
        for standard in (0, 1):
            os.dup2(null, standard)
        os.close(null)
        for fd in close:
            with contextlib.suppress(OSError):
                os.close(fd)
        work()
        status = 0
    except BaseException as error:  # noqa: BLE001 - reported as the last act of this process
        sys.stderr.write(
            f"mainspring serving: a model process ended: {type(error).__name__}: {str(error)[:300]}\n"
        )
    finally:
        sys.stderr.flush()
        os._exit(status)


def _run_nursery(control: socket.socket, packages: Path, sandbox: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are reaped by the kernel
    # Threads of a parent do not exist after a fork: libraries must start none while they are imported.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import mainspring.serving.versions  # noqa: F401 - so that keepers have it loaded after the fork

    code_places()  # cached for keepers, which cannot look for them once they are confined
    memory = _open_readonly("/proc/self/statm")
    while True:
        data, fds, _, _ = socket.recv_fds(control, MAX_MESSAGE, 1)
        if not data:
            return
        request = msgspec.json.decode(data, type=KeepRequest)
        if not _DIGEST.fullmatch(request.digest):
            return
        import_libraries(request.form)
        size, parent = _read_size(memory), os.getpid()
        if os.fork() == 0:
            keep = functools.partial(
                _run_keeper, socket.socket(fileno=fds[0]), packages / request.digest, sandbox, request, size
            )
            _run_child(parent, keep, close=[control.fileno(), memory])
        os.close(fds[0])


def import_libraries(form: str) -> None:
    """Import the modules that packages of a format need. What is missing is skipped here, and reported when the package is loaded."""
    from mainspring.models.formats.table import model_format, names

    for name in model_format(form).modules if form in names() else ():
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def memory_for(folder: Path, options: ServeOptions) -> int:
    """What the package in ``folder`` may allocate, in MiB: the operator's bound, and four times its own size, which parsing needs."""
    return options.model_memory_mb + (4 * sum(f.stat().st_size for f in folder.iterdir()) >> 20)


def address_space() -> int | None:
    """The size of this process's address space in bytes; None if the system has no ``/proc``. Call it before the process is confined."""
    memory = _open_readonly("/proc/self/statm")
    try:
        return _read_size(memory)
    finally:
        if memory >= 0:
            os.close(memory)


def _open_readonly(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return -1


def _read_size(memory: int) -> int | None:
    """The address space in bytes, from a descriptor of ``/proc/self/statm``; None without one."""
    if memory < 0:
        return None
    return int(os.pread(memory, 64, 0).split()[0]) * resource.getpagesize()


def _run_keeper(
    control: socket.socket, folder: Path, sandbox: str, request: KeepRequest, size: int | None
) -> None:
    from mainspring.serving.versions import open_version

    control.send(b'{"event":"begun"}')
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    confine(read=[folder], write=[], mode=sandbox, processes=True)
    bound_memory(size, request.memory_mb)
    signal.alarm(math.ceil(request.deadline_s))  # ends a load that hangs: the kernel kills this process
    try:
        version, why = open_version(
            folder, request.digest, inline_ms=request.inline_ms, max_rows=request.max_rows
        )
        if (
            why is None
            and request.max_rows
            and not _succeeds_in_child(lambda: version.try_rows(request.max_rows))
        ):
            why = f"{request.max_rows} rows take more memory or time than a server's own process may spend"
        report: dict[str, Any] = {"event": "loaded", "why": why, "single_us": version.single_us}
    except MainspringError as error:
        report = {"event": "failed", "error": error.to_dict()}
    except MemoryError:
        report = {"event": "failed", "error": TOO_LARGE.to_dict()}
    control.send(json.dumps(report, default=str).encode()[:MAX_MESSAGE])
    signal.alarm(0)
    # A message names a lane: kill its predictor, if any, and fork another on the socket that came with the message.
    predictors: dict[str, int] = {}
    while report["event"] == "loaded":
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
            _run_child(
                parent,
                functools.partial(_predict_forever, version, stream, sandbox),
                close=[control.fileno()],
            )
        predictors[data.decode()] = pid
        stream.close()


def bound_memory(size: int | None, memory_mb: int) -> None:
    """Let this process allocate ``memory_mb`` MiB beside ``size``, the bytes of address space that it has; no core dump, few open files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    if size is not None:
        limit = size + (memory_mb << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _succeeds_in_child(work: Callable[[], None]) -> bool:
    """Whether ``work`` succeeds in a child process with the same memory limit and a few seconds of processor time."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        with open(os.devnull, "w") as quiet:  # noqa: PTH123 - a failure is expected, and its message is noise
            sys.stderr = quiet
            resource.setrlimit(resource.RLIMIT_CPU, (_PROBE_CPU_S, _PROBE_CPU_S))
            _run_child(parent, work, close=[])
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
