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
"""``(project, room name)`` to the room object; raises NotFound for a project that is not there for the caller."""
UPLOADS = 16
"""Uploads that are stored at once; each holds a thread as long as its client sends."""
IDLE_S = 60.0
"""How long an upload may stand still."""
BODY_S = 120.0
"""How long a JSON body may take to arrive."""
LARGE = 1 * MIB
"""JSON bodies above this many bytes are decoded :data:`LARGE_AT_ONCE` at a time."""
LARGE_AT_ONCE = 2


class Keys:
    """Calls with one idempotency key of a project go one after another, so that a retry meets the answer and not the work."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def hold(self, project: str, named: str | None) -> AsyncIterator[None]:
        if named is None:
            yield
            return
        key = (project, named)
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
        # Before anything of the request is read, and before a stored answer is repeated: the operation's own question.
        principal = authorise(bound.room, operation.id, operation.policy.role)
        twice = next(
            (n for n, v in request.query_params.items() if request.query_params.getlist(n) != [v]), None
        )
        if twice is not None:
            raise InvalidInput("a query parameter stands twice", value=twice)
        key = _idempotency_key(request) if operation.policy.changes and operation.policy.keyed else None
        if operation.policy.kind is Kind.UPLOAD:
            return await self._upload(request, bound, principal, key)
        if operation.policy.changes:
            arguments = await self._arguments(await _json_body(request, operation.policy.max_body))
        else:
            arguments = query_arguments(operation, _query_of(request))
        return await self._within_deadline(bound, principal, arguments, key)

    async def _arguments(self, body: bytes) -> dict[str, Any]:
        """The arguments in a body, decoded off the event loop; large ones a few at a time, since decoding multiplies their size."""

        def convert() -> dict[str, Any]:
            return convert_arguments(self.operation, decode_object(body))

        limiter = self._large if len(body) > LARGE else None
        return await anyio.to_thread.run_sync(convert, limiter=limiter)

    async def _within_deadline(
        self, bound: Bound, principal: Principal, arguments: dict[str, Any], key: str | None
    ) -> Response:
        """The answer, or after the operation's deadline an error: its thread cannot be stopped, but nobody waits for it.

        The key stays held until the thread is done, so a retry meets its result and does not run beside it.
        """

        async def run() -> Response:
            async with self._keys.hold(bound.ledger.project, key):
                return await anyio.to_thread.run_sync(self._call, bound, principal, arguments, key)

        limit = self.operation.policy.deadline_s
        working = asyncio.create_task(run())
        done, _ = await asyncio.wait({working}, timeout=limit)
        if not done:
            working.add_done_callback(_late(self.operation.id))
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
                return _download(result)
            return Response(to_json(result), media_type="application/json")
        named = {k: v for k, v in arguments.items() if k != "body"}
        stored = bound.ledger.replay(key=key, operation=self.operation.id, arguments=named)
        if stored is not None:
            return _again(stored)
        try:
            with acting(principal, key=key) as settlement:
                answer = to_json(operation(**arguments))
            bound.ledger.settle(
                key=key, operation=self.operation.id, arguments=named, answer=answer, settlement=settlement
            )
        except KeyTaken:  # by another process: what this call did in that decision is undone
            stored = bound.ledger.replay(key=key, operation=self.operation.id, arguments=named)
            if stored is None:
                raise
            return _again(stored)
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
        arguments = query_arguments(self.operation, _query_of(request))
        async with self._keys.hold(bound.ledger.project, key):
            pipe = _Pipe(self.operation.policy.max_body, deadline_s=self.operation.policy.deadline_s)
            feeder = asyncio.create_task(pipe.feed(request))
            try:
                return await anyio.to_thread.run_sync(
                    self._call, bound, principal, arguments | {"body": pipe}, key, limiter=self._uploads
                )
            finally:
                feeder.cancel()


def _late(operation: str) -> Callable[[asyncio.Task[Response]], None]:
    """Takes note of how a call ended that nobody waits for any more."""

    def note(task: asyncio.Task[Response]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.warning("%s failed after its deadline: %s", operation, task.exception())

    return note


class _Pipe:
    """The bytes of a request, read by a thread while the event loop feeds them; holds at most eight pieces.

    The feeding side takes no thread of its own: were it to wait for one while the readers held them all, nobody would go on.
    """

    def __init__(self, limit: int, *, deadline_s: float, idle_s: float = IDLE_S) -> None:
        self._queue: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self._free = asyncio.Semaphore(8)
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._idle_s = idle_s
        self._end = time.monotonic() + deadline_s

    async def feed(self, request: Request) -> None:
        seen = 0
        last: Exception | None = InvalidInput("the upload broke off")
        try:
            async for piece in request.stream():
                seen += len(piece)
                if seen > self._limit:
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
            self._queue.put(last)  # whatever happened here, the reader does not wait for ever

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


def _query_of(request: Request) -> Mapping[str, str]:
    """The query; text that is no UTF-8 is refused here, where it would otherwise be replaced in silence."""
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
            raw[name] = _json_of(name, value)
    return convert_arguments(operation, raw)


def _json_of(name: str, value: str) -> Any:
    """One JSON value, by the same strict rules as a body."""
    try:
        found = decode_object(b'{"value":' + value.encode() + b"}")
    except (InvalidInput, UnicodeEncodeError):
        found = {}
    if list(found) != ["value"]:
        raise InvalidInput("this query parameter must be JSON", value=value, place=name)
    return found["value"]


def takes_text(kind: Any) -> bool:
    """Whether an argument of this type travels as plain text in a query: ``str`` and what is made from one, possibly optional."""
    import types
    import typing
    from datetime import datetime

    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return takes_text(typing.get_args(kind)[0])
    if origin in {typing.Union, types.UnionType}:
        members = set(typing.get_args(kind)) - {type(None)}
        return all(takes_text(a) for a in members - {int}) and members != {
            int
        }  # a number may also be sent as text
    if origin is typing.Literal:
        return all(isinstance(a, str) for a in typing.get_args(kind))
    return isinstance(kind, type) and issubclass(kind, (str, datetime))


def convert_arguments(operation: Operation, raw: dict[str, Any]) -> dict[str, Any]:
    """Check names and types; raises InvalidInput naming the argument."""
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
    pieces, seen = [], 0
    try:
        with anyio.fail_after(BODY_S):
            async for piece in request.stream():
                seen += len(piece)
                if seen > limit:
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


def _again(stored: bytes) -> Response:
    return Response(stored, media_type="application/json", headers={"idempotent-replay": "true"})


def _download(result: Download) -> Response:
    """A streamed answer. Its first piece is read now, while an error can still be told as one."""
    headers = {"content-disposition": "attachment"}
    if result.name is not None:
        from urllib.parse import quote

        headers["content-disposition"] = f"attachment; filename*=UTF-8''{quote(result.name, safe='')}"
    if result.size is not None:
        headers["content-length"] = str(result.size)
    chunks = iter(result.chunks)
    first = list(itertools.islice(chunks, 1))
    return StreamingResponse(_threaded(first, chunks), media_type=result.media_type, headers=headers)


async def _threaded(first: list[bytes], chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    end = object()
    try:
        for piece in first:
            yield piece
        while (piece := await anyio.to_thread.run_sync(next, chunks, end)) is not end:  # type: ignore[arg-type]
            yield piece
    finally:  # also when the client went away: files are closed now, not when somebody collects garbage
        close = getattr(chunks, "close", None)
        if close is not None:
            close()


def error_response(error: MainspringError) -> Response:
    headers = {"retry-after": "1"} if error.status == 503 else None
    told = error.to_dict()
    for field in (
        "place",
        "value",
    ):  # where things lie on this machine is nobody's business elsewhere (SAFETY L01)
        text = told.get(field)
        if isinstance(text, str) and text.startswith("/") and (field == "place" or error.status >= 500):
            log.warning("%s: %s", error.code, error)
            told[field] = text.rpartition("/")[2]
    return Response(
        to_json({"error": told}),
        status_code=error.status,
        media_type="application/json",
        headers=headers,
    )
