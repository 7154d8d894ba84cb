"""The embedded table engine: a private DuckDB in memory, without access to files or the network.

Imports duckdb; import it lazily.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import duckdb


@contextlib.contextmanager
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """A fresh connection: sessions in UTC, as many threads as this process may use, nothing outside within reach."""
    threads = max(1, len(os.sched_getaffinity(0)))
    opened = duckdb.connect(":memory:", config={"threads": threads})
    try:
        opened.execute("SET TimeZone = 'UTC'")
        opened.execute("SET enable_external_access = false")
        opened.execute("SET lock_configuration = true")
        yield opened
    finally:
        opened.close()
