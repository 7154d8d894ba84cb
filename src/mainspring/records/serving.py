"""What the control plane hands to serving (the route table), and what serving hands back (the prediction log)."""

from __future__ import annotations

from typing import Any, Literal

from mainspring.records.base import Digest, Record
from mainspring.records.models import Signature


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


class LoggedPrediction(Record, frozen=True, omit_defaults=True):
    """One request in the prediction log (msgpack in a journal record). Times are microseconds since the epoch, UTC.

    A request has one UUIDv7 ``id``; row ``i`` is ``id/i``. ``columns`` holds the inputs by column, ``scores`` one
    number per row (multiclass: one list of probabilities per row). ``status`` is ``ok`` or an error code.
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


class LoggedShadow(Record, frozen=True, omit_defaults=True):
    """What a shadow said to a request that somebody else answered: joins :class:`LoggedPrediction` by ``id``."""

    id: str
    deployment: str
    model: str
    version: int
    name: str
    event_us: int
    latency_us: int
    status: str = "ok"
    scores: list[Any] = []
