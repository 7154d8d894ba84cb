"""Overhead per recorded step, and a cached re-run of 50 steps as a whole command. Goals: inline <= 5 ms, isolated <= 25 ms, 0.5 s.

Run: ``python bench/pipelines.py [steps]``. Steps do nothing; they form a chain, so nothing overlaps.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = """
from mainspring.pipelines.step import pipeline, step

@step(isolation={isolation!r})
def nothing(x: int) -> int:
    return x + 1

@pipeline
def chain(n: int, start: int = 0):
    x = start
    for _ in range(n):
        x = nothing(x)
"""

COMMAND = """
import sys, time
from pathlib import Path
from mainspring.clock import SystemClock
from mainspring.lineage import Foundation, Ledger
from mainspring.pipelines import Pipelines, Runner
from mainspring.storage.leases import Leases
from mainspring.storage.objects import open_objects
from mainspring.storage.sql import open_store
home, root, n, start = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
store = open_store("sqlite", home=home)
leases, clock = Leases(store), SystemClock()
base = Foundation(project="bench", home=home, store=store, objects=open_objects("local", home=home, leases=leases),
                  ledger=Ledger(store, project="bench", clock=clock), leases=leases, clock=clock)
began = time.perf_counter()
Runner(base, Pipelines(base), root=root).run("p.py:chain", {"n": n, "start": start})
print(time.perf_counter() - began)
store.close()
"""


def measure(isolation: str, steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        home, root = Path(folder, "home"), Path(folder, "project")
        home.mkdir()
        root.mkdir()
        (root / "p.py").write_text(PROJECT.format(isolation=isolation))

        def command(n: int, start: int) -> tuple[float, float]:
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", COMMAND, str(home), str(root), str(n), str(start)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            return float(done.stdout), time.perf_counter() - began

        one, _ = command(1, 1_000_000)
        many, cold = command(steps, 0)
        cached, warm = command(steps, 0)
        return {
            "ms_per_step": 1000 * (many - one) / (steps - 1),
            "one_step_s": one,
            "cold_command_s": cold,
            "cached_run_s": cached,
            "cached_command_s": warm,
        }


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    for isolation in ("inline", "process"):
        print(
            json.dumps(
                {"steps": steps, "isolation": isolation}
                | {k: round(v, 4) for k, v in measure(isolation, steps).items()}
            )
        )


if __name__ == "__main__":
    main()
