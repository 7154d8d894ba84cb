"""Charts as Vega-Lite specs, written as plain dicts. Each also holds its data as a table, which a page shows without scripts.

Colours are CSS variables of the page, so one spec serves light and dark. The drawing bundle (vega-embed with Vega and
Vega-Lite, 0.9 MB) is made from ``vl_convert`` by a process of its own: when a wheel is built, or once in a source checkout when
the server starts. ``vl_convert`` (88 MB) is never loaded in the server.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any

log = logging.getLogger("mainspring.server")

BUNDLE = Path(__file__).parent / "static" / "vega-embed.js"
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_HEIGHT = 200
_FONT = "system-ui, sans-serif"  # must be an installed font: Vega measures text with it to place labels

Spec = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A spec to draw, and the same data as a table. ``title`` states what is shown."""

    title: str
    spec: Spec
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    marks: Sequence[tuple[str, str]] = ()
    """The legend of the marks on the time axis: tone and word, each once."""

    @property
    def numbers(self) -> list[int]:
        """Columns to align as numbers."""
        return [
            i
            for i, cells in enumerate(zip(*self.rows, strict=False))
            if all(isinstance(c, (int, float, NoneType)) for c in cells)
        ]


@dataclass(frozen=True)
class Mark:
    """An event on a time axis."""

    at: datetime
    what: str
    detail: str = ""
    tone: str = "idle"


@dataclass(frozen=True)
class Measured:
    """A value over time with its interval. ``series``: ``now`` (what answers), ``other`` (canary) or ``shadow``."""

    at: datetime
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    label: str = ""
    series: str = "now"


_TONES = {"idle": "var(--quiet)", "warn": "var(--warn)", "good": "var(--good)", "bad": "var(--bad)"}
"""Colours of marks, by how much they matter."""
_SERIES = {"now": "var(--accent)", "other": "var(--second)", "shadow": "var(--quiet)"}
_NAMES = {"now": "champion", "other": "canary", "shadow": "shadow"}


def build_theme() -> Spec:
    """The style of all charts."""
    text = {"labelColor": "var(--quiet)", "titleColor": "var(--quiet)", "titleFontWeight": "normal"}
    sizes = {"labelFontSize": 12, "titleFontSize": 12, "labelFont": _FONT, "titleFont": _FONT}
    return {
        "background": None,
        "font": _FONT,
        "view": {"stroke": None},
        "axis": text
        | sizes
        | {
            "gridColor": "var(--line)",
            "domainColor": "var(--line)",
            "tickColor": "var(--line)",
            "labelOverlap": True,
            "titlePadding": 8,
        },
        "legend": text | sizes | {"orient": "top", "title": None, "symbolStrokeWidth": 2},
        "line": {"strokeWidth": 2},
        "range": {"category": ["var(--accent)", "var(--second)", "var(--quiet)"]},
    }


def _build_spec(layers: list[Spec], *, height: int = _HEIGHT, **more: Any) -> Spec:
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": build_theme(),
        "layer": layers,
    } | more


def _format_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time_axis(**more: Any) -> Spec:
    return {
        "field": "at",
        "type": "temporal",
        "scale": {"type": "utc"},
        "axis": {"title": None, "grid": False, "tickCount": 8, "format": _DATE},
    } | more


_DATE = "%-d %b"


def _color_by_series(present: Iterable[str]) -> Spec:
    names = [s for s in _SERIES if s in set(present)]
    return {
        "field": "series",
        "type": "nominal",
        "scale": {"domain": [_NAMES[n] for n in names], "range": [_SERIES[n] for n in names]},
        "legend": None if len(names) < 2 else {},
    }


def _draw_marks(marks: Sequence[Mark]) -> list[Spec]:
    """Decisions as lines with a triangle, alerts as a triangle alone; the most important are drawn last, on top."""
    if not marks:
        return []
    values = [
        {
            "at": _format_time(m.at),
            "what": m.what,
            "detail": m.detail,
            "color": _TONES.get(m.tone, "var(--quiet)"),
            "alert": m.tone == "warn",
        }
        for m in sorted(marks, key=lambda m: list(_TONES).index(m.tone) if m.tone in _TONES else 0)
    ]
    tooltip = [{"field": "what", "title": "event"}, {"field": "detail"}, _time_tooltip()]
    color = {"field": "color", "type": "nominal", "scale": None}
    data = {"values": values}
    return [
        {
            "data": data,
            "transform": [{"filter": "!datum.alert"}],
            "mark": {"type": "rule", "strokeDash": [2, 3], "opacity": 0.7},
            "encoding": {"x": _time_axis(), "color": color},
        },
        {
            "data": data,
            "mark": {"type": "point", "shape": "triangle-down", "size": 60, "filled": True, "opacity": 1},
            "encoding": {"x": _time_axis(), "y": {"value": 0}, "color": color, "tooltip": tooltip},
        },
    ]


