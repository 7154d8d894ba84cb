"""The order of runs: several sort keys, and pages by keyset along them.

The first key decides the walk: runs that have its value are read along its index, then those that lack it. Within equal values of
one key the next decides, and at the end the run's number, so that the order is total and the same on both engines. A missing value
(or NaN) comes last, whichever way the key goes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import blake3

from mainspring.errors import InvalidInput
from mainspring.records.base import from_json, to_json
from mainspring.storage.sql import Reader, Row
from mainspring.storage.sql.store import Value
from mainspring.tracking.filters import MAX_LENGTH, Field, parse_field
from mainspring.tracking.rows import HEAD
from mainspring.tracking.search import TABLES, Compiler, Sql

MAX_KEYS = 8
MAX_MARK = 16_384
"""Characters of a page mark: eight texts of 200 characters, each escaped, are fewer."""

_NULLABLE = frozenset({"ended_us", "parent", "code", "environment"})
_TIMES = frozenset({"started_us", "ended_us"})
_LONG = frozenset({"name", "parent", "created_by"})
"""Texts of any length: they sort by their beginning, as params and tags do, so that a page mark can carry them."""


@dataclass(frozen=True)
class Key:
    """One sort key."""

    field: Field
    descending: bool

    @property
    def nullable(self) -> bool:
        return self.field.kind != "attributes" or self.field.name in _NULLABLE


@dataclass(frozen=True)
class Order:
    """Sort keys, the first of them first; ties go by the run's number, in the direction of the last key."""

    keys: tuple[Key, ...]

    @property
    def signature(self) -> str:
        """A digest of the keys, by which a page mark says which order it was made for."""
        text = to_json([[k.field.kind, k.field.name, k.descending] for k in self.keys])
        return blake3.blake3(text).hexdigest()[:16]

    def names(self) -> set[str]:
        """Names of the metrics, params and tags among the keys."""
        return {k.field.name for k in self.keys if k.field.kind != "attributes"}


def parse_order(terms: list[str]) -> Order:
    """``["metrics.loss", "-params.depth", "started DESC"]``, or the same in one text with commas; default: newest start first."""
    if sum(map(len, terms)) > MAX_LENGTH:
        raise InvalidInput(f"an order may have {MAX_LENGTH} characters", place="order_by")
    keys = [_parse_key(part) for term in terms for part in _split_keys(term)]
    if len(keys) > MAX_KEYS:
        raise InvalidInput(
            f"an order has at most {MAX_KEYS} keys",
            value=len(keys),
            place="order_by",
            next_step="Leave out the last ones: they decide only between runs that are alike in all keys before.",
        )
    if len({(k.field.kind, k.field.name) for k in keys}) < len(keys):
        raise InvalidInput(
            "a sort key is named twice",
            value=", ".join(terms),
            place="order_by",
            next_step="Name each key once.",
        )
    return Order(tuple(keys) or (Key(Field("attributes", "started_us", 0), descending=True),))


def _split_keys(term: str) -> list[str]:
    """The parts between commas; a name in backticks or double quotes may hold commas itself."""
    parts, quote = [""], ""
    for char in term:
        if char == "," and not quote:
            parts.append("")
            continue
        if char == quote:
            quote = ""
        elif not quote and char in '`"':
            quote = char
        parts[-1] += char
    return parts


def _parse_key(term: str) -> Key:
    match = re.fullmatch(r"\s*(-?)\s*(.+?)(?:\s+(asc|desc))?\s*", term, re.IGNORECASE | re.DOTALL)
    if match is None or (match[1] and match[3]):
        raise InvalidInput(
            "a sort key goes one way" if match else "an empty sort key",
            value=term,
            place="order_by",
            next_step="Write e.g. 'metrics.loss', '-metrics.auc' or 'metrics.auc DESC'.",
        )
    field = parse_field(match[2], place="order_by")
    return Key(field, descending=bool(match[1]) or (match[3] or "asc").lower() == "desc")


@dataclass(frozen=True)
class _Term:
    """A column that rows are sorted by."""

    column: Sql
    descending: bool
    nullable: bool
    alias: str

    @property
    def beyond(self) -> str:
        return "<" if self.descending else ">"

    @property
    def ordering(self) -> str:
        return f"{self.alias} {'DESC' if self.descending else 'ASC'}{' NULLS LAST' if self.nullable else ''}"


