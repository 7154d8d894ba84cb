"""The worker's side of models in processes of their own: start them, send requests with a deadline, kill and replace them.

A model whose cost may depend on the values of a request (``models.formats.Cost``) never runs in the worker. Its time is bounded by
killing its process, its memory by a limit of the process, and other deployments are not affected. ``model_process`` is the other side.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import select
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mainspring.errors import (
    DeadlineExceeded,
    InvalidInput,
    MainspringError,
    ModelFailed,
    Unavailable,
    from_dict,
)
from mainspring.serving.admission import Places
from mainspring.serving.model_process import LENGTH, MAX_MESSAGE, KeepRequest, memory_for
from mainspring.serving.options import ServeOptions

logger = logging.getLogger("mainspring.serving")

_REPLY_BYTES, _ROW_BYTES, _SCORE_BYTES = 4096, 8, 9
"""Bounds of an answer in bytes: an error's text, and for each row a list of so many numbers. Without a bound a model's process could
fill the worker's memory, since decoded objects are many times larger than the bytes."""

_IMPORT_S = 600.0
_RESTART_PAUSES_S = (0.0, 1.0, 5.0, 30.0)


class _Refusal(msgspec.Struct):
    """What is wrong with a row, as a model's process reports it. The worker alone decides the error's class and code."""

    message: str
    value: str | None = None
    place: str | None = None
    next_step: str | None = None

    def error(self) -> InvalidInput:
        return InvalidInput(self.message, value=self.value, place=self.place, next_step=self.next_step)


