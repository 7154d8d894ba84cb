"""From declared operations to HTTP: one translation for every room.

``/api/v1/{project}/{room}/{operation}``: operations that change state are POST with a JSON object as body, others GET
with one query parameter per argument (text as it is, anything else as JSON). Uploads are POST with the arguments in
the query and the bytes as body. An ``Idempotency-Key`` makes a retried POST return the first answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import queue
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mainspring.errors import (
    DeadlineExceeded,
    InvalidInput,
    KeyTaken,
    MainspringError,
    SlowRequest,
    TooLarge,
    UnsupportedMedia,
    near,
)
from mainspring.operations import (
    MIB,
    Download,
    Kind,
    Operation,
    Principal,
    acting,
    authorise,
    operations_of,
)
from mainspring.records.base import to_json
from mainspring.server.codec import decode_object
from mainspring.server.hosted import Bound

PREFIX = "/api/v1"
log = logging.getLogger("mainspring.server")

RoomFinder = Callable[[str, str], Awaitable[Bound]]
"""``(project, room name)`` to the room object; raises NotFound for a project that does not exist or in which the caller has
no role."""
UPLOADS = 16
"""Uploads that are stored at once; each occupies a thread for as long as its client sends."""
IDLE_S = 60.0
"""Seconds that an upload may pause."""
BODY_S = 120.0
"""Seconds that a JSON body may take to arrive."""
LARGE = 1 * MIB
"""JSON bodies above this many bytes are decoded :data:`LARGE_AT_ONCE` at a time."""
LARGE_AT_ONCE = 2


class Keys:
    """Runs the calls with one idempotency key of a project one after another, so that a retry finds the stored answer instead of
    running beside the first call."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def hold(self, project: str, name: str | None) -> AsyncIterator[None]:
        if name is None:
            yield
            return
        key = (project, name)
        lock, waiting = self._held.get(key, (asyncio.Lock(), 0))
        self._held[key] = (lock, waiting + 1)
        try:
            async with lock:
                yield
        finally:
            _, waiting = self._held.pop(key)
            if waiting > 1:
                self._held[key] = (lock, waiting - 1)


class OperationRoute:
    """One operation behind HTTP."""

    def __init__(
        self,
        operation: Operation,
        find: RoomFinder,
        keys: Keys,
        uploads: anyio.CapacityLimiter,
        large: anyio.CapacityLimiter,
    ) -> None:
        self.operation = operation
        self._find = find
        self._keys = keys
        self._uploads = uploads
        self._large = large

    async def __call__(self, request: Request) -> Response:
        try:
            return await self._run(request)
        except ClientDisconnect:
            raise  # answered once for all routes (server.app)
        except MainspringError as error:
            return error_response(error)
        except Exception:
            log.exception("operation %s failed", self.operation.id)
            return error_response(
                MainspringError("internal error", next_step="The server's log has the details.")
            )

    async def _run(self, request: Request) -> Response:
        operation = self.operation
        bound = await self._find(request.path_params["project"], operation.room)
        # The role is checked before anything of the request is read, and before a stored answer is repeated.
        principal = authorise(bound.room, operation.id, operation.policy.role)
        twice = next(
            (n for n, v in request.query_params.items() if request.query_params.getlist(n) != [v]), None
        )
        if twice is not None:
            raise InvalidInput("a query parameter is sent twice", value=twice)
        key = _idempotency_key(request) if operation.policy.changes and operation.policy.keyed else None
        if operation.policy.kind is Kind.UPLOAD:
            return await self._upload(request, bound, principal, key)
        if operation.policy.changes:
            arguments = await self._arguments(await _json_body(request, operation.policy.max_body))
        else:
            arguments = query_arguments(operation, _read_query(request))
        return await self._within_deadline(bound, principal, arguments, key)

    async def _arguments(self, body: bytes) -> dict[str, Any]:
        """The arguments in a body, decoded in a thread; large ones a few at a time, since decoded values take many times the bytes."""

        def convert() -> dict[str, Any]:
            return convert_arguments(self.operation, decode_object(body))

        limiter = self._large if len(body) > LARGE else None
        return await anyio.to_thread.run_sync(convert, limiter=limiter)

    async def _within_deadline(
        self, bound: Bound, principal: Principal, arguments: dict[str, Any], key: str | None
    ) -> Response:
        """The answer, or an error after the operation's deadline. Its thread cannot be stopped and goes on alone.

        The key stays locked until the thread is done, so that a retry waits for its result and does not run beside it.
        """

        async def run() -> Response:
            async with self._keys.hold(bound.ledger.project, key):
                return await anyio.to_thread.run_sync(self._call, bound, principal, arguments, key)

        limit = self.operation.policy.deadline_s
        working = asyncio.create_task(run())
        done, _ = await asyncio.wait({working}, timeout=limit)
        if not done:
            working.add_done_callback(_log_late_failure(self.operation.id))
            raise DeadlineExceeded(
                f"{self.operation.id} takes longer than {limit:g} s",
                next_step="It may still be done: repeat the call with the same idempotency key."
                if key
                else "Look whether it was done before you repeat it.",
            )
        return working.result()

    def _call(
        self, bound: Bound, principal: Principal, arguments: dict[str, Any], key: str | None
    ) -> Response:
        operation = getattr(bound.room, self.operation.name)
        if key is None:
            result = operation(**arguments)
            if isinstance(result, Download):
                return _download_response(result)
            return Response(to_json(result), media_type="application/json")
        named = {k: v for k, v in arguments.items() if k != "body"}
        stored = bound.ledger.replay(key=key, operation=self.operation.id, arguments=named)
        if stored is not None:
            return _replay_response(stored)
        try:
            with acting(principal, key=key) as settlement:
                answer = to_json(operation(**arguments))
            bound.ledger.settle(
                key=key, operation=self.operation.id, arguments=named, answer=answer, settlement=settlement
            )
        except KeyTaken:
            # Another process has used the key meanwhile, so this call's transaction was rolled back
            stored = bound.ledger.replay(key=key, operation=self.operation.id, arguments=named)
            if stored is None:
                raise
            return _replay_response(stored)
        return Response(answer, media_type="application/json")

    async def _upload(
        self, request: Request, bound: Bound, principal: Principal, key: str | None
    ) -> Response:
        if (
            request.headers.get("content-type", "application/octet-stream").split(";")[0]
            != "application/octet-stream"
        ):
            raise UnsupportedMedia(
                "uploads are raw bytes",
                value=request.headers["content-type"],
                next_step="Send application/octet-stream.",
            )
        arguments = query_arguments(self.operation, _read_query(request))
        async with self._keys.hold(bound.ledger.project, key):
            pipe = _Pipe(self.operation.policy.max_body, deadline_s=self.operation.policy.deadline_s)
            feeder = asyncio.create_task(pipe.feed(request))
            try:
                return await anyio.to_thread.run_sync(
                    self._call, bound, principal, arguments | {"body": pipe}, key, limiter=self._uploads
                )
            finally:
                feeder.cancel()


