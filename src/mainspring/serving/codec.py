"""Decodes rows and columns in JSON strictly, straight into a type made from the signature. For the native dialect; others may use it.

There is one :class:`RowCodec` for each deployment. msgspec checks types, missing and unknown columns, the range of integers and floats,
UTF-8, trailing bytes and depth, in C. What it accepts and must not be is checked here: a duplicate key (the last would silently win), NUL
in a string, integers beyond 64 bits. Unseen categories are allowed: any string is a value of a string column.

msgspec takes no ``"``, no backslash and no control character in the name of a field. A signature with such a column is decoded in two steps,
more slowly: to plain objects, whose keys are then replaced by an alias, and from these to the type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import msgspec

from mainspring.clock import to_us
from mainspring.errors import InvalidInput, Malformed, TooManyRows, near
from mainspring.records.instants import parse_instant
from mainspring.records.models import Signature

INT64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_KEY = Annotated[str, msgspec.Meta(max_length=256)]
_TIME = Annotated[str, msgspec.Meta(max_length=64)]
_UNSET = msgspec.UNSET
_NOT_A_FIELD = re.compile(r'["\\\x00-\x1f]')

Columns = dict[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Call:
    """A valid request: ``columns`` in the order of the signature, each of ``rows`` values; ``event_us``: microseconds since 1970."""

    columns: Columns
    rows: int
    key: str | None = None
    event_us: int | None = None
    large: bool = False
    """Whether its texts may take long although its rows are few: then it is not predicted on the event loop."""


class RowCodec:
    """Decodes and validates requests to one signature."""

    def __init__(self, signature: Signature, *, max_rows: int, max_text: int) -> None:
        self.signature = signature
        self.names = [c.name for c in signature.inputs]
        self._max_rows = max_rows
        self._has_null = any(c.nullable for c in signature.inputs)
        self._text = [c.name for c in signature.inputs if c.type == "string"]
        self._times = [c.name for c in signature.inputs if c.type == "datetime"]
        types = {
            "float64": float,
            "int64": INT64,
            "bool": bool,
            "string": Annotated[str, msgspec.Meta(max_length=max_text)],
            "datetime": _TIME,
        }
        row_fields: list[tuple[str, Any, Any]] = []
        column_fields: list[tuple[str, Any, Any]] = []
        self._aliases = _choose_aliases(self.names)
        for number, column in enumerate(signature.inputs):
            kind: Any = types[column.type]
            default: Any = msgspec.NODEFAULT
            if column.nullable:
                kind, default = kind | None, _UNSET
            field = msgspec.field(name=self._aliases.get(column.name, column.name), default=default)
            row_fields.append((f"c{number}", kind | msgspec.UnsetType if column.nullable else kind, field))
            column_kind = Annotated[list[kind], msgspec.Meta(max_length=max_rows)]
            column_fields.append(
                (f"c{number}", column_kind | msgspec.UnsetType if column.nullable else column_kind, field)
            )
        config: dict[str, Any] = {"forbid_unknown_fields": True, "kw_only": True, "gc": False}
        row = msgspec.defstruct("Row", row_fields, **config)
        columns = msgspec.defstruct("Columns", column_fields, **config)
        rows_kind: Any = Annotated[list[row], msgspec.Meta(max_length=max_rows)]  # type: ignore[valid-type]
        request = msgspec.defstruct(
            "Request",
            [
                ("rows", rows_kind | msgspec.UnsetType, _UNSET),
                ("columns", columns | msgspec.UnsetType, _UNSET),
                ("event_time", _TIME | msgspec.UnsetType, _UNSET),
                ("key", _KEY | msgspec.UnsetType, _UNSET),
            ],
            forbid_unknown_fields=True,
            kw_only=True,
            gc=False,
        )
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(request).decode
        if self._aliases:
            self._decode = lambda body: msgspec.convert(self._rename(msgspec.json.decode(body)), request)
        self._tuple = msgspec.structs.astuple

    def decode(self, body: bytes) -> Call:
        """Decode the request in ``body``.

        Raises :class:`Malformed` (400) for invalid JSON, :class:`InvalidInput` (422), which names the expected columns, for a request that
        does not fit the signature.
        """
        try:
            request = self._decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._explain(error) from None
        if request.rows is not _UNSET and request.columns is _UNSET:
            columns, rows, keys = self._from_rows(request.rows)
            keys += 1
        elif request.columns is not _UNSET and request.rows is _UNSET:
            columns, rows, keys = self._from_columns(request.columns)
            keys += 1
        else:
            raise InvalidInput(
                "a request has either 'rows' or 'columns'", next_step='Send {"rows": [{...}]}.'
            )
        key, event_us = None, None
        if request.key is not _UNSET:
            key = request.key
            keys += 1 + key.count(":")
        if request.event_time is not _UNSET:
            event_us = parse_time(request.event_time)
            keys += 1 + request.event_time.count(":")
        # Each key has one colon outside strings, so a body with as many colons as distinct keys has no key twice. In any doubt (a colon
        # in a value, an escape) the exact and slower check decides.
        if b"\\" in body or body.count(b":") != keys:
            check_duplicates(body)
            self._check_nul(columns)
            if key is not None and "\0" in key:
                raise InvalidInput("NUL in a key", place="key")
        parse_times(columns, self._times)
        return Call(columns, rows, key, event_us)

    def _rename(self, document: Any) -> Any:
        """The document with aliases for keys. A key that is an alias is no column: it is changed, so that it is refused as unknown."""
        reserved = set(self._aliases.values())

        def rename(item: Any) -> Any:
            if not isinstance(item, dict):
                return item
            return {self._aliases.get(k, f"{k}?" if k in reserved else k): v for k, v in item.items()}

        if isinstance(document, dict):
            if isinstance(document.get("rows"), list):
                document["rows"] = [rename(row) for row in document["rows"]]
            if "columns" in document:
                document["columns"] = rename(document["columns"])
        return document

    def _from_rows(self, rows: list[Any]) -> tuple[Columns, int, int]:
        count = len(rows)
        if count == 1:
            values: list[Any] = [[v] for v in self._tuple(rows[0])]
        elif count:
            values = [list(v) for v in zip(*map(self._tuple, rows), strict=True)]
        else:
            raise InvalidInput("there are no rows", place="rows", next_step="Send at least one row.")
        keys = count * len(self.names)
        if self._has_null:
            for column in values:
                missing = sum(1 for v in column if v is _UNSET)
                if missing:
                    keys -= missing
                    column[:] = [None if v is _UNSET else v for v in column]
        return dict(zip(self.names, values, strict=True)), count, keys

    def _from_columns(self, columns: Any) -> tuple[Columns, int, int]:
        values = list(self._tuple(columns))
        lengths = {len(v) for v in values if v is not _UNSET}
        if len(lengths) != 1:
            raise self._refuse("columns of different lengths", value=sorted(lengths), place="columns")
        count = lengths.pop()
        if not count:
            raise InvalidInput("there are no rows", place="columns", next_step="Send at least one row.")
        keys = sum(1 for v in values if v is not _UNSET)
        filled = [[None] * count if v is _UNSET else v for v in values]
        return dict(zip(self.names, filled, strict=True)), count, keys

    def _check_nul(self, columns: Columns) -> None:
        for name in self._text:
            for value in columns[name]:
                if value is not None and "\0" in value:
                    raise InvalidInput("NUL in a string", place=name)

    def _explain(self, error: Exception) -> InvalidInput:
        if not isinstance(error, msgspec.ValidationError):
            return malformed(error)
        text = str(error)
        for name, alias in self._aliases.items():
            text = text.replace(alias, name)
        if "of length <=" in text and (text.endswith("`$.rows`") or ".columns." in text):
            return TooManyRows(
                "too many rows in one request", value=text[:200], next_step=f"Send at most {self._max_rows}."
            )
        hint = _suggest_column(text, self.names) if " - at `$." in text else 'Send {"rows": [{...}]}. '
        return self._refuse(text[:300], place=None, hint=hint)

    def _refuse(
        self, message: str, *, value: object = None, place: str | None, hint: str = ""
    ) -> InvalidInput:
        return InvalidInput(
            f"the request does not fit the signature: {message}",
            value=value,
            place=place,
            next_step=f"{hint}Columns: {describe_columns(self.signature)}.",
        )


def _choose_aliases(names: Sequence[str]) -> dict[str, str]:
    """For each name that cannot be a field's: one that can, and that is the name of no other column."""
    aliases: dict[str, str] = {}
    for number, name in enumerate(names):
        if _NOT_A_FIELD.search(name):
            alias = f"<column {number}>"
            while alias in names:
                alias += ">"
            aliases[name] = alias
    return aliases


