"""Pages for people: each renders what the operations say."""

from __future__ import annotations

from starlette.routing import BaseRoute

from mainspring.server.gate import Access
from mainspring.workspace import Workspace


def page_routes(workspace: Workspace, access: Access) -> list[BaseRoute]:  # noqa: ARG001
    """Routes of all pages."""
    return []
