"""The contract of a dialect: a format of prediction requests over HTTP, translated to calls of the one core.

A dialect only translates. Hosts, keys, bounds of bodies, repeats, admission, routing, the log, shadows, metrics and draining are the
app's and the same for all.

What today's dialects do not need, and how it would fit:

- *Other media types* (Arrow IPC, CSV, Parquet, binary tensors): ``media`` names them, ``decode`` sees the headers beside the
  bytes (``content-type``, ``inference-header-content-length``), and a :class:`~mainspring.serving.wire.Reply` has its own media
  type and further header fields. What the client wants back is part of what ``decode`` gives beside the call.
- *Streams* (server-sent events): all scores are there before ``encode`` is called, so a stream is a ``Reply`` whose body is an iterator
  of pieces. ``wire.send_reply`` is the one place that sends it; the fast path hands such a reply over, and a repeated request gets the joined pieces.
- *Another transport* (gRPC): the same ``decode`` and ``encode`` with the message's bytes, behind the same gate and core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from mainspring.errors import MainspringError
from mainspring.serving.bundle import Failure
from mainspring.serving.codec import Call
from mainspring.serving.core import Answer, Core
from mainspring.serving.table import LiveDeployment, LiveTarget
from mainspring.serving.wire import Headers, Reply

READ = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class ServerState:
    """The state from which a question about the server is answered, on the event loop."""

    core: Core
    ready: bool
    sandbox: str
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A request for predictions of ``deployment`` (None: the only one there is), of the version ``version`` if one is named."""

    deployment: str | None
    version: str | None = None
    methods: tuple[str, ...] = ("POST",)


@dataclass(frozen=True, slots=True)
class ModelQuestion:
    """A question about ``deployment``, or about one version of it; ``reply`` gets the targets that are meant."""

    deployment: str | None
    version: str | None
    reply: Callable[[LiveDeployment, list[LiveTarget]], Reply]
    methods: tuple[str, ...] = READ


@dataclass(frozen=True, slots=True)
class ServerQuestion:
    """A question about the server. ``open``: answered without a check of host and key, which probes do not have."""

    reply: Callable[[ServerState], Reply]
    open: bool = False
    methods: tuple[str, ...] = READ


Route = Prediction | ModelQuestion | ServerQuestion

FormT = TypeVar("FormT")
"""What a request wants in its reply: its own id, some outputs. The app hands it from ``decode`` to ``encode``."""


class Dialect(Protocol[FormT]):
    """One dialect, made from the server's options. Stateless: one instance answers all requests."""

    name: str
    """Tells dialects apart where it matters: the same body under the same idempotency key is another request in each."""
    prefixes: tuple[str, ...]
    """Beginnings of its paths. An error on such a path has the dialect's format, even if the path is unknown. The first match wins."""
    media: tuple[bytes, ...]
    """Media types of the bodies that it takes, the usual one first; a body without a type is assumed to be of that one."""
    home: str
    """The request that an error about an unknown path recommends, as ``GET /path``."""

    def match(self, path: str) -> Route | None:
        """What one of its paths asks for; None for an unknown path. The app checks whether the deployment exists."""

    def exact(self, deployments: Iterable[str]) -> Iterable[str]:
        """The usual paths of predictions, which :meth:`match` must know too: the fast path (``protocol.py``) answers these."""

    def decode(self, body: bytes, deployment: LiveDeployment, headers: Headers) -> tuple[Call, FormT]:
        """The call in ``body``, complete and valid for ``deployment.signature``. Runs in a thread if the body is large.

        Raises :class:`~mainspring.errors.Malformed` (400) for a body that cannot be read, :class:`~mainspring.errors.InvalidInput` (422)
        naming the expected columns, for one that does not fit.
        """

    def encode(self, answer: Answer, deployment: LiveDeployment, form: FormT, ident: str) -> Reply:
        """The reply to an answered call. The app adds the prediction id and the version as header fields."""

    def error(self, error: MainspringError, ident: str | None) -> Reply:
        """The reply to a refused or failed request; ``ident`` if it was logged. Its status may differ from the error's."""


AnyDialect = Dialect[Any]
