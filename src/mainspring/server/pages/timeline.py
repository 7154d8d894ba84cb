"""Timeline: what did the system decide, on which evidence?"""

from __future__ import annotations

from mainspring.records.base import Record
from mainspring.records.events import THINGS
from mainspring.server.pages.describe import Told, tell
from mainspring.server.pages.rendering import Ask, View
from mainspring.workspace import Workspace


class Timeline(Record, frozen=True):
    """A page of events, newest first. ``next`` goes on as ``after``."""

    items: list[Told]
    next: int | None
    kind: str | None
    subject: str | None


def gather(workspace: Workspace, ask: Ask) -> Timeline:
    kind, subject = ask.text("kind"), ask.text("subject")
    after = ask.integer("after", 0, low=1, high=2**62) or None
    limit = ask.integer("limit", 50, low=1, high=500)
    found = workspace.lineage.list_events(kind=kind, subject=subject, after=after, limit=limit)
    return Timeline(items=[tell(e) for e in found.items], next=found.next, kind=kind, subject=subject)


def command(page: Timeline) -> str:
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
    command=command,
    extras=lambda _p: {"kinds": THINGS},
)
