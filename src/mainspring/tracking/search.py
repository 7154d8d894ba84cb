"""Run search: a filter's tree becomes bound SQL, pages go by keyset.

Two shapes keep the first page fast at 100,000 runs (docs/rooms/tracking.md has the figures): runs are walked in the order
asked for, along an index, and each condition is an index probe per run; but a condition that only a few runs meet
is turned round: those runs are fetched first and the walk is over them alone.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

from mainspring.errors import InvalidInput
from mainspring.records.base import from_json, to_json
from mainspring.storage.sql import Reader, Row
from mainspring.storage.sql.store import Value
from mainspring.tracking.filters import Both, Compare, Field, Negated, Node, parse_field
from mainspring.tracking.tables import HEAD

FEW = 2000
"""A condition met by at most this many runs drives the search."""

_TABLES = {"metrics": "run_metrics", "params": "run_params", "tags": "run_tags"}
_KEYLESS = "0 = 1"


@dataclass(frozen=True)
class Sql:
    """A piece of SQL and the values it binds."""

    text: str
    values: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Order:
    """One sort key; ties go by start, then number, in the same direction."""

    field: Field
    descending: bool

    @property
    def signature(self) -> str:
        return f"{self.field.kind}.{self.field.name}{'-' if self.descending else '+'}"


class Compiler:
    """Compiles conditions for one engine and project. ``keys`` maps names to their numbers, as far as they exist."""

    def __init__(self, *, engine: str, keys: dict[str, int], now_us: int) -> None:
        self._engine = engine
        self._keys = keys
        self._now_us = now_us

    def compile(self, node: Node) -> Sql:
        if isinstance(node, Compare):
            return self._attribute(node) if node.field.kind == "attributes" else self._keyed(node)
        if isinstance(node, Negated):
            inner = self.compile(node.part)
            return Sql(f"NOT ({inner.text})", inner.values)
        glue = " AND " if isinstance(node, Both) else " OR "
        parts = [self.compile(p) for p in node.parts]
        return Sql("(" + glue.join(p.text for p in parts) + ")", tuple(v for p in parts for v in p.values))

    def driver(self, node: Compare) -> Sql | None:
        """A query for the numbers of the runs that meet a condition, by its index; None where there is no such index."""
        field = node.field
        if field.kind == "attributes" or node.operator in {
            "null",
            "not null",
            "!=",
            "not in",
            "like",
            "ilike",
        }:
            return None
        key = self._keys.get(field.name)
        if key is None:
            return None
        condition = self._condition(node, field)
        return Sql(
            f"SELECT m.run AS num FROM {_TABLES[field.kind]} m WHERE m.key = ? AND {condition.text} LIMIT {FEW + 1}",
            (key, *condition.values),
        )

    def status(self) -> Sql:
        """The derived status: a running run without heartbeats has crashed."""
        return Sql(
            "CASE WHEN r.status = 'running' AND r.alive_until_us < ? THEN 'crashed' ELSE r.status END",
            (self._now_us,),
        )

    def _keyed(self, node: Compare) -> Sql:
        key = self._keys.get(node.field.name)
        table = _TABLES[node.field.kind]
        if key is None:
            return Sql("1 = 1" if node.operator == "null" else _KEYLESS)
        probe = f"EXISTS (SELECT 1 FROM {table} m WHERE m.run = r.num AND m.key = ?"
        if node.operator == "null":
            return Sql(f"NOT {probe})", (key,))
        if node.operator == "not null":
            return Sql(f"{probe})", (key,))
        condition = self._condition(node, node.field)
        return Sql(f"{probe} AND {condition.text})", (key, *condition.values))

    def _condition(self, node: Compare, field: Field) -> Sql:
        if field.kind == "metrics":
            if node.operator == "!=":  # NaN differs from every number
                return Sql("(m.value IS NULL OR m.value <> ?)", node.values)
            return _compared(node, "m.value")
        if node.operator in {"=", "in"}:
            heads = tuple(str(v)[:HEAD] for v in node.values)
            marks = ", ".join("?" * len(heads))
            return Sql(f"m.head IN ({marks}) AND m.value IN ({marks})", heads + node.values)
        return self._text(node, Sql("m.value"))

    def _attribute(self, node: Compare) -> Sql:
        column = self.status() if node.field.name == "status" else Sql(f"r.{node.field.name}")
        if node.operator in {"null", "not null"}:
            return Sql(f"{column.text} IS {'NOT ' if node.operator == 'not null' else ''}NULL", column.values)
        if node.field.name == "status":
            node = Compare(node.field, node.operator, tuple(str(v).lower() for v in node.values))
        return self._text(node, column)

    def _text(self, node: Compare, column: Sql) -> Sql:
        if node.operator not in {"like", "ilike"}:
            compared = _compared(node, column.text)
            return Sql(compared.text, column.values + compared.values)
        if node.field.name in {"started_us", "ended_us"} and node.field.kind == "attributes":
            raise InvalidInput(
                "times have no patterns",
                value=node.field.name,
                place="filter",
                next_step="Compare with < and >.",
            )
        pattern = str(node.values[0])
        if self._engine != "sqlite":
            return Sql(f"{column.text} {node.operator.upper()} ? ESCAPE ''", (*column.values, pattern))
        if node.operator == "ilike":
            return Sql(f"{column.text} LIKE ?", (*column.values, pattern))
        return Sql(f"{column.text} GLOB ?", (*column.values, _glob(pattern)))


def _compared(node: Compare, column: str) -> Sql:
    if node.operator in {"in", "not in"}:
        marks = ", ".join("?" * len(node.values))
        return Sql(f"{column} {'NOT ' if node.operator == 'not in' else ''}IN ({marks})", node.values)
    operator = "<>" if node.operator == "!=" else node.operator
    return Sql(f"{column} {operator} ?", node.values)


def _glob(pattern: str) -> str:
    """A LIKE pattern as SQLite's GLOB, which minds case as PostgreSQL's LIKE does."""
    translated = {"%": "*", "_": "?", "*": "[*]", "?": "[?]", "[": "[[]"}
    return "".join(translated.get(c, c) for c in pattern)


def names_in(node: Node | None) -> set[str]:
    """Names of all metrics, params and tags that a filter mentions."""
    if node is None:
        return set()
    if isinstance(node, Compare):
        return set() if node.field.kind == "attributes" else {node.field.name}
    if isinstance(node, Negated):
        return names_in(node.part)
    return {name for part in node.parts for name in names_in(part)}


def parse_order(terms: list[str]) -> Order:
    """``["metrics.loss ASC"]``; default: newest start first. Params and tags sort by their first 200 characters.

    Only a trailing start time may follow: it is the tie-break anyway."""
    parsed = [_order(term) for term in terms]
    if not parsed:
        return Order(Field("attributes", "started_us", 0), descending=True)
    for extra in parsed[1:]:
        if extra.field.kind != "attributes" or extra.field.name not in {"started_us", "id"}:
            raise InvalidInput(
                "runs are ordered by one key",
                value=terms[1],
                place="order_by",
                next_step="Ties go by start time; sort finer on the page itself.",
            )
    return parsed[0]


def _order(term: str) -> Order:
    match = re.fullmatch(r"\s*(.+?)(?:\s+(asc|desc))?\s*", term, re.IGNORECASE | re.DOTALL)
    if match is None:
        raise InvalidInput("an empty order", place="order_by", next_step="Write e.g. 'metrics.loss DESC'.")
    return Order(parse_field(match[1], place="order_by"), descending=(match[2] or "asc").lower() == "desc")


@dataclass(frozen=True)
class Query:
    """What is being searched, but for the page."""

    project: str
    order: Order
    conditions: tuple[Sql, ...]
    few: tuple[int, ...] | None
    """Numbers of the only runs that can match, where a condition turned out selective."""

    def run(
        self, tx: Reader, compiler: Compiler, keys: dict[str, int], *, after: str | None, limit: int
    ) -> tuple[list[Row], str | None]:
        """One page of run rows and the cursor of the next."""
        cursor = _decode(after, self.order) if after is not None else None
        if self.few == ():
            return [], None
        rows: list[Row] = []
        # Runs that have the sort value come first, then those that lack it (or hold NaN), both ways.
        for phase in (0, 1):
            if len(rows) > limit or (cursor is not None and cursor[0] > phase):
                continue
            here = cursor[1:] if cursor is not None and cursor[0] == phase else None
            sql = self._phase(phase, compiler, keys, here)
            if sql is not None:
                found = tx.all(f"{sql.text} LIMIT ?", *sql.values, limit + 1 - len(rows))
                rows += [row | {"phase": phase} for row in found]
        if len(rows) <= limit:
            return rows, None
        last = rows[limit - 1]
        return rows[:limit], _encode(self.order, last)

    def _phase(
        self, phase: int, compiler: Compiler, keys: dict[str, int], here: list[Any] | None
    ) -> Sql | None:
        order = self.order
        way = "DESC" if order.descending else "ASC"
        # Over few runs the planner must not walk the index of start times, which begins with the project.
        project = "r.project" if self.few is None else "r.project || ''"
        base = [Sql(f"{project} = ?", (self.project,)), *self.conditions]
        if self.few is not None:
            base.append(Sql(f"r.num IN ({', '.join('?' * len(self.few)) or 'NULL'})", self.few))
        if order.field.kind == "attributes":
            column, source = (
                compiler.status() if order.field.name == "status" else Sql(f"r.{order.field.name}"),
                Sql("runs r"),
            )
        else:
            key = keys.get(order.field.name)
            if key is None and phase == 0:
                return None
            table = _TABLES[order.field.kind]
            if phase == 0:
                column, source = (
                    Sql("m.value" if order.field.kind == "metrics" else "m.head"),
                    Sql(f"{table} m CROSS JOIN runs r"),
                )  # in this order on SQLite: along the value index
                base = [Sql("m.key = ? AND m.run = r.num AND m.value IS NOT NULL", (key,)), *base]
            else:
                column, source = Sql("NULL"), Sql("runs r")
                if key is not None:
                    base.append(
                        Sql(
                            f"NOT EXISTS (SELECT 1 FROM {table} m WHERE m.run = r.num AND m.key = ? AND m.value IS NOT NULL)",
                            (key,),
                        )
                    )
        if phase == 1 and order.field.kind == "attributes":
            if order.field.name not in {"ended_us", "parent", "code", "environment"}:
                return None
            base.append(Sql(f"r.{order.field.name} IS NULL"))
        elif order.field.kind == "attributes" and order.field.name in {
            "ended_us",
            "parent",
            "code",
            "environment",
        }:
            base.append(Sql(f"r.{order.field.name} IS NOT NULL"))
        return _ordered(
            column, source, base, phase=phase, way=way, here=here, metric=order.field.kind != "attributes"
        )


def _ordered(
    column: Sql, source: Sql, base: list[Sql], *, phase: int, way: str, here: list[Any] | None, metric: bool
) -> Sql:
    """The statement of one phase: sorted by the value, then number (metrics, params, tags), or by start, then number."""
    head = [] if phase == 1 else [column]
    tail = [Sql("m.run")] if metric and phase == 0 else [Sql("r.started_us"), Sql("r.num")]
    if not metric and column.text == "r.started_us":
        head = []
    terms = head + tail
    where = list(base)
    if here is not None:
        values = ([here[0]] if head else []) + ([here[2]] if len(tail) == 1 else here[1:])
        left = ", ".join(t.text for t in terms)
        bound = tuple(v for t in terms for v in t.values)
        where.append(
            Sql(
                f"({left}) {'<' if way == 'DESC' else '>'} ({', '.join('?' * len(terms))})",
                bound + tuple(values),
            )
        )
    conditions = " AND ".join(w.text for w in where)
    ordering = ", ".join(f"{t.text} {way}" for t in terms)
    values_all = (
        column.values + tuple(v for w in where for v in w.values) + tuple(v for t in terms for v in t.values)
    )
    return Sql(
        f"SELECT r.*, {column.text} AS sorted FROM {source.text} WHERE {conditions} ORDER BY {ordering}",
        values_all,
    )


def _encode(order: Order, row: Row) -> str:
    document = to_json(
        [
            order.signature,
            row["phase"],
            row["sorted"] if row["sorted"] not in _INFINITE else str(row["sorted"]),
            row["started_us"],
            row["num"],
        ]
    )
    return base64.urlsafe_b64encode(document).decode()


_INFINITE = (float("inf"), float("-inf"))


def _decode(after: str, order: Order) -> list[Any]:
    """``[phase, sort value, started_us, num]`` of a cursor; raises :class:`InvalidInput` unless it belongs to ``order``."""
    try:
        document: list[Any] = from_json(base64.urlsafe_b64decode(after.encode()), list[Any])
        signature, phase, value, started, num = document
    except (ValueError, InvalidInput):
        raise InvalidInput(
            "not a page mark", value=after, place="after", next_step="Pass 'next' of the page before."
        ) from None
    if order.field.kind == "metrics" and isinstance(value, str):
        value = float(value)
    fits = isinstance(value, (str, int, float, type(None))) and all(
        isinstance(v, int) for v in (phase, started, num)
    )
    if signature != order.signature or not fits:
        raise InvalidInput(
            "this page mark belongs to another order",
            value=after,
            place="after",
            next_step="Begin again without 'after'.",
        )
    return [phase, value, started, num]
