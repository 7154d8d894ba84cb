"""Commits per second with 1, 2, 4 and 8 processes writing to one embedded workspace at once.

``python -m bench.writers [--seconds S] [--rounds N]``. Two kinds of decision: ``commit`` (a small table becomes a dataset version) and
``log_batch`` (a hundred points of a run). Goal: eight writers together are at least as fast as one, and none of them waits for ever
(``slowest``: the least that one of them did, as a part of an equal share). The numbers of writers take turns, so that a busy machine is
busy for all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WRITER = """
import json, sys, time
from pathlib import Path
from mainspring.records.tracking import Point
from mainspring.workspace import open_workspace

root, kind, number, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
with open_workspace(root) as workspace:
    tracking = workspace.tracking.operations
    run = tracking.create_run().id
    workspace.data.commit(f"d{number}", {"x": [0, number]})

    def decide(i):
        if kind == "commit":
            workspace.data.commit(f"d{number}", {"x": [i, number, time.time_ns()]})
        else:
            points = [Point.of("loss", float(j), step=100 * i + j) for j in range(100)]
            tracking.log_batch(run=run, batch_id=str(i), metrics=points)

    decide(0)
    print("ready", flush=True)
    sys.stdin.readline()
    done, longest, end = 0, 0.0, time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        decide(done + 1)
        longest = max(longest, time.perf_counter() - began)
        done += 1
    print(json.dumps([done, longest]), flush=True)
"""


def measure(kind: str, writers: int, seconds: float) -> tuple[float, float, float]:
    """Decisions per second, the part of an equal share that the slowest writer had, and the longest single decision in seconds."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "mainspring.toml").write_text('[project]\nname = "bench"\n')
        children = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, place, kind, str(n), str(seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for n in range(writers)
        ]
        for child in children:
            assert child.stdout is not None
            if child.stdout.readline() != "ready\n":
                raise SystemExit("a writer did not start")
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        said = [json.loads(child.communicate()[0]) for child in children]
    done = [count for count, _ in said]
    return sum(done) / seconds, min(done) * writers / max(sum(done), 1), max(longest for _, longest in said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--writers", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--kinds", nargs="*", default=["commit", "log_batch"])
    given = parser.parse_args()
    for kind in given.kinds:
        found: dict[int, list[tuple[float, float, float]]] = {n: [] for n in given.writers}
        for _ in range(given.rounds):
            for writers in given.writers:
                found[writers].append(measure(kind, writers, given.seconds))
        one = statistics.median(rate for rate, _, _ in found[given.writers[0]])
        for writers, rounds in found.items():
            rate = statistics.median(r for r, _, _ in rounds)
            print(
                json.dumps(
                    {
                        "kind": kind,
                        "writers": writers,
                        "per_s": round(rate, 1),
                        "of_one": round(rate / one, 2),
                        "slowest": round(min(s for _, s, _ in rounds), 2),
                        "longest_s": round(max(longest for _, _, longest in rounds), 2),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