@dataclass(frozen=True)
class Query:
    """A search: everything but the page."""

    project: str
    order: Order
    conditions: tuple[Sql, ...]
    few: tuple[int, ...] | None
    """Numbers of the only runs that can match, where a condition turned out selective."""

    def run(
        self, tx: Reader, compiler: Compiler, keys: dict[str, int], *, after: str | None, limit: int
    ) -> tuple[list[Row], str | None]:
        """One page of run rows and the page mark of the next."""
        mark = _decode_mark(after, self.order) if after is not None else None
        if self.few == ():
            return [], None
        rows: list[Row] = []
        first_phase = 0 if mark is None or mark[0] is not None else 1
        # Runs that have the first key's value come first, then those that lack it (or hold NaN), both ways.
        for phase in (0, 1):
            if len(rows) > limit or phase < first_phase:
                continue
            phase_mark = mark if phase == first_phase else None
            sql = self._phase_query(phase, compiler, keys, phase_mark)
            if sql is not None:
                rows += tx.all(f"{sql.text} LIMIT ?", *sql.values, limit + 1 - len(rows))
        if len(rows) <= limit:
            return rows, None
        return rows[:limit], _encode_mark(self.order, rows[limit - 1])

    def _phase_query(
        self, phase: int, compiler: Compiler, keys: dict[str, int], mark: list[Value] | None
    ) -> Sql | None:
        lead = self.order.keys[0]
        source, number, where = Sql("runs r"), "r.num", self._base_conditions()
        if lead.field.kind != "attributes":
            table, key = TABLES[lead.field.kind], keys.get(lead.field.name)
            if phase == 0:
                if key is None:
                    return None
                # CROSS JOIN fixes the order of the loops on SQLite: the index of values outside, so that rows come sorted.
                source, number = Sql(f"{table} s0 CROSS JOIN runs r"), "s0.run"
                where.insert(0, Sql("s0.key = ? AND s0.run = r.num AND s0.value IS NOT NULL", (key,)))
            elif key is not None:
                where.append(
                    Sql(
                        f"NOT EXISTS (SELECT 1 FROM {table} m WHERE m.run = r.num AND m.key = ? AND m.value IS NOT NULL)",
                        (key,),
                    )
                )
        elif lead.nullable:
            where.append(Sql(f"r.{lead.field.name} IS {'NOT ' if phase == 0 else ''}NULL"))
        elif phase == 1:
            return None
        columns, joins = self._key_columns(phase, compiler, keys)
        terms = [
            _Term(column, key.descending, key.nullable and i > 0, f"sort{i}")
            for i, (key, column) in enumerate(zip(self.order.keys, columns, strict=True))
            if column is not None
        ]
        terms.append(_Term(Sql(number), self.order.keys[-1].descending, nullable=False, alias=number))
        if mark is not None:
            known = [v for v, column in zip(mark, columns, strict=False) if column is not None]
            where.append(_after_condition(terms, [*known, mark[-1]]))
        return _build_statement(columns, Sql(f"{source.text}{joins.text}", joins.values), where, terms)

    def _base_conditions(self) -> list[Sql]:
        # Over few runs the planner must take them by number. The concatenation hides the column from indexes that begin with
        # the project, which it would otherwise walk whole.
        project = "r.project" if self.few is None else "r.project || ''"
        base = [Sql(f"{project} = ?", (self.project,)), *self.conditions]
        if self.few is not None:
            base.append(Sql(f"r.num IN ({', '.join('?' * len(self.few))})", self.few))
        return base

    def _key_columns(
        self, phase: int, compiler: Compiler, keys: dict[str, int]
    ) -> tuple[list[Sql | None], Sql]:
        """The column of each key (None: nothing has a value here), and the joins that they need."""
        columns: list[Sql | None] = []
        joins: list[Sql] = []
        for i, key in enumerate(self.order.keys):
            number = keys.get(key.field.name, -1)
            if i == 0 and phase == 1:
                columns.append(None)
            elif key.field.kind == "attributes":
                columns.append(_attribute_column(key.field.name, compiler))
            elif number < 0:
                columns.append(None)
            else:
                columns.append(Sql(f"s{i}.{'value' if key.field.kind == 'metrics' else 'head'}"))
                if i > 0:
                    table = TABLES[key.field.kind]
                    joins.append(
                        Sql(f" LEFT JOIN {table} s{i} ON s{i}.run = r.num AND s{i}.key = ?", (number,))
                    )
        return columns, Sql("".join(j.text for j in joins), tuple(v for j in joins for v in j.values))