def _list_mark_meanings(marks: Sequence[Mark]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((m.tone, m.what.partition(":")[0]) for m in marks))[:6]


def _time_tooltip(name: str = "at", title: str = "time") -> Spec:
    return {"field": name, "type": "temporal", "timeUnit": "utcyearmonthdatehoursminutes", "title": title}


def draw_over_time(
    title: str,
    points: Sequence[Measured],
    *,
    axis: str,
    marks: Sequence[Mark] = (),
    level: tuple[str, float] | None = None,
    zero: bool = False,
    note: str = "",
) -> Chart:
    """A quantity over time with its 95 % interval, events on the time axis, and a dashed line at ``level`` to compare with."""
    known = [p for p in points if p.value is not None]
    values = [
        {
            "at": _format_time(p.at),
            "value": p.value,
            "low": p.low,
            "high": p.high,
            "n": p.n,
            "version": p.label,
            "series": _NAMES[p.series],
        }
        for p in known
    ]
    color = _color_by_series(p.series for p in known)
    y: Spec = {"type": "quantitative", "scale": {"zero": zero}, "axis": {"title": axis, "tickCount": 5}}
    tooltip = [
        _time_tooltip(),
        {"field": "version"},
        {"field": "value", "format": ".4~g"},
        {"field": "low", "format": ".4~g"},
        {"field": "high", "format": ".4~g"},
        {"field": "n", "title": "rows", "format": ","},
    ]
    data = {"values": values}
    layers: list[Spec] = []
    if any(p.low is not None for p in known):
        layers.append(
            {
                "data": data,
                "transform": [{"filter": f"datum.series !== '{_NAMES['shadow']}' && isValid(datum.low)"}],
                "mark": {"type": "area", "opacity": 0.18},
                "encoding": {
                    "x": _time_axis(),
                    "y": y | {"field": "low"},
                    "y2": {"field": "high"},
                    "color": color,
                },
            }
        )
    if level is not None:
        layers.append(
            {
                "data": {"values": [{"level": level[1], "name": level[0]}]},
                "mark": {"type": "rule", "strokeDash": [6, 4], "color": "var(--quiet)"},
                "encoding": {
                    "y": y | {"field": "level"},
                    "tooltip": [{"field": "name"}, {"field": "level", "format": ".4~g"}],
                },
            }
        )
    layers += _draw_marks(marks)
    layers += [
        {
            "data": data,
            "mark": {"type": "line", "interpolate": "monotone"},
            "encoding": {"x": _time_axis(), "y": y | {"field": "value"}, "color": color},
        },
        {
            "data": data,
            "mark": {"type": "point", "filled": True, "size": 30, "opacity": 1},
            "encoding": {"x": _time_axis(), "y": y | {"field": "value"}, "color": color, "tooltip": tooltip},
        },
    ]
    rows: list[list[Any]] = [[p.at, p.label, p.value, p.low, p.high, p.n] for p in reversed(known)]
    columns = ["time", "version", "value", "low", "high", "rows"]
    return Chart(title, _build_spec(layers), columns, rows, note, _list_mark_meanings(marks))


def draw_then_and_now(
    title: str, bins: Sequence[str], reference: Sequence[float], current: Sequence[float], *, note: str = ""
) -> Chart:
    """A distribution in training (pale) and now, as shares of rows."""
    values = [
        {"bin": b, "order": i, "share": share, "series": name}
        for i, (b, then, now) in enumerate(zip(bins, reference, current, strict=False))
        for name, share in (("training", then), ("now", now))
    ]
    layers: list[Spec] = [
        {
            "mark": {"type": "bar"},
            "encoding": {
                "x": {
                    "field": "bin",
                    "type": "nominal",
                    "sort": {"field": "order"},
                    "axis": {"title": None, "labelAngle": -40 if len(bins) > 4 else 0, "labelLimit": 120},
                },
                "xOffset": {"field": "series", "sort": ["training", "now"]},
                "y": {
                    "field": "share",
                    "type": "quantitative",
                    "axis": {"title": "share of rows", "format": ".0%", "tickCount": 5},
                },
                "color": {
                    "field": "series",
                    "type": "nominal",
                    "scale": {"domain": ["training", "now"], "range": ["var(--faint)", "var(--accent)"]},
                    "legend": {},
                },
                "tooltip": [
                    {"field": "bin"},
                    {"field": "series", "title": "when"},
                    {"field": "share", "format": ".2%"},
                ],
            },
        }
    ]
    rows = [[b, then, now] for b, then, now in zip(bins, reference, current, strict=False)]
    return Chart(
        title,
        _build_spec(layers, data={"values": values}, height=240),
        ["bin", "training", "now"],
        rows,
        note,
    )