def _log_late_failure(operation: str) -> Callable[[asyncio.Task[Response]], None]:
    """A callback that logs the failure of a call whose deadline has passed: no client receives it."""

    def note(task: asyncio.Task[Response]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.warning("%s failed after its deadline: %s", operation, task.exception())

    return note


class _Pipe:
    """The bytes of a request, read by a thread while the event loop feeds them; holds at most eight pieces.

    The feeding side runs on the event loop and needs no thread: if readers held all threads while it waited for one, neither could
    go on.
    """

    def __init__(self, limit: int, *, deadline_s: float, idle_s: float = IDLE_S) -> None:
        self._queue: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self._free = asyncio.Semaphore(8)
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._idle_s = idle_s
        self._end = time.monotonic() + deadline_s

    async def feed(self, request: Request) -> None:
        received = 0
        last: Exception | None = InvalidInput("the upload broke off")
        try:
            async for piece in request.stream():
                received += len(piece)
                if received > self._limit:
                    raise TooLarge("the body is too large", value=f"more than {self._limit} bytes")
                if piece:
                    await self._free.acquire()
                    self._queue.put(piece)
            last = None
        except MainspringError as error:
            last = error
        except ClientDisconnect:
            pass
        finally:
            self._queue.put(last)  # in every case the reader gets an end, so that it does not wait for ever

    def __iter__(self) -> Iterator[bytes]:
        while True:
            wait = min(self._idle_s, self._end - time.monotonic())
            try:
                item = self._queue.get(timeout=max(0.0, wait))
            except queue.Empty:
                raise DeadlineExceeded("the upload takes too long", next_step="Send it again.") from None
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            with contextlib.suppress(RuntimeError):  # the server stopped meanwhile
                self._loop.call_soon_threadsafe(self._free.release)
            yield item


def build_routes(rooms: Mapping[str, type], find: RoomFinder) -> list[Route]:
    """Routes of all operations of all rooms. Raises TypeError for an operation without policy: the server then does not start."""
    routes = []
    keys, uploads, large = (
        Keys(),
        anyio.CapacityLimiter(UPLOADS),
        anyio.CapacityLimiter(LARGE_AT_ONCE),
    )
    for room in rooms.values():
        for operation in operations_of(room).values():
            method = "POST" if operation.policy.changes or operation.policy.kind is Kind.UPLOAD else "GET"
            endpoint = OperationRoute(operation, find, keys, uploads, large)
            path = f"{PREFIX}/{{project}}/{operation.room}/{operation.name}"
            routes.append(Route(path, endpoint.__call__, methods=[method], name=operation.id))
    return routes


def _read_query(request: Request) -> Mapping[str, str]:
    """The query's parameters. Text that is not UTF-8 is refused; Starlette would replace it silently."""
    from urllib.parse import unquote_to_bytes

    try:
        unquote_to_bytes(request.scope["query_string"]).decode()
    except UnicodeDecodeError:
        raise InvalidInput("the query is not UTF-8", place=request.url.path) from None
    return request.query_params


def query_arguments(operation: Operation, query: Mapping[str, str]) -> dict[str, Any]:
    """Arguments from query parameters: text stays text, everything else is JSON."""
    raw: dict[str, Any] = {}
    for name, value in query.items():
        if name not in operation.types or takes_text(operation.types[name]):
            raw[name] = value
        else:
            raw[name] = _decode_parameter(name, value)
    return convert_arguments(operation, raw)


def _decode_parameter(name: str, value: str) -> Any:
    """One JSON value, by the same strict rules as a body."""
    try:
        document = decode_object(b'{"value":' + value.encode() + b"}")
    except (InvalidInput, UnicodeEncodeError):
        document = {}
    if list(document) != ["value"]:
        raise InvalidInput("this query parameter must be JSON", value=value, place=name)
    return document["value"]


def takes_text(kind: Any) -> bool:
    """Whether an argument of this type is plain text in a query: ``str`` and types made from one string, possibly optional."""
    import types
    import typing
    from datetime import datetime

    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return takes_text(typing.get_args(kind)[0])
    if origin in {typing.Union, types.UnionType}:
        members = set(typing.get_args(kind)) - {type(None)}
        # In a union with text, a number is sent as text too.
        return all(takes_text(a) for a in members - {int}) and members != {int}
    if origin is typing.Literal:
        return all(isinstance(a, str) for a in typing.get_args(kind))
    return isinstance(kind, type) and issubclass(kind, (str, datetime))


def convert_arguments(operation: Operation, raw: dict[str, Any]) -> dict[str, Any]:
    """The arguments in their declared types; raises InvalidInput that names the wrong one."""
    expected = {k for k in operation.parameters if k != "body"}
    for name in raw:
        if name not in expected:
            raise InvalidInput(
                "unknown argument",
                value=name,
                place=operation.id,
                next_step=near(name, expected, what="argument"),
            )
    arguments = {}
    for name in expected:
        parameter = operation.parameters[name]
        if name not in raw:
            if parameter.default is parameter.empty:
                raise InvalidInput("an argument is missing", value=name, place=operation.id)
            continue
        try:
            arguments[name] = msgspec.convert(raw[name], operation.types[name])
        except msgspec.ValidationError as error:
            raise InvalidInput(
                f"wrong argument: {error}", value=raw[name], place=f"{operation.id}.{name}"
            ) from None
    return arguments


async def _json_body(request: Request, limit: int) -> bytes:
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise UnsupportedMedia(
            "the body must be JSON",
            value=request.headers.get("content-type", "(none)"),
            next_step="Send Content-Type: application/json.",
        )
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) > limit:
        raise TooLarge(
            "the body is too large", value=f"{declared} bytes", next_step=f"At most {limit} bytes here."
        )
    pieces, received = [], 0
    try:
        with anyio.fail_after(BODY_S):
            async for piece in request.stream():
                received += len(piece)
                if received > limit:
                    raise TooLarge(
                        "the body is too large",
                        value=f"more than {limit} bytes",
                        next_step=f"At most {limit} bytes here.",
                    )
                pieces.append(piece)
    except TimeoutError:
        raise SlowRequest(f"the body did not arrive within {BODY_S:g} s") from None
    return b"".join(pieces)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= 200 and key.isprintable()):
        raise InvalidInput("an idempotency key is 1 to 200 printable characters", value=key)
    return key


