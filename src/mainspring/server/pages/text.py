"""How numbers, times, ids and references are written on a page. Everything here escapes its arguments."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from mainspring.records.base import to_json
from mainspring.records.lineage import split_ref

ABSENT = "\N{EN DASH}"
NONE = Markup('<span class="quiet">{}</span>').format(ABSENT)

SHAPES = {"good": "●", "warn": "▲", "bad": "■", "busy": "◐", "idle": "○"}
"""A state is never shown by colour alone: a shape and a word are beside it."""


def number(value: float | None, *, digits: int = 4) -> str:
    """At most ``digits`` significant digits; thousands separated.

    >>> number(0.123456), number(1234567), number(0), number(1e-9), number(120.0)
    ('0.1235', '1,234,567', '0', '1e-09', '120')
    """
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return {True: "∞", False: "-∞"}[value > 0] if not math.isnan(value) else "NaN"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.{digits}g}"


def size(count: int | None) -> str:
    """Bytes for people.

    >>> size(999), size(12803), size(3 * 1024**3)
    ('999 B', '12.5 KiB', '3 GiB')
    """
    if count is None:
        return ABSENT
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def duration(seconds: float | None) -> str:
    """A length of time in its largest fitting unit.

    >>> duration(0.0042), duration(42), duration(3700), duration(200000)
    ('4.2 ms', '42 s', '62 min', '2 d')
    """
    if seconds is None:
        return ABSENT
    if seconds < 1:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
    for unit, length, limit in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < length * limit:
            return f"{seconds / length:.2g} {unit}" if seconds < 10 else f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def exact(moment: datetime) -> str:
    """A time to the second, with its zone."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def relative(moment: datetime, now: datetime) -> str:
    """How long ago, or how far ahead; a date beyond two months."""
    gap = (now - moment).total_seconds()
    if abs(gap) < 1:
        return "just now"
    if abs(gap) > 60 * 86400:
        return f"{moment.astimezone(UTC):%Y-%m-%d}"
    return f"{duration(gap)} ago" if gap > 0 else f"in {duration(-gap)}"


def abbreviate(ident: str) -> str:
    """A long id shortened in its middle: the start of UUIDv7s of one moment is the same, so their end is kept.

    >>> abbreviate("01a1fe73-16b2-7928-8990-44597dc14301"), abbreviate("buy@1")
    ('01a1…c14301', 'buy@1')
    """
    return f"{ident[:4]}…{ident[-6:]}" if len(ident) > 24 else ident


def address(reference: str) -> str:
    """The page of a thing, by its reference. Things without a page lead to their lineage, or to their events."""
    kind, ident = split_ref(reference)
    if kind == "model_version" and "@" in ident:
        model, _, version = ident.rpartition("@")
        return f"/models/{quote(model, safe='')}/versions/{quote(version, safe='')}"
    pages = {
        "model": "/models/",
        "deployment": "/deployments/",
        "run": "/runs/",
        "dataset": "/data/",
        "verdict": "/verdicts/",
    }
    if kind in pages:
        return pages[kind] + quote(ident, safe="")
    if kind == "prediction":
        return f"/predictions/{quote(ident, safe='/')}"
    if kind == "dataset_version":
        return f"/versions/{quote(ident, safe='')}"
    room = "timeline?subject" if kind in {"job", "alert", "feedback", "experiment"} else "lineage?ref"
    return f"/{room}={quote(reference, safe=':')}"


def link(reference: str) -> Markup:
    """A link to a thing."""
    kind, ident = split_ref(reference)
    return Markup('<a class="thing" href="{}"><span class="kind">{}</span> {}</a>').format(
        address(reference), kind.replace("_", " "), abbreviate(ident)
    )


def ident(value: str | None) -> Markup:
    """An id, shortened, with a button that copies the whole."""
    if not value:
        return NONE
    return Markup('<span class="id"><code title="{0}">{1}</code>{2}</span>').format(
        value, abbreviate(value), copy(value)
    )


def copy(value: str) -> Markup:
    """A button that copies ``value``; scripts show it."""
    return Markup(
        '<button type="button" class="copy" data-copy="{}" aria-label="Copy" title="Copy" hidden>copy</button>'
    ).format(value)


def figure(value: float | None, unit: str = "") -> Markup:
    """A number for a table: short, the exact value on hover."""
    if value is None:
        return NONE
    return Markup('<span class="n" title="{}">{}</span>{}').format(
        repr(value), number(value), f" {unit}" if unit else ""
    )


def percent(share: float | None) -> Markup:
    """A share as per cent."""
    if share is None:
        return NONE
    return Markup('<span class="n" title="{}">{} %</span>').format(repr(share), number(share * 100, digits=3))


def state(tone: str, word: str, detail: str = "") -> Markup:
    """A state: colour, shape and word."""
    return Markup('<span class="state {}"{}><span aria-hidden="true">{}</span> {}</span>').format(
        tone if tone in SHAPES else "idle",
        Markup(' title="{}"').format(detail) if detail else "",
        SHAPES.get(tone, "○"),
        word,
    )


def moment_of(moment: datetime | None, now: datetime) -> Markup:
    """A relative time with the exact one on hover."""
    if moment is None:
        return NONE
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        moment.astimezone(UTC).isoformat(), exact(moment), relative(moment, now)
    )


@pass_context
def when(context: Context, moment: datetime | None) -> Markup:
    """A policy time, relative to policy time now."""
    return moment_of(moment, context["now"])


@pass_context
def when_wall(context: Context, moment: datetime | None) -> Markup:
    """A machine time, relative to machine time now."""
    return moment_of(moment, context["wall"])


def cell(value: Any) -> Markup | str:
    """A value of a chart's table."""
    if value is None:
        return NONE
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M}"
    return figure(value) if isinstance(value, (int, float)) else str(value)


def moment(value: float | None) -> Markup | str:
    """Seconds since the epoch as a date."""
    return NONE if value is None else f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M}"


def compact(value: Any) -> str:
    """Any recorded value as one short text."""
    if isinstance(value, float):
        return number(value)
    text = value if isinstance(value, str) else to_json(value).decode()
    return text if len(text) <= 200 else f"{text[:200]}…"


def environment() -> Environment:
    """The templates, always escaping."""
    from jinja2 import PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("mainspring.server.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "number": number,
        "size": size,
        "duration": duration,
        "figure": figure,
        "percent": percent,
        "when": when,
        "when_wall": when_wall,
        "ident": ident,
        "link": link,
        "address": address,
        "copy": copy,
        "cell": cell,
        "moment": moment,
        "compact": compact,
        "abbreviate": abbreviate,
        "exact": exact,
        "json": to_json,
    }
    templates.globals |= {"state": state}
    return templates
