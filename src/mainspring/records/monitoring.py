"""Monitoring: its policy, and the facts that it records. The loop decides on them."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any, Literal

from mainspring.records.base import Duration, Record
from mainspring.records.models import Task


class MonitorPolicy(Record, frozen=True):
    """How a deployment is watched (``[monitor.<deployment>]`` in mainspring.toml).

    ``window``: length of a window, aligned to the epoch (UTC). ``grace``: a window closes this long after its end, so
    that late log records still count. ``lookback``: drift and performance are judged over the windows of this
    length up to the newest one (default: that window alone); with several, the natural variation between them is
    estimated and allowed for. ``min_rows``/``min_labels``: with less evidence the verdict is ``insufficient_data``.

    Drift of a column: bias-corrected population stability index of at least ``psi`` (``columns`` overrides it by name, ``ignore``
    leaves columns out) **and** significant after false-discovery control at ``alpha`` over columns and time.
    Quality: a share (nulls, invalid, unseen categories, values outside the training range) that grew by more than
    ``null_share``, ``invalid_share``, ``unseen_share``, ``outside_share``; failed requests above ``error_rate``.

    Performance: ``metric`` (any that the task knows: docs/rooms/metrics.md) worse than ``reference`` by more than
    ``tolerance`` (in the metric's unit) with confidence. Without ``reference`` the model version's own recorded figure is
    used. ``label_delay``: how late labels usually are; ``label_horizon``: later ones no longer revise windows.

    ``confirm``: so many windows in a row must show a thing before its alert opens; ``clear``: so many without it resolve it.
    """

    window: Duration = "1d"
    grace: Duration = "0s"
    lookback: Duration | None = None
    min_rows: int = 100
    psi: float = 0.2
    alpha: float = 0.05
    bins: int = 10
    columns: dict[str, float] = {}
    ignore: list[str] = []
    null_share: float = 0.05
    invalid_share: float = 0.01
    unseen_share: float = 0.05
    outside_share: float = 0.2
    error_rate: float = 0.01
    metric: str | None = None
    tolerance: float = 0.02
    reference: float | None = None
    min_labels: int = 100
    label_delay: Duration = "0s"
    label_horizon: Duration = "90d"
    confirm: int = 1
    clear: int = 2


class Verdict(enum.StrEnum):
    """The result of a comparison."""

    OK = "ok"
    DRIFT = "drift"
    DECAY = "decay"
    INSUFFICIENT_DATA = "insufficient_data"
    NOT_COMPUTABLE = "not_computable"


class ColumnDrift(Record, frozen=True):
    """One column against the reference. All numbers are finite or absent; ``reason`` says why one is absent.

    ``psi`` is corrected for its bias at small n, ``psi_raw`` is not; ``js`` is the Jensen-Shannon distance (0 to 1, also
    corrected). ``p_value`` is of the chi-square test of homogeneity, divided by ``design_effect``; ``q_value`` after
    Benjamini-Hochberg over the columns of this window.
    """

    column: str
    verdict: Verdict
    reason: str = ""
    n: int = 0
    n_reference: int = 0
    psi: float | None = None
    psi_raw: float | None = None
    js: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    q_value: float | None = None
    design_effect: float | None = None
    bins: list[str] = []
    current: list[float] = []
    reference: list[float] = []


class DriftReport(Record, frozen=True):
    """All columns of a window (or its lookback), the largest effect first.

    ``level`` is the significance level that the online control granted this window; ``windows`` how many were pooled.
    """

    verdict: Verdict
    rows: int
    reference: str
    windows: int = 1
    level: float | None = None
    p_value: float | None = None
    columns: list[ColumnDrift] = []


class Finding(Record, frozen=True):
    """A fact about a window. ``warning`` opens an alert, ``info`` is only recorded."""

    window: str
    deployment: str
    at: datetime
    kind: Literal["drift", "performance", "quality"]
    subject: str
    code: str
    severity: Literal["info", "warning"]
    detail: str
    value: float | None = None
    limit: float | None = None


class Metric(Record, frozen=True):
    """An estimate from ``n`` labelled rows with its 95 % interval; absent numbers could not be computed."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str = ""


class Performance(Record, frozen=True):
    """How good the predictions of one scorer in one window were, as far as labels have arrived.

    ``scorer`` is a version number or ``shadow:<name>``. ``invalid`` labels could not be read as this task's truth.
    ``sums`` holds, per metric that is a mean over rows, [sum, sum of squares] of its values per row: windows add up.
    ``truncated``: more rows are labelled than are read for one window; metrics and ``labelled`` are of the newest.
    """

    scorer: str
    model: str
    version: int
    task: Task
    rows: int
    labelled: int
    unlabelled: int
    invalid: int = 0
    revision: int = 1
    metrics: dict[str, Metric] = {}
    sums: dict[str, list[float]] = {}
    truncated: bool = False


class DecayReport(Record, frozen=True):
    """Performance of the champion over the lookback against its reference level."""

    verdict: Verdict
    metric: str
    version: int
    reason: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reference: float | None = None
    tolerance: float = 0.0
    p_value: float | None = None
    level: float | None = None


class Vitals(Record, frozen=True):
    """Traffic of a window by version and role. Latencies in microseconds."""

    model: str
    version: int
    role: str
    requests: int
    rows: int
    errors: dict[str, int] = {}
    latency_p50_us: float | None = None
    latency_p99_us: float | None = None
    score_mean: float | None = None


class WindowReport(Record, frozen=True):
    """The results that were computed when a window closed."""

    drift: DriftReport | None = None
    prediction: ColumnDrift | None = None
    decay: DecayReport | None = None
    vitals: list[Vitals] = []
    champion: str | None = None
    """``model@version`` whose training profile is the reference."""


class Window(Record, frozen=True):
    """A span of time of one deployment. ``revision`` grows when late rows or labels change its results."""

    id: str
    deployment: str
    start: datetime
    end: datetime
    state: Literal["open", "closed"]
    revision: int
    rows: int
    requests: int
    errors: int
    labelled: int = 0
    report: WindowReport | None = None
    performance: list[Performance] = []


class Alert(Record, frozen=True):
    """A thing that holds over windows; at most one is open per deployment, kind and subject."""

    id: str
    deployment: str
    kind: str
    subject: str
    opened_at: datetime
    last_seen: datetime
    resolved_at: datetime | None
    hits: int
    window: str
    detail: str


class SeriesPoint(Record, frozen=True):
    """One window's value of a metric, for charts and tables."""

    window: str
    start: datetime
    end: datetime
    scorer: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0


class IngestReport(Record, frozen=True):
    """The result of reading the prediction log once. ``duplicates`` were known already; ``bad`` could not be decoded.

    ``more``: the log holds further records that this call left for the next one.
    """

    requests: int = 0
    rows: int = 0
    shadows: int = 0
    duplicates: int = 0
    bad: int = 0
    torn: int = 0
    clamped: int = 0
    more: bool = False


class EvaluateReport(Record, frozen=True):
    """The result of one evaluation: ids of windows closed and revised, alerts opened and resolved."""

    closed: list[str] = []
    revised: list[str] = []
    opened: list[str] = []
    resolved: list[str] = []
    late_labels: int = 0
    """Labels that arrived after the horizon: counted, but not used to revise windows."""
    more: bool = False


class PredictionRecord(Record, frozen=True):
    """One predicted row with everything known of it. ``inputs`` None: the log no longer holds them."""

    id: str
    deployment: str
    model: str
    version: int
    role: str
    event_time: datetime
    latency_us: int
    routes: int
    status: str
    score: float | None
    scores: list[float] | None
    inputs: dict[str, Any] | None
    label: bool | int | float | str | None = None
    label_arrived_at: datetime | None = None
    shadows: dict[str, float | list[float] | None] = {}


class Paired(Record, frozen=True):
    """Two scorers on the same rows. ``rows`` both answered, ``labelled`` of them have a readable label.

    ``loss_a``/``loss_b`` are per labelled row (log-loss in nats; regression: squared error; where a scorer gives decision values:
    1 for a wrong label, ``error``), ``at_us`` their event times, in time order; ``errors_*`` failed answers. ``score_shift`` is the bias-corrected PSI between their scores.
    """

    a: str
    b: str
    loss: str
    rows: int
    labelled: int
    errors_a: int
    errors_b: int
    score_shift: float | None
    at_us: list[int] = []
    loss_a: list[float] = []
    loss_b: list[float] = []
    truncated: bool = False


class MonitorCounts(Record, frozen=True):
    """Totals of a deployment (or of all)."""

    requests: int
    rows: int
    failed: int
    shadows: int
    labelled: int
    windows: int
    open_alerts: int
    ingest: dict[str, int]
    """What ingestion dropped or corrected, since the beginning, by reason (whole project)."""


class BlastRadius(Record, frozen=True):
    """Predictions that a model version made: how many, when, and a bounded sample of ids (first ones by time)."""

    model: str
    version: int
    predictions: int
    shadow_predictions: int
    first: datetime | None
    last: datetime | None
    sample: list[str]
