"""Events in words, with the tone they carry."""

from __future__ import annotations

from mainspring.records.base import Record
from mainspring.records.events import Tone, describe
from mainspring.records.lineage import Event


class Told(Record, frozen=True):
    """An event as a person reads it; ``related`` are references that its data names."""

    event: Event
    words: str
    tone: Tone
    detail: str
    related: list[str]


def tell(event: Event) -> Told:
    """An event in words."""
    said = describe(event.kind, event.data)
    return Told(event=event, words=said.words, tone=said.tone, detail=said.detail, related=_related(event))


def _related(event: Event) -> list[str]:
    data = event.data
    found = [f"{kind}:{data[kind]}" for kind in ("run", "verdict") if isinstance(data.get(kind), str)]
    if isinstance(data.get("version"), int) and isinstance(data.get("model"), str):
        found.insert(0, f"model_version:{data['model']}@{data['version']}")
    return [r for r in found if r != event.subject]
