"""Polars as a table engine: its streaming engine reads the batches; a comparison of two tables holds both in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import narwhals as nw
import pyarrow as pa

from mainspring.data.engines.base import ROW, KeyComparison, RowSet, Stream
from mainspring.errors import MissingExtra

try:
    import polars as pl
    from polars.io.plugins import register_io_source
except ModuleNotFoundError:  # pragma: no cover - the development environment has it
    raise MissingExtra.for_library("polars", extra="polars") from None

_AFTER = "__after_"


@contextlib.contextmanager
def open_polars() -> Iterator[Polars]:
    """A fresh engine."""
    yield Polars()


class Polars:
    """See :class:`~mainspring.data.engines.base.TableEngine`."""

    name = "polars"

    def __init__(self) -> None:
        self._streams: list[Stream] = []

    def frame(self, stream: Stream) -> nw.LazyFrame[Any]:
        frame: nw.LazyFrame[Any] = nw.from_native(self._scan_stream(stream))
        return frame

    def collect(self, frame: nw.LazyFrame[Any]) -> pa.Table:
        table: pa.Table = self._run(frame.to_native()).to_arrow()
        return table

    def compare_by_key(
        self, before: Stream, after: Stream, *, key: Sequence[str], rest: Sequence[str], limit: int
    ) -> KeyComparison:
        a, b = (self._run(self._scan_stream(stream)) for stream in (before, after))
        shared: dict[str, Any] = {"on": list(key), "nulls_equal": True}
        matched = a.join(b, how="inner", suffix=_AFTER, **shared)
        differs = (
            pl.any_horizontal(pl.col(c).ne_missing(pl.col(f"{c}{_AFTER}")) for c in rest)
            if rest
            else pl.lit(False)
        )
        changed = matched.filter(differs).select(ROW, f"{ROW}{_AFTER}").sort(ROW)
        return KeyComparison(
            added=_row_set(b.join(a, how="anti", **shared), limit),
            removed=_row_set(a.join(b, how="anti", **shared), limit),
            matched=matched.height,
            changed=changed.height,
            changes=changed.head(limit).rows(),
        )

    def compare_bags(
        self, before: Stream, after: Stream, *, columns: Sequence[str], limit: int
    ) -> tuple[RowSet, RowSet]:
        names = list(columns)
        nth = pl.int_range(pl.len()).over(names).alias("__nth")
        a, b = (self._run(self._scan_stream(stream)).with_columns(nth) for stream in (before, after))
        on = [*names, "__nth"]
        added, removed = (
            _row_set(present.join(absent, on=on, how="anti", nulls_equal=True), limit)
            for present, absent in ((b, a), (a, b))
        )
        return added, removed

    # --- inside ------------------------------------------------------------------------------------------------------

    def _scan_stream(self, stream: Stream) -> pl.LazyFrame:
        self._streams.append(stream)

        def read(
            columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, _size: int | None
        ) -> Iterator[pl.DataFrame]:
            for batch in stream:
                frame = _to_frame(batch)
                if rows is not None:
                    frame = frame.head(rows)
                    rows -= frame.height
                if predicate is not None:
                    frame = frame.filter(predicate)
                yield frame if columns is None else frame.select(columns)
                if rows == 0:
                    return

        return register_io_source(read, schema=_to_frame(stream.schema.empty_table()).schema)

    def _run(self, frame: pl.LazyFrame) -> pl.DataFrame:
        try:
            return frame.collect(engine="streaming")
        except Exception:
            for stream in self._streams:
                if stream.error is not None:
                    raise stream.error from None
            raise


def _to_frame(rows: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101 - tables and batches are never a series
    return frame


def _row_set(frame: pl.DataFrame, limit: int) -> RowSet:
    return RowSet(frame.height, frame.select(ROW).sort(ROW).head(limit).to_series().to_list())
