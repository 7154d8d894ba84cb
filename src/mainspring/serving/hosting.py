"""Models in processes of their own, seen from the worker: start, ask within the deadline, kill, replace.

A model whose cost may depend on the values of a request (``models.formats.Cost``) never runs in the worker: its time is
held by killing its process, its memory by a limit on it, and other deployments do not notice. See ``model_process`` for the other side.
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
from mainspring.serving.model_process import LENGTH, MAX_MESSAGE, Asked, memory_for
from mainspring.serving.options import ServeOptions

logger = logging.getLogger("mainspring.serving")

_REPLY_BYTES, _ROW_BYTES, _SCORE_BYTES = 4096, 8, 9
"""The most that an answer may take: an error's text, and for each row a list of so many numbers. What a model's process sends becomes
objects here, many times its size."""

_IMPORT_S = 600.0
_REVIVE_S = (0.0, 1.0, 5.0, 30.0)


class _Refusal(msgspec.Struct):
    """What is wrong with a row. Its class and code are ours to say, whatever the process sends."""

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
    """What a keeper found out about its package. ``why``: why it may not be predicted by the worker itself."""

    why: str | None
    single_us: float


class Nursery:
    """The worker's way to new model processes."""

    def __init__(self, control: socket.socket, options: ServeOptions) -> None:
        self._control = control
        self._options = options
        self._lock = threading.Lock()

    def keep(self, folder: Path, digest: str, form: str) -> tuple[socket.socket, Loaded]:
        """A keeper that has loaded the package, and what it found. Blocks; raises what loading raised, or that it took too long."""
        options = self._options
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = Asked(
            digest=digest,
            form=form,
            memory_mb=memory_for(folder, options),
            inline_ms=options.inline_ms,
            max_rows=options.max_rows,
            deadline_s=options.load_deadline_s,
        )
        try:
            with self._lock:
                socket.send_fds(self._control, [msgspec.json.encode(asked)], [theirs.fileno()])
            theirs.close()
            return ours, _hear(ours, options.load_deadline_s, digest)
        except BaseException:
            ours.close()
            theirs.close()
            raise


def _hear(control: socket.socket, within_s: float, digest: str) -> Loaded:
    for patience in (
        _IMPORT_S,
        within_s,
    ):  # libraries first, once, however long the machine takes; then the package
        ready, _, _ = select.select([control], [], [], patience)
        if not ready:
            raise DeadlineExceeded(f"the package did not load within {within_s:g} s", value=digest)
        data = control.recv(MAX_MESSAGE)
        if not data:
            raise Unavailable(
                "the process that loads the package died, most likely of its memory limit or its deadline",
                value=digest,
            )
    told = json.loads(data)
    if told["event"] == "failed":
        raise from_dict(told["error"])
    return Loaded(why=told["why"], single_us=float(told["single_us"]))


class Hosted:
    """One package in processes of its own. Used from one event loop; made and revived in threads."""

    def __init__(
        self, nursery: Nursery, folder: Path, digest: str, form: str, options: ServeOptions, *, width: int
    ) -> None:
        self._start: Callable[[], tuple[socket.socket, Loaded]] = functools.partial(
            nursery.keep, folder, digest, form
        )
        self._control, self.loaded = self._start()
        self._digest = digest
        self._width = width
        self._options = options
        self._lanes = {name: _Lane(name, self, options) for name in ("primary", "shadow")}
        self._reviving: asyncio.Task[None] | None = None

    def close(self) -> None:
        """End its processes: they see the socket close."""
        self._control.close()

    @property
    def full(self) -> bool:
        """Whether the next request would be refused."""
        return self._lanes["primary"].places.full

    async def scores(
        self, columns: Mapping[str, Sequence[Any]], rows: int, *, lane: str = "primary"
    ) -> list[Any]:
        """What the model answers, unchecked. Raises :class:`InvalidInput` (it refuses a row), :class:`ModelFailed`,
        :class:`DeadlineExceeded`, ``Overloaded`` or :class:`Unavailable` while its process is being made anew."""
        most = _REPLY_BYTES + rows * (_ROW_BYTES + self._width * _SCORE_BYTES)
        return await self._lanes[lane].ask(_encode([rows, columns]), most)

    def serve(self, lane: str) -> socket.socket:
        """A new predictor for a lane; the one before is killed. Raises :class:`Unavailable` if the keeper is gone."""
        if self._reviving is not None:
            raise self._gone()
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(self._control, [lane.encode()], [theirs.fileno()])
        except OSError:
            ours.close()
            self._reviving = asyncio.get_running_loop().create_task(self._revive())
            raise self._gone() from None
        finally:
            theirs.close()
        ours.setblocking(False)
        return ours

    async def _revive(self) -> None:
        """The keeper died (killed from outside, or by the system for its memory): start another, with growing pauses."""
        loop = asyncio.get_running_loop()
        try:
            for attempt in range(1_000_000):
                await asyncio.sleep(_REVIVE_S[min(attempt, len(_REVIVE_S) - 1)])
                try:
                    control, _ = await loop.run_in_executor(None, self._start)
                except (MainspringError, OSError) as error:
                    logger.error("package %s does not load again: %s", self._digest[:12], error)  # noqa: TRY400
                    continue
                self._control.close()
                self._control = control
                return
        finally:
            self._reviving = None

    def _gone(self) -> Unavailable:
        return Unavailable(
            "the model's process ended and is being started again", next_step="Try again after a second."
        )


class _Lane:
    """One predictor, one request at a time."""

    def __init__(self, name: str, host: Hosted, options: ServeOptions) -> None:
        self._name = name
        self._host = host
        self._deadline_s = options.deadline_s
        self.places = Places(slots=1, queue=options.queue, queue_deadline_s=options.queue_deadline_s)
        self._stream: socket.socket | None = None

    async def ask(self, message: bytes, most: int) -> list[Any]:
        async with self.places.place():
            stream = self._stream = self._stream or self._host.serve(self._name)
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
        """Kill the predictor by asking for the next one."""
        stream.close()
        self._stream = None
        try:
            self._stream = self._host.serve(self._name)
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
