#!/usr/bin/env python
"""Peak memory and time of checking, profiling and comparing versions of a table that is much larger than what it takes.

Usage: ``bench/checks_memory.py [ROWS]``: 12 columns (5 floats, 5 integers, a time, a text), 10,000,000 rows are about 1 GB in memory.
Each figure comes from a process of its own: the most it ever held, beyond what it held before it began; seconds of the clock and of
the processor.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import mainspring as ms
from mainspring.records.data import (
    FreshnessRule,
    LabelRateRule,
    NotNullRule,
    RangeRule,
    RegexRule,
    RowCountRule,
    SetRule,
    TypeRule,
    UniqueRule,
)

PIECE = 1 << 18
WORDS = np.array([f"place {i}" for i in range(500)])
RULES: dict[str, list[Any]] = {
    "ten rules that hold": [
        RowCountRule(min=1), TypeRule(column="f0", type="number"), NotNullRule(column="f1"), RangeRule(column="f2", min=-100, max=100), RangeRule(column="i1", min=0),
        SetRule(column="i2", allowed=list(range(100))), RegexRule(column="s", pattern=r"place \d+"), FreshnessRule(column="t", max_age="100000d", tolerance="100000d"),
        LabelRateRule(column="i3", low=0.0, high=1.0, positive=1, period="t", per="day"), LabelRateRule(column="i3", low=0.0, high=1.0, positive=1, by="s"),
    ],
    "ten rules that fail": [
        RowCountRule(max=1), TypeRule(column="s", type="number"), NotNullRule(column="n"), RangeRule(column="f2", max=0), RangeRule(column="i1", max=10),
        SetRule(column="i2", allowed=[1]), RegexRule(column="s", pattern="place 1"), FreshnessRule(column="t", max_age="1d"),
        LabelRateRule(column="i3", low=0.9, high=1.0, positive=1, period="t", per="day"), UniqueRule(columns=["i1", "s"]),
    ],
    "unique over every row": [UniqueRule(columns=["i0"])],
}  # fmt: skip


def pieces(rows: int, changed: bool) -> Iterator[pa.RecordBatch]:
    for start in range(0, rows, PIECE):
        n = min(PIECE, rows - start)
        r = np.random.default_rng(start)
        columns: dict[str, Any] = {f"f{i}": r.normal(size=n) for i in range(4)}
        columns["n"] = pa.array(r.normal(size=n), mask=r.random(n) < 0.01)
        columns |= {
            "i0": np.arange(start, start + n),
            "i1": r.integers(0, 1 << 40, n),
            "i2": r.integers(0, 100, n),
            "i3": r.integers(0, 2, n),
            "i4": r.integers(0, 1 << 60, n),
        }
        columns["t"] = pa.array(
            1_357_000_000_000_000 + np.arange(start, start + n) * 1_000_000, pa.timestamp("us", "UTC")
        )
        columns["s"] = WORDS[r.integers(0, 500, n)]
        if changed:
            columns["f0"] = np.where(np.arange(n) % 1000 == 0, 0.0, columns["f0"])
        yield pa.record_batch(columns)


def prepare(home: Path, rows: int) -> None:
    with ms.open(home) as workspace:
        workspace.data.commit("small", {"x": [1]})
        for changed in (False, True):
            file = home / "table.parquet"
            first = next(pieces(1, changed))
            with pq.ParquetWriter(file, first.schema) as writer:
                for piece in pieces(rows, changed):
                    writer.write_batch(piece)
            workspace.data.commit("t", file)
            file.unlink()


def memory(what: str) -> int:
    """What this process holds (VmRSS), or the most it ever held (VmHWM), in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def measure(home: Path, what: str) -> dict[str, float]:
    with ms.open(home) as workspace:
        data = workspace.data
        data.check("small", [RowCountRule(min=1)])  # whatever loads at first use
        before, began, used = memory("VmRSS"), time.monotonic(), time.process_time()
        if what == "profile":
            data.get_profile("t")
        elif what == "difference by key":
            data.diff("t", 1, 2, key=["i0"])
        else:
            data.check("t", RULES[what])
        return {
            "mb": (memory("VmHWM") - before) / 1024,
            "seconds": time.monotonic() - began,
            "processor": time.process_time() - used,
        }


def main() -> None:
    if len(sys.argv) > 2:
        print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place), rows)
        print(
            f"{rows} rows, {sum(b.nbytes for b in pieces(min(rows, PIECE), False)) / min(rows, PIECE) * rows / 1e6:.0f} MB in memory"
        )
        for what in [*RULES, "profile", "difference by key"]:
            done = subprocess.run(
                [sys.executable, __file__, place, what], check=False, capture_output=True, text=True
            )
            if done.returncode:
                print(
                    f"{what:28} {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f'exit {done.returncode}'}"
                )
                continue
            f = json.loads(done.stdout)
            print(
                f"{what:28} {f['mb']:7.0f} MB {f['seconds']:7.1f} s {f['processor']:7.1f} s of the processor",
                flush=True,
            )


if __name__ == "__main__":
    main()
