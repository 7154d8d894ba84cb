"""Run search: a filter's tree becomes bound SQL; its order and pages are in ``order.py``.

Two shapes keep the first page fast at 100,000 runs (docs/rooms/tracking.md has the figures): runs are walked in the order
asked for, along an index, and each condition is an index probe per run; but where only a few runs meet a condition,
those runs are fetched first and only they are walked.
"""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.errors import InvalidInput
from mainspring.storage.sql.store import Value
from mainspring.tracking.filters import Both, Compare, Field, Negated, Node
from mainspring.tracking.rows import HEAD

FEW = 2000
"""A condition that at most this many runs meet is evaluated first."""

TABLES = {"metrics": "run_metrics", "params": "run_params", "tags": "run_tags"}
_KEYLESS = "0 = 1"


@dataclass(frozen=True)
class Sql:
    """A piece of SQL and the values it binds."""

    text: str
    values: tuple[Value, ...] = ()


class Compiler:
    """Compiles conditions for one engine and project. ``keys`` maps names to their numbers, as far as they exist."""

    def __init__(self, *, engine: str, project: str, keys: dict[str, int], now_us: int) -> None:
        self._engine = engine
        self._project = project
        self._keys = keys
        self._now_us = now_us

    def compile(self, node: Node) -> Sql:
        if isinstance(node, Compare):
            return (
                self._attribute_condition(node)
                if node.field.kind == "attributes"
                else self._key_condition(node)
            )
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
        condition = self._value_condition(node, field)
        return Sql(
            f"SELECT m.run AS num FROM {TABLES[field.kind]} m WHERE m.key = ? AND {condition.text} LIMIT {FEW + 1}",
            (key, *condition.values),
        )

    def status(self) -> Sql:
        """The derived status: a running run without heartbeats has crashed."""
        return Sql(
            "CASE WHEN r.status = 'running' AND r.alive_until_us < ? THEN 'crashed' ELSE r.status END",
            (self._now_us,),
        )

    def _key_condition(self, node: Compare) -> Sql:
        key = self._keys.get(node.field.name)
        table = TABLES[node.field.kind]
        if key is None:
            return Sql("1 = 1" if node.operator == "null" else _KEYLESS)
        probe = f"EXISTS (SELECT 1 FROM {table} m WHERE m.run = r.num AND m.key = ?"
        if node.operator == "null":
            return Sql(f"NOT {probe})", (key,))
        if node.operator == "not null":
            return Sql(f"{probe})", (key,))
        condition = self._value_condition(node, node.field)
        return Sql(f"{probe} AND {condition.text})", (key, *condition.values))

    def _value_condition(self, node: Compare, field: Field) -> Sql:
        if field.kind == "metrics":
            if node.operator == "!=":  # NaN differs from every number
                return Sql("(m.value IS NULL OR m.value <> ?)", node.values)
            return _comparison(node, "m.value")
        if node.operator in {"=", "in"}:
            # The index holds only the beginning of a text (``head``); the comparison of the whole value decides.
            heads = tuple(str(v)[:HEAD] for v in node.values)
            marks = ", ".join("?" * len(heads))
            return Sql(f"m.head IN ({marks}) AND m.value IN ({marks})", heads + node.values)
        return self._text_condition(node, Sql("m.value"))

    def _attribute_condition(self, node: Compare) -> Sql:
        if node.field.name == "experiment":
            return self._experiment_condition(node)
        name = {"experiment_id": "experiment"}.get(node.field.name, node.field.name)
        column = self.status() if name == "status" else Sql(f"r.{name}")
        if node.operator in {"null", "not null"}:
            return Sql(f"{column.text} IS {'NOT ' if node.operator == 'not null' else ''}NULL", column.values)
        if node.field.name == "status":
            node = Compare(node.field, node.operator, tuple(str(v).lower() for v in node.values))
        return self._text_condition(node, column)

    def _experiment_condition(self, node: Compare) -> Sql:
        """A condition on the experiment's name: runs have its id."""
        if node.operator in {"null", "not null"}:
            return Sql("1 = 1" if node.operator == "not null" else _KEYLESS)
        inner = self._text_condition(node, Sql("e.name"))
        subquery = f"SELECT e.id FROM experiments e WHERE e.project = ? AND {inner.text}"
        # An equality with one value: the engines treat the subquery as a constant and walk the experiment's runs along their
        # index, which has them in order.
        text = (
            f"r.experiment = coalesce(({subquery}), '')"
            if node.operator == "="
            else f"r.experiment IN ({subquery})"
        )
        return Sql(text, (self._project, *inner.values))

    def _text_condition(self, node: Compare, column: Sql) -> Sql:
        if node.operator not in {"like", "ilike"}:
            comparison = _comparison(node, column.text)
            return Sql(comparison.text, column.values + comparison.values)
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


def _comparison(node: Compare, column: str) -> Sql:
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
