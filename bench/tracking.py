"""Metrics per second from Python, until they are in the database, and search over many runs.

``python -m bench.tracking [--points N] [--runs N] [--peers]``. Goals: 100,000 metrics/s to the spool; first page of 100,000 runs in
0.1 s. ``--peers`` installs MLflow into .bench-venvs/ and logs to its SQLite store in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.peers import run_peer

from mainspring.workspace import Workspace, open_workspace

MLFLOW = """
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
import mlflow
os.chdir(sys.argv[2])
mlflow.set_tracking_uri("sqlite:///mlflow.db")
with mlflow.start_run():
    mlflow.log_metric("loss", 0.0, step=0)
    began = time.perf_counter()
    for step in range(int(sys.argv[1])):
        mlflow.log_metric("loss", step * 0.5, step=step)
    print(json.dumps({"mlflow_metrics_per_s": round(int(sys.argv[1]) / (time.perf_counter() - began))}))
"""


def logging(workspace: Workspace, points: int) -> dict[str, float]:
    run = workspace.tracking.start_run(experiment="bench", capture=False)
    began = time.perf_counter()
    for step in range(points):
        run.log_metric("loss", step * 0.5, step)
    spooled = time.perf_counter() - began
    shipped = run.finish(flush_s=600)
    stored = time.perf_counter() - began
    total = workspace.tracking.get_metric_history(run=run.id, key="loss", limit=1).total
    if not shipped or total != points:
        raise SystemExit(f"{total} of {points} points arrived")
    return {
        "points": points,
        "spooled_per_s": round(points / spooled),
        "stored_per_s": round(points / stored),
    }


def search(workspace: Workspace, runs: int, rounds: int = 9) -> dict[str, float]:
    from mainspring.clock import to_us
    from mainspring.records.base import new_id
    from mainspring.records.tracking import Point

    operations = workspace.tracking.operations
    now = to_us(datetime.now(UTC))
    began = time.perf_counter()
    for start in range(0, runs, 1000):
        with workspace.base.store.write():  # rooms join the open transaction: one fsync for a thousand runs
            for i in range(start, min(start + 1000, runs)):
                ident = new_id()
                operations.create_run(id=ident, experiment="many", name=f"run {i}", started_us=now + i)
                points = [
                    Point.of(f"m{k}", ((i * 2654435761 + k) % 1000) / 1000, time_us=now) for k in range(5)
                ]
                operations.log_batch(run=ident, batch_id="bench-1", metrics=points)
    filled = time.perf_counter() - began
    queries = {
        "newest": {},
        "filtered": {"filter": "metrics.m1 > 0.5 and metrics.m2 < 0.1"},
        "by_metric": {"order_by": ["metrics.m3 desc"]},
        "by_two_metrics_and_start": {"order_by": ["-metrics.m3", "metrics.m1", "-started"]},
    }
    result: dict[str, float] = {"runs": runs, "fill_s": round(filled, 1)}
    for name, query in queries.items():
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            page = operations.search_runs(experiments=["many"], limit=50, **query)
            taken.append(time.perf_counter() - began)
            assert page.items
        result[f"first_page_{name}_ms"] = round(1000 * statistics.median(taken), 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--peers", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "mainspring.toml").write_text('[project]\nname = "bench"\n')
        with open_workspace(folder) as workspace:
            print(json.dumps(logging(workspace, arguments.points)), flush=True)
            print(json.dumps(search(workspace, arguments.runs)), flush=True)
        if arguments.peers:
            print(run_peer("mlflow", ["mlflow"], ["-c", MLFLOW, "2000", folder]), flush=True)


if __name__ == "__main__":
    main()
