"""The results of the year, computed from the workspace alone: nothing is taken from the process that ran it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mainspring.records.models import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mainspring.workspace import Workspace

SERIES = ("loop", "frozen", "monthly")
_DAY_US = 86_400_000_000

# Every join is on a whole primary key, so it yields at most one row; the inner joins keep the rows that all three models scored.
_ROWS = """
SELECT p.event_us, l.value, p.score AS loop, f.score AS frozen, m.score AS monthly
FROM predictions p
JOIN labels l ON l.project = p.project AND l.request = p.request AND l.row_no = p.row_no
JOIN shadow_predictions f ON f.project = p.project AND f.request = p.request AND f.row_no = p.row_no AND f.name = 'frozen' AND f.status = 'ok'
JOIN shadow_predictions m ON m.project = p.project AND m.request = p.request AND m.row_no = p.row_no AND m.name = 'monthly' AND m.status = 'ok'
WHERE p.project = ? AND p.status = 'ok'
ORDER BY p.event_us, p.request
"""


@dataclass(frozen=True)
class Scores:
    """Labelled rows that the loop answered and both comparison models scored, in time order."""

    month: NDArray[np.int64]
    day: NDArray[np.int64]
    truth: NDArray[np.float64]
    by: dict[str, NDArray[np.float64]]


def read_scores(workspace: Workspace) -> Scores:
    """Read the rows that all three scored."""
    import numpy as np

    from mainspring.records.base import from_json

    with workspace.base.store.read() as tx:
        rows = tx.all(_ROWS, workspace.project)
    at = [r["event_us"] for r in rows]
    return Scores(
        month=np.array([datetime.fromtimestamp(us / 1e6, UTC).month for us in at], dtype=np.int64),
        day=np.array(at, dtype=np.int64) // _DAY_US,
        truth=np.array([float(from_json(r["value"]) in {True, "late"}) for r in rows]),
        by={name: np.array([r[name] for r in rows], dtype=np.float64) for name in SERIES},
    )


def score_by_month(rows: Scores) -> list[dict[str, Any]]:
    """Log-loss and AUC by month, for the three."""
    from mainspring.metrics.registry import measure

    report = []
    for month in sorted(set(rows.month.tolist())):
        mask = rows.month == month
        line: dict[str, Any] = {"month": month, "n": int(mask.sum())}
        for name in SERIES:
            values = measure(
                rows.truth[mask], rows.by[name][mask], task=Task.BINARY, names=["log_loss", "auc"]
            )
            line[f"logloss_{name}"], line[f"auc_{name}"] = values["log_loss"], values["auc"]
        report.append(line)
    return report


def compare_losses(rows: Scores, other: str) -> dict[str, Any]:
    """Mean per-row log-loss of the loop minus another's, with a 95 % interval clustered by day.

    Flights of one day share weather and traffic, so their losses are not independent.
    """
    from mainspring.metrics.compare import compare

    if not len(rows.truth):
        return {"mean": None, "low": None, "high": None, "n": 0}
    estimate = compare(
        rows.truth, rows.by["loop"], rows.by[other], task=Task.BINARY, name="log_loss", blocks=rows.day
    ).worse_by
    return {
        "mean": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "days": estimate.blocks,
    }


def list_events(workspace: Workspace, kind: str) -> list[dict[str, Any]]:
    """All events of a kind, oldest first, each with id, date, subject and reason."""
    events, after = [], None
    while True:
        page = workspace.lineage.list_events(kind=kind, after=after, limit=1000, newest_first=False)
        events += [
            {
                "event": e.id,
                "at": e.at.date().isoformat(),
                "subject": e.subject,
                "reason": e.data.get("reason") or e.data.get("detail", ""),
            }
            for e in page.items
        ]
        if page.next is None:
            return events
        after = page.next


def trace_prediction(workspace: Workspace, *, seed: int) -> dict[str, Any]:
    """One random prediction, traced to the bytes of its training data, which are read and hashed again."""
    from mainspring.data.tables import content_digest

    with workspace.base.store.read() as tx:
        count = tx.scalar("SELECT count(*) AS n FROM predictions WHERE project = ?", workspace.project)
        # Ordered by the primary key, so that the same seed picks the same prediction on every engine.
        number = random.Random(seed).randrange(count)  # noqa: S311 - a draw for a demonstration
        row = tx.one(
            "SELECT request FROM predictions WHERE project = ? ORDER BY request LIMIT 1 OFFSET ?",
            workspace.project,
            number,
            what="prediction",
        )
    graph = workspace.lineage.get_origin(ref=f"prediction:{row['request']}")
    by_kind: dict[str, list[str]] = {}
    for node in sorted(graph.nodes, key=lambda n: n.depth):
        by_kind.setdefault(node.kind, []).append(node.ref.partition(":")[2])
    version = by_kind["model_version"][0]
    model, _, number_text = version.rpartition("@")
    registered = workspace.models.get_version(model=model, selector=number_text)
    dataset = workspace.data.get_version_by_id(str(registered.dataset_version))
    digest = content_digest(workspace.data.read(dataset.dataset, dataset.id))
    return {
        "prediction_id": row["request"],
        "model_version": version,
        "run": next(iter(by_kind.get("run", [])), None),
        "code": next(iter(by_kind.get("code", [])), None),
        "environment": next(iter(by_kind.get("environment", [])), None),
        "dataset_version": dataset.id,
        "dataset": f"{dataset.dataset} version {dataset.number}, {dataset.rows} rows",
        "digest_ok": digest == dataset.id,
    }
