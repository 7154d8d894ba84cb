"""One view: gather a record by calling operations, then show it as a page or as JSON. There is no second query path.

A page acts as whoever is logged in: the gate has named them, and the operations decide. The pages of the server's own project have
short addresses; those of another project are below ``/projects/NAME``. Views and templates need not know the project: they write
``/models``, and one function moves every link, form and command of a page below its project.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio.to_thread
from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route, compile_path

from mainspring.clock import SystemClock
from mainspring.errors import InvalidInput, MainspringError, NotFound
from mainspring.lineage.projects import visible
from mainspring.operations import Role, acts, operations_of
from mainspring.records.base import Record, to_json
from mainspring.rooms import room_class
from mainspring.server import charts
from mainspring.server.hosted import Hosted
from mainspring.server.session import PAGE_HEADERS, read_form
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
class PageRequest:
    """The parameters of a request for a page: names from its path, filters from its query."""

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
    gather: Callable[[Workspace, PageRequest], Record]
    charts: Callable[[Any], dict[str, charts.Chart]] | None = None
    command: Callable[[Any], str] | None = None
    extras: Callable[[Any], dict[str, Any]] | None = None
    """More values for the template, computed from the record: a layout, never another query."""


@dataclass(frozen=True)
class Action:
    """A form's target: acts through operations, then shows the page at the address it returns. The role that ``operation`` needs
    decides whether the form is shown: nobody sees a form that would be refused."""

    path: str
    operation: str
    act: Callable[[Workspace, Mapping[str, str], Mapping[str, str]], str]


PROJECT_PREFIX = "/projects/{_project}"
"""The prefix of page addresses of other projects than the server's own."""

_ADDRESS = re.compile(r'(?<!data-whole )(href|action)="(?=/(?!static/|api/|login"|logout"))')
_COMMAND = re.compile(r'(<code>|data-copy=")mainspring (?!init\b|up\b)')
_page_project: ContextVar[str] = ContextVar("mainspring_page_project")
"""The project of the page that is being rendered."""


