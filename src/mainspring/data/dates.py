"""Dates and times written as text: which format fits every value, and the values.

A format is written as for ``strptime``. It becomes a pattern; the matched parts become ISO 8601, which Arrow reads strictly:
the 30th of February is no date. Nothing depends on the locale. Imports pyarrow; import it lazily.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mainspring.errors import InvalidInput

ISO = "%Y-%m-%d"
SNIFFED = (ISO, "%Y/%m/%d", "%Y.%m.%d", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y")
"""Formats that are recognised without a declaration. Wherever dates are written with points, the day comes first."""

_TIME = r"(?P<H>\d{1,2}):(?P<M>\d{2})(?::(?P<S>\d{2})(?:[.,](?P<f>\d{1,9}))?)?"
_ZONE = r"(?P<z>Z|[-+]\d{2}(?::?\d{2})?)"
_TAIL = rf"(?P<tail>[T ]{_TIME} ?{_ZONE}?)?"
CLOCK = re.compile(r"(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,6})?)?")
"""A time of day."""

_PARTS = {
    "Y": r"(?P<Y>\d{4})", "y": r"(?P<y>\d{2})", "m": r"(?P<m>\d{1,2})", "d": r"(?P<d>\d{1,2})", "H": r"(?P<H>\d{1,2})", "I": r"(?P<I>\d{1,2})",
    "M": r"(?P<M>\d{1,2})", "S": r"(?P<S>\d{1,2})", "f": r"(?P<f>\d{1,9})", "z": _ZONE, "p": r"(?P<p>[AaPp][Mm])", "b": r"(?P<b>[A-Za-z]{3})",
    "B": r"(?P<B>[A-Za-z]{3,9})", "%": "%",
}  # fmt: skip
_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december")  # fmt: skip
_YEAR_1 = -62_135_596_800_000_000
"""The start of year 1 in microseconds since the epoch: Python's dates begin there."""
Strings = Any  # a string array or chunked array


@dataclass(frozen=True)
class DateValues:
    """Values that were read by one format: as timestamps, in UTC if ``zoned``."""

    values: pa.Array
    timed: bool
    """Whether some value has a time of day."""
    zoned: bool
    offsets: frozenset[str]
    """The offsets from UTC as written; empty unless zoned."""


def candidates(text: str, declared: list[str]) -> list[str]:
    """The formats that this value may be written in, declared ones first."""
    return [f for f in (*declared, *SNIFFED) if _pattern(f).fullmatch(text)]


def check_format(text: str) -> None:
    """Raises :class:`InvalidInput` for a format that no value can be read by."""
    _pattern(text)


def read_dates(values: Strings, form: str) -> DateValues | None:
    """The values read by this format; None if any does not fit it or is no valid date. No value may be null."""
    quick = _read_iso(values) if form == ISO else None
    parsed = quick or _read_by_parts(values, form)
    if parsed is None or parsed.values.type.unit == "ns":  # timestamps in nanoseconds begin in 1677 anyway
        return parsed
    early = pc.less(parsed.values.cast(pa.int64()), _YEAR_1)
    return None if pc.any(early).as_py() else parsed


def _read_iso(values: Strings) -> DateValues | None:
    """Arrow's own reading of ISO 8601 without a zone."""
    longest = pc.max(pc.binary_length(values)).as_py() or 0
    try:
        timestamps = values.cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        return None
    return DateValues(timestamps, timed=longest > 10, zoned=False, offsets=frozenset())


def _read_by_parts(values: Strings, form: str) -> DateValues | None:
    pattern = _pattern(form)
    parts = pc.extract_regex(values, rf"\A(?:{pattern.pattern})\z")
    if parts.null_count:
        return None
    fields = {field.name for field in parts.type}
    part = {name: pc.struct_field(parts, name) for name in fields}
    date = _date_text(part)
    if date is None:
        return None
    clock, timed = _clock_text(part)
    zone = part.get("z")
    zoned, offsets, suffix = _zone_offsets(zone, part.get("tail"))
    if zoned is None:
        return None
    text = pc.binary_join_element_wise(date, clock, " ")
    if zoned:
        text = pc.binary_join_element_wise(text, suffix, "")
    fine = bool("f" in part and (pc.max(pc.binary_length(part["f"])).as_py() or 0) > 6)
    kind = pa.timestamp("ns" if fine else "us", "UTC" if zoned else None)
    try:
        timestamps = text.cast(kind)
    except pa.ArrowInvalid:
        return None
    return DateValues(timestamps, timed=timed, zoned=zoned, offsets=offsets)