@dataclass(frozen=True)
class Span:
    """A period in a lane. ``end`` None: it still lasts."""

    lane: str
    start: datetime
    end: datetime | None
    what: str
    detail: str = ""
    tone: str = "now"
    order: int = field(default=0)


def draw_spans(
    title: str,
    periods: Sequence[Span],
    *,
    until: datetime,
    lane: str,
    marks: Sequence[Mark] = (),
    note: str = "",
) -> Chart:
    """Which state held when, one lane per thing."""
    lanes = list(dict.fromkeys(s.lane for s in periods))
    values = [
        {
            "at": _format_time(s.start),
            "end": _format_time(s.end or until),
            "lane": s.lane,
            "what": s.what,
            "detail": s.detail,
            "color": _SERIES.get(s.tone) or _TONES.get(s.tone, "var(--accent)"),
        }
        for s in periods
    ]
    layers: list[Spec] = [
        {
            "data": {"values": values},
            "mark": {"type": "bar", "height": 14, "cornerRadius": 2},
            "encoding": {
                "x": _time_axis(),
                "x2": {"field": "end"},
                "y": {
                    "field": "lane",
                    "type": "nominal",
                    "sort": lanes,
                    "axis": {"title": lane, "grid": False, "domain": False, "ticks": False},
                },
                "color": {"field": "color", "type": "nominal", "scale": None},
                "tooltip": [
                    {"field": "what"},
                    {"field": "detail"},
                    _time_tooltip("at", "from"),
                    _time_tooltip("end", "to"),
                ],
            },
        },
        *_draw_marks(marks),
    ]
    rows: list[list[Any]] = [[s.lane, s.what, s.start, s.end, s.detail] for s in periods]
    return Chart(
        title,
        _build_spec(layers, height=max(60, 26 * len(lanes) + 12)),
        [lane, "what", "from", "to", "why"],
        rows,
        note,
    )


def draw_by_step(
    title: str, series: dict[str, list[tuple[int, float]]], *, axis: str, note: str = ""
) -> Chart:
    """A metric of a run by training step."""
    values = [{"step": s, "value": v, "series": name} for name, points in series.items() for s, v in points]
    layers: list[Spec] = [
        {
            "data": {"values": values},
            "mark": {"type": "line", "point": len(values) < 60},
            "encoding": {
                "x": {
                    "field": "step",
                    "type": "quantitative",
                    "axis": {"title": "step", "tickMinStep": 1, "grid": False},
                    "scale": {"zero": False},
                },
                "y": {
                    "field": "value",
                    "type": "quantitative",
                    "scale": {"zero": False},
                    "axis": {"title": axis, "tickCount": 5},
                },
                "color": {"field": "series", "type": "nominal", "legend": {} if len(series) > 1 else None},
                "tooltip": [
                    {"field": "series", "title": "metric"},
                    {"field": "step"},
                    {"field": "value", "format": ".4~g"},
                ],
            },
        }
    ]
    rows = [[name, s, v] for name, points in series.items() for s, v in points]
    return Chart(title, _build_spec(layers), ["metric", "step", "value"], rows, note)


# --- the bundle that draws ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Availability:
    """Whether pages can draw; ``reason`` says why not, and what to do."""

    ready: bool
    reason: str = ""


def availability() -> Availability:
    """Whether the bundle is there now."""
    if BUNDLE.exists():
        return Availability(True)
    if find_spec("vl_convert") is None:
        return Availability(
            False,
            "Charts need one more package: pip install 'mainspring[report]', then start the server again.",
        )
    return Availability(False, "The chart drawer is being made (once); reload in some seconds.")


def ensure_bundle() -> None:
    """Make the bundle in the background if it is missing and can be made. Pages show tables until it is there."""
    if BUNDLE.exists() or find_spec("vl_convert") is None:
        return
    threading.Thread(target=_make_in_child, name="chart-bundle", daemon=True).start()


def _make_in_child() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mainspring.server.charts"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        log.warning("the chart bundle could not be made: %s", done.stderr[-500:])


def write_bundle(target: Path) -> None:
    """Write the bundle to ``target``, whole or not at all. Loads ``vl_convert``: for short-lived processes only."""
    import vl_convert

    text: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub forgets the default
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(target)


if __name__ == "__main__":
    write_bundle(BUNDLE)
