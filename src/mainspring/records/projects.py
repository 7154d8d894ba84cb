"""Projects of a workspace."""

from __future__ import annotations

from datetime import datetime

from mainspring.records.base import Record


class Project(Record, frozen=True, kw_only=True):
    """A project, as the caller sees it."""

    name: str
    role: str
    """The caller's role in the project."""
    created_at: datetime
    created_by: str
