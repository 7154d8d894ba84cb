"""Timeline: what did the system decide, on which evidence?"""

from __future__ import annotations

from mainspring.records.base import Record
from mainspring.records.events import THINGS
from mainspring.server.pages.describe import EventText, describe_event
from mainspring.server.pages.rendering import PageRequest, View
from mainspring.workspace import Workspace


class Timeline(Record, frozen=True):
    """A page of events, newest first. ``next`` goes on as ``after``."""

    items: list[EventText]
    next: int | None
    kind: str | None
    subject: str | None


def gather(workspace: Workspace, request: PageRequest) -> Timeline:
    kind, subject = request.text("kind"), request.text("subject")
    after = request.integer("after", 0, low=1, high=2**62) or None
    limit = request.integer("limit", 50, low=1, high=500)
    page = workspace.lineage.list_events(kind=kind, subject=subject, after=after, limit=limit)
    return Timeline(items=[describe_event(e) for e in page.items], next=page.next, kind=kind, subject=subject)


def format_command(page: Timeline) -> str:
    parts = [
        "mainspring timeline",
        *(f"--{n} '{v}'" for n, v in (("kind", page.kind), ("subject", page.subject)) if v and "'" not in v),
    ]
    return " ".join(parts)


VIEW = View(
    "/timeline",
    "timeline.html",
    lambda _p: "Timeline",
    gather,
    command=format_command,
    extras=lambda _p: {"kinds": THINGS},
)