def parse_times(columns: dict[str, Any], names: Sequence[str]) -> None:
    """Replace the texts of these columns by times of UTC. Raises :class:`InvalidInput` for one that is no time."""
    for name in names:
        columns[name] = [None if v is None else parse_instant(v, place=name) for v in columns[name]]


def describe_columns(signature: Signature, limit: int = 200) -> str:
    """The columns of a signature on one line: ``name:type``, with ``?`` if null is allowed."""
    shown = [f"{c.name}:{c.type}{'?' if c.nullable else ''}" for c in signature.inputs[:limit]]
    return ", ".join(shown) + (", ..." if len(signature.inputs) > limit else "")


def parse_time(text: str) -> int:
    """A time in RFC 3339 with a zone, as microseconds since 1970. Raises :class:`InvalidInput` for others and outside the years 1900 to 2200."""
    try:
        moment = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        moment = None
    if moment is None or moment.tzinfo is None or not 1900 <= moment.year <= 2200:
        raise InvalidInput(
            "not an event time",
            value=text,
            place="event_time",
            next_step="Use RFC 3339 with a zone, e.g. 2013-01-01T05:15:00Z.",
        )
    return to_us(moment)


def malformed(error: Exception) -> Malformed:
    """The error (400) for a body that is not valid JSON."""
    if isinstance(error, RecursionError):
        return Malformed("the JSON is nested too deeply")
    return Malformed(f"not valid JSON: {str(error)[:200]}", next_step="Send one UTF-8 JSON document.")


def check_duplicates(body: bytes) -> None:
    """Refuse a document with a key twice in one object. Call it only on a body that a typed decoder accepted, which bounds its depth."""
    try:
        json.loads(body, object_pairs_hook=_check_unique)
    except InvalidInput:
        raise
    except (ValueError, RecursionError) as error:
        raise malformed(error) from None


def _check_unique(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise Malformed("a key is there twice", value=key, next_step="Send each key once.")
        seen.add(key)


def _suggest_column(message: str, names: list[str]) -> str:
    marker = "unknown field `"
    if marker not in message:
        return ""
    name = message.split(marker, 1)[1].split("`", 1)[0]
    hint = near(name, names, what="column")
    return f"{hint} " if hint.startswith("Did") else ""
