"""What a dialect is: a way to ask for predictions over HTTP, translated onto the one core.

A dialect only translates. Hosts, keys, bounds of bodies, repeats, admission, routing, the log, shadows, metrics and draining are
the app's and the same for all: there is one way to predict.

Not needed by the dialects there are, and where it fits:

- *Other media types* (Arrow IPC, CSV, Parquet, binary tensors): ``media`` names them, ``decode`` sees the headers beside the
  bytes (``content-type``, ``inference-header-content-length``), and a :class:`~mainspring.serving.wire.Reply` has its own media
  type and further header fields. What the client wants back is part of what ``decode`` gives beside the call.
- *Streams* (server-sent events): all scores are there before ``encode`` is called, so a stream is a ``Reply`` whose body is an iterator
  of pieces. ``wire.answer`` is the one place that sends it; the quick path hands such a reply over, and a repeat is given the joined pieces.
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
    """What a question about the server may be answered from, on the event loop."""

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
    """A question about ``deployment``, or about one version of it; ``reply`` is given the targets that it is about."""

    deployment: str | None
    version: str | None
    reply: Callable[[LiveDeployment, list[LiveTarget]], Reply]
    methods: tuple[str, ...] = READ


@dataclass(frozen=True, slots=True)
class ServerQuestion:
    """A question about the server. ``open``: answered to everybody, without a look at host and key (probes know neither)."""

    reply: Callable[[ServerState], Reply]
    open: bool = False
    methods: tuple[str, ...] = READ


Route = Prediction | ModelQuestion | ServerQuestion

FormT = TypeVar("FormT")
"""What a request asks for beside the call: its own id, the outputs it wants. The app hands it from ``decode`` to ``encode``."""


class Dialect(Protocol[FormT]):
    """One dialect, made from the server's options. Stateless: one instance answers all requests."""

    name: str
    """Names the dialect where two of them must not be mixed up: the same body under the same key is another request in each."""
    prefixes: tuple[str, ...]
    """Paths that begin so are its own, known or not: errors there have its shape. The first dialect of the table wins."""
    media: tuple[bytes, ...]
    """Media types of the bodies it takes, the usual one first. A body without a type is taken for that."""
    home: str
    """The request that shows a lost client where to go on, as ``GET /path``."""

    def match(self, path: str) -> Route | None:
        """What a path of its own asks for; None if nothing is there. Whether the deployment exists is the app's to say."""

    def exact(self, deployments: Iterable[str]) -> Iterable[str]:
        """The usual paths of predictions, which :meth:`match` must know as well: answered without a task (``protocol.py``)."""

    def decode(self, body: bytes, deployment: LiveDeployment, headers: Headers) -> tuple[Call, FormT]:
        """The call in ``body``, complete and valid for ``deployment.signature``. Runs in a thread if the body is large.

        Raises :class:`~mainspring.errors.Malformed` (400) for what cannot be read, :class:`~mainspring.errors.InvalidInput` (422)
        naming the expected columns for what does not fit.
        """

    def encode(self, answer: Answer, deployment: LiveDeployment, form: FormT, ident: str) -> Reply:
        """The reply to an answered call. The app adds the prediction id and the version as header fields."""

    def error(self, error: MainspringError, ident: str | None) -> Reply:
        """The reply to a refused or failed request; ``ident`` if it is in the log. May choose another status than the error's."""


AnyDialect = Dialect[Any]
