"""Drift report of 1 M rows x 25 columns (20 numbers, 5 strings of 8 levels) against as many reference rows.

Prints one JSON line: seconds for profiling both sides and comparing them, and peak memory of the process. Evidently 0.7 needs
86 s and 2.4 GB for the same table (goal: 2 s, 480 MB). ``python bench/drift.py [ROWS]``
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mainspring.data.profile import ProfileBuilder
from mainspring.monitoring.drift import compare_profiles
from mainspring.records.base import to_json

COLUMNS = 20
BATCH = 65_536


def write(path: Path, rows: int, seed: int, shift: float) -> None:
    """A table in row groups, so that neither writing nor reading holds it whole."""
    rng = np.random.default_rng(seed)
    levels = pa.array([f"level {i}" for i in range(8)])
    writer = None
    for start in range(0, rows, BATCH):
        n = min(BATCH, rows - start)
        data = {f"x{i}": pa.array(rng.normal(shift if i == 0 else 0.0, 1.0, n)) for i in range(COLUMNS)}
        data |= {f"c{i}": levels.take(pa.array(rng.integers(0, 8, n))) for i in range(5)}
        table = pa.table(data)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def profile(path: Path) -> tuple[object, float]:
    builder = ProfileBuilder()
    spent = 0.0
    for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH):
        start = time.perf_counter()
        builder.add(batch)
        spent += time.perf_counter() - start
    return builder.build(), spent


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        current, reference = Path(folder, "current.parquet"), Path(folder, "reference.parquet")
        write(reference, rows, 1, 0.0)
        write(current, rows, 2, 0.5)
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        begin = time.perf_counter()
        one, spent_one = profile(current)
        two, spent_two = profile(reference)
        start = time.perf_counter()
        report = compare_profiles(one, two)  # type: ignore[arg-type]
        compare = time.perf_counter() - start
        total = time.perf_counter() - begin
    figures = {
        "rows": rows,
        "columns": COLUMNS + 5,
        "profile_s": round(spent_one + spent_two, 3),
        "compare_s": round(compare, 4),
        "report_s": round(spent_one + spent_two + compare, 3),
        "with_reading_s": round(total, 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "before_mib": round(base),
        "report_bytes": len(to_json(report)),
        "drifted": [c.column for c in report.columns if c.verdict == "drift"],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
