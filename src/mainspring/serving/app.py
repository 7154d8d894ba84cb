"""The ASGI app of a worker: our JSON dialect and Open Inference v2 on one port, status, metrics, feedback.

POST /v1/deployments/{d}/predict            GET /v1/status    GET /metrics    POST /v1/feedback
POST /v2/models/{d}[/versions/{v}]/infer    GET /v2/models/{d}[/versions/{v}][/ready]
GET  /v2    /v2/health/live    /v2/health/ready
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec

from mainspring.errors import (
    InvalidInput,
    MainspringError,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    Unavailable,
    near,
)
from mainspring.records.base import new_id
from mainspring.records.classes import LabelReader
from mainspring.records.labels import Feedback, is_issued_id, unfit
from mainspring.serving import answers, v2
from mainspring.serving.bundle import Failure
from mainspring.serving.codec import Call, malformed, no_duplicates, parse_time
from mainspring.serving.core import Answer, Core
from mainspring.serving.repeats import HEADER, Kept, Repeats
from mainspring.serving.table import LiveDeployment, LiveTable, LiveTarget
from mainspring.serving.wire import (
    Bodies,
    Disconnected,
    Gate,
    Headers,
    RawHeaders,
    Receive,
    Scope,
    Send,
    answer,
    answer_text,
    error_body,
    extra_headers,
    raw_answer,
)

logger = logging.getLogger("mainspring.serving")

VERSION = "0.1.0"
_MAX_FEEDBACK = 10_000
_INLINE_BODY = 256 << 10

_Done = tuple[Kept, Call, Answer]
"""What a request is answered with, and what its shadows need."""


class _FeedbackBody(msgspec.Struct, forbid_unknown_fields=True):
    feedback: list[Feedback]


_decode_feedback = msgspec.json.Decoder(_FeedbackBody).decode
_decode_feedback_list = msgspec.json.Decoder(list[Feedback]).decode


class App:
    """The ASGI callable. ``switch`` takes a new table into service by one assignment."""

    def __init__(
        self, core: Core, *, sandbox: str = "none", failure: Callable[[], Failure | None] = lambda: None
    ) -> None:
        self.core = core
        self.gate = Gate(core.options)
        self.bodies = Bodies(core.options)
        self.sandbox = sandbox
        self.draining = False
        self._failure = failure
        self.repeats = Repeats()
        self._v2 = v2.V2Codec(max_rows=core.options.max_rows, max_text=core.options.max_text)
        self.date = b""
        """The Date header line of answers that the protocol writes itself."""
        self.fast: dict[bytes, str] = {}
        """Deployments by the exact target of a request for a prediction."""
        self._slot_bytes: dict[str, int] = {}
        """The smallest body seen that needed a slot, by deployment: what is refused undecoded when there is none."""
        self._fast: dict[str, str] = {}
        self._plain: dict[str, Callable[[Send], Awaitable[None]]] = {
            "/v2": self._server,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
            "/v1/status": self._status,
            "/metrics": self._metrics,
        }

    def switch(self, table: LiveTable) -> None:
        """Serve ``table`` from the next request on. Called from the watcher's thread: assignments are atomic."""
        self._fast = {f"/v1/deployments/{name}/predict": name for name in table.deployments}
        self._slot_bytes = {}
        self.fast = {path.encode(): name for path, name in self._fast.items()}
        self.core.table = table

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        is_v2 = path.startswith("/v2")
        try:
            headers = dict(scope["headers"])
            name = self._fast.get(path)
            if name is not None and scope["method"] == "POST":
                await self._predict(name, scope, headers, receive, send)
            else:
                await self._other(path, scope, headers, receive, send)
        except Disconnected:
            self.core.metrics.refuse("disconnected")
        except MainspringError as error:
            await self._refuse(send, error, v2=is_v2)
        except Exception:
            logger.exception("a request failed inside the server")
            await self._refuse(
                send, MainspringError("an internal error; the server's log has the details"), v2=is_v2
            )

    async def _refuse(self, send: Send, error: MainspringError, *, v2: bool) -> None:
        body, extra = self._refusal(error, v2=v2)
        await answer(send, error.status, body, extra)

    def _refusal(self, error: MainspringError, *, v2: bool) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Body and further headers of an error, which is counted if it reached no model."""
        ident = getattr(error, "prediction_id", None)
        if ident is None:
            self.core.metrics.refuse(error.code)
        extra = extra_headers(error)
        if ident is not None:
            extra.append((b"mainspring-prediction-id", ident.encode()))
        return error_body(error, v2=v2, ident=ident), extra

    # Our dialect

    async def _predict(self, name: str, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        self.gate.check(scope["headers"], headers)
        body = await self.bodies.read(headers, receive)
        table = self.core.table  # taken once: the whole answer comes from one table
        deployment = self._deployment(name, table)

        async def predict(ident: str) -> _Done:
            if len(body) > _INLINE_BODY:
                call = await self.core.admission.run(lambda: deployment.codec.decode(body))
                call = replace(call, large=True)
            else:
                call = deployment.codec.decode(body)
            call = _with_headers(call, headers)
            found = await self._core(deployment, call, ident, table.number)
            shown = ident.encode()
            fields = [(b"mainspring-prediction-id", shown), (b"mainspring-version", found.target.header)]
            return Kept(200, _reply(deployment, found, shown), fields), call, found

        await self._once(deployment, name, headers, body, send, predict)

    async def _once(
        self,
        deployment: LiveDeployment,
        place: str,
        headers: Headers,
        body: bytes,
        send: Send,
        predict: Callable[[str], Awaitable[_Done]],
        *,
        v2: bool = False,
    ) -> None:
        """Predict and answer; a request that comes again under its idempotency key is answered as it was."""
        key = headers.get(HEADER)
        if key is None:
            ident, kept = new_id(), None
        else:
            ident, kept = self.repeats.begin(key, place, body)
        asked: tuple[Call, Answer] | None = None
        if kept is None:
            try:
                kept, call, found = await predict(ident)
                asked = call, found
            except BaseException as error:
                if key is not None:
                    # A failure that was logged under this id is the answer; any other left nothing behind.
                    logged = isinstance(error, MainspringError) and hasattr(error, "prediction_id")
                    self.repeats.end(ident, self._kept(error, v2=v2) if logged else None)
                raise
            if key is not None:
                self.repeats.end(ident, kept)
        await answer(send, kept.status, kept.body, kept.fields)
        if asked:
            self.core.shadow(deployment, *asked, ident=ident)

    def _kept(self, error: BaseException, *, v2: bool) -> Kept:
        assert isinstance(error, MainspringError)  # noqa: S101 - the caller has looked
        return Kept(error.status, *self._refusal(error, v2=v2))

    def quick(self, name: str, raw: RawHeaders, body: bytes) -> bytes | None:
        """The whole response to a request for a prediction that arrived whole; None if it needs a thread. Never raises."""
        try:
            headers = dict(raw)
            self.gate.check(raw, headers)
            self.bodies.check(headers)
            if len(body) > _INLINE_BODY or HEADER in headers:
                return None
            table = self.core.table
            deployment = self._deployment(name, table)
            self._shed(deployment, len(body))
            if not deployment.inline_rows:
                self._slot_bytes[name] = 0
                return None
            call = _with_headers(deployment.codec.decode(body), headers)
            if call.rows > deployment.inline_rows:
                self._slot_bytes[name] = min(len(body), self._slot_bytes.get(name, _INLINE_BODY))
                return None
            ident = new_id()
            found = self._now(deployment, call, ident, table.number)
        except MainspringError as error:
            return raw_answer(error.status, self.date, *self._refusal(error, v2=False))
        except Exception:
            logger.exception("a request failed inside the server")
            broken = MainspringError("an internal error; the server's log has the details")
            return raw_answer(broken.status, self.date, *self._refusal(broken, v2=False))
        shown = ident.encode()
        reply = _reply(deployment, found, shown)
        if deployment.shadows:
            self.core.shadow(deployment, call, found, ident=ident)
        return b"".join(
            (b"HTTP/1.1 200 OK\r\n", self.date, found.target.lines, shown, b"\r\ncontent-length: %d\r\n\r\n" % len(reply), reply)
        )  # fmt: skip

    def _shed(self, deployment: LiveDeployment, size: int) -> None:
        """Refuse before decoding what would find no slot: shedding must cost less than it saves (V05)."""
        if size >= self._slot_bytes.get(deployment.name, _INLINE_BODY) and self.core.full(deployment):
            raise Overloaded("all slots and the queue are taken", next_step="Try again after a second.")

    def _now(self, deployment: LiveDeployment, call: Call, ident: str, number: int) -> Answer:
        try:
            return self.core.predict_inline(deployment, call, ident=ident, number=number)
        except MainspringError as error:
            error.prediction_id = ident  # type: ignore[attr-defined]
            raise

    async def _core(
        self,
        deployment: LiveDeployment,
        call: Call,
        ident: str,
        number: int,
        pinned: LiveTarget | None = None,
    ) -> Any:
        try:
            return await self.core.predict(deployment, call, ident=ident, number=number, pinned=pinned)
        except MainspringError as error:
            if error.code != "overloaded":
                error.prediction_id = ident  # type: ignore[attr-defined]
            raise

    def _deployment(self, name: str, table: LiveTable) -> LiveDeployment:
        found = table.deployments.get(name)
        if found is None:
            if name in table.problems:
                raise Unavailable(
                    f"this deployment is not in service: {table.problems[name]}",
                    value=name,
                    next_step="Deploy a version that loads, or publish this one again.",
                )
            if table.number == 0:
                raise Unavailable(
                    "no model is in service yet", next_step="Deploy one; this server takes it up by itself."
                )
            raise NotFound(
                "there is no such deployment",
                value=name,
                next_step=near(name, table.deployments, what="deployment"),
            )
        return found

    # Everything else

    async def _other(self, path: str, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        method = scope["method"]
        plain = self._plain.get(path)
        if plain is not None:
            if method not in {"GET", "HEAD"}:
                raise _method(method, "GET")
            if path not in {"/v2/health/live", "/v2/health/ready"}:
                self.gate.check(
                    scope["headers"], headers, key=path != "/metrics" or self.core.options.metrics_auth
                )
            await plain(send)
            return
        self.gate.check(scope["headers"], headers)
        if path == "/v1/feedback":
            if method != "POST":
                raise _method(method, "POST")
            await self._feedback(headers, receive, send)
            return
        parts = path.split("/")[1:]
        if parts[:2] == ["v2", "models"] and len(parts) > 2:
            await self._v2_model(parts[2:], method, headers, receive, send)
            return
        if parts[:2] == ["v1", "deployments"] and len(parts) == 4 and parts[3] == "predict":
            self._deployment(parts[2], self.core.table)
            raise _method(method, "POST")
        raise NotFound("there is nothing here", value=path, next_step="See GET /v2 and GET /v1/status.")

    async def _v2_model(
        self, rest: list[str], method: str, headers: Headers, receive: Receive, send: Send
    ) -> None:
        table = self.core.table
        deployment = self._deployment(rest[0], table)
        rest, pinned = rest[1:], None
        if rest[:1] == ["versions"] and len(rest) > 1:
            pinned = deployment.at_version(rest[1])
            if pinned is None:
                known = [str(t.number) for t in deployment.targets]
                raise NotFound(
                    "this version is not in service",
                    value=rest[1],
                    place=deployment.name,
                    next_step=near(rest[1], known, what="version"),
                )
            rest = rest[2:]
        if rest == ["infer"]:
            if method != "POST":
                raise _method(method, "POST")
            await self._infer(deployment.name, pinned, headers, receive, send)
            return
        if rest not in ([], ["ready"]):
            raise NotFound("there is nothing here", value="/".join(rest)[:100], next_step="See GET /v2.")
        if method not in {"GET", "HEAD"}:
            raise _method(method, "GET")
        if rest:
            await answer(send, 200, msgspec.json.encode({"name": deployment.name, "ready": True}))
        else:
            await answer(
                send,
                200,
                msgspec.json.encode(v2.metadata(deployment, [pinned] if pinned else deployment.targets)),
            )

    async def _infer(
        self, name: str, pinned: LiveTarget | None, headers: Headers, receive: Receive, send: Send
    ) -> None:
        body = await self.bodies.read(headers, receive)
        table = self.core.table
        deployment = self._deployment(name, table)
        if pinned is not None:
            pinned = deployment.at_version(str(pinned.number))
            if pinned is None:
                raise NotFound("this version is not in service any more", place=name)

        async def predict(ident: str) -> _Done:
            if len(body) > _INLINE_BODY:
                call, request = await self.core.admission.run(
                    lambda: self._v2.decode(body, deployment.signature)
                )
                call = replace(call, large=True)
            else:
                call, request = self._v2.decode(body, deployment.signature)
            outputs = v2.wanted(request, deployment.signature)
            call = _with_headers(call, headers)
            found = await self._core(deployment, call, ident, table.number, pinned)
            shown = request.id if isinstance(request.id, str) else ident
            reply = v2.render(deployment, found.target, found.scores, ident=shown, outputs=outputs)
            fields = [
                (b"mainspring-prediction-id", ident.encode()),
                (b"mainspring-version", found.target.header),
            ]
            return Kept(200, reply, fields), call, found

        place = f"v2 {name} {pinned.number if pinned else ''}"
        await self._once(deployment, place, headers, body, send, predict, v2=True)

    async def _feedback(self, headers: Headers, receive: Receive, send: Send) -> None:
        body = await self.bodies.read(headers, receive)
        table = self.core.table
        if len(body) > _INLINE_BODY:
            items = await self.core.admission.run(lambda: _read_feedback(body, table))
        else:
            items = _read_feedback(body, table)
        self.core.log.relay(items, arrival_us=time.time_ns() // 1000)
        await answer(send, 202, msgspec.json.encode({"relayed": len(items)}))

    @property
    def ready(self) -> bool:
        """Whether a prediction can be made now."""
        return (
            self.core.table.number > 0
            and not (self.core.table.problems and not self.core.table.deployments)
            and not self.draining
            and self.core.admission.stuck_s() < self.core.options.hang_s
        )

    async def _live(self, send: Send) -> None:
        await answer(send, 200, b'{"live":true}')

    async def _ready(self, send: Send) -> None:
        # The specification shows the key "live" here; clients look at the status only, so both are sent.
        body: dict[str, Any] = {"live": True, "ready": self.ready}
        if self.core.table.problems:
            body["problems"] = self.core.table.problems
        await answer(send, 200 if self.ready else 503, msgspec.json.encode(body))

    async def _server(self, send: Send) -> None:
        failure = self._failure()
        body = {"name": "mainspring", "version": VERSION, "extensions": [], "routes": self.core.table.number}
        if failure is not None:
            body["failure"] = failure
        await answer(send, 200, msgspec.json.encode(body))

    async def _metrics(self, send: Send) -> None:
        gauges = self.core.metrics.gauges
        gauges["queue_waiting"] = self.core.admission.waiting
        gauges["ready"] = 1 if self.ready else 0
        await answer_text(send, self.core.metrics.text().encode())

    async def _status(self, send: Send) -> None:
        table = self.core.table
        segment, size = self.core.log.position
        body = {
            "routes": table.number,
            "ready": self.ready,
            "sandbox": self.sandbox,
            "deployments": [_status_of(d) for d in table.deployments.values()],
            "failure": self._failure(),
            "problems": table.problems,
            "log": {
                "segment": segment,
                "bytes": size,
                "mode": self.core.options.log_mode,
                "broken": self.core.log.broken,
            },
            "counters": self.core.metrics.counters,
        }
        await answer(send, 200, msgspec.json.encode(body))


def _reply(deployment: LiveDeployment, found: Answer, ident: bytes) -> bytes:
    return b"".join(
        (found.target.prefix, ident, b'","predictions":', answers.predictions(deployment, found.scores), b"}")
    )


def _status_of(deployment: LiveDeployment) -> dict[str, Any]:
    targets = [*deployment.targets, *(s.target for s in deployment.shadows)]
    previous = 0.0
    shares = {}
    for target, bound in zip(deployment.targets, deployment.bounds, strict=True):
        shares[id(target)], previous = bound - previous, bound
    return {
        "name": deployment.name,
        "versions": [
            {
                "model": t.model,
                "version": t.number,
                "role": t.role,
                "name": t.name,
                "weight": round(shares.get(id(t), 0.0), 9),
                "package": t.version.package,
                "single_us": round(t.version.single_us, 1),
                "inline_rows": t.version.inline_rows,
                "own_process": t.version.host is not None,
            }
            for t in targets
        ],
    }


def _with_headers(call: Call, headers: Headers) -> Call:
    """Routing key and event time from headers, where the body named none (foreign dialects cannot)."""
    event, key = headers.get(b"mainspring-event-time"), headers.get(b"mainspring-key")
    if event is None and key is None:
        return call
    event_us = call.event_us
    if event is not None and event_us is None:
        event_us = parse_time(event.decode("latin-1"))
    shown = call.key
    if key is not None and shown is None:
        if len(key) > 256:
            raise InvalidInput("the routing key is too long", value=len(key), place="Mainspring-Key")
        shown = key.decode("latin-1")
    return replace(call, key=shown, event_us=event_us)


def _method(method: str, allowed: str) -> MethodNotAllowed:
    return MethodNotAllowed(
        "this method is not allowed here", value=method, place=allowed, next_step=f"Use {allowed}."
    )


def _read_feedback(body: bytes, table: LiveTable) -> list[Feedback]:
    """The items of a body, each of which can be kept and could be true."""
    try:
        items = _decode_feedback_list(body) if body.lstrip()[:1] == b"[" else _decode_feedback(body).feedback
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"not feedback: {str(error)[:300]}", next_step='Send [{"prediction_id": "...", "value": ...}].'
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(error) from None
    if not 1 <= len(items) <= _MAX_FEEDBACK:
        raise InvalidInput(f"1 to {_MAX_FEEDBACK} feedback items at once", value=len(items))
    no_duplicates(body)
    _refuse_impossible(items, table)
    return items


def _refuse_impossible(items: list[Feedback], table: LiveTable) -> None:
    """Refuse feedback whose id no server gives, or whose value is no label of any model that is served here.

    Which model predicted is known to the control plane only: it matches each label with its prediction's own classes.
    """
    readers = [LabelReader.of(d.signature) for d in table.deployments.values()]
    for number, item in enumerate(items):
        if (why := unfit(item)) is not None:
            raise InvalidInput(why, place=f"feedback[{number}]")
        if not is_issued_id(item.prediction_id.partition("/")[0]):
            raise InvalidInput(
                "no prediction can have this id",
                value=item.prediction_id,
                place=f"feedback[{number}]",
                next_step="Use the prediction_id of the response.",
            )
        if readers and all(r.read(item.value) is None for r in readers):
            refusals = [r.refusal(item.value, place=f"feedback[{number}]") for r in readers]
            raise (
                refusals[0]
                if len(refusals) == 1
                else InvalidInput(
                    "the label is one of no model that is served here: "
                    + "; ".join(
                        f"{name}: {r.named()}" for name, r in zip(table.deployments, readers, strict=True)
                    ),
                    value=refusals[0].value,
                    place=f"feedback[{number}]",
                    next_step="Send a class by its value, or a number for regression.",
                )
            )
