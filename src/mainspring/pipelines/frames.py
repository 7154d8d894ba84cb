"""Frames of pandas and Polars between steps: they travel as Arrow tables and come back as what they were, or as the parameter says."""

from __future__ import annotations

from typing import Any

from mainspring.errors import InvalidInput

_FRAMES = ("pandas.DataFrame", "pandas.Series", "polars.DataFrame", "polars.LazyFrame", "polars.Series")
_TABLE = "pyarrow.Table"


def name_kind(kind: object) -> str:
    """``pandas.DataFrame`` and the like for a class, wherever in its library it lives; empty for anything but a class."""
    return f"{kind.__module__.split('.')[0]}.{kind.__qualname__}" if isinstance(kind, type) else ""


def is_frame(value: object) -> bool:
    """Whether a value is a frame or series of pandas or Polars."""
    return name_kind(type(value)) in _FRAMES


def to_table(value: Any, *, place: str) -> Any:
    """A frame as an Arrow table, with the index of pandas; a series is a table of one column."""
    import pyarrow as pa

    kind = name_kind(type(value))
    try:
        if kind == "pandas.DataFrame":
            return pa.Table.from_pandas(value)
        if kind == "pandas.Series":
            return pa.Table.from_pandas(value.to_frame(name=value.name))
        if kind == "polars.LazyFrame":
            return value.collect().to_arrow()
        return value.to_frame().to_arrow() if kind == "polars.Series" else value.to_arrow()
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InvalidInput(
            f"a frame with a column of no one type cannot be an output: {error}",
            place=place,
            next_step="Give each column one type: numbers, truth values, texts or times.",
        ) from None


def from_table(table: Any, *, made: str, hint: object) -> Any:
    """The table as ``hint``, the annotation of a parameter, wants it; without one as it was returned (``made``)."""
    wanted = name_kind(hint)
    kind = wanted if wanted in (*_FRAMES, _TABLE) else made
    library, _, shape = kind.partition(".")
    if library == "pandas":
        frame = table.to_pandas()
        return frame if shape == "DataFrame" else frame.iloc[:, 0]
    if library == "polars":
        import polars as pl

        frame = pl.from_arrow(table)
        return {"DataFrame": lambda: frame, "LazyFrame": frame.lazy, "Series": lambda: frame.to_series(0)}[
            shape
        ]()
    return table
