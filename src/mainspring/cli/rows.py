"""Rows of files for predictions, a batch at a time, and the predictions as text: memory does not grow with the file."""

from __future__ import annotations

import contextlib
import csv
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import msgspec

from mainspring.errors import InvalidInput, near

if TYPE_CHECKING:
    import pyarrow as pa

RowForm = Literal["csv", "parquet", "jsonl"]
Kinds = Mapping[str, str]
"""The inputs of a model by name: ``float64``, ``int64``, ``string``, ``bool`` or ``datetime``."""

_ENDINGS: dict[str, RowForm] = {
    ".csv": "csv", ".tsv": "csv", ".csv.gz": "csv", ".tsv.gz": "csv", ".parquet": "parquet", ".pq": "parquet",
    ".jsonl": "jsonl", ".ndjson": "jsonl",
}  # fmt: skip
_PIECE = 1 << 20


@dataclass(frozen=True)
class Batch:
    """Some rows: the columns that the model takes and the source has, each a list of JSON values.

    ``first``: the number of its first row, from 0. ``typed``: the rows as a person typed them, which are asked about as they are.
    """

    first: int
    rows: int
    columns: dict[str, list[Any]]
    typed: list[dict[str, Any]] | None = None

    def halves(self) -> list[Batch]:
        """The same rows in two batches."""
        at = self.rows // 2
        cut = ((0, at), (at, self.rows))
        return [
            Batch(self.first + a, b - a, {name: values[a:b] for name, values in self.columns.items()})
            for a, b in cut
        ]


def form_of(path: Path) -> RowForm | None:
    """The form that a file's name tells; None if it tells none."""
    return next((form for ending, form in _ENDINGS.items() if path.name.lower().endswith(ending)), None)


@contextlib.contextmanager
def opened(file: str, form: RowForm | None) -> Iterator[tuple[Path, RowForm]]:
    """The file, or standard input for ``-`` (kept in a temporary file, since a CSV is read twice), and its form."""
    if file != "-":
        path = Path(file)
        found = form or form_of(path)
        if found is None:
            raise InvalidInput(
                "the file's name does not tell its form",
                value=path.name,
                next_step=f"Give --format, or name it with one of {', '.join(sorted(_ENDINGS))}.",
            )
        yield path, found
        return
    with tempfile.TemporaryDirectory(prefix="mainspring-rows-") as folder:
        path = Path(folder) / "standard-input"
        with path.open("wb") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy, _PIECE)
        yield path, form or "csv"


def read_batches(path: Path, form: RowForm, kinds: Kinds, size: int) -> Iterator[Batch]:
    """The rows in their order, ``size`` at a time. Further columns are left out; dates become texts."""
    first = 0
    for columns, rows in _READERS[form](path, kinds, size):
        _check_columns(columns, kinds, path)
        plain = {
            name: _plain(columns[name], kind, name, first) for name, kind in kinds.items() if name in columns
        }
        yield Batch(first, rows, plain)
        first += rows


def _read_csv(path: Path, kinds: Kinds, size: int) -> Iterator[tuple[dict[str, Any], int]]:
    from mainspring.data.sources import open_source
    from mainspring.data.text import shape_of
    from mainspring.records.reading import Reading

    # Whole numbers may be written 27.0, and dates in several ways: their type is decided by the file, and checked below.
    names = shape_of(path, Reading()).names
    types = {
        name: kind for name, kind in kinds.items() if name in names and kind not in ("int64", "datetime")
    }
    with open_source(path, Reading(types=types), place=str(path)) as source:
        yield from _slices(source.batches, size)


