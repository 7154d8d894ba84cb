"""The control-plane process: one per workspace, holding its server lock, with the loop beside it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mainspring.config import Settings, child_environment, served
from mainspring.errors import Conflict, MainspringError, WorkspaceLocked
from mainspring.operations import Principal, Role, acting, named_only
from mainspring.server.access import access_for, ensure_token
from mainspring.server.hosted import Hosted
from mainspring.server.tokens import Tokens
from mainspring.workspace import Workspace

log = logging.getLogger("mainspring.server")


@dataclass(frozen=True)
class Options:
    """How to run. ``tick_s``: seconds between rounds of the loop; None leaves ticking to whoever calls ``loop.tick``."""

    host: str = "127.0.0.1"
    port: int = 8700
    tick_s: float | None = 10.0
    auth: str | None = None


def serve(workspace: Workspace, options: Options, *, ready: Callable[[str], None]) -> None:
    """Run until SIGTERM or SIGINT. Calls ``ready(url)`` once requests are answered.

    Raises :class:`WorkspaceLocked` if another server has this workspace, :class:`Conflict` if the port is taken.
    """
    from mainspring.server.app import build_app
    from mainspring.server.connections import control_config
    from mainspring.server.pages import page_routes

    with server_lock(workspace.settings.home), named_only():
        token = ensure_token(workspace.settings.home)
        access = access_for(
            token,
            host=options.host,
            hosts=workspace.settings.config.server.hosts,
            public_auth=options.auth,
            issued=Tokens(workspace.settings.home),
        )
        hosted = Hosted(workspace, served(workspace.settings))
        app = build_app(hosted, access, pages=page_routes)
        listener = listen(options.host, options.port)
        _exit_on_lost_writes(workspace)
        workers = [Workers(followed.settings) for followed in hosted.followed]
        for worker, followed in zip(workers, hosted.followed, strict=True):
            followed.room("loop").start_worker = worker.start
        stop = threading.Event()
        ticker = threading.Thread(
            target=_tick, args=(hosted.followed, options.tick_s, stop), name="loop", daemon=True
        )
        recovering = threading.Thread(
            target=_recover_spools, args=(hosted.followed,), name="recover", daemon=True
        )
        server = _Server(control_config(app), started=lambda: ready(_format_url(listener)))
        try:
            recovering.start()
            if options.tick_s is not None:
                ticker.start()
            server.run(sockets=[listener])
        finally:
            stop.set()
            for worker in workers:
                worker.stop()
            recovering.join(timeout=10)
            listener.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise Conflict(
            f"cannot listen there: {error.strerror}",
            value=f"{host}:{port}",
            next_step="Choose another with --port, or --port 0 for any free one.",
        ) from None
    return listener


@contextlib.contextmanager
def server_lock(home: Path) -> Iterator[None]:
    """Hold the workspace's server lock.

    The kernel releases a file lock with its process, so a crashed server never blocks the next one. The file holds the pid only
    for the error message.
    """
    path = home / "locks" / "server.lock"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise WorkspaceLocked(
                "another server runs on this workspace",
                value=f"pid {holder}",
                place=str(home),
                next_step="Use that one, or stop it first.",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


class Workers:
    """One worker process for retraining jobs: ``mainspring loop follow`` in its own session, fed with ids on its stdin.

    It stays warm between jobs. User code runs there and in its children, never here. If it dies, the heartbeat of
    its job stops, the loop puts the job back into the queue, and the next :meth:`start` starts a new worker.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._assigned: set[str] = set()
        self._lock = threading.Lock()

    def start(self, job: str) -> None:
        """Send the job to the worker, unless it has been sent already."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start_process()
            if job in self._assigned:
                return
            self._assigned.add(job)
            assert self._process is not None  # noqa: S101 - started above
            assert self._process.stdin is not None  # noqa: S101
            # If the worker has just died, the loop puts the job back into the queue.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(f"{job}\n".encode())
                self._process.stdin.flush()

    def _start_process(self) -> None:
        self._assigned.clear()
        folder = self._settings.home / "workers"
        folder.mkdir(exist_ok=True, mode=0o700)
        with (folder / f"{self._settings.config.project.name}.log").open("ab") as log_file:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "mainspring.cli",
                    "-C",
                    str(self._settings.root),
                    "loop",
                    "follow",
                ],
                cwd=self._settings.root,
                env=child_environment(self._settings),
                stdin=subprocess.PIPE,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the worker process; an interrupted job is resumed after the next start."""
        with self._lock:
            process = self._process
            if process is None:
                return
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self._process = None


def _recover_spools(workspaces: Sequence[Workspace]) -> None:
    """Store what ended training processes left in the spool; in a thread of its own, since it may take long."""
    for workspace in workspaces:
        try:
            with acting(Principal("recovery", {workspace.project: Role.EDITOR}, kind="service")):
                shipped = workspace.tracking.recover()
        except MainspringError as error:
            log.warning("runs of %s are left in the spool: %s", workspace.project, error)
        except Exception:
            log.exception("runs of %s are left in the spool", workspace.project)
        else:
            if shipped:
                log.info("took in what %d ended runs had left in the spool", len(shipped))


def _tick(workspaces: Sequence[Workspace], every_s: float | None, stop: threading.Event) -> None:
    """Rounds of the loop for each project, until ``stop``; one that fails does not prevent the others."""
    while not stop.wait(every_s):
        for workspace in workspaces:
            try:
                with acting(Principal("loop", {workspace.project: Role.OPERATOR}, kind="service")):
                    workspace.room("loop").tick()
            except MainspringError as error:
                log.warning("the loop of %s skipped a round: %s", workspace.project, error)
            except Exception:
                log.exception("the loop of %s skipped a round", workspace.project)


def _exit_on_lost_writes(workspace: Workspace) -> None:
    """End the process after a failed fsync: the outcome of the commit is unknown until the database is opened again, so no answer
    may be sent."""
    engine: Any = workspace.base.store.engine
    if hasattr(engine, "on_write_failure"):

        def die(error: MainspringError) -> None:
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
            os._exit(70)

        engine.on_write_failure = die


def _format_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server:
    """uvicorn, with a callback at the moment it answers requests."""

    def __init__(self, config: Any, *, started: Callable[[], None]) -> None:
        from mainspring.server.connections import ControlServer

        class Announcing(ControlServer):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                # uvicorn raises the signal again when it is done. Here children and locks are released first, in their order.
                before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
                try:
                    yield
                finally:
                    for number, handler in before.items():
                        signal.signal(number, handler)

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                started()

        self._server = Announcing(config)

    def run(self, *, sockets: list[socket.socket]) -> None:
        self._server.run(sockets=sockets)
