"""One view: gather a record by calling operations, then show it as a page or as JSON. There is no second query path.

A page acts as whoever is logged in: the gate has named them, and the operations decide.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import anyio.to_thread
from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route, compile_path

from mainspring.clock import SystemClock
from mainspring.errors import InvalidInput, MainspringError, NotFound
from mainspring.operations import Role, acts, operations_of
from mainspring.records.base import Record, to_json
from mainspring.rooms import room_class
from mainspring.server import charts
from mainspring.server.session import PAGE_HEADERS, form_of
from mainspring.workspace import Workspace

log = logging.getLogger("mainspring.server")
R = TypeVar("R", bound=Record)

NAVIGATION = [
    ("/", "Overview", "o"),
    ("/models", "Models", "m"),
    ("/deployments", "Deployments", "d"),
    ("/runs", "Runs", "r"),
    ("/pipelines", "Pipelines", "p"),
    ("/data", "Data", "a"),
    ("/timeline", "Timeline", "t"),
    ("/lineage", "Lineage", "l"),
]
"""Address, name, and the key after ``g`` that goes there."""


@dataclass(frozen=True)
class Ask:
    """What a request for a page asks: names from its path, filters from its query."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    lists: Mapping[str, list[str]]

    def text(self, name: str) -> str | None:
        """A filter; None if it is absent or empty."""
        value = self.query.get(name, "").strip()
        if len(value) > 2000:
            raise InvalidInput("this filter is too long", value=value, place=name)
        return value or None

    def integer(self, name: str, default: int, *, low: int, high: int) -> int:
        """A whole number within bounds."""
        value = self.query.get(name)
        if not value:
            return default
        if len(value) > 18 or not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
            raise InvalidInput(f"this must be a whole number from {low} to {high}", value=value, place=name)
        return int(value)


@dataclass(frozen=True)
class View:
    """A page. ``charts`` draws from the gathered record; ``command`` is the command line that shows the same."""

    path: str
    template: str
    title: Callable[[Any], str]
    gather: Callable[[Workspace, Ask], Record]
    charts: Callable[[Any], dict[str, charts.Chart]] | None = None
    command: Callable[[Any], str] | None = None
    extras: Callable[[Any], dict[str, Any]] | None = None
    """What the template draws from the record beside charts: a layout, never another query."""


@dataclass(frozen=True)
class Action:
    """A form's target: does one thing through operations, then shows the page at the address it returns. ``operation`` is the one
    that decides whether the form is shown: a form that would only be refused is not."""

    path: str
    operation: str
    act: Callable[[Workspace, Mapping[str, str], Mapping[str, str]], str]


class Pages:
    """Turns views and actions into routes."""

    def __init__(self, workspace: Workspace, templates: Environment, actions: Sequence[Action] = ()) -> None:
        self._workspace = workspace
        self._templates = templates
        self._needed = [(compile_path(a.path)[0], _role_of(a.operation)) for a in actions]
        templates.globals["may"] = self._may

    def _may(self, address: str, fields: Mapping[str, str]) -> bool:
        """Whether whoever looks at the page may send the form at ``address``; only an admin overrides."""
        held = acts().role_in(self._workspace.project) or 0
        if fields.get("override") == "yes" and held < Role.ADMIN:
            return False
        return any(path.fullmatch(address) and held >= role for path, role in self._needed)

    def view(self, view: View) -> Route:
        async def endpoint(request: Request) -> Response:
            return await self._answer(request, lambda: self._show(request, view))

        return Route(view.path, endpoint, methods=["GET"])

    def action(self, action: Action) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                fields = await form_of(request)
            except MainspringError as error:
                return self._failed(request, error)

            def act() -> Response:
                target = action.act(self._workspace, request.path_params, fields)
                return RedirectResponse(target, status_code=303)

            return await self._answer(request, act)

        return Route(action.path, endpoint, methods=["POST"])

    async def _answer(self, request: Request, make: Callable[[], Response]) -> Response:
        try:
            return await anyio.to_thread.run_sync(make)
        except MainspringError as error:
            return self._failed(request, error)
        except Exception:
            log.exception("page %s failed", request.url.path)
            return self._failed(
                request, MainspringError("internal error", next_step="The server's log has the details.")
            )

    def _show(self, request: Request, view: View) -> Response:
        query = request.query_params
        ask = Ask(request.path_params, query, {name: query.getlist(name) for name in query})
        record = view.gather(self._workspace, ask)
        if wants_json(request):
            return Response(to_json(record), media_type="application/json", headers=_HEADERS)
        drawn = view.charts(record) if view.charts else {}
        text = self._templates.get_template(view.template).render(
            self._frame(request)
            | {
                "page": record,
                "title": view.title(record),
                "charts": drawn,
                "command": view.command(record) if view.command else "",
            }
            | (view.extras(record) if view.extras else {})
        )
        return Response(text, media_type="text/html", headers=_HEADERS)

    def _frame(self, request: Request) -> dict[str, Any]:
        return {
            "project": self._workspace.project,
            "now": self._now(),
            "wall": SystemClock().now(),
            "navigation": NAVIGATION,
            "here": request.url.path,
            "query": request.query_params,
            "manual_clock": self._workspace.settings.config.storage.clock == "manual",
            "drawing": charts.availability(),
            "charts": {},
        }

    def _now(self) -> datetime:
        return self._workspace.base.clock.now()

    def missing(self, request: Request) -> Response:
        """Nothing is at this address."""
        return self._failed(
            request,
            NotFound("nothing is at this address", value=request.url.path, next_step="Go to the overview."),
        )

    def _failed(self, request: Request, error: MainspringError) -> Response:
        if wants_json(request):
            return Response(
                to_json({"error": error.to_dict()}),
                status_code=error.status,
                media_type="application/json",
                headers=_HEADERS,
            )
        text = self._templates.get_template("error.html").render(
            self._frame(request) | {"error": error, "title": error.message, "command": ""}
        )
        return Response(text, status_code=error.status, media_type="text/html", headers=_HEADERS)


def _role_of(operation: str) -> Role:
    room, _, name = operation.partition(".")
    return operations_of(room_class(room))[name].policy.role


_HEADERS = PAGE_HEADERS | {"vary": "Accept"}


def wants_json(request: Request) -> bool:
    """``?format=json``, or an Accept header that names JSON and not HTML."""
    chosen = request.query_params.get("format")
    if chosen is not None:
        return chosen == "json"
    accept = request.headers.get("accept", "")
    return "application/json" in accept and "text/html" not in accept
