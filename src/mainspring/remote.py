"""A workspace on another machine: the same rooms, over HTTP.

Every room here is made from the declarations of the local one (``operations``): same names, same records, same errors.
A call that changes state carries an idempotency key and is retried with it when the connection breaks, so it happens
once. Thread-safe; connections are pooled.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast
from urllib.parse import quote

import msgspec

from mainspring.errors import InvalidInput, MainspringError, Unavailable, from_dict
from mainspring.observation import observer
from mainspring.operations import Download, Kind, Operation, operations_of
from mainspring.records.base import new_id, to_json
from mainspring.records.projects import Project
from mainspring.rooms import Namespaces, room_class

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
_ATTEMPTS = 4


class Connection:
    """An authenticated HTTP connection to a control plane."""

    def __init__(
        self,
        url: str,
        *,
        token: str,
        project: str = "default",
        timeout_s: float = 60.0,
        observed: bool = False,
    ) -> None:
        """``observed``: the observer of this process (a running step) is called for the decisions made through the connection."""
        import httpx2

        self.url = url.rstrip("/")
        self.project = project
        self._observed = observed
        self._timeout_s = timeout_s
        self._client: httpx2.Client = httpx2.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {token}"},
            timeout=timeout_s,
            trust_env=False,
        )

    def call(self, operation: Operation, arguments: dict[str, Any]) -> Any:
        """Run an operation on the server; returns its decoded result or raises the error that it raised there."""
        path = f"/api/v1/{quote(self.project, safe='')}/{operation.room}/{operation.name}"
        kind = operation.policy.kind
        if kind is Kind.DOWNLOAD:
            return self._download(path, operation, arguments)
        if kind is Kind.UPLOAD:
            body = cast("Iterable[bytes]", arguments.pop("body"))
            response = self._send(
                "POST",
                path,
                params=_encode_query(operation, arguments),
                content=iter(body),
                headers={"content-type": "application/octet-stream"},
                timeout=self._timeout(operation),
            )
        elif operation.policy.changes:
            response = self._retried(
                "POST",
                path,
                content=to_json(arguments),
                headers={"content-type": "application/json"}
                | ({"idempotency-key": new_id()} if operation.policy.keyed else {}),
                timeout=self._timeout(operation),
            )
        else:
            response = self._retried(
                "GET", path, params=_encode_query(operation, arguments), timeout=self._timeout(operation)
            )
        try:
            result = msgspec.json.decode(response.content, type=operation.returns)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MainspringError(
                f"the server's answer cannot be read: {error}",
                place=f"{self.url}, {operation.id}",
                next_step="Use the same version of mainspring here and there.",
            ) from None
        notify = observer() if self._observed and operation.policy.changes else None
        if notify is not None:
            notify(operation.id, arguments, result)
        return result

    def projects(self) -> list[Project]:
        """The projects in which the caller has a role, whatever project this connection is for."""
        return msgspec.json.decode(self._retried("GET", "/api/v1/projects").content, type=list[Project])

    def close(self) -> None:
        self._client.close()

    def _timeout(self, operation: Operation) -> httpx2.Timeout:
        """Longer than the operation's deadline on the server: a shorter timeout would send the call a second time."""
        import httpx2

        return httpx2.Timeout(self._timeout_s, read=max(self._timeout_s, operation.policy.deadline_s + 5))

    def _retried(self, method: str, path: str, **options: Any) -> httpx2.Response:
        for attempt in range(_ATTEMPTS):
            try:
                return self._send(method, path, **options)
            except Unavailable:
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.1 * 3**attempt)
        raise AssertionError  # the loop returns or raises

    def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        import httpx2

        try:
            response = self._client.request(method, path, **options)
        except httpx2.TransportError as error:
            raise Unavailable(
                f"no answer: {error}",
                place=self.url,
                next_step="Check the address and that 'mainspring up' runs there.",
            ) from error
        if response.status_code >= 400:
            raise _decode_error(response.content, response.status_code)
        return response

    def _download(self, path: str, operation: Operation, arguments: dict[str, Any]) -> Download:
        import httpx2

        request = self._client.build_request("GET", path, params=_encode_query(operation, arguments))
        try:
            response = self._client.send(request, stream=True)
            if response.status_code >= 400:
                body = response.read()
                response.close()
                raise _decode_error(body, response.status_code)
        except httpx2.TransportError as error:
            raise Unavailable(f"no answer: {error}", place=self.url) from error
        size = response.headers.get("content-length")
        return Download(
            chunks=_stream_and_close(response),
            media_type=response.headers.get("content-type", "application/octet-stream"),
            size=int(size) if size is not None else None,
        )