class Pages:
    """Turns views and actions into routes: each at its own address, and below every project."""

    def __init__(self, hosted: Hosted, templates: Environment, actions: Sequence[Action] = ()) -> None:
        self._hosted = hosted
        self._templates = templates
        self._required_roles = [(compile_path(a.path)[0], _required_role(a.operation)) for a in actions]
        templates.globals["may"] = self._may

    def _may(self, address: str, fields: Mapping[str, str]) -> bool:
        """Whether the reader of the page may send the form at ``address``; only an admin may override."""
        held = acts().role_in(_page_project.get()) or 0
        if fields.get("override") == "yes" and held < Role.ADMIN:
            return False
        return any(path.fullmatch(address) and held >= role for path, role in self._required_roles)

    def view(self, view: View) -> list[Route]:
        async def endpoint(request: Request) -> Response:
            return await self._answer(request, lambda: self._show(request, view))

        below = [PROJECT_PREFIX, f"{PROJECT_PREFIX}/"] if view.path == "/" else [PROJECT_PREFIX + view.path]
        return [Route(path, endpoint, methods=["GET"]) for path in (view.path, *below)]

    def action(self, action: Action) -> list[Route]:
        async def endpoint(request: Request) -> Response:
            try:
                fields = await read_form(request)
            except MainspringError as error:
                return await self._failed(request, error)

            def act() -> Response:
                target = action.act(self._workspace(request), request.path_params, fields)
                return RedirectResponse(_prefix_of(request) + target, status_code=303)

            return await self._answer(request, act)

        return [
            Route(path, endpoint, methods=["POST"]) for path in (action.path, PROJECT_PREFIX + action.path)
        ]

    async def missing(self, request: Request) -> Response:
        """Nothing is at this address."""
        return await self._failed(
            request,
            NotFound("nothing is at this address", value=request.url.path, next_step="Go to the overview."),
        )

    async def _answer(self, request: Request, make: Callable[[], Response]) -> Response:
        try:
            return await anyio.to_thread.run_sync(make)
        except MainspringError as error:
            return await self._failed(request, error)
        except Exception:
            log.exception("page %s failed", request.url.path)
            return await self._failed(
                request, MainspringError("internal error", next_step="The server's log has the details.")
            )

    def _workspace(self, request: Request) -> Workspace:
        """The project that the address names; raises NotFound if it does not exist or the caller has no role in it."""
        project, own = _project_in_path(request), self._hosted.own
        if project is not None:
            return self._hosted.workspace(project)
        if acts().role_in(own.project) is None:  # without a role in it, not even its name is shown
            raise NotFound(
                "nothing is at this address for you",
                value=request.url.path,
                next_step="Choose a project, or ask an administrator for a role.",
            )
        return own

    def _show(self, request: Request, view: View) -> Response:
        first_page = self._first_page(request) if view.path == "/" else None
        if first_page is not None:
            return RedirectResponse(first_page, status_code=303, headers=_HEADERS)
        workspace = self._workspace(request)
        query = request.query_params
        page_request = PageRequest(request.path_params, query, {name: query.getlist(name) for name in query})
        record = view.gather(workspace, page_request)
        if wants_json(request):
            return Response(to_json(record), media_type="application/json", headers=_HEADERS)
        drawn = view.charts(record) if view.charts else {}
        return self._page(
            request,
            workspace,
            view.template,
            {
                "page": record,
                "title": view.title(record),
                "charts": drawn,
                "command": view.command(record) if view.command else "",
            }
            | (view.extras(record) if view.extras else {}),
        )

    def _first_page(self, request: Request) -> str | None:
        """The first page of a person who has a role in another project but not in the server's own."""
        own = self._hosted.own
        if (
            _project_in_path(request) is not None
            or acts().role_in(own.project) is not None
            or wants_json(request)
        ):
            return None
        first = next((p.name for p in visible(own.base.store)), None)
        return f"{PROJECT_PREFIX.format(_project=first)}/" if first else None

    def _page(
        self,
        request: Request,
        workspace: Workspace | None,
        template: str,
        values: dict[str, Any],
        *,
        status: int = 200,
    ) -> Response:
        """A page of a project; of none (``workspace`` None) if the caller has no role in the project."""
        own = self._hosted.own
        root = _prefix_of(request) if workspace else ""
        clock = (workspace or own).base.clock
        token = _page_project.set(workspace.project if workspace else "")
        try:
            text = self._templates.get_template(template).render(
                {
                    "project": workspace.project if workspace else "",
                    "projects": [
                        (
                            p.name,
                            "/" if p.name == own.project else f"{PROJECT_PREFIX.format(_project=p.name)}/",
                        )
                        for p in visible(own.base.store)
                    ],
                    "root": root,
                    "now": clock.now(),
                    "wall": SystemClock().now(),
                    "navigation": NAVIGATION if workspace else [],
                    "here": request.url.path.removeprefix(root) or "/",
                    "query": request.query_params,
                    "manual_clock": own.settings.config.storage.clock == "manual",
                    "drawing": charts.availability(),
                    "charts": {},
                }
                | values
            )
        finally:
            _page_project.reset(token)
        return Response(
            _move_into_project(text, root, workspace.project if workspace else ""),
            status_code=status,
            media_type="text/html",
            headers=_HEADERS,
        )

    async def _failed(self, request: Request, error: MainspringError) -> Response:
        if wants_json(request):
            return Response(
                to_json({"error": error.to_dict()}),
                status_code=error.status,
                media_type="application/json",
                headers=_HEADERS,
            )

        def show() -> Response:
            try:
                workspace: Workspace | None = self._workspace(request)
            except MainspringError:
                workspace = None
            values = {"error": error, "title": error.message, "command": ""}
            return self._page(request, workspace, "error.html", values, status=error.status)

        return await anyio.to_thread.run_sync(show)


def _project_in_path(request: Request) -> str | None:
    """The project that the address names; None: the server's own."""
    name: str | None = request.path_params.get("_project")
    return name


def _prefix_of(request: Request) -> str:
    """The prefix of the addresses of this project's pages."""
    project = _project_in_path(request)
    return "" if project is None else PROJECT_PREFIX.format(_project=project)


def _move_into_project(text: str, root: str, project: str) -> str:
    """The page with its links, forms and commands moved into its project. Data cannot match the patterns: its quotes are escaped."""
    if not root:
        return text
    return _COMMAND.sub(rf"\1mainspring --project {project} ", _ADDRESS.sub(rf'\1="{root}', text))


def _required_role(operation: str) -> Role:
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