def _read_parquet(path: Path, kinds: Kinds, size: int) -> Iterator[tuple[dict[str, Any], int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            known = file.schema_arrow.names
            wanted = [n for n in known if n in kinds]
            yield from _slices(file.iter_batches(batch_size=size, columns=wanted), size)
    except pa.ArrowInvalid as error:
        raise InvalidInput(f"not a Parquet file: {error}", place=str(path)) from None


def _slices(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[tuple[dict[str, Any], int]]:
    for batch in batches:
        for start in range(0, batch.num_rows, size):
            piece = batch.slice(start, size)
            yield dict(zip(piece.schema.names, piece.columns, strict=True)), piece.num_rows


def _read_jsonl(path: Path, _kinds: Kinds, size: int) -> Iterator[tuple[dict[str, Any], int]]:
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                rows.append(msgspec.json.decode(line, type=dict[str, Any]))
            except msgspec.DecodeError as error:
                raise InvalidInput(f"not a row: {error}", place=f"{path}, line {number}") from None
            if len(rows) == size:
                yield _columns_of(rows), len(rows)
                rows = []
    if rows:
        yield _columns_of(rows), len(rows)


def _columns_of(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(n for row in rows for n in row)}


_READERS = {"csv": _read_csv, "parquet": _read_parquet, "jsonl": _read_jsonl}


def _check_columns(columns: Mapping[str, Any], kinds: Kinds, path: Path) -> None:
    if kinds and not any(name in columns for name in kinds):
        name = next(iter(kinds))
        raise InvalidInput(
            "the rows have no column that the model takes",
            value=name,
            place=str(path),
            next_step=near(name, columns, what="column"),
        )


def _plain(column: Any, kind: str, name: str, first: int) -> list[Any]:
    """A column as JSON values of the type that the model takes, where that loses nothing; else as they are: then the model refuses them."""
    values = column if isinstance(column, list) else column.to_pylist()
    convert = {"float64": _to_float, "int64": _to_int, "string": _to_text, "datetime": _to_text}.get(kind)
    if convert is not None:
        values = [convert(v) for v in values]
    for number, value in enumerate(values):
        if isinstance(value, float) and value in (float("inf"), float("-inf")):
            raise InvalidInput(
                "an infinite number", value=value, place=f"column {name!r}, row {first + number}"
            )
    return values


def _to_float(value: Any) -> Any:
    from decimal import Decimal

    if isinstance(value, Decimal):
        value = float(value)
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124 - NaN is unlike itself


def _to_int(value: Any) -> Any:
    value = _to_float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _to_text(value: Any) -> Any:
    """Dates and times as RFC 3339 writes them."""
    return value.isoformat() if hasattr(value, "isoformat") else value


# --- out -------------------------------------------------------------------------------------------------------------


_OWN = frozenset({"row", "prediction_id"})
"""Columns that say which row a prediction is of."""


class PredictionWriter:
    """Writes predictions as a table for people, CSV or JSON lines."""

    def __init__(self, out: TextIO, form: Literal["table", "csv", "jsonl"]) -> None:
        self._out, self._form = out, form
        self._names: list[str] | None = None

    def write(self, first: int, predictions: Iterable[Mapping[str, Any]], ident: str | None) -> None:
        """The predictions of rows from ``first`` on; ``ident`` is the id of the request, by which each is labelled later."""
        for number, prediction in enumerate(predictions):
            row: dict[str, Any] = {"row": first + number}
            if ident is not None:
                row["prediction_id"] = f"{ident}/{number}"
            if self._form == "jsonl":
                self._out.write(msgspec.json.encode({**row, **prediction}).decode() + "\n")
                continue
            row |= self._flatten(prediction)
            if self._names is None:
                self._names = list(row)
                self._begin(self._names)
            self._write_row(row)

    def _begin(self, names: list[str]) -> None:
        if self._form == "csv":
            self._csv = csv.writer(self._out, lineterminator="\n")
            self._csv.writerow(names)

    def _write_row(self, row: Mapping[str, Any]) -> None:
        if self._form == "csv":
            self._csv.writerow(row.values())
        else:
            shown = "  ".join(f"{k}={_shown(v)}" for k, v in row.items() if k not in ("row", "prediction_id"))
            self._out.write(f"{row['row']}  {shown}\n")

    def _flatten(self, prediction: Mapping[str, Any]) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for name, value in prediction.items():
            if isinstance(value, dict):
                what = {"probabilities": "probability_", "decisions": "decision_"}.get(name, "")
                for key, v in value.items():
                    column = f"{what}{key}"
                    while (
                        column in _OWN or column in flat or (column != key and not what and column in value)
                    ):
                        column = f"value_{column}"
                    flat[column] = v
            else:
                flat[name] = value
        return flat


def _shown(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
