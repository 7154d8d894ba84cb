"""The recount against scikit-learn, on a workspace's real schema."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from mainspring.clock import to_us
from mainspring.storage.sql import open_store

SCRIPT = Path(__file__).parents[2] / "scripts" / "recount.py"


def _fill(home: Path) -> dict[int, np.ndarray]:
    """Two months of scored, partly labelled requests; returns [label, loop, frozen, monthly] of the rows that count."""
    rng = np.random.default_rng(0)
    counted: dict[int, list[list[float]]] = {2: [], 3: []}
    store = open_store("sqlite", home=home)
    with store.write() as tx:
        for n in range(400):
            month = 2 + n % 2
            event, request = to_us(datetime(2013, month, 1 + n % 20, tzinfo=UTC)), f"r{n:04d}"
            y, scores = int(rng.random() < 0.3), np.round(rng.random(3), 1)  # rounded: ties, zeros and ones
            status = "error" if n in {7, 8} else "ok"
            tx.execute(
                "INSERT INTO predictions (project, request, row_no, deployment, model, version, role, event_us, at_us, arrival_us, latency_us, routes, status, score)"
                " VALUES ('flights', ?, 0, 'delay', 'delay', 1, 'champion', ?, ?, ?, 5, 1, ?, ?)",
                request, event, event, event, status, float(scores[0]),
            )  # fmt: skip
            for name, score in (("frozen", scores[1]), ("monthly", scores[2]), ("champion", 0.5)):
                if not (name == "monthly" and n == 11):
                    tx.execute(
                        "INSERT INTO shadow_predictions (project, request, row_no, name, deployment, model, version, at_us, latency_us, status, score)"
                        " VALUES ('flights', ?, 0, ?, 'delay', 'delay', 1, ?, 5, 'ok', ?)",
                        request, name, event, float(score),
                    )  # fmt: skip
            if n % 10:
                value = [("late", "on_time"), (True, False), (1, 0)][n % 3][1 - y]
                tx.execute(
                    "INSERT INTO labels (project, request, row_no, revision, seq, value, at_us, arrived_us, source) VALUES ('flights', ?, 0, 1, ?, ?, ?, ?, '')",
                    request, n, json.dumps(value), event, event,
                )  # fmt: skip
                if status == "ok" and n != 11:
                    counted[month].append([y, *scores])
    store.close()
    return {month: np.array(rows) for month, rows in counted.items()}


def test_the_recount_equals_scikit_learn(tmp_path: Path) -> None:
    expected = _fill(tmp_path / ".mainspring")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert (found["requests"], found["failed_requests"]) == (400, 2)
    assert [m["month"] for m in found["monthly"]] == [2, 3]
    for line in found["monthly"]:
        rows = expected[line["month"]]
        assert line["n"] == len(rows)
        for position, name in enumerate(("loop", "frozen", "monthly"), start=1):
            assert line[f"logloss_{name}"] == pytest.approx(log_loss(rows[:, 0], rows[:, position]))
            assert line[f"auc_{name}"] == pytest.approx(roc_auc_score(rows[:, 0], rows[:, position]))


def test_it_imports_nothing_of_the_product() -> None:
    """A recount that shared code with the demo would share its mistakes."""
    assert "mainspring" not in [
        word.split(".")[0]
        for line in SCRIPT.read_text().splitlines()
        if line.startswith(("import ", "from "))
        for word in line.split()[1:2]
    ]


def test_another_directory_is_told_apart(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no workspace here" in done.stderr
