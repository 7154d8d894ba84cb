"""Data in memory to an Arrow table: frames, rows, columns. A value that Arrow would change silently is refused.

Frames of pandas, Polars and Modin, DuckDB relations and others are read through Narwhals. Imports pyarrow; import it lazily.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from mainspring.errors import InvalidInput
from mainspring.records.reading import ReadColumn, Reading, ReadReport

_INDEX = "__index_level_"
_KEYS = (int, float, Decimal, dt.date, dt.time)
"""Types besides text whose values may name a column: their text is the name."""
Kind = Literal["table", "rows", "columns", "frame", "parquet"]


class Notes:
    """What was changed when a source became a table, in general and by column."""

    def __init__(self) -> None:
        self.general: list[str] = []
        self.columns: dict[str, list[str]] = {}

    def add(self, text: str, column: str | None = None) -> None:
        """Add a note, about one column or in general."""
        if column is None:
            self.general.append(text)
        else:
            self.columns.setdefault(column, []).append(text)

    def report(self, source: Kind, schema: pa.Schema) -> ReadReport | None:
        """The notes as a report; None if there are none."""
        from mainspring.data.tables import plain_type, type_name

        if not self.general and not self.columns:
            return None
        columns = []
        for name, notes in self.columns.items():
            kind = schema.field(name).type
            columns.append(ReadColumn(name=name, type=type_name(plain_type(kind) or kind), notes=notes))
        return ReadReport(source=source, columns=columns, notes=self.general)


def table_of(source: object, reading: Reading, notes: Notes, *, place: str) -> tuple[pa.Table, Kind]:
    """An Arrow table of ``source``: any frame that Narwhals supports, an Arrow table, batch or reader, a list of dicts, or a dict of columns.

    Raises :class:`InvalidInput`; never changes the source.
    """
    try:
        return _convert(source, reading, notes, place)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(
            f"the values do not make a table: {first_line(error)}",
            place=place,
            next_step="Give each column values of one type.",
        ) from None


def _convert(source: object, reading: Reading, notes: Notes, place: str) -> tuple[pa.Table, Kind]:
    if type(source).__name__ == "Series":
        raise InvalidInput(
            "a series is no table", place=place, next_step="Give it as a column of one: .to_frame()."
        )
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    elif isinstance(source, pa.RecordBatchReader):
        source = source.read_all()
    if isinstance(source, pa.Table):
        return source.rename_columns(index_names(source.column_names, notes)), "table"
    if isinstance(source, Mapping):
        names = text_names(source, place)
        return _table_of_columns({names[k]: v for k, v in source.items()}, notes, place), "columns"
    if isinstance(source, Sequence) and not isinstance(source, bytes | bytearray | str):
        return _table_of_rows(source, notes, place), "rows"
    return _from_frame(source, reading, notes, place), "frame"


def text_names(keys: Iterable[object], place: str) -> dict[Any, str]:
    """The column name of each key. Two keys with the same text, and keys that have no usual text, are refused."""
    names: dict[Any, str] = {}
    taken: dict[str, object] = {}
    for key in keys:
        if key in names and type(taken[names[key]]) is type(key):
            continue
        name = _text_of_key(key, place)
        if name in taken:
            raise InvalidInput(
                "two columns would have one name",
                value=f"{taken[name]!r} and {key!r}",
                place=place,
                next_step="Rename one of them.",
            )
        taken[name] = key
        names[key] = name
    return names


def _text_of_key(key: object, place: str) -> str:
    if isinstance(key, str):
        return str(key)
    item = key.item() if type(key).__module__ == "numpy" and hasattr(key, "item") else key
    if isinstance(item, _KEYS) and not (isinstance(item, float) and math.isnan(item)) and str(item) != "NaT":
        return str(item)
    raise InvalidInput(
        "not a name of a column",
        value=key,
        place=place,
        next_step="Name columns by text; several levels of names are joined first, e.g. with '_'.",
    )


def index_names(names: Sequence[str], notes: Notes) -> list[str]:
    """The names, where generated names of an unnamed pandas index (``__index_level_0__``) are replaced by readable ones."""
    readable, taken = [], set(names)
    unnamed = sum(n.startswith(_INDEX) for n in names)
    for name in names:
        if name.startswith(_INDEX):
            name = free_name("index" if unnamed == 1 else f"level_{name[len(_INDEX) : -2]}", taken)  # noqa: PLW2901
            taken.add(name)
            notes.add("the unnamed index", name)
        readable.append(name)
    return readable


def free_name(name: str, taken: set[str]) -> str:
    """The name, or the first of ``name_1``, ``name_2``, ... that is free."""
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


# --- rows and columns ------------------------------------------------------------------------------------------------


def _table_of_rows(rows: Sequence[Any], notes: Notes, place: str) -> pa.Table:
    if not rows:
        raise InvalidInput(
            "no rows", place=place, next_step="A list of dicts needs at least one row to know its columns."
        )
    seen: dict[tuple[type, Any], Any] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InvalidInput(
                "a row is not a dict", value=type(row).__name__, place=f"{place}, row {number}"
            )
        for key in row:
            seen.setdefault((type(key), key), key)
    if len(set(seen.values())) < len(seen):
        kinds = ", ".join(sorted({kind.__name__ for kind, _ in seen}))
        raise InvalidInput(
            "keys of several types are equal", value=kinds, place=place, next_step="Name columns by text."
        )
    names = text_names(seen.values(), place)
    columns = {}
    for key, name in names.items():
        columns[name] = [row.get(key) for row in rows]
        absent = sum(key not in row for row in rows)
        if absent:
            notes.add(f"{absent} rows do not have it: null there", name)
    return _table_of_columns(columns, notes, place)


def _table_of_columns(columns: dict[str, Any], notes: Notes, place: str) -> pa.Table:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidInput("columns differ in length", value=lengths, place=place)
    for name, values in columns.items():
        if _is_series(values) and not _is_default(values.index):
            raise InvalidInput(
                f"column {name!r} is a pandas Series with an index of its own, so its rows may not match those of the other columns",
                place=place,
                next_step="Commit a DataFrame made of them, or their values: series.to_numpy().",
            )
    return pa.table({name: array_of(name, values, notes, place) for name, values in columns.items()})


def array_of(name: str, values: Any, notes: Notes, place: str) -> pa.Array | pa.ChunkedArray:
    """A column of these values. Raises :class:`InvalidInput` if their types do not fit into one."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, str | bytes | bytearray | Mapping | AbstractSet):
        raise InvalidInput(
            f"the values of column {name!r} are no list",
            value=type(values).__name__,
            place=place,
            next_step="Give each column a list, an array or a Series; of pandas' to_dict(), to_dict('list') is one of columns.",
        )
    if isinstance(values, np.ndarray) and values.dtype.kind == "S":
        values = values.tolist()  # Arrow cuts them at a zero byte
    dtype = getattr(values, "dtype", None)
    plain = dtype is None or str(dtype) == "object"
    if plain and not isinstance(values, list | tuple):
        values = list(values)
    kind = _common_type(name, values, notes, place) if plain else None
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise _mixed_error(name, values, first_line(error), place) from None


