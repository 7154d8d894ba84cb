"""An operation is declared once: a typed method of a room, with its policy.

From the declaration come the HTTP route and its OpenAPI entry (``server.routes``), the remote client (``remote``),
the permission check, the audit row (``lineage.ledger``) and the reference page. A room is a class whose public
methods are all operations::

    class Models:
        room = "models"

        @operation(role=Role.OPERATOR, changes=True)
        def set_alias(self, *, model: str, alias: str, version: int, reason: str) -> AliasEvent: ...

Parameters can be passed by name and are typed with what msgspec can convert; results are records (or lists of them). A
project never appears as a parameter: a room object is bound to one project, and every query carries it.

**Authority is checked here and nowhere else** (docs/design/authority.md): each call asks whether the principal that acts
has the declared role in the project of the room object. The callers (HTTP, pages, command line, loop) only name who acts.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal, ParamSpec, TypeVar

from mainspring.errors import NotFound, PermissionDenied, Unauthenticated

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


@dataclass(frozen=True)
class Policy:
    """The declared properties of an operation, which are checked or used before it runs."""

    role: Role
    changes: bool
    kind: Kind
    max_body: int
    deadline_s: float
    keyed: bool = True
    """Whether its answer is stored under the caller's idempotency key."""


@dataclass(frozen=True)
class Operation:
    """A declared operation: its room and name, its parameters and result, and its policy."""

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
    """A stream of bytes, with its media type, and its name and size where known."""

    chunks: Iterator[bytes]
    media_type: str = "application/octet-stream"
    name: str | None = None
    size: int | None = None


@dataclass
class Settlement:
    """What has been stored as the answer to a call's idempotency key so far; None: nothing yet."""

    answer: bytes | None = None


EVERY_PROJECT = "*"


@dataclass(frozen=True)
class Principal:
    """Who acts, as authenticated by the server, with a role by project (``*``: in every project).

    ``user``: a person or program with a token. ``service``: a part of the product, such as the loop. ``local``: whoever runs
    this process on a workspace of their own. ``anonymous``: nobody is authenticated.
    """

    name: str
    roles: Mapping[str, Role]
    kind: Literal["user", "service", "local", "anonymous"] = "user"

    def role_in(self, project: str) -> Role | None:
        """The highest role in ``project``; None without a role."""
        return max((r for p, r in self.roles.items() if p in {project, EVERY_PROJECT}), default=None)


LOCAL = Principal("local", {EVERY_PROJECT: Role.ADMIN}, kind="local")
"""Acts where nobody is named, since the files of an embedded workspace belong to the caller anyway. Never in a server."""

ANONYMOUS = Principal("anonymous", {}, kind="anonymous")


@dataclass(frozen=True)
class Invocation:
    """Who runs which operation right now; read by the ledger when a decision commits."""

    principal: Principal
    operation: str = ""
    key: str | None = None
    """Idempotency key: a retry with the same key and arguments returns the first result."""
    arguments: dict[str, Any] = field(default_factory=dict)
    settlement: Settlement = field(default_factory=Settlement)

    @property
    def actor(self) -> str:
        """The name that events carry."""
        return self.principal.name


_current: ContextVar[Invocation | None] = ContextVar("mainspring_invocation", default=None)


def current() -> Invocation | None:
    """The operation that runs in this context; None outside of operations."""
    return _current.get()


@contextlib.contextmanager
def acting(who: Principal | str, *, role: Role | None = None, key: str | None = None) -> Iterator[Settlement]:
    """Run what follows as ``who``: the server does so per request, the loop per round.

    A name with a ``role`` is a service of this process. Yields the answer that a decision stored under ``key``; if none
    did, the caller who passed the key stores it.
    """
    if isinstance(who, str):
        who = Principal(who, {EVERY_PROJECT: role} if role else {}, kind="service")
    invocation = Invocation(principal=who, key=key)
    token = _current.set(invocation)
    try:
        yield invocation.settlement
    finally:
        _current.reset(token)


_servers = 0


@contextlib.contextmanager
def named_only() -> Iterator[None]:
    """In this block nothing in this process acts as :data:`LOCAL`: an operation for which nobody is named is refused.

    For the whole process, not for a thread: a call for which a server names nobody must be refused in every thread.
    """
    global _servers  # noqa: PLW0603 - a property of the process
    _servers += 1
    try:
        yield
    finally:
        _servers -= 1


def acts() -> Principal:
    """Who acts here: named by :func:`acting`, else the local user, and in a server nobody."""
    call = _current.get()
    if call is not None:
        return call.principal
    return ANONYMOUS if _servers else LOCAL


