"""Type inference for columns of text: the type is decided from every cell, so that no value changes by conversion.

The rule: a cell becomes a number, a date or a truth value only if that can be written back as the same value. A column stays
text if a cell has leading zeros, a plus sign, more digits than the type holds, or a number beyond its range. Words such as
``NA`` are null where the rest of the column is not text. Imports pyarrow; import it lazily.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from mainspring.data import dates

NULL_WORDS = (
    "NA",
    "N/A",
    "n/a",
    "na",
    "#N/A",
    "NaN",
    "nan",
    "NAN",
    "null",
    "NULL",
    "Null",
    "None",
    "none",
    "nil",
    r"\N",
    "-",
    "--",
    "?",
    ".",
    "NaT",
    "<NA>",
)
"""Words that mean null in a column of numbers, dates, times or truth values, in addition to the empty cell."""

EXACT = 1 << 53
"""A float64 holds every whole number up to here exactly."""
_LONG = 16  # from this many digits on, a float64 may not keep the number
Strings = Any
Name = Literal["null", "int64", "float64", "bool", "date", "timestamp", "time", "string"]

_PLAIN = r"\A-?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?\z"
_NUMBER = r"\A(?:-?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|-?(?:inf|Inf|INF|Infinity|infinity))\z"
_COMMA = re.compile(r"-?\d+,\d+")
_DECLARED = r"\A[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\z"
_START = re.compile(r"[-+]?[.,]?\d|-?[Ii][Nn][Ff]")
_TRUTH = ("true", "false")


@dataclass(frozen=True)
class Kind:
    """The inferred type of all cells seen so far, with the facts that later cells and messages need."""

    name: Name
    big: int = 0
    """Whole numbers: the largest magnitude."""
    mark: str | None = None
    """Fractions: the decimal mark, ``.`` or ``,``."""
    grouped: bool = False
    """Fractions: every one has exactly three digits, so the mark may also be a thousands separator."""
    coded: str | None = None
    """Fractions: a cell such as ``12E4``, if no cell has a decimal mark or a signed exponent. Programs write ``1.2e+05``, so it may be a code."""
    rounded: str | None = None
    """Fractions: a cell that loses its last zero, such as ``3.10`` in a column with ``3.9``."""
    forms: tuple[str, ...] = ()
    """Dates: the formats that fit all of them."""
    zoned: bool = False
    offsets: frozenset[str] = frozenset()
    fine: bool = False
    """Times: some are finer than the usual unit of the type."""
    reason: str = ""
    """Text: why the column is not of another type, if there is a reason."""


TEXT = Kind("string")


@dataclass
class Marks:
    """How numbers are written; None where it is not declared."""

    decimal: str | None = None
    thousands: str | None = None
    comma_possible: bool = False
    """Whether an undeclared comma may be the decimal mark: it does not separate fields."""


@dataclass
class ColumnScan:
    """Infers the type of a column batch by batch."""

    marks: Marks
    dates: list[str]
    nulls: tuple[str, ...]
    """Words that may be null in this column."""
    everywhere: bool
    """Whether the words were declared: then they are null in text as well."""
    only_time: bool = False
    """Whether the column is declared to hold dates or times: then no other type is tried."""
    kind: Kind = field(default_factory=lambda: Kind("null"))
    rows: int = 0
    words: Counter[str] = field(default_factory=Counter)

    def add(self, cells: Strings) -> None:
        """Add the cells of a batch; null where the cell was empty and not quoted."""
        start, self.rows = self.rows, self.rows + len(cells)
        if self.kind.name == "string":
            self._count_words(cells)
            return
        values = cells.drop_null() if cells.null_count else cells
        if not len(values):
            return
        kind = self._classify_whole_numbers(values)
        if kind is None:
            plain = pc.utf8_trim_whitespace(values)
            empty = match_words(plain, ("", *self.nulls))
            if empty is not None:
                self._count_words(plain)
                plain = plain.filter(pc.invert(empty))
            if not len(plain):
                return
            kind = self._classify(plain)
        merged = merge(self.kind, kind)
        if merged.name == "string":
            merged = replace(merged, reason=self._add_row(merged.reason, cells, start))
        self.kind = merged

    def _classify_whole_numbers(self, values: Strings) -> Kind | None:
        """Whole numbers written plainly: by far the most common case."""
        if self.only_time or self.kind.name not in {"null", "int64"} or self.marks.thousands:
            return None
        return _whole_numbers(values)

    def _count_words(self, cells: Strings) -> None:
        hits = match_words(cells, self.nulls)
        if hits is not None:
            for item in pc.value_counts(cells.filter(hits)).to_pylist():
                self.words[item["values"]] += item["counts"]

    def _classify(self, values: Strings) -> Kind:
        first = values[0].as_py()
        if self.kind.name in {"int64", "float64"}:
            return number_kind(values, self.marks)
        forms = list(self.kind.forms or dates.candidates(first, self.dates))
        if forms:
            return date_kind(values, forms)
        if self.only_time and not dates.CLOCK.fullmatch(first):
            return replace(TEXT, reason=f"{_quote(first)} is no date")
        if dates.CLOCK.fullmatch(first):
            return clock_kind(values)
        if _START.match(first):
            return number_kind(values, self.marks)
        if first.lower() in _TRUTH:
            return truth_kind(values)
        return TEXT

    def _add_row(self, reason: str, cells: Strings, start: int) -> str:
        """The reason with the row of its example."""
        quoted = re.match(r"'(.*?)'(?= )", reason)
        if quoted is None:
            return reason
        at = pc.index(pc.utf8_trim_whitespace(cells), quoted[1]).as_py()
        return f"{reason} (row {start + at + 1})" if at >= 0 else reason


def match_words(cells: Strings, words: tuple[str, ...]) -> Strings | None:
    """A mask of the cells that are one of the words (null is false); None if no cell is.

    Only cells as short as the longest word are compared, because most cells of a large column are longer.
    """
    if not words:
        return None
    short = pc.fill_null(pc.less_equal(pc.binary_length(cells), max(len(w.encode()) for w in words)), False)
    if not pc.any(short).as_py():
        return None
    hits = pc.and_(
        short, pc.is_in(pc.if_else(short, cells, pa.scalar(None, pa.string())), pa.array(words, pa.string()))
    )
    return hits if pc.any(hits).as_py() else None


def merge(a: Kind, b: Kind) -> Kind:
    """The type of a column that holds cells of both."""
    if a.name == "null" or b.name == "string":
        return b
    if a.name == "string" or b.name == "null":
        return a
    names = {a.name, b.name}
    if names <= {"int64", "float64"}:
        return _merge_numbers(a, b)
    if names <= {"date", "timestamp"}:
        forms = tuple(f for f in a.forms if f in b.forms)
        if not forms:
            return replace(TEXT, reason="its dates are written in more than one way")
        if a.zoned != b.zoned:
            return replace(TEXT, reason="some of its times have an offset from UTC and some have none")
        name: Name = "timestamp" if "timestamp" in names else "date"
        return replace(a, name=name, forms=forms, offsets=a.offsets | b.offsets, fine=a.fine or b.fine)
    if a.name == b.name:
        return replace(a, fine=a.fine or b.fine)
    return replace(TEXT, reason=f"some cells are {_describe_kind(a)} and some are {_describe_kind(b)}")


def _merge_numbers(a: Kind, b: Kind) -> Kind:
    if a.name == b.name == "int64":
        return replace(a, big=max(a.big, b.big))
    big = max(k.big for k in (a, b) if k.name == "int64") if "int64" in {a.name, b.name} else 0
    if big > EXACT:
        return replace(
            TEXT, reason="it has fractions and whole numbers beyond 2^53, and float64 does not keep those"
        )
    marks = {k.mark for k in (a, b) if k.mark}
    if len(marks) > 1:
        return replace(TEXT, reason="fractions are marked with '.' in some cells and with ',' in others")
    floats = [k for k in (a, b) if k.name == "float64"]
    coded = None if any(k.coded is None for k in floats) else floats[0].coded
    return Kind(
        "float64",
        mark=next(iter(marks), None),
        grouped=all(k.grouped for k in floats if k.mark),
        coded=coded,
        rounded=a.rounded or b.rounded,
    )


def _describe_kind(kind: Kind) -> str:
    return {
        "int64": "numbers",
        "float64": "numbers",
        "bool": "true or false",
        "date": "dates",
        "timestamp": "times",
        "time": "times of day",
    }.get(kind.name, kind.name)


# --- numbers ---------------------------------------------------------------------------------------------------------


def _whole_numbers(values: Strings) -> Kind | None:
    """The type of whole numbers that are written as int64 prints them; None if any cell is not."""
    try:
        numbers = values.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    if not pc.all(pc.equal(numbers.cast(pa.string()), values)).as_py():
        return None
    ends = pc.min_max(numbers).as_py()
    return Kind("int64", big=max(abs(ends["min"]), abs(ends["max"])))


def number_kind(values: Strings, marks: Marks) -> Kind:
    """The numeric type that keeps all of these trimmed, non-null cells exactly, or text with a reason."""
    mark = marks.decimal
    if mark is None and marks.comma_possible and not marks.thousands:
        commas = pc.match_substring(values, ",")
        mark = "," if pc.any(commas).as_py() else None
    if marks.thousands:
        misfit = _first_mismatch(values, _grouped_pattern(marks.thousands, mark or "."))
        if misfit is not None:
            return _not_a_number(misfit)
    plain = plain_numbers(values, mark or ".", marks.thousands)
    if plain is None:
        both = _first_match(values, r"\A-?\d{1,3}(?:\.\d{3})+,\d+\z")
        reason = (
            "fractions are marked with '.' in some cells and with ',' in others"
            if both is None
            else f"{_quote(both)} may be a number with marks of thousands; declare 'decimal' and 'thousands' if it is"
        )
        return replace(TEXT, reason=reason)
    whole = _whole_numbers(plain)
    if whole is not None:
        return whole
    why = _reason_not_fractions(values, plain)
    if why is not None:
        return why
    fraction = mark or "."
    marked = values.filter(pc.match_substring(values, fraction))
    grouped = False
    if marks.comma_possible and marks.decimal is None and len(marked):
        grouped = bool(pc.all(pc.match_substring_regex(marked, r"\A-?[1-9]\d{0,2}[.,]\d{3}\z")).as_py())
    if not len(marked):
        return Kind("float64", coded=_first_code(plain))
    return Kind("float64", mark=fraction, grouped=grouped, rounded=_first_rounded(marked))


def _first_code(plain: Strings) -> str | None:
    """The first cell such as ``12E4``; None if there is none, or one has a signed exponent, as programs write it."""
    if pc.any(pc.match_substring_regex(plain, r"[eE][-+]")).as_py():
        return None
    at = pc.index(pc.match_substring_regex(plain, r"\A-?\d+[eE]\d+\z"), True).as_py()
    return None if at < 0 else str(plain[at].as_py())


def _first_rounded(marked: Strings) -> str | None:
    """The first cell such as ``3.10`` if another is such as ``3.9``: as numbers 3.10 and 3.1 are one, as versions they are two."""
    zeros = marked.filter(pc.ends_with(marked, "0"))
    at = (
        pc.index(pc.match_substring_regex(zeros, r"\A\d{1,2}[.,][1-9]0\z"), True).as_py()
        if len(zeros)
        else -1
    )
    if at < 0 or not pc.any(pc.match_substring_regex(marked, r"\A\d{1,2}[.,][1-9]\z")).as_py():
        return None
    return str(zeros[at].as_py())


def _reason_not_fractions(values: Strings, plain: Strings) -> Kind | None:
    """The text type with its reason if float64 does not keep these cells (``plain``: without marks); None if it does."""
    try:
        numbers = plain.cast(pa.float64())
    except pa.ArrowInvalid:
        return _not_a_number(_as_written(values, plain, _first_mismatch(plain, _NUMBER)))
    differs = pc.not_equal(numbers.cast(pa.string()), plain)  # a cell that float64 prints unchanged is exact
    rest, numbers = plain.filter(differs), numbers.filter(differs)
    if not len(rest):
        return None
    misfit = _first_mismatch(rest, _NUMBER)
    if misfit is not None:
        return _not_a_number(_as_written(values, plain, misfit))
    lost = first_inexact(rest, numbers)
    if lost is not None:
        return replace(
            TEXT, reason=f"{_quote(lost)} has more digits than a number type keeps, or is out of its range"
        )
    if len(rest) == len(plain) and pc.all(pc.match_substring_regex(plain, r"(?i)inf")).as_py():
        return TEXT  # "inf" alone is a word; it is a number only in a column with other numbers
    return None


def _as_written(values: Strings, plain: Strings, number: str | None) -> str:
    """The original cell of the plain number ``number``."""
    return str(values[max(0, pc.index(plain, number).as_py())].as_py())


def plain_numbers(values: Strings, mark: str, thousands: str | None) -> Strings | None:
    """The cells with ``.`` as decimal mark and no thousands separators; None if the declared mark is ``,`` and a cell has ``.``."""
    plain = pc.replace_substring(values, thousands, "") if thousands else values
    if mark != ".":
        if pc.any(pc.match_substring(plain, ".")).as_py():
            return None
        plain = pc.replace_substring(plain, mark, ".")
    return plain


def _grouped_pattern(thousands: str, mark: str) -> str:
    t, d = re.escape(thousands), re.escape(mark)
    return rf"\A-?(?:[1-9]\d{{0,2}}(?:{t}\d{{3}})+|\d+)(?:{d}\d*)?(?:[eE][-+]?\d+)?\z"


def first_inexact(text: Strings, numbers: Strings) -> str | None:
    """The first cell whose value differs from its float64; None if all are exact."""
    flat = pc.or_(pc.equal(numbers, 0.0), pc.invert(pc.is_finite(numbers)))
    suspect = pc.or_(pc.greater_equal(pc.binary_length(text), _LONG), flat)
    if not pc.any(suspect).as_py():
        return None
    text, numbers = text.filter(suspect), numbers.filter(suspect)
    differs = pc.not_equal(numbers.cast(pa.string()), text)
    for cell, number in zip(
        text.filter(differs).to_pylist(), numbers.filter(differs).to_pylist(), strict=True
    ):
        if not is_exact(cell, number):
            return str(cell)
    return None


def is_exact(cell: str, number: float) -> bool:
    """Whether a float64 equals the written number, to the 17 digits that distinguish doubles.

    >>> is_exact("0.1", 0.1), is_exact("1e400", float("inf")), is_exact("9007199254740993.0", 9007199254740992.0)
    (True, False, False)
    """
    if "inf" in cell.lower():
        return True
    mantissa, _, _ = cell.lower().lstrip("+-").partition("e")
    digits = mantissa.replace(".", "").strip("0")
    if not math.isfinite(number) or (number == 0 and digits):
        return False
    if "." not in mantissa and "e" not in cell.lower():
        return abs(int(cell)) < 1 << 63 and int(cell) == int(number)
    if "e" not in cell.lower() and abs(number) >= EXACT:
        return Decimal(cell) == Decimal(number)  # whole numbers written as fractions: 9007199254740993.0
    if len(digits) <= 17:
        return True
    written = Decimal(cell)  # a double printed with more digits than needed is still that double
    return Decimal(f"{number:.{len(written.as_tuple().digits) - 1}e}") == written


def _first_match(values: Strings, pattern: str, fits: bool = True) -> str | None:
    at = pc.index(pc.match_substring_regex(values, pattern), fits).as_py()
    return None if at < 0 else str(values[at].as_py())


def _first_mismatch(values: Strings, pattern: str) -> str | None:
    return _first_match(values, pattern, fits=False)


def _not_a_number(cell: str) -> Kind:
    digits = re.fullmatch(r"-?0\d+(?:[.,]\d*)?", cell)
    shown = _quote(cell)
    if digits:
        return replace(TEXT, reason=f"{shown} has leading zeros")
    if cell.startswith("+"):
        return replace(TEXT, reason=f"{shown} begins with a plus sign")
    if re.fullmatch(r"-?\d{1,3}(?:[., ']\d{3})+(?:[.,]\d+)?", cell):
        return replace(
            TEXT, reason=f"{shown} may be a number with marks of thousands; declare 'thousands' if it is"
        )
    return replace(TEXT, reason=f"{shown} is no number")


# --- dates, times, truth values --------------------------------------------------------------------------------------


def date_kind(values: Strings, forms: list[str] | tuple[str, ...]) -> Kind:
    """The date or timestamp type with the formats that fit all of these cells, or text with a reason."""
    fitting = []
    first: dates.DateValues | None = None
    for form in forms:
        parsed = dates.read_dates(values, form)
        if parsed is not None:
            fitting.append(form)
            first = first or parsed
    if first is None:
        return replace(TEXT, reason=_date_reason(values, forms))
    fine = str(first.values.type).startswith("timestamp[ns")
    name: Name = "timestamp" if first.timed else "date"
    return Kind(name, forms=tuple(fitting), zoned=first.zoned, offsets=first.offsets, fine=fine)


def _date_reason(values: Strings, forms: list[str] | tuple[str, ...]) -> str:
    """Why the cells are not dates, judged by the format that the first of them fits."""
    zoned = pc.match_substring_regex(values, r":\d{2}(?:[.,]\d+)? ?(?:Z|[-+]\d{2}:?\d{2})\z")
    if pc.any(zoned).as_py() and not pc.all(zoned).as_py():
        return "some of its times have an offset from UTC and some have none"
    low, high = 0, len(values)  # bisection: the shortest prefix that does not fit ends with the cell to name
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if dates.read_dates(values[low:middle], forms[0]) is not None else (low, middle)
        )
    return f"{_quote(values[low].as_py())} is no date like the others"


def clock_kind(values: Strings) -> Kind:
    """The type of times of day if all of these cells are one, or text with a reason."""
    misfit = _first_mismatch(values, rf"\A(?:{dates.CLOCK.pattern})\z")
    if misfit is not None:
        return replace(TEXT, reason=f"{_quote(misfit)} is no time of day")
    return Kind("time", fine=bool(pc.any(pc.match_substring(values, ".")).as_py()))


def truth_kind(values: Strings) -> Kind:
    """The type of truth values if all of these cells are one, or text with a reason."""
    misfit = _first_mismatch(values, r"(?i)\A(?:true|false)\z")
    return (
        Kind("bool")
        if misfit is None
        else replace(TEXT, reason=f"{_quote(misfit)} is neither true nor false")
    )


def _quote(cell: str) -> str:
    return f"'{cell}'" if len(cell) <= 60 else f"'{cell[:60]}…'"