def _common_type(name: str, values: Sequence[Any], notes: Notes, place: str) -> pa.DataType | None:
    """The Arrow type to convert to; None where Arrow's own choice keeps every value."""
    kinds = {t for t in set(map(type, values)) if t is not type(None)}

    def has(*wanted: type) -> bool:
        return any(issubclass(k, wanted) for k in kinds)

    if has(str) and has(bytes, bytearray):
        raise _mixed_error(name, values, "text and bytes", place)
    truths = {k for k in kinds if issubclass(k, bool) or k.__name__ in {"bool_", "bool"}}
    if (
        truths
        and kinds - truths
        and has(int, float, Decimal)
        and any(not issubclass(k, bool) for k in kinds - truths)
    ):
        raise _mixed_error(name, values, "numbers and truth values", place)
    if has(dt.date, dt.time, dt.timedelta) and has(int, float, Decimal):
        raise _mixed_error(name, values, "times and numbers", place)
    stamps = {k for k in kinds if issubclass(k, dt.datetime)}
    if stamps and any(issubclass(k, dt.date) and k not in stamps for k in kinds):
        raise _mixed_error(name, values, "dates and times", place)
    if has(dt.time) and any(isinstance(v, dt.time) and v.tzinfo is not None for v in values):
        raise InvalidInput(
            f"column {name!r} holds times of day with an offset from UTC, which no type keeps",
            place=place,
            next_step="Give whole timestamps, or the time without its offset.",
        )
    if has(dt.timedelta) and any(getattr(v, "nanoseconds", 0) for v in values):
        return pa.duration("ns")
    return _timestamp_type(name, values, notes, place) if stamps else None


