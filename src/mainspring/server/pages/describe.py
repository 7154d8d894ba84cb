"""Events in words, with the tone they carry."""

from __future__ import annotations

from mainspring.records.base import Record
from mainspring.records.events import Tone, describe
from mainspring.records.lineage import Event


class EventText(Record, frozen=True):
    """An event as a person reads it; ``related`` are references that its data names."""

    event: Event
    words: str
    tone: Tone
    detail: str
    related: list[str]


def describe_event(event: Event) -> EventText:
    """An event in words."""
    text = describe(event.kind, event.data)
    return EventText(
        event=event, words=text.words, tone=text.tone, detail=text.detail, related=_list_related(event)
    )


def _list_related(event: Event) -> list[str]:
    data = event.data
    references = [f"{kind}:{data[kind]}" for kind in ("run", "verdict") if isinstance(data.get(kind), str)]
    if isinstance(data.get("version"), int) and isinstance(data.get("model"), str):
        references.insert(0, f"model_version:{data['model']}@{data['version']}")
    return [r for r in references if r != event.subject]