def _attribute_column(name: str, compiler: Compiler) -> Sql:
    if name == "status":
        return compiler.status()
    if name == "experiment":
        return Sql("(SELECT e.name FROM experiments e WHERE e.id = r.experiment)")
    if name == "experiment_id":
        return Sql("r.experiment")
    return Sql(f"substr(r.{name}, 1, {HEAD})" if name in _LONG else f"r.{name}")


def _build_statement(columns: Sequence[Sql | None], source: Sql, where: list[Sql], terms: list[_Term]) -> Sql:
    shown = [c or Sql("NULL") for c in columns]
    sorts = "".join(f", {c.text} AS sort{i}" for i, c in enumerate(shown))
    values = [*(v for c in shown for v in c.values), *source.values, *(v for w in where for v in w.values)]
    return Sql(
        f"SELECT r.*{sorts} FROM {source.text} WHERE {' AND '.join(w.text for w in where)}"
        f" ORDER BY {', '.join(t.ordering for t in terms)}",
        tuple(values),
    )


def _after_condition(terms: list[_Term], values: list[Value]) -> Sql:
    """The condition that a row comes after the one with these values (those of a page mark)."""
    first = terms[0]
    if len(terms) == 2 and not first.nullable and first.descending == terms[1].descending:
        # A comparison of rows is a range of the index, where the same written with OR would read all rows of one value.
        return Sql(
            f"({first.column.text}, {terms[1].column.text}) {first.beyond} (?, ?)",
            (*first.column.values, *values),
        )
    nested = _nested_condition(terms, values)
    if first.nullable or len(terms) == 1:
        return nested
    return Sql(
        f"{first.column.text} {first.beyond}= ? AND {nested.text}",
        (*first.column.values, values[0], *nested.values),
    )


def _nested_condition(terms: list[_Term], values: list[Value]) -> Sql:
    """``a > x OR (a = x AND (b > y OR ...))``, with NULL after every value."""
    if not terms:
        return Sql("0 = 1")
    term, value, rest = terms[0], values[0], _nested_condition(terms[1:], values[1:])
    text, bound = term.column.text, term.column.values
    if value is None:
        return Sql(f"({text} IS NULL AND {rest.text})", bound + rest.values)
    beyond = Sql(f"{text} {term.beyond} ?", (*bound, value))
    if term.nullable:
        beyond = Sql(f"{beyond.text} OR {text} IS NULL", beyond.values + bound)
    return Sql(
        f"({beyond.text} OR ({text} = ? AND {rest.text}))", (*beyond.values, *bound, value, *rest.values)
    )


_INFINITE = {"Infinity": float("inf"), "-Infinity": float("-inf")}  # JSON has no infinities


def _encode_mark(order: Order, row: Row) -> str:
    words = {number: word for word, number in _INFINITE.items()}
    values = [row[f"sort{i}"] for i in range(len(order.keys))]
    values = [words.get(v, v) if isinstance(v, float) else v for v in values]
    return base64.urlsafe_b64encode(to_json([order.signature, values, row["num"]])).decode()


def _decode_mark(after: str, order: Order) -> list[Value]:
    """The values of a page mark: one for each key, then the run's number. Raises :class:`InvalidInput` unless it was made for ``order``."""
    bad = InvalidInput(
        "not a page mark", value=after[:200], place="after", next_step="Pass 'next' of the page before."
    )
    if len(after) > MAX_MARK:
        raise bad
    try:
        document: list[Any] = from_json(base64.urlsafe_b64decode(after.encode()), list[Any])
        signature, values, number = document
    except (ValueError, InvalidInput):
        raise bad from None
    if signature != order.signature:
        raise InvalidInput(
            "this page mark belongs to another order",
            value=after[:200],
            place="after",
            next_step="Begin again without 'after'.",
        )
    if not isinstance(values, list) or len(values) != len(order.keys) or not _is_integer(number):
        raise bad
    return [*(_check_value(k, v, bad) for k, v in zip(order.keys, values, strict=True)), number]


def _is_integer(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _check_value(key: Key, value: Any, bad: InvalidInput) -> Value:
    if value is None and key.nullable:
        return None
    if key.field.kind == "metrics":
        if type(value) is str and value in _INFINITE:
            return _INFINITE[value]
        if type(value) is float:
            return value
    elif key.field.kind == "attributes" and key.field.name in _TIMES:
        if _is_integer(value):
            return int(value)
    elif type(value) is str and "\x00" not in value:
        return value
    raise bad
