"""Cells of text to values of a type: an inferred type loses nothing; for a declared type the cells that do not fit are counted.

Imports pyarrow; import it lazily.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from mainspring.data import dates
from mainspring.data.cells import Strings, first_inexact, match_words, plain_numbers
from mainspring.errors import InvalidInput, near

_NAMES: dict[str, pa.DataType] = {
    "string": pa.string(), "text": pa.string(), "str": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "date": pa.date32(),
    "date32": pa.date32(), "time": pa.time64("us"), "time32[ms]": pa.time32("ms"), "time64[us]": pa.time64("us"), "timestamp": pa.timestamp("us"),
    **{f"{sign}int{bits}": getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)}, "float32": pa.float32(), "float64": pa.float64(),
}  # fmt: skip
_DECIMAL = re.compile(r"decimal(?:128|256)?\((\d+), ?(\d+)\)")
_STAMP = re.compile(r"timestamp\[(ms|us|ns)(?:, ?tz=([\w/+:-]+))?\]")
_WHOLE = r"\A[-+]?\d+(?:\.0*)?\z"
_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


def type_of(text: str, *, place: str) -> pa.DataType:
    """The Arrow type that a declaration names. Raises :class:`InvalidInput` with near names."""
    if text in _NAMES:
        return _NAMES[text]
    if (
        (match := _DECIMAL.fullmatch(text))
        and 0 < (precision := int(match[1])) <= 76
        and int(match[2]) <= precision
    ):
        return (pa.decimal128 if precision <= 38 else pa.decimal256)(precision, int(match[2]))
    if match := _STAMP.fullmatch(text):
        if match[2]:
            _check_zone(match[2], place)
        return pa.timestamp(match[1], match[2])
    known = [*_NAMES, "decimal(12, 2)", "timestamp[us]", "timestamp[us, tz=UTC]"]
    raise InvalidInput(
        "not a type of a column", value=text, place=place, next_step=near(text, known, what="type")
    )


def _check_zone(zone: str, place: str) -> None:
    from zoneinfo import ZoneInfo

    if re.fullmatch(r"[-+]\d\d:\d\d", zone):
        return
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        raise InvalidInput(
            "no such time zone", value=zone, place=place, next_step="For example Europe/Berlin."
        ) from None


@dataclass(frozen=True)
class Plan:
    """How the cells of one column become values."""

    type: pa.DataType
    declared: bool = False
    words: tuple[str, ...] = ()
    """Words that are null here."""
    mark: str = "."
    thousands: str | None = None
    form: str | None = None
    """The format of dates."""


@dataclass
class LostCells:
    """Cells that could not be kept as declared."""

    count: int = 0
    first: tuple[int, str] | None = None

    def add(self, row: int, cell: str) -> None:
        """Count a cell, and keep the first one for messages."""
        self.count += 1
        self.first = self.first or (row, cell)


def values_of(cells: Strings, plan: Plan, lost: LostCells) -> pa.Array:
    """The values of these cells. A cell that does not fit becomes null, or is rounded; each of them is counted in ``lost``."""
    if pt.is_string(plan.type):
        return _replace_words(cells, plan.words) if plan.words else cells
    plain = _replace_words(pc.utf8_trim_whitespace(cells), ("", *plan.words))
    if pt.is_null(plan.type):
        return pa.nulls(len(cells))
    try:
        values = _convert_all(plain, plan)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        values = None
    return values if values is not None else _convert_each(plain, plan, lost)


def _replace_words(cells: Strings, words: tuple[str, ...]) -> Strings:
    hits = match_words(cells, words)
    return cells if hits is None else pc.if_else(hits, pa.scalar(None, pa.string()), cells)


def _convert_all(cells: Strings, plan: Plan) -> pa.Array | None:
    """All cells at once; None (or an Arrow error) if any does not fit."""
    kind = plan.type
    if pt.is_boolean(kind):
        return _to_truth(cells, plan)
    if pt.is_integer(kind):
        plain = plain_numbers(cells, plan.mark, plan.thousands)
        if plan.declared:
            if plain is None or not _all_match(plain, _WHOLE):
                return None
            plain = pc.replace_substring_regex(pc.replace_substring_regex(plain, r"\A\+", ""), r"\.0*\z", "")
        return None if plain is None else plain.cast(kind)
    if pt.is_floating(kind) or pt.is_decimal(kind):
        return _to_fractions(cells, plan)
    return _to_times(cells, plan)


def _all_match(cells: Strings, pattern: str) -> bool:
    return pc.all(pc.match_substring_regex(cells, pattern)).as_py() is not False


def _to_truth(cells: Strings, plan: Plan) -> pa.Array | None:
    lower = pc.utf8_lower(cells)
    yes, no = (_TRUE, _FALSE) if plan.declared else (("true",), ("false",))
    is_yes = pc.is_in(lower, pa.array(yes))
    known = pc.or_(pc.or_(is_yes, pc.is_in(lower, pa.array(no))), pc.is_null(lower))
    return (
        pc.if_else(pc.is_valid(lower), is_yes, pa.scalar(None, pa.bool_()))
        if pc.all(known).as_py() is not False
        else None
    )


def _to_fractions(cells: Strings, plan: Plan) -> pa.Array | None:
    plain = plain_numbers(cells, plan.mark, plan.thousands)
    if plain is None:
        return None
    if pt.is_decimal(plan.type):
        return plain.cast(plan.type)
    if not plan.declared:
        return plain.cast(plan.type)
    if not _all_match(plain, r"(?i)\A[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|inf|infinity)\z"):
        return None
    plain = pc.replace_substring_regex(plain, r"\A\+", "")
    numbers = plain.cast(pa.float64())
    if first_inexact(plain.drop_null(), numbers.drop_null()) is not None:
        return None
    return numbers.cast(plan.type, safe=False) if plan.type != pa.float64() else numbers


def _to_times(cells: Strings, plan: Plan) -> pa.Array | None:
    kind = plan.type
    if pt.is_time(kind):
        if not _all_match(cells, rf"\A(?:{dates.CLOCK.pattern})\z"):
            return None
        padded = pc.replace_substring_regex(cells, r"\A(\d):", r"0\1:")
        unit = pa.timestamp("us" if pt.is_time64(kind) else "ms")
        return pc.binary_join_element_wise("1970-01-01", padded, " ").cast(unit).cast(kind)
    full = cells.drop_null()
    if not len(full):
        return pa.nulls(len(cells), kind)
    parsed = dates.read_dates(full, plan.form or dates.ISO)
    if parsed is None:
        return None
    values = parsed.values
    if pt.is_date(kind):
        if parsed.timed or parsed.zoned:
            return None
        values = values.cast(pa.date32())
    elif kind.tz and not parsed.zoned:
        values = pc.assume_timezone(values, kind.tz).cast(kind)
    elif parsed.zoned and not kind.tz:
        return None
    else:
        values = values.cast(kind)
    return values if not cells.null_count else _insert_nulls(values, cells)


def _insert_nulls(values: pa.Array, cells: Strings) -> pa.Array:
    """The values, with nulls inserted where the cells are null."""
    return pc.replace_with_mask(pa.nulls(len(cells), values.type), pc.is_valid(cells), values)


# --- cell by cell, if some cell does not fit -------------------------------------------------------------------------


def _convert_each(cells: Strings, plan: Plan, lost: LostCells) -> pa.Array:
    values: list[Any] = []
    for row, cell in enumerate(cells.to_pylist()):
        value, kept = (None, True) if cell is None else _convert_cell(cell, plan)
        if not kept:
            lost.add(row, cell)
        values.append(value)
    return pa.array(values, plan.type)


def _convert_cell(cell: str, plan: Plan) -> tuple[Any, bool]:
    """A cell's value, and whether it was kept exactly."""
    array, kind = pa.array([cell]), plan.type
    try:
        values = _convert_all(array, plan)
        if values is not None and values[0].is_valid:
            return values[0], True
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    if pt.is_floating(kind) or pt.is_decimal(kind):
        return _round_to_type(cell, plan), False
    if pt.is_date(kind):
        at = _to_times(array, Plan(pa.timestamp("us"), declared=True, form=plan.form))
        return (at[0].as_py().date() if at is not None else None), False
    return None, False


def _round_to_type(cell: str, plan: Plan) -> float | Decimal | None:
    plain = plain_numbers(pa.array([cell]), plan.mark, plan.thousands)
    if plain is None:
        return None
    text = plain[0].as_py()
    try:
        written = Decimal(text)
        if pt.is_floating(plan.type):
            return float(text)
        rounded = written.quantize(Decimal(1).scaleb(-plan.type.scale))
        return rounded if len(rounded.as_tuple().digits) <= plan.type.precision else None
    except (InvalidOperation, ValueError, OverflowError):
        return None