class _Reply(msgspec.Struct, forbid_unknown_fields=True):
    scores: list[Any] | None = None
    error: str | None = None
    refused: _Refusal | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Reply).decode


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a keeper reports about its package: ``why`` the worker must not predict with it (None: it may), and ``single_us``, the time of one
    row in microseconds."""

    why: str | None
    single_us: float


class Nursery:
    """Starts model processes for the worker. Used from several loading threads."""

    def __init__(self, control: socket.socket, options: ServeOptions) -> None:
        self._control = control
        self._options = options
        self._lock = threading.Lock()  # one message at a time on the socket, with its descriptor

    def start_keeper(self, folder: Path, digest: str, form: str) -> tuple[socket.socket, Loaded]:
        """Start a keeper that loads the package; returns its socket and its report. Blocks.

        Raises what loading raised, :class:`DeadlineExceeded` if it took too long, :class:`Unavailable` if its process died.
        """
        options = self._options
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = KeepRequest(
            digest=digest,
            form=form,
            memory_mb=memory_for(folder, options),
            inline_ms=options.inline_ms,
            max_rows=options.max_rows,
            deadline_s=options.load_deadline_s,
        )
        try:
            with self._lock:
                socket.send_fds(self._control, [msgspec.json.encode(request)], [theirs.fileno()])
            theirs.close()
            return ours, _await_report(ours, options.load_deadline_s, digest)
        except BaseException:
            ours.close()
            theirs.close()
            raise


def _await_report(control: socket.socket, within_s: float, digest: str) -> Loaded:
    # First the libraries, which are imported once and may take long, then the package.
    for limit_s in (_IMPORT_S, within_s):
        ready, _, _ = select.select([control], [], [], limit_s)
        if not ready:
            raise DeadlineExceeded(f"the package did not load within {within_s:g} s", value=digest)
        data = control.recv(MAX_MESSAGE)
        if not data:
            raise Unavailable(
                "the process that loads the package died, most likely of its memory limit or its deadline",
                value=digest,
            )
    report = json.loads(data)
    if report["event"] == "failed":
        raise from_dict(report["error"])
    return Loaded(why=report["why"], single_us=float(report["single_us"]))


class Hosted:
    """One package in processes of its own. Used from one event loop; started, and started again, in threads."""

    def __init__(
        self, nursery: Nursery, folder: Path, digest: str, form: str, options: ServeOptions, *, width: int
    ) -> None:
        self._start: Callable[[], tuple[socket.socket, Loaded]] = functools.partial(
            nursery.start_keeper, folder, digest, form
        )
        self._control, self.loaded = self._start()
        self._digest = digest
        self._width = width
        self._options = options
        self._lanes = {name: _Lane(name, self, options) for name in ("primary", "shadow")}
        self._restarting: asyncio.Task[None] | None = None

    def close(self) -> None:
        """End its processes, which end when the socket closes."""
        self._control.close()

    @property
    def full(self) -> bool:
        """Whether the next request would be refused."""
        return self._lanes["primary"].places.full

    async def scores(
        self, columns: Mapping[str, Sequence[Any]], rows: int, *, lane: str = "primary"
    ) -> list[Any]:
        """What the model answers, unchecked: one score for each row.

        Raises :class:`InvalidInput` (it refuses a row), :class:`ModelFailed`, :class:`DeadlineExceeded`, ``Overloaded``, or
        :class:`Unavailable` while its process is started again.
        """
        most = _REPLY_BYTES + rows * (_ROW_BYTES + self._width * _SCORE_BYTES)
        return await self._lanes[lane].exchange(_encode([rows, columns]), most)

    def start_predictor(self, lane: str) -> socket.socket:
        """Start a predictor for a lane; its old one is killed. Raises :class:`Unavailable` if the keeper is gone."""
        if self._restarting is not None:
            raise self._restarting_error()
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(self._control, [lane.encode()], [theirs.fileno()])
        except OSError:
            ours.close()
            self._restarting = asyncio.get_running_loop().create_task(self._restart())
            raise self._restarting_error() from None
        finally:
            theirs.close()
        ours.setblocking(False)
        return ours

    async def _restart(self) -> None:
        """Start another keeper after one died (killed from outside, or by the system for its memory), with growing pauses."""
        loop = asyncio.get_running_loop()
        try:
            for attempt in range(1_000_000):
                await asyncio.sleep(_RESTART_PAUSES_S[min(attempt, len(_RESTART_PAUSES_S) - 1)])
                try:
                    control, _ = await loop.run_in_executor(None, self._start)
                except (MainspringError, OSError) as error:
                    logger.error("package %s does not load again: %s", self._digest[:12], error)  # noqa: TRY400
                    continue
                self._control.close()
                self._control = control
                return
        finally:
            self._restarting = None

    def _restarting_error(self) -> Unavailable:
        return Unavailable(
            "the model's process ended and is being started again", next_step="Try again after a second."
        )


class _Lane:
    """One predictor process, which answers one request at a time."""

    def __init__(self, name: str, host: Hosted, options: ServeOptions) -> None:
        self._name = name
        self._host = host
        self._deadline_s = options.deadline_s
        self.places = Places(slots=1, queue=options.queue, queue_deadline_s=options.queue_deadline_s)
        self._stream: socket.socket | None = None

    async def exchange(self, message: bytes, most: int) -> list[Any]:
        """Send a request and await its scores; ``most``: bytes that the answer may have. After any failure the process is replaced,
        because its stream may still hold the answer to this request."""
        async with self.places.place():
            stream = self._stream = self._stream or self._host.start_predictor(self._name)
            try:
                reply = _decode(await asyncio.wait_for(_exchange(stream, message, most), self._deadline_s))
            except TimeoutError:
                self._replace(stream)
                raise DeadlineExceeded(
                    f"the prediction took longer than {self._deadline_s:g} s and was stopped",
                    next_step="Send fewer rows.",
                ) from None
            except (OSError, EOFError, msgspec.DecodeError):
                self._replace(stream)
                raise ModelFailed(
                    "the model's process died while it predicted, most likely of its memory limit"
                ) from None
            except BaseException:
                self._replace(stream)
                raise
        if reply.refused is not None:
            raise reply.refused.error()
        if reply.scores is None:
            raise ModelFailed(f"the model failed: {reply.error}")
        return reply.scores

    def _replace(self, stream: socket.socket) -> None:
        """Replace the predictor: starting the next one kills it."""
        stream.close()
        self._stream = None
        try:
            self._stream = self._host.start_predictor(self._name)
        except Unavailable as error:
            logger.warning("%s", error)


async def _exchange(stream: socket.socket, message: bytes, most: int) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(stream, LENGTH.pack(len(message)) + message)
    (size,) = LENGTH.unpack(await _receive(loop, stream, LENGTH.size))
    if size > most:
        raise EOFError
    return await _receive(loop, stream, size)


async def _receive(loop: asyncio.AbstractEventLoop, stream: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await loop.sock_recv(stream, min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