def remote_room(room: type[T], connection: Connection) -> T:
    """An object with the operations of ``room``, each run by the server of ``connection``."""

    def method(operation: Operation) -> Any:
        def call(_self: object, *args: Any, **arguments: Any) -> Any:
            return connection.call(operation, signature.bind(*args, **arguments).arguments)

        signature = inspect.Signature(list(operation.parameters.values()))

        call.__name__ = operation.name
        call.__doc__ = operation.doc
        return call

    namespace = {name: method(operation) for name, operation in operations_of(room).items()}
    return cast("T", type(f"Remote{room.__name__}", (), namespace | {"room": getattr(room, "room", "")})())


def _encode_query(operation: Operation, arguments: dict[str, Any]) -> dict[str, str]:
    """Arguments as query parameters; must agree with ``server.routes.query_arguments``."""
    query = {}
    for name, value in arguments.items():
        if value is None and operation.parameters[name].default is None:
            continue
        builtin = msgspec.to_builtins(value)
        query[name] = builtin if isinstance(builtin, str) else to_json(builtin).decode()
    return query


def _stream_and_close(response: httpx2.Response) -> Iterator[bytes]:
    import httpx2

    try:
        yield from response.iter_raw()
    except httpx2.TransportError as error:
        raise Unavailable(
            f"the download broke off: {error}", next_step="Start it again; nothing of it may be used."
        ) from error
    finally:
        response.close()


def _decode_error(body: bytes, status: int) -> MainspringError:
    try:
        return from_dict(msgspec.json.decode(body)["error"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        # The answer of a proxy in front of the server is not in our format.
        kind = Unavailable if status in {502, 503, 504} else MainspringError
        return kind(
            f"the server answered {status} without an explanation",
            value=body[:200].decode("utf-8", "replace"),
        )


def _spool_folder(url: str, project: str) -> Path:
    name = hashlib.sha256(f"{url}\n{project}".encode()).hexdigest()[:16]
    return Path.home() / ".cache" / "mainspring" / "spool" / name


class RemoteWorkspace(Namespaces):
    """A project at the other end of a connection. Offers what :class:`mainspring.workspace.Workspace` offers.

    ``spool`` keeps what runs log until it is shipped; by default a folder of this server and project in the user's cache,
    so that what an ended process left is shipped to the server and project it belongs to.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str,
        project: str = "default",
        spool: Path | None = None,
        observed: bool = False,
    ) -> None:
        self.project = project
        self.connection = Connection(url, token=token, project=project, observed=observed)
        self.spool = spool or _spool_folder(self.connection.url, project)
        self._rooms: dict[str, Any] = {}

    def room(self, name: str) -> Any:
        if name not in self._rooms:
            self._rooms[name] = remote_room(room_class(name), self.connection)
        return self._rooms[name]

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_served(*, url: str, token_file: str, project: str) -> RemoteWorkspace:
    """The workspace of a step that runs on another machine (``pipelines.worker``): decisions of the step are recorded as its effects."""
    try:
        token = Path(token_file).read_text().strip()
    except OSError as error:
        raise InvalidInput(
            f"the token cannot be read: {error.strerror}",
            value=token_file,
            next_step="'mainspring env --token' prints it where the server runs; write it to a private file.",
        ) from None
    return RemoteWorkspace(url, token=token, project=project, observed=True)
