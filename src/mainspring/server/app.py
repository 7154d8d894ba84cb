"""The control plane's ASGI application, put together from declarations."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from importlib.metadata import version

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from mainspring.errors import MainspringError, MethodNotAllowed, NotFound
from mainspring.lineage.projects import visible
from mainspring.records.base import to_json
from mainspring.rooms import ROOMS, room_class
from mainspring.server import openapi
from mainspring.server.access import Access
from mainspring.server.authentication import Sessions
from mainspring.server.gate import App, Gate
from mainspring.server.hosted import Hosted
from mainspring.server.routes import build_routes, error_response
from mainspring.storage.sql import Store

log = logging.getLogger("mainspring.server")


def build_app(
    hosted: Hosted,
    access: Access,
    *,
    pages: Callable[[Hosted, Sessions], list[BaseRoute]] | None = None,
) -> App:
    """The whole application behind its gate, for the projects of one workspace.

    Raises TypeError if any public method of a room declares no policy.
    """
    rooms = {name: room_class(name) for name in ROOMS}
    store = hosted.own.base.store
    sessions = Sessions(store, access.tokens)
    routes: list[BaseRoute] = [
        Route("/live", live, methods=["GET"]),
        Route("/ready", functools.partial(ready, store, anyio.CapacityLimiter(2)), methods=["GET"]),
        Route("/api/v1/openapi.json", functools.partial(describe, rooms), methods=["GET"]),
        Route("/api/v1/version", about, methods=["GET"]),
        Route("/api/v1/projects", functools.partial(list_projects, store), methods=["GET"]),
        *build_routes(rooms, hosted.room),
        Mount("/static", StaticFiles(packages=[("mainspring.server", "static")]), name="static"),
        *(pages(hosted, sessions) if pages else []),
    ]
    starlette = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _http_error,
            MainspringError: _known_error,
            ClientDisconnect: _client_disconnected,
            Exception: _unexpected_error,
        },
    )
    return Gate(starlette, access, [*access.tokens, sessions])


async def live(_request: Request) -> Response:
    return PlainTextResponse("live")


async def ready(store: Store, limiter: anyio.CapacityLimiter, _request: Request) -> Response:
    """Ready means that a read of the database works now. It has its own threads, so that busy operations do not fail it."""

    def read() -> None:
        with store.read() as tx:
            tx.scalar("SELECT max(version) AS v FROM schema_version")

    try:
        await anyio.to_thread.run_sync(read, limiter=limiter)
    except Exception:
        log.exception("not ready")
        return PlainTextResponse("not ready", status_code=503)
    return PlainTextResponse("ready")


async def describe(rooms: dict[str, type], _request: Request) -> Response:
    return JSONResponse(openapi.build_document(rooms, version=version("mainspring")))


async def list_projects(store: Store, _request: Request) -> Response:
    """The projects in which the caller has a role. Belongs to no project, so that a client can ask before it knows a name."""
    projects = await anyio.to_thread.run_sync(visible, store)
    return Response(to_json(projects), media_type="application/json")


async def about(_request: Request) -> Response:
    return JSONResponse({"product": "mainspring", "version": version("mainspring"), "api": 1})


def _http_error(_request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    if status == 405:
        return error_response(MethodNotAllowed("this method is not used here"))
    return error_response(
        NotFound("nothing is at this address")
        if status == 404
        else MainspringError("the request could not be handled")
    )


def _known_error(_request: Request, error: Exception) -> Response:
    return error_response(error if isinstance(error, MainspringError) else MainspringError("internal error"))


def _client_disconnected(_request: Request, _error: Exception) -> Response:
    """The client disconnected before its request was complete: nobody reads this answer, and it is no error of the server."""
    return Response(status_code=499)


def _unexpected_error(_request: Request, _error: Exception) -> Response:
    return error_response(MainspringError("internal error", next_step="The server's log has the details."))
