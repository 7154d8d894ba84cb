"""An operation is declared once: a typed method of a room, with its policy.

From the declaration come the HTTP route and its OpenAPI entry (``server.routes``), the remote client (``remote``),
the permission check, the audit row (``lineage.ledger``) and the reference page. A room is a class whose public
methods are all operations::

    class Models:
        room = "models"

        @operation(role=Role.OPERATOR, changes=True)
        def set_alias(self, *, model: str, alias: str, version: int, reason: str) -> AliasEvent: ...

Parameters are keyword-only and typed with what msgspec can convert; results are records (or lists of them). A
project never appears as a parameter: a room object is bound to one project, and every query carries it.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Role(enum.IntEnum):
    """What a caller may do in a project; each role includes the ones before it."""

    VIEWER = 1
    LABELLER = 2
    EDITOR = 3
    OPERATOR = 4
    ADMIN = 5


class Kind(enum.StrEnum):
    """How an operation's bytes travel."""

    UNARY = "unary"  # JSON in, JSON out
    UPLOAD = "upload"  # parameter ``body`` is a stream of bytes
    DOWNLOAD = "download"  # returns a :class:`Download`
    EVENTS = "events"  # returns an iterator of records, sent as server-sent events


@dataclass(frozen=True)
class Policy:
    """What the one gate needs to know of an operation before it runs."""

    role: Role
    changes: bool
    kind: Kind
    max_body: int
    deadline_s: float


@dataclass(frozen=True)
class Operation:
    """A declared operation: where it lives, what it takes and gives, and its policy."""

    room: str
    name: str
    policy: Policy
    function: Callable[..., Any]
    parameters: dict[str, inspect.Parameter]
    types: dict[str, Any]
    returns: Any
    doc: str

    @property
    def id(self) -> str:
        return f"{self.room}.{self.name}"


@dataclass(frozen=True)
class Download:
    """A stream of bytes with what a receiver needs to store it."""

    chunks: Iterator[bytes]
    media_type: str = "application/octet-stream"
    name: str | None = None
    size: int | None = None


@dataclass
class Settlement:
    """What has been stored as the answer to a call's idempotency key so far; None: nothing yet."""

    answer: bytes | None = None


@dataclass(frozen=True)
class Invocation:
    """Who runs which operation right now; read by the ledger when a decision commits."""

    actor: str
    role: Role
    operation: str = ""
    key: str | None = None
    """Idempotency key: a retry with the same key and arguments returns the first result."""
    arguments: dict[str, Any] = field(default_factory=dict)
    settlement: Settlement = field(default_factory=Settlement)


_current: ContextVar[Invocation | None] = ContextVar("mainspring_invocation", default=None)


def current() -> Invocation | None:
    return _current.get()


@contextlib.contextmanager
def acting(actor: str, *, role: Role, key: str | None = None) -> Iterator[Settlement]:
    """Run what follows as ``actor``: the server does so per request, a runner per run.

    Yields what a decision stored under ``key``; whoever passed the key stores the answer if no decision did.
    """
    invocation = Invocation(actor=actor, role=role, key=key)
    token = _current.set(invocation)
    try:
        yield invocation.settlement
    finally:
        _current.reset(token)


def operation(
    *,
    role: Role,
    changes: bool = False,
    kind: Kind = Kind.UNARY,
    max_body: int = 1 * MIB,
    deadline_s: float = 60.0,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare a room's method as an operation with its policy.

    ``changes`` says whether it may change state (it then travels by POST and writes audit events); ``max_body`` is in
    bytes, checked before anything is buffered.
    """
    policy = Policy(role=role, changes=changes, kind=kind, max_body=max_body, deadline_s=deadline_s)

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            outer = _current.get()
            if outer is not None and outer.operation:
                # Called by another operation, as a part of it: its result is not the answer to the caller's key.
                inner = _current.set(replace(outer, key=None))
                try:
                    return function(*args, **kwargs)
                finally:
                    _current.reset(inner)
            outer = outer or Invocation(actor="local", role=Role.ADMIN)
            room = getattr(args[0], "room", "?") if args else "?"
            token = _current.set(
                replace(
                    outer,
                    operation=f"{room}.{function.__name__}",
                    arguments={k: v for k, v in kwargs.items() if k != "body"},
                )
            )
            try:
                return function(*args, **kwargs)
            finally:
                _current.reset(token)

        call.__policy__ = policy  # type: ignore[attr-defined]
        return call

    return declare


def operations_of(room: type) -> dict[str, Operation]:
    """All operations of a room class, by name.

    Raises :class:`TypeError` if a public method carries no policy, or a parameter is not keyword-only and typed:
    the server calls this for every room before it binds a port, so an undeclared operation stops start-up.
    """
    found: dict[str, Operation] = {}
    name = getattr(room, "room", None)
    if not isinstance(name, str):
        msg = f"{room.__qualname__} names no room; add: room = '...'"
        raise TypeError(msg)
    for attribute, member in inspect.getmembers(room, inspect.isfunction):
        if attribute.startswith("_"):
            continue
        policy = getattr(member, "__policy__", None)
        if not isinstance(policy, Policy):
            msg = f"{room.__qualname__}.{attribute} is public but declares no policy; add @operation(role=...) or a leading '_'"
            raise TypeError(msg)
        found[attribute] = _describe(name, attribute, member, policy)
    return found


def _describe(room: str, name: str, member: Callable[..., Any], policy: Policy) -> Operation:
    function = inspect.unwrap(member)
    types = typing.get_type_hints(function, include_extras=True)
    parameters = {k: p for k, p in inspect.signature(function).parameters.items() if k != "self"}
    for key, parameter in parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or key not in types:
            msg = f"{room}.{name}: parameter {key!r} must be keyword-only and typed"
            raise TypeError(msg)
    if (policy.kind is Kind.UPLOAD) != ("body" in parameters):
        msg = f"{room}.{name}: an upload has a parameter 'body', and nothing else has"
        raise TypeError(msg)
    return Operation(
        room=room,
        name=name,
        policy=policy,
        function=member,
        parameters=parameters,
        types=types,
        returns=types.get("return"),
        doc=inspect.getdoc(function) or "",
    )
