"""How text and frames become a table: what the user declares, and what was decided.

In ``mainspring.toml`` a declaration belongs to its dataset::

    [data.sales.reading]
    delimiter = ";"
    decimal = ","
    dates = ["%d.%m.%Y"]
    types = { zip = "string", amount = "decimal(12, 2)" }
    nulls = ["-", "n/a"]
"""

from __future__ import annotations

from typing import Literal

from mainspring.records.base import Record


class Reading(Record, frozen=True):
    """The declaration of a source. What is not declared is decided from all of the data, and reported.

    For CSV: ``encoding`` (a codec's name), ``delimiter``, ``quote`` (``""``: none), ``header`` (whether the first line
    names the columns), ``columns`` (names instead of those in the file), ``skip_lines`` (before the header), ``types``
    (by column: ``string``, ``int64``, ``float64``, ``bool``, ``date``, ``time``, ``timestamp``, ``timestamp[us, tz=Zone]``,
    ``decimal(precision, scale)``, and the narrower ``int32``, ``float32``, ...), ``nulls`` (words that mean null in every
    column, beside the empty cell), ``dates`` (formats as ``strptime`` takes them), ``decimal`` and ``thousands`` (marks in
    numbers). For pandas: ``index`` (False leaves the index out, True keeps even the default one).

    ``lossy``: values that cannot be kept as declared become null or are rounded, and are counted; without it they are an error.
    """

    encoding: str | None = None
    delimiter: str | None = None
    quote: str | None = None
    header: bool | None = None
    columns: list[str] | None = None
    skip_lines: int = 0
    types: dict[str, str] = {}
    nulls: list[str] | None = None
    dates: list[str] = []
    decimal: Literal[".", ","] | None = None
    thousands: str | None = None
    index: bool | None = None
    lossy: bool = False


class ReadColumn(Record, frozen=True):
    """How one column was read.

    ``how``: its type was ``declared``, ``inferred`` from all of its cells, or ``given`` by the source. ``null_words``: words
    read as null, and how often. ``format``: of its dates. ``lost``: cells that could not be kept (only with ``lossy``).
    """

    name: str
    type: str
    how: Literal["declared", "inferred", "given"] = "given"
    nulls: int = 0
    null_words: dict[str, int] = {}
    format: str | None = None
    lost: int = 0
    notes: list[str] = []


class ReadReport(Record, frozen=True):
    """What was decided when a source became a table. For CSV every column is listed; for other sources only those with notes."""

    source: Literal["csv", "parquet", "table", "rows", "columns", "frame"]
    encoding: str | None = None
    delimiter: str | None = None
    quote: str | None = None
    header: bool | None = None
    decimal: str | None = None
    thousands: str | None = None
    columns: list[ReadColumn] = []
    lost: int = 0
    notes: list[str] = []
