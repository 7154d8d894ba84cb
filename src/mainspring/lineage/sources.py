"""What rooms know about things beyond the stored edges: the workspace collects it and gives it to :class:`~mainspring.lineage.Lineage`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mainspring.records.lineage import Edge
from mainspring.storage.sql import Reader

EdgeSource = Callable[[str], Iterable[Edge]]
"""Edges into (causes) or out of (effects) the thing with this id that are known by rule rather than stored one by one."""

FactSource = Callable[[str], dict[str, object] | None]
"""What is known of the thing with this id: short facts, or None if it does not exist."""

Auditor = Callable[[Reader], Iterable[str]]
"""Checks a room's decisions against the event chain: a sentence for each that does not match."""


@dataclass(frozen=True)
class GraphSources:
    """Sources by the kind of thing (``model_version``, ``prediction``, ...), at most one of each sort for a kind."""

    causes: dict[str, EdgeSource] = field(default_factory=dict)
    effects: dict[str, EdgeSource] = field(default_factory=dict)
    facts: dict[str, FactSource] = field(default_factory=dict)
    auditors: dict[str, Auditor] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        *,
        causes: EdgeSource | None = None,
        effects: EdgeSource | None = None,
        facts: FactSource | None = None,
        auditor: Auditor | None = None,
    ) -> None:
        """Add what a room knows about things of ``kind``.

        ``causes`` and ``effects`` are for things of which there are too many to store edges, such as predictions.
        """
        if causes:
            self.causes[kind] = causes
        if effects:
            self.effects[kind] = effects
        if facts:
            self.facts[kind] = facts
        if auditor:
            self.auditors[kind] = auditor