def _timestamp_type(name: str, values: Sequence[Any], notes: Notes, place: str) -> pa.DataType | None:
    stamps = [v for v in values if isinstance(v, dt.datetime) and v == v]  # noqa: PLR0124 - NaT is not itself
    zones = {v.tzinfo for v in stamps}
    if None in zones and len(zones) > 1:
        row = next(
            i
            for i, v in enumerate(values)
            if isinstance(v, dt.datetime) and (v.tzinfo is None) != (stamps[0].tzinfo is None)
        )
        raise InvalidInput(
            f"column {name!r} mixes times with a zone and times without",
            value=f"{stamps[0]} and {values[row]} (row {row})",
            place=place,
            next_step="Give all of them a zone, e.g. with replace(tzinfo=...), or none.",
        )
    shown = {str(z) for z in zones}
    zone = "UTC" if len(shown) > 1 else None
    fine = any(getattr(v, "nanosecond", 0) for v in stamps)
    if zone:
        notes.add(
            f"its times are of several zones ({', '.join(sorted(shown)[:4])}): kept as instants in UTC", name
        )
    if not fine:
        return pa.timestamp("us", "UTC") if zone else None
    return pa.timestamp("ns", zone or pa.array(stamps[:1]).type.tz)


def _mixed_error(name: str, values: Sequence[Any], why: str, place: str) -> InvalidInput:
    kinds = sorted({type(v).__name__ for v in values if v is not None})
    return InvalidInput(
        f"column {name!r} holds values that do not go together: {why}",
        value=", ".join(kinds[:6]),
        place=place,
        next_step="Make them one type before committing; whole numbers beyond 64 bits as text or Decimal.",
    )


# --- frames ----------------------------------------------------------------------------------------------------------


def _from_frame(source: object, reading: Reading, notes: Notes, place: str) -> pa.Table:
    import narwhals as nw
    from narwhals.exceptions import NarwhalsError

    if nw.dependencies.is_pandas_dataframe(source):
        return _from_pandas(source, reading, notes, place)
    _check_relation(source, place)
    _check_polars(source, place)
    try:
        if nw.dependencies.is_modin_dataframe(source) or nw.dependencies.is_cudf_dataframe(source):
            return _from_pandas(nw.from_native(source, eager_only=True).to_pandas(), reading, notes, place)
        frame: Any = nw.from_native(source)
        if isinstance(frame, nw.LazyFrame):
            frame = frame.collect("pyarrow")
        return frame.to_arrow()
    except NarwhalsError as error:
        raise InvalidInput(f"the frame cannot be read: {first_line(error)}", place=place) from None
    except TypeError as error:
        text = str(error)
        if not any(word in text for word in ("narwhals", "Narwhals", "nativ", "DataFrame")):
            raise
        raise InvalidInput(
            "not something a table can be made from",
            value=type(source).__name__,
            place=place,
            next_step="Give a CSV or Parquet path, a pandas, Polars or Arrow table, a DuckDB relation, a list of dicts or a dict of columns.",
        ) from None