def authorise(room: object, operation_id: str, role: Role) -> Principal:
    """Who acts, if they have ``role`` in the project that ``room`` is bound to.

    Raises :class:`Unauthenticated` for nobody, :class:`NotFound` without any role in the project (with the same message whether it exists or
    not), :class:`PermissionDenied` for too low a role. A room that is bound to no project needs the role in all of them.
    """
    who = acts()
    project = getattr(getattr(room, "_base", None), "project", EVERY_PROJECT)
    held = who.role_in(project)
    if who.kind == "anonymous":
        raise Unauthenticated(
            "nobody is named who calls this",
            place=operation_id,
            next_step="Send 'Authorization: Bearer <token>'; 'mainspring env --token' prints it.",
        )
    if held is None:
        raise no_project(project)
    if held < role:
        raise PermissionDenied(
            f"{operation_id} needs the role {role.name.lower()}",
            value=held.name.lower(),
            place=f"project {project!r}",
            next_step="Ask an administrator of the project.",
        )
    return who


def no_project(project: str) -> NotFound:
    """The same error for a project that does not exist and for one in which the caller has no role."""
    return NotFound(
        "no such project",
        value=project,
        next_step="See 'mainspring projects list', then name one: mainspring --project NAME ...",
    )


def operation(
    *,
    role: Role,
    changes: bool = False,
    kind: Kind = Kind.UNARY,
    max_body: int = 1 * MIB,
    deadline_s: float = 60.0,
    keyed: bool = True,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare a room's method as an operation with its policy.

    ``changes`` says whether it may change state (it then travels by POST and writes audit events); ``max_body`` is in
    bytes, checked before anything is buffered. ``keyed`` is False for operations that are idempotent by
    themselves: their idempotency key is ignored, and nothing is stored for it.
    """
    policy = Policy(
        role=role, changes=changes, kind=kind, max_body=max_body, deadline_s=deadline_s, keyed=keyed
    )

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        names = list(inspect.signature(function).parameters)[1:]  # without self

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            room = args[0] if args else None
            name = f"{getattr(room, 'room', '?')}.{function.__name__}"
            who = authorise(room, name, role)
            outer = _current.get() or Invocation(principal=who)
            if outer.operation:
                # Called by another operation, as a part of it: its result is not the answer to the caller's key. Its role is
                # checked for the caller, so that an operation never lends its own authority.
                inner = replace(outer, key=None)
            else:
                arguments = dict(zip(names, args[1:], strict=False)) | kwargs
                arguments.pop("body", None)
                inner = replace(outer, operation=name, arguments=arguments)
            token = _current.set(inner)
            try:
                return function(*args, **kwargs)
            finally:
                _current.reset(token)

        call.__policy__ = policy  # type: ignore[attr-defined]
        return call

    return declare


def delegating(room: type[R]) -> type[R]:
    """The base of a room's client: a class with the room's operations, each answered by ``self.operations``.

    ``operations`` is the room itself or its remote counterpart. To a type checker the base is the room (see its users), so that a
    call of the client is checked as a call of the operation is; at run time it has only the operations of the room.
    """

    def method(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(inspect.unwrap(function))
        def call(self: Any, *args: Any, **arguments: Any) -> Any:
            return getattr(self.operations, name)(*args, **arguments)

        return call

    methods = {
        n: method(n, f)
        for n, f in inspect.getmembers(room, inspect.isfunction)
        if isinstance(getattr(f, "__policy__", None), Policy)
    }
    return typing.cast("type[R]", type(f"{room.__name__}Client", (), methods))


def operations_of(room: type) -> dict[str, Operation]:
    """All operations of a room class, by name.

    Raises :class:`TypeError` if a public method carries no policy, or a parameter is untyped or cannot be passed by name:
    the server calls this for every room before it binds a port, so an undeclared operation stops start-up.
    """
    operations: dict[str, Operation] = {}
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
        operations[attribute] = _describe(name, attribute, member, policy)
    return operations


_NAMED = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
"""Parameters that identify the thing (``dataset``, ``selector``) may be positional; those that modify the call are keyword-only."""


def _describe(room: str, name: str, member: Callable[..., Any], policy: Policy) -> Operation:
    function = inspect.unwrap(member)
    types = typing.get_type_hints(function, include_extras=True)
    parameters = {k: p for k, p in inspect.signature(function).parameters.items() if k != "self"}
    for key, parameter in parameters.items():
        if parameter.kind not in _NAMED or (
            key == "body" and parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        ):
            msg = f"{room}.{name}: parameter {key!r} must be one that can be passed by name, and 'body' is keyword-only"
            raise TypeError(msg)
        if key not in types:
            msg = f"{room}.{name}: parameter {key!r} must be typed"
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
