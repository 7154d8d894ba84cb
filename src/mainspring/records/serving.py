"""What the control plane gives to serving (the route table), and what serving gives back (the prediction log)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from mainspring.records.base import Digest, Record, to_json
from mainspring.records.models import Signature

ROUTES_FILE = "routes.json"
"""Name of the route table in a bundle."""

LOG_PREFIX = "predictions"
"""Journal of the prediction log in ``<bundle>/log``."""

FEEDBACK_PREFIX = "feedback"
"""Journal of relayed feedback in ``<bundle>/log``."""


class Target(Record, frozen=True):
    """A model version that may answer. ``package`` names the directory ``packages/<digest>`` in the bundle.

    ``weight`` is the share of traffic, 0 to 1; the weights of a deployment's targets add up to 1.
    """

    model: str
    version: int
    package: Digest
    weight: float = 1.0
    role: Literal["champion", "canary", "challenger"] = "champion"


class Shadow(Record, frozen=True):
    """A version that sees requests and never answers. ``on`` says which requests.

    ``all``: every request; ``canary``: only those that the canary answered (the champion scores them too, so that both
    are compared on the same rows). ``name`` labels its rows in the log.
    """

    model: str
    version: int
    package: Digest
    name: str
    on: Literal["all", "canary"] = "all"


class Deployment(Record, frozen=True):
    """How requests to one deployment are answered."""

    name: str
    signature: Signature
    targets: list[Target]
    shadows: list[Shadow] = []


class RouteTable(Record, frozen=True):
    """``routes.json`` of a bundle: monotonically numbered, replaced whole by rename.

    ``digest`` is the BLAKE3 of the canonical JSON of all other fields, checked before use.
    """

    number: int
    created_us: int
    deployments: list[Deployment]
    digest: str = ""


class RouteChange(Record, frozen=True, kw_only=True):
    """A change of a deployment's routes. ``routes`` None: it was removed. ``event`` is the id of the audit event."""

    deployment: str
    number: int
    routes: Deployment | None
    reason: str
    actor: str
    at: datetime
    event: str


class Published(Record, frozen=True, kw_only=True):
    """The route table that is in the bundle now; ``written``: this call wrote it."""

    number: int
    written: bool


class LoggedPrediction(Record, frozen=True, omit_defaults=True):
    """One request in the prediction log (msgpack in a journal record). Times are microseconds since the epoch, UTC.

    A request has one UUIDv7 ``id``; row ``i`` is ``id/i``. ``columns`` holds the inputs by column, ``scores`` one
    number per row (multiclass: one list of scores by class per row; several values: one list of them, named by ``outputs``). ``status`` is ``ok`` or an error code.
    ``event_us`` is the request's own event time (header ``Mainspring-Event-Time`` or field ``event_time``; else arrival).
    """

    id: str
    deployment: str
    model: str
    version: int
    role: str
    event_us: int
    arrival_us: int
    latency_us: int
    status: str = "ok"
    rows: int = 1
    key: str | None = None
    columns: dict[str, list[Any]] = {}
    scores: list[Any] = []
    routes: int = 0
    outputs: list[str] = []


class LoggedShadow(Record, frozen=True, omit_defaults=True):
    """A shadow's scores for a request that another version answered; joined with :class:`LoggedPrediction` by ``id``."""

    id: str
    deployment: str
    model: str
    version: int
    name: str
    event_us: int
    latency_us: int
    status: str = "ok"
    scores: list[Any] = []


class LoggedFeedback(Record, frozen=True, omit_defaults=True):
    """Feedback that was sent to the inference port, relayed unchanged. ``at_us``: when it became true, if the sender gave it."""

    prediction_id: str
    value: bool | int | float | str
    arrival_us: int
    at_us: int | None = None
    source: str = ""


LogRecord = LoggedPrediction | LoggedShadow | LoggedFeedback

_TAGS: dict[type[Record], bytes] = {LoggedPrediction: b"p", LoggedShadow: b"s", LoggedFeedback: b"f"}
_encoder = msgspec.msgpack.Encoder()
_decoders: dict[bytes, msgspec.msgpack.Decoder[Any]] = {
    tag: msgspec.msgpack.Decoder(kind) for kind, tag in _TAGS.items()
}


def encode_log(record: LogRecord) -> bytes:
    """A journal payload: one tag byte (``p``, ``s`` or ``f``), then msgpack."""
    return _TAGS[type(record)] + _encoder.encode(record)


def decode_log(payload: bytes) -> LogRecord | None:
    """The inverse of :func:`encode_log`; None for a kind this program does not know.

    Raises :class:`msgspec.DecodeError` if a known kind does not decode.
    """
    decoder = _decoders.get(payload[:1])
    if decoder is None:
        return None
    record: LogRecord = decoder.decode(payload[1:])
    return record


def misfit_reason(outer: Signature, inner: Signature) -> str | None:
    """Why a model of signature ``inner`` cannot replace one of signature ``outer``; None if it can.

    It can if both have the same task, the same classes or outputs in the same order and the same kind of scores, and every column that ``inner`` needs is sent, has
    its type, and may be null only where ``inner`` accepts null.
    """
    if outer.task != inner.task:
        return f"its task is {inner.task.value}, not {outer.task.value}"
    if outer.classes != inner.classes:
        return f"its classes are {inner.classes}, not {outer.classes}"
    if outer.outputs != inner.outputs:
        return f"its outputs are {inner.outputs}, not {outer.outputs}"
    if outer.scores != inner.scores:
        return f"its scores are of the kind {inner.scores!r}, not {outer.scores!r}"
    sent = {c.name: c for c in outer.inputs}
    for column in inner.inputs:
        sent_column = sent.get(column.name)
        if sent_column is None:
            return f"it needs the column {column.name!r} ({column.type}), which requests do not have"
        if sent_column.type != column.type:
            return f"its column {column.name!r} is {column.type}, not {sent_column.type}"
        if sent_column.nullable and not column.nullable:
            return f"its column {column.name!r} takes no null, and requests may hold one"
    return None


def with_digest(table: RouteTable) -> RouteTable:
    """``table`` with its digest: BLAKE3 of the canonical JSON with an empty ``digest``."""
    return msgspec.structs.replace(table, digest=table_digest(table))


def table_digest(table: RouteTable) -> str:
    """The digest that :attr:`RouteTable.digest` must have."""
    import blake3

    return blake3.blake3(to_json(msgspec.structs.replace(table, digest=""))).hexdigest()