def _replay_response(stored: bytes) -> Response:
    return Response(stored, media_type="application/json", headers={"idempotent-replay": "true"})


def _download_response(result: Download) -> Response:
    """A streamed answer. Its first piece is read before the status is sent, so that an error can still become an error response."""
    headers = {"content-disposition": "attachment"}
    if result.name is not None:
        from urllib.parse import quote

        headers["content-disposition"] = f"attachment; filename*=UTF-8''{quote(result.name, safe='')}"
    if result.size is not None:
        headers["content-length"] = str(result.size)
    chunks = iter(result.chunks)
    first = list(itertools.islice(chunks, 1))
    return StreamingResponse(
        _stream_from_thread(first, chunks), media_type=result.media_type, headers=headers
    )


async def _stream_from_thread(first: list[bytes], chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    end = object()
    try:
        for piece in first:
            yield piece
        while (piece := await anyio.to_thread.run_sync(next, chunks, end)) is not end:  # type: ignore[arg-type]
            yield piece
    finally:  # also after a disconnect: files are closed now, not at the next garbage collection
        close = getattr(chunks, "close", None)
        if close is not None:
            close()


def error_response(error: MainspringError) -> Response:
    """The error as JSON with its HTTP status; 503 asks the client to retry after a second."""
    headers = {"retry-after": "1"} if error.status == 503 else None
    fields = error.to_dict()
    # Clients must not learn paths of this machine: only the last part is sent (SAFETY L01)
    for field in (
        "place",
        "value",
    ):
        text = fields.get(field)
        if isinstance(text, str) and text.startswith("/") and (field == "place" or error.status >= 500):
            log.warning("%s: %s", error.code, error)
            fields[field] = text.rpartition("/")[2]
    return Response(
        to_json({"error": fields}),
        status_code=error.status,
        media_type="application/json",
        headers=headers,
    )
