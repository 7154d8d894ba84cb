"""Table engines: they compute checks and differences. One module per engine; DuckDB is the default.

Each passes the tests of :mod:`mainspring.testing.engines`. Imports pyarrow; import it lazily.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from mainspring.data.engines.base import ROW, KeyComparison, RowSet, Stream, TableEngine
from mainspring.data.engines.source import ArrowSource, ParquetSource, Source, SpooledSource
from mainspring.errors import InvalidInput, near

__all__ = [
    "ENGINES",
    "ROW",
    "ArrowSource",
    "KeyComparison",
    "ParquetSource",
    "RowSet",
    "Source",
    "SpooledSource",
    "Stream",
    "TableEngine",
    "open_engine",
]

ENGINES = ("duckdb", "polars")


def open_engine(name: str = "duckdb", *, folder: Path | None = None) -> AbstractContextManager[TableEngine]:
    """Open the engine of this name for the length of a context; data that does not fit into memory is spilled below ``folder``.

    Raises :class:`InvalidInput` for a name that is none of :data:`ENGINES`, and MissingExtra where its library is not installed.
    """
    if name == "duckdb":
        from mainspring.data.engines.duckdb import open_duckdb

        return open_duckdb(folder)
    if name == "polars":
        from mainspring.data.engines.polars import open_polars

        return open_polars()
    raise InvalidInput("not a table engine", value=name, next_step=near(name, ENGINES, what="engine"))