def _date_text(part: dict[str, Any]) -> Strings | None:
    if "Y" in part:
        year = part["Y"]
    elif "y" in part:  # POSIX: 69 to 99 are of the 20th century
        century = pc.if_else(pc.greater_equal(part["y"], "69"), "19", "20")
        year = pc.binary_join_element_wise(century, part["y"], "")
    else:
        return None
    if "m" in part:
        month = _two_digits(part["m"])
    else:
        name = part.get("b", part.get("B"))
        if name is None:
            return None
        key = pc.utf8_slice_codeunits(pc.utf8_lower(name), 0, 3)
        if "B" in part and not pc.all(pc.is_in(pc.utf8_lower(name), pa.array(_MONTHS))).as_py():
            return None
        number = pc.index_in(key, pa.array([m[:3] for m in _MONTHS]))
        if number.null_count:
            return None
        month = _two_digits(pc.add(number, 1).cast(pa.string()))
    return pc.binary_join_element_wise(year, month, _two_digits(part["d"]), "-") if "d" in part else None


def _clock_text(part: dict[str, Any]) -> tuple[Strings, bool]:
    """The time of day as text, and whether any value has one."""
    if "H" not in part and "I" not in part:
        part_values = next(iter(part.values()))
        return pa.array(["00:00:00"] * len(part_values), pa.string()), False
    if "I" in part:
        hour = pc.cast(part["I"], pa.int64())
        late = pc.equal(pc.utf8_lower(part["p"]), "pm") if "p" in part else pa.scalar(False)
        hour = pc.add(pc.if_else(pc.equal(hour, 12), 0, hour), pc.if_else(late, 12, 0))
        hour = _two_digits(hour.cast(pa.string()))
    else:
        hour = _two_digits(_fill_zero(part["H"]))
    minute = _two_digits(_fill_zero(part["M"])) if "M" in part else _zeros(hour)
    second = _two_digits(_fill_zero(part["S"])) if "S" in part else _zeros(hour)
    text = pc.binary_join_element_wise(hour, minute, second, ":")
    if "f" in part:
        fraction = _fill_zero(part["f"])
        text = pc.binary_join_element_wise(text, fraction, ".")
    tail = part.get("tail")
    timed = tail is None or bool(pc.any(pc.not_equal(tail, "")).as_py())
    return text, timed


def _zone_offsets(zone: Strings | None, tail: Strings | None) -> tuple[bool | None, frozenset[str], Strings]:
    """Whether the values carry an offset (None: some do and some do not), which, and the offsets as ``+hh:mm``."""
    if zone is None:
        return False, frozenset(), None
    has_zone = pc.not_equal(zone, "")
    if tail is not None and not pc.any(has_zone).as_py():
        return False, frozenset(), None
    if not pc.all(has_zone).as_py():
        return None, frozenset(), None
    plain = pc.replace_substring_regex(
        pc.if_else(pc.equal(zone, "Z"), "+00:00", zone), r"^([-+]\d\d):?(\d\d)$", r"\1:\2"
    )
    plain = pc.replace_substring_regex(plain, r"^([-+]\d\d)$", r"\1:00")
    plain = pc.if_else(pc.equal(plain, "-00:00"), "+00:00", plain)
    return True, frozenset(pc.unique(plain).to_pylist()), plain


def _two_digits(numbers: Strings) -> Strings:
    return pc.utf8_lpad(numbers, 2, "0")


def _fill_zero(part: Strings) -> Strings:
    return pc.if_else(pc.equal(part, ""), "0", part)


def _zeros(like: Strings) -> Strings:
    return pa.array(["00"] * len(like), pa.string())


@functools.lru_cache(maxsize=256)
def _pattern(form: str) -> re.Pattern[str]:
    """The pattern of a format. A date of the formats in ``SNIFFED`` may be followed by a time."""
    text, seen, at = "", set(), 0
    while at < len(form):
        char = form[at]
        if char != "%":
            text += re.escape(char)
            at += 1
            continue
        name = form[at + 1 : at + 2]
        if name not in _PARTS or (name != "%" and name in seen):
            raise InvalidInput(
                "not a format of dates that can be read",
                value=form,
                place="reading.dates",
                next_step="Use each of %Y %y %m %b %B %d %H %I %p %M %S %f %z at most once, e.g. '%d.%m.%Y %H:%M'.",
            )
        seen.add(name)
        text += _PARTS[name]
        at += 2
    if "d" not in seen or not seen & {"Y", "y"} or not seen & {"m", "b", "B"}:
        raise InvalidInput(
            "a format of dates names day, month and year",
            value=form,
            place="reading.dates",
            next_step="For example '%d.%m.%Y'.",
        )
    if form in SNIFFED:
        text += _TAIL
    return re.compile(text)
