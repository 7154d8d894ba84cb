"""Counters and histograms in the Prometheus text format 0.0.4, with a bounded number of label sets.

Labels come from the route table (deployment, model, version, role) and from fixed codes only, so a client cannot make new ones (D09).
Above :data:`MAX_SERIES` label sets, further ones share the labels ``other``.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

BUCKETS_S = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
_BOUNDS_US = [int(b * 1e6) for b in BUCKETS_S]
MAX_SERIES = 1000


@dataclass(slots=True)
class Series:
    """Counts of one version in one role: requests by status (``ok`` or an error code), rows, and latency in microseconds."""

    status: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_us: int = 0

    def observe(self, status: str, rows: int, latency_us: int) -> None:
        """Count one request."""
        self.status[status] = self.status.get(status, 0) + 1
        self.rows += rows
        self.sum_us += latency_us
        self.buckets[bisect.bisect_left(_BOUNDS_US, latency_us)] += 1


class Metrics:
    """All counters of one worker. Written on the event loop and its threads; a lost race costs nothing but exactness of
    pool requests, so pool results are counted on the event loop too."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, str, str], Series] = {}
        self.counters: dict[str, int] = {
            "shadow_dropped": 0,
            "log_dropped": 0,
            "log_records": 0,
            "feedback": 0,
            "route_failures": 0,
            "swaps": 0,
        }
        self.refused: dict[str, int] = {}
        self.gauges: dict[str, float] = {"routes_number": 0, "queue_waiting": 0, "ready": 0}

    def series(self, *, deployment: str, model: str, version: int, role: str) -> Series:
        """The series of these labels, made if it is new; all beyond the bound are one."""
        key = (deployment, model, str(version), role)
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= MAX_SERIES:
                key = ("other", "other", "other", "other")
            series = self._series.setdefault(key, Series())
        return series

    def refuse(self, code: str) -> None:
        """Count a request that reached no model, by error code."""
        self.refused[code] = self.refused.get(code, 0) + 1

    def text(self) -> str:
        """All metrics as Prometheus text."""
        out: list[str] = []
        self._render_predictions(out)
        out += [
            "# HELP mainspring_refused_total Requests that reached no model, by code.",
            "# TYPE mainspring_refused_total counter",
        ]
        out += [f'mainspring_refused_total{{code="{code}"}} {n}' for code, n in sorted(self.refused.items())]
        for name, value in self.counters.items():
            out += [
                f"# HELP mainspring_{name}_total {_HELP[name]}",
                f"# TYPE mainspring_{name}_total counter",
                f"mainspring_{name}_total {value}",
            ]
        for name, gauge in self.gauges.items():
            out += [
                f"# HELP mainspring_{name} {_HELP[name]}",
                f"# TYPE mainspring_{name} gauge",
                f"mainspring_{name} {gauge:g}",
            ]
        return "\n".join(out) + "\n"

    def _render_predictions(self, out: list[str]) -> None:
        ordered = sorted(self._series.items())
        labels = {
            key: 'deployment="{}",model="{}",version="{}",role="{}"'.format(*(_escape(p) for p in key))
            for key, _ in ordered
        }
        out += [
            "# HELP mainspring_predictions_total Requests answered by a model, by status.",
            "# TYPE mainspring_predictions_total counter",
        ]
        for key, series in ordered:
            out += [
                f'mainspring_predictions_total{{{labels[key]},status="{s}"}} {n}'
                for s, n in sorted(series.status.items())
            ]
        out += [
            "# HELP mainspring_predicted_rows_total Rows answered.",
            "# TYPE mainspring_predicted_rows_total counter",
        ]
        out += [f"mainspring_predicted_rows_total{{{labels[key]}}} {series.rows}" for key, series in ordered]
        out += [
            "# HELP mainspring_prediction_seconds Time from the whole body to the answer.",
            "# TYPE mainspring_prediction_seconds histogram",
        ]
        for key, series in ordered:
            total = 0
            for bound, count in zip([f"{b:g}" for b in BUCKETS_S] + ["+Inf"], series.buckets, strict=True):
                total += count
                out.append(f'mainspring_prediction_seconds_bucket{{{labels[key]},le="{bound}"}} {total}')
            out.append(f"mainspring_prediction_seconds_sum{{{labels[key]}}} {series.sum_us / 1e6:g}")
            out.append(f"mainspring_prediction_seconds_count{{{labels[key]}}} {total}")


_HELP = {
    "shadow_dropped": "Shadow requests dropped because their queue was full.",
    "log_dropped": "Prediction log records that could not be written.",
    "log_records": "Prediction log records written (predictions and shadows).",
    "feedback": "Feedback items relayed.",
    "route_failures": "Route tables that could not be taken into service.",
    "swaps": "Route tables taken into service.",
    "routes_number": "Number of the route table in service.",
    "queue_waiting": "Requests waiting for a slot.",
    "ready": "1 if predictions can be made.",
}


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