def _check_relation(source: Any, place: str) -> None:
    """Refuse DuckDB types whose values change in its conversion to Arrow."""
    if type(source).__name__ != "DuckDBPyRelation":
        return
    for name, kind in zip(source.columns, source.types, strict=True):
        if str(kind) in {"TIME WITH TIME ZONE", "UHUGEINT", "BIGNUM", "BIT"}:
            raise InvalidInput(
                f"column {name!r} has a type that a table version cannot hold",
                value=str(kind),
                place=place,
                next_step="Cast it to text, a timestamp or a decimal in the query.",
            )


def _check_polars(source: Any, place: str) -> None:
    """Refuse columns of Python objects: Polars passes their memory addresses to Arrow."""
    if not type(source).__module__.startswith("polars") or not hasattr(source, "collect_schema"):
        return
    for name, kind in source.collect_schema().items():
        if str(kind) == "Object":
            raise InvalidInput(
                f"column {name!r} holds Python objects, which a table version cannot hold",
                value=str(kind),
                place=place,
                next_step="Make them values of one type of Polars before committing.",
            )


def _from_pandas(frame: Any, reading: Reading, notes: Notes, place: str) -> pa.Table:
    names = list(text_names_of(frame.columns, place))
    columns: list[tuple[str, Any]] = []
    index = frame.index
    default = _is_default(index)
    if reading.index if reading.index is not None else not default:
        columns += _index_columns(index, set(names), notes)
    elif not default:
        notes.add("the index was left out, as declared")
    columns += [(name, frame.iloc[:, i]) for i, name in enumerate(names)]
    twice = next((n for i, (n, _) in enumerate(columns) if n in {m for m, _ in columns[:i]}), None)
    if twice is not None:
        raise InvalidInput(
            "a column name occurs twice",
            value=twice,
            place=place,
            next_step="Rename one of them; an index counts as columns (index = False leaves it out).",
        )
    return pa.table({name: _array_of_series(name, values, notes, place) for name, values in columns})


def text_names_of(columns: Any, place: str) -> list[str]:
    """Names of a frame's columns in order; the caller checks for equal ones."""
    keys = list(columns)
    names = text_names(dict.fromkeys(keys), place)
    return [names[k] for k in keys]


def _index_columns(index: Any, taken: set[str], notes: Notes) -> list[tuple[str, Any]]:
    columns: list[tuple[str, Any]] = []
    several = index.nlevels > 1
    for number, name in enumerate(index.names):
        if name is None:
            text = free_name(f"level_{number}" if several else "index", taken | {n for n, _ in columns})
            notes.add("the unnamed index; index = False leaves it out", text)
        else:
            text = str(name)
            notes.add("the index", text)
        columns.append((text, index.get_level_values(number).to_series(index=range(len(index)))))
    return columns


def _array_of_series(name: str, values: Any, notes: Notes, place: str) -> pa.Array | pa.ChunkedArray:
    if str(values.dtype) == "object":
        missing = values.isna().tolist()
        return array_of(
            name,
            [None if absent else v for v, absent in zip(values.tolist(), missing, strict=True)],
            notes,
            place,
        )
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise _mixed_error(name, values.tolist(), first_line(error), place) from None


def _is_series(values: Any) -> bool:
    return type(values).__name__ == "Series" and hasattr(values, "index") and hasattr(values, "iloc")


def _is_default(index: Any) -> bool:
    """Whether the index is the row numbers from 0 without a name, of any index type: then it carries no information."""
    if index.nlevels != 1 or index.name is not None or getattr(index.dtype, "kind", "") not in "iu":
        return not len(index)
    return bool((index.to_numpy() == np.arange(len(index))).all())


def first_line(error: Exception) -> str:
    """The first line of an error."""
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__
