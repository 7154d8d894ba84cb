"""The ASGI app of a worker: the steps of every request, whatever its dialect (``dialects/``).

Check of host and key, body, repeated requests, decoding, prediction, answer, shadows. Beside the dialects it serves GET /metrics and
POST /v1/feedback.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from mainspring.errors import InvalidInput, MainspringError, MethodNotAllowed, NotFound, Overloaded
from mainspring.records.base import new_id
from mainspring.serving.bundle import Failure
from mainspring.serving.codec import Call, parse_time
from mainspring.serving.core import Answer, Core
from mainspring.serving.dialects import DIALECTS, AnyDialect, MakeDialect
from mainspring.serving.dialects.dialect import READ, ModelQuestion, Prediction, ServerQuestion, ServerState
from mainspring.serving.feedback import read_feedback
from mainspring.serving.lookup import find_deployment, find_version
from mainspring.serving.repeats import HEADER, Repeats
from mainspring.serving.table import LiveDeployment, LiveTable, LiveTarget
from mainspring.serving.wire import (
    JSON,
    METRICS_TEXT,
    Bodies,
    Disconnected,
    Gate,
    Headers,
    RawHeaders,
    Receive,
    Reply,
    Scope,
    Send,
    encode_response,
    extra_headers,
    send_reply,
)

logger = logging.getLogger("mainspring.serving")

_INLINE_BODY = 256 << 10

_Answered = tuple[LiveDeployment, Call, Answer]
"""An answered request, as its shadows need it."""


@dataclass(slots=True, eq=False)
class QuickTarget:
    """A prediction that is requested by a usual request line, which is looked up without parsing it."""

    dialect: AnyDialect
    deployment: str | None
    slot_bytes: int = _INLINE_BODY
    """Bytes of the smallest body so far that needed a slot: one as large is refused without decoding when no slot is free."""


class App:
    """The ASGI callable. :meth:`switch` takes a new table into service by one assignment."""

    def __init__(
        self,
        core: Core,
        *,
        sandbox: str = "none",
        failure: Callable[[], Failure | None] = lambda: None,
        dialects: Sequence[MakeDialect] = DIALECTS,
    ) -> None:
        self.core = core
        self.gate = Gate(core.options)
        self.bodies = Bodies(core.options)
        self.draining = False
        self.repeats = Repeats()
        self.date = b""
        """The Date header line of answers that :meth:`quick` makes; :func:`protocol.sweep` keeps it up to date."""
        self.quick_targets: dict[bytes, QuickTarget] = {}
        """By the exact path of the request line."""
        self._sandbox = sandbox
        self._failure = failure
        self._dialects = [make(core.options) for make in dialects]

    def switch(self, table: LiveTable) -> None:
        """Serve ``table`` from the next request on. Called from the watcher's thread; needs no lock, because each assignment is atomic."""
        targets: dict[bytes, QuickTarget] = {}
        for dialect in self._dialects:
            for path in dialect.exact(table.deployments):
                route = dialect.match(path)
                if (
                    self._find_dialect(path) is dialect
                    and isinstance(route, Prediction)
                    and route.version is None
                ):
                    targets[path.encode()] = QuickTarget(dialect, route.deployment)
        self.quick_targets = targets
        self.core.table = table

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        dialect = self._find_dialect(scope["path"])
        try:
            await self._respond(dialect, scope, dict(scope["headers"]), receive, send)
        except Disconnected:
            self.core.metrics.refuse("disconnected")
        except MainspringError as error:
            await send_reply(send, self._encode_error(dialect, error))
        except Exception:
            logger.exception("a request failed inside the server")
            await send_reply(send, self._encode_error(dialect, _internal_error()))

    def _find_dialect(self, path: str) -> AnyDialect:
        return next((d for d in self._dialects if path.startswith(d.prefixes)), self._dialects[-1])

    def _encode_error(self, dialect: AnyDialect, error: MainspringError) -> Reply:
        """The reply to an error. A request that reached no model is counted by the error's code."""
        ident = getattr(error, "prediction_id", None)
        if ident is None:
            self.core.metrics.refuse(error.code)
        extra = extra_headers(error)
        if ident is not None:
            extra.append((b"mainspring-prediction-id", ident.encode()))
        return dialect.error(error, ident).with_fields(*extra)

    # Choosing what answers a request

    async def _respond(
        self, dialect: AnyDialect, scope: Scope, headers: Headers, receive: Receive, send: Send
    ) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/metrics":
            _check_method(method, READ)
            self.gate.check(scope["headers"], headers, key=self.core.options.metrics_auth)
            await send_reply(send, self._render_metrics())
            return
        route = None if path == "/v1/feedback" else dialect.match(path)
        if not (isinstance(route, ServerQuestion) and route.open):
            self.gate.check(scope["headers"], headers)
        if path == "/v1/feedback":
            _check_method(method, ("POST",))
            await send_reply(send, await self._relay_feedback(headers, receive))
            return
        if route is None:
            raise NotFound("there is nothing here", value=path[:200], next_step=f"See {dialect.home}.")
        if isinstance(route, ServerQuestion):
            _check_method(method, route.methods)
            await send_reply(send, route.reply(self._state()))
            return
        deployment, pinned = self._find_target(self.core.table, route)
        _check_method(method, route.methods)
        if isinstance(route, ModelQuestion):
            targets = deployment.targets if pinned is None else [pinned]
            await send_reply(send, route.reply(deployment, targets))
        else:
            await self._predict(dialect, route, headers, receive, send)

    @staticmethod
    def _find_target(
        table: LiveTable, route: Prediction | ModelQuestion
    ) -> tuple[LiveDeployment, LiveTarget | None]:
        deployment = find_deployment(table, route.deployment)
        return deployment, find_version(deployment, route.version)

    # Predictions

    async def _predict(
        self, dialect: AnyDialect, route: Prediction, headers: Headers, receive: Receive, send: Send
    ) -> None:
        """Predict and answer; a request that is repeated under its idempotency key gets the same answer again."""
        body = await self.bodies.read(headers, receive, media=dialect.media)
        table = self.core.table  # read once: the whole answer comes from one table
        deployment, pinned = self._find_target(table, route)
        key = headers.get(HEADER)
        reply: Reply | None = None
        answered: _Answered | None = None
        if key is None:
            ident = new_id()
        else:
            place = f"{dialect.name} {deployment.name} {route.version or ''}"
            ident, reply = self.repeats.begin(key, place, body)
        if reply is None:
            try:
                reply, answered = await self._predict_body(
                    dialect, deployment, pinned, headers, body, ident, table.number
                )
            except BaseException as error:
                if key is not None:
                    # A failure that was logged under this id is the answer to repeats; after any other the id is free again.
                    logged = isinstance(error, MainspringError) and hasattr(error, "prediction_id")
                    kept = self._encode_error(dialect, error) if logged else None  # type: ignore[arg-type]
                    self.repeats.end(ident, kept)
                raise
            if key is not None:
                self.repeats.end(ident, reply)
        await send_reply(send, reply)
        if answered:
            self.core.shadow(*answered, ident=ident)

    async def _predict_body(
        self,
        dialect: AnyDialect,
        deployment: LiveDeployment,
        pinned: LiveTarget | None,
        headers: Headers,
        body: bytes,
        ident: str,
        number: int,
    ) -> tuple[Reply, _Answered]:
        if len(body) > _INLINE_BODY:
            call, form = await self.core.admission.run(lambda: dialect.decode(body, deployment, headers))
            call = replace(call, large=True)
        else:
            call, form = dialect.decode(body, deployment, headers)
        call = _with_headers(call, headers)
        try:
            prediction = await self.core.predict(deployment, call, ident=ident, number=number, pinned=pinned)
        except MainspringError as error:
            if error.code != "overloaded":
                error.prediction_id = ident  # type: ignore[attr-defined]
            raise
        reply = dialect.encode(prediction, deployment, form, ident).with_fields(
            (b"mainspring-prediction-id", ident.encode()), (b"mainspring-version", prediction.target.header)
        )
        return reply, (deployment, call, prediction)

    def quick(self, target: QuickTarget, raw: RawHeaders, body: bytes) -> bytes | None:
        """The response bytes to a prediction request that arrived whole; None if it needs a thread or a kept answer. Never raises."""
        dialect = target.dialect
        try:
            headers = dict(raw)
            self.gate.check(raw, headers)
            self.bodies.check(headers, dialect.media)
            if len(body) > _INLINE_BODY or HEADER in headers:
                return None
            table = self.core.table
            deployment = find_deployment(table, target.deployment)
            if len(body) >= target.slot_bytes:
                self._refuse_if_full(deployment)
            if not deployment.inline_rows:
                target.slot_bytes = 0
                return None
            call, form = dialect.decode(body, deployment, headers)
            call = _with_headers(call, headers)
            if call.rows > deployment.inline_rows:
                target.slot_bytes = min(len(body), target.slot_bytes)
                return None
            ident = new_id()
            prediction = self._predict_now(deployment, call, ident, table.number)
            reply = dialect.encode(prediction, deployment, form, ident)
        except MainspringError as error:
            return encode_response(self._encode_error(dialect, error), self.date)
        except Exception:
            logger.exception("a request failed inside the server")
            return encode_response(self._encode_error(dialect, _internal_error()), self.date)
        if deployment.shadows:
            self.core.shadow(deployment, call, prediction, ident=ident)
        ident_bytes, content = ident.encode(), reply.body
        if reply.fields or reply.media != JSON or reply.status != 200:
            fields = (
                (b"mainspring-prediction-id", ident_bytes),
                (b"mainspring-version", prediction.target.header),
            )
            return encode_response(reply.with_fields(*fields), self.date)
        return b"".join(
            (b"HTTP/1.1 200 OK\r\n", self.date, prediction.target.lines, ident_bytes, b"\r\ncontent-length: %d\r\n\r\n" % len(content), content)
        )  # fmt: skip

    def _refuse_if_full(self, deployment: LiveDeployment) -> None:
        """Refuse a request that would get no slot before decoding it: refusing must be cheap to help an overloaded server (V05)."""
        if self.core.full(deployment):
            raise Overloaded("all slots and the queue are taken", next_step="Try again after a second.")

    def _predict_now(self, deployment: LiveDeployment, call: Call, ident: str, number: int) -> Answer:
        try:
            return self.core.predict_inline(deployment, call, ident=ident, number=number)
        except MainspringError as error:
            error.prediction_id = ident  # type: ignore[attr-defined]
            raise

    # Everything else

    async def _relay_feedback(self, headers: Headers, receive: Receive) -> Reply:
        body = await self.bodies.read(headers, receive, media=(JSON,))
        table = self.core.table
        if len(body) > _INLINE_BODY:
            items = await self.core.admission.run(lambda: read_feedback(body, table))
        else:
            items = read_feedback(body, table)
        self.core.log.relay(items, arrival_us=time.time_ns() // 1000)
        return Reply(202, msgspec.json.encode({"relayed": len(items)}))

    @property
    def ready(self) -> bool:
        """Whether a prediction can be made now."""
        return (
            self.core.table.number > 0
            and not (self.core.table.problems and not self.core.table.deployments)
            and not self.draining
            and self.core.admission.stuck_s() < self.core.options.hang_s
        )

    def _state(self) -> ServerState:
        return ServerState(self.core, self.ready, self._sandbox, self._failure())

    def _render_metrics(self) -> Reply:
        gauges = self.core.metrics.gauges
        gauges["queue_waiting"] = self.core.admission.waiting
        gauges["ready"] = 1 if self.ready else 0
        return Reply(200, self.core.metrics.text().encode(), media=METRICS_TEXT)


def _with_headers(call: Call, headers: Headers) -> Call:
    """The call with routing key and event time from headers, if its body had none (bodies of other dialects cannot have them)."""
    event, key = headers.get(b"mainspring-event-time"), headers.get(b"mainspring-key")
    if event is None and key is None:
        return call
    event_us = call.event_us
    if event is not None and event_us is None:
        event_us = parse_time(event.decode("latin-1"))
    routing_key = call.key
    if key is not None and routing_key is None:
        if len(key) > 256:
            raise InvalidInput("the routing key is too long", value=len(key), place="Mainspring-Key")
        routing_key = key.decode("latin-1")
    return replace(call, key=routing_key, event_us=event_us)


def _check_method(method: str, allowed: tuple[str, ...]) -> None:
    if method not in allowed:
        raise MethodNotAllowed(
            "this method is not allowed here", value=method, place=allowed[0], next_step=f"Use {allowed[0]}."
        )


def _internal_error() -> MainspringError:
    return MainspringError("an internal error; the server's log has the details")
