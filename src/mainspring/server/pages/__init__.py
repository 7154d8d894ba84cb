"""Pages for people: each renders the results of operations, as HTML or (``?format=json``) as the same record in JSON."""

from __future__ import annotations

from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from mainspring.server import charts
from mainspring.server.authentication import Sessions
from mainspring.server.hosted import Hosted
from mainspring.server.pages import data, deployments, lineage, models, overview, pipelines, runs, timeline
from mainspring.server.pages.rendering import Action, Pages, View
from mainspring.server.pages.text import environment
from mainspring.server.session import session_routes

VIEWS: list[View] = [
    overview.VIEW,
    *models.VIEWS,
    *deployments.VIEWS,
    *runs.VIEWS,
    *pipelines.VIEWS,
    *data.VIEWS,
    timeline.VIEW,
    lineage.VIEW,
]
ACTIONS: list[Action] = [*models.ACTIONS, *deployments.ACTIONS, *pipelines.ACTIONS]


def page_routes(hosted: Hosted, sessions: Sessions) -> list[BaseRoute]:
    """Routes of all pages."""
    charts.ensure_bundle()
    pages = Pages(hosted, environment(), ACTIONS)

    return [
        *session_routes(sessions),
        *(route for v in VIEWS for route in pages.view(v)),
        *(route for a in ACTIONS for route in pages.action(a)),
        _AnyOtherPage("/{rest:path}", pages.missing, methods=["GET"]),
    ]


class _AnyOtherPage(Route):
    """Any other address, answered by an error page; addresses below /api/ and /static/ keep their own errors."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and scope["path"].startswith(("/api/", "/static/")):
            return Match.NONE, {}
        return super().matches(scope)
