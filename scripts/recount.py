#!/usr/bin/env python3
"""Recompute the demo's monthly figures from the workspace alone: ``scripts/recount.py WORKSPACE``.

Reads the ingested prediction log and the feedback in the workspace's SQLite file, read-only, with plain SQL and the
standard library; it imports nothing of Mainspring. Prints one JSON line: ``{"requests", "failed_requests", "monthly"}``,
with months as in the demo's own report. WORKSPACE is the project directory, or its ``.mainspring``.
"""

from __future__ import annotations

import argparse
import json
import math
import sqlite3
import sys
from datetime import UTC, datetime
from pathlib import Path

EPSILON = sys.float_info.epsilon  # as scikit-learn clips float64 probabilities
SERIES = {"frozen": "frozen", "monthly": "monthly"}  # report's name: name of the shadow in the log

# Only rows that the loop answered and both shadows scored: all three figures are about the same requests.
QUERY = """
SELECT p.event_us, l.value, p.score AS loop, f.score AS frozen, m.score AS monthly
FROM predictions p
JOIN labels l ON l.project = p.project AND l.request = p.request AND l.row_no = p.row_no
JOIN shadow_predictions f ON f.project = p.project AND f.request = p.request AND f.row_no = p.row_no AND f.name = ? AND f.status = 'ok'
JOIN shadow_predictions m ON m.project = p.project AND m.request = p.request AND m.row_no = p.row_no AND m.name = ? AND m.status = 'ok'
WHERE p.status = 'ok'
ORDER BY p.request, p.row_no
"""


def database(workspace: Path) -> Path:
    for place in (workspace / ".mainspring" / "meta.db", workspace / "meta.db"):
        if place.is_file():
            return place
    sys.exit(f"no workspace here: {workspace} (expected .mainspring/meta.db)")


def truth(value: str) -> int:
    """A label as 0 or 1: the class by name, or a number or truth value."""
    label = json.loads(value)
    if label in ("late", 1, True):
        return 1
    if label in ("on_time", 0, False):
        return 0
    sys.exit(f"a label that is neither late nor on_time: {value}")


def log_loss(labels: list[int], scores: list[float]) -> float:
    clipped = [min(max(s, EPSILON), 1 - EPSILON) for s in scores]
    return -math.fsum(
        math.log(s) if y else math.log1p(-s) for y, s in zip(labels, clipped, strict=True)
    ) / len(labels)


def auc(labels: list[int], scores: list[float]) -> float | None:
    """Probability that a late flight scores above one on time; ties count half. None with one class."""
    order = sorted(range(len(scores)), key=scores.__getitem__)
    positives = sum(labels)
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    above = below = 0.0
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and scores[order[end]] == scores[order[start]]:
            end += 1
        late = sum(labels[i] for i in order[start:end])
        on_time = end - start - late
        above += late * (below + on_time / 2)
        below += on_time
        start = end
    return above / (positives * negatives)


def recount(path: Path) -> dict[str, object]:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        rows = connection.execute(QUERY, (SERIES["frozen"], SERIES["monthly"])).fetchall()
        requests, failed = connection.execute(
            "SELECT count(DISTINCT request), count(DISTINCT CASE WHEN status <> 'ok' THEN request END) FROM predictions"
        ).fetchone()
    finally:
        connection.close()
    months: dict[int, list[tuple[int, float, float, float]]] = {}
    for event_us, value, loop, frozen, monthly in rows:
        month = datetime.fromtimestamp(event_us / 1e6, UTC).month
        months.setdefault(month, []).append((truth(value), loop, frozen, monthly))
    report = []
    for month, found in sorted(months.items()):
        labels = [r[0] for r in found]
        line: dict[str, object] = {"month": month, "n": len(found)}
        for position, name in enumerate(("loop", "frozen", "monthly"), start=1):
            scores = [float(r[position]) for r in found]
            line[f"logloss_{name}"] = log_loss(labels, scores)
            line[f"auc_{name}"] = auc(labels, scores)
        report.append(line)
    return {"requests": requests, "failed_requests": failed, "monthly": report}


def main() -> None:
    parser = argparse.ArgumentParser(description="Recompute the demo's monthly figures from a workspace.")
    parser.add_argument("workspace", type=Path)
    print(json.dumps(recount(database(parser.parse_args().workspace))))


if __name__ == "__main__":
    main()
