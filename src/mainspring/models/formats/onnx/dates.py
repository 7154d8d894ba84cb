"""Writes :class:`~mainspring.models.formats.dates.DateParts` as operators, from times in microseconds since 1970."""

from __future__ import annotations

from typing import Any

from mainspring.models.formats.dates import DAY_US, HOUR_US
from mainspring.models.formats.onnx.graph import Graph, Table


def date_parts(graph: Graph, step: Any, table: Table) -> Table:
    """The columns of the parts, each input's in the order of ``step.parts``: the arithmetic of ``dates.compute_parts``."""
    us = graph.numbers(table)
    made = _Parts(graph, us)
    by_part = {part: graph.matrix(made.compute(part), len(table)) for part in step.parts}
    return [by_part[part][i] for i in range(len(table)) for part in step.parts]


class _Parts:
    """The operators of one tensor of times; equal ones are written once (:meth:`Graph.op`)."""

    def __init__(self, graph: Graph, us: str) -> None:
        self._graph, self._us = graph, us

    def compute(self, part: str) -> str:
        us = self._us
        if part == "days":
            return self._op("Div", us, DAY_US)
        day = self._op("Floor", self._op("Div", us, DAY_US))
        if part == "hour":
            return self._op(
                "Floor", self._op("Div", self._op("Sub", us, self._op("Mul", day, DAY_US)), HOUR_US)
            )
        if part == "weekday":
            later = self._op("Add", day, 3.0)
            return self._op("Sub", later, self._op("Mul", self._floor_div(later, 7.0), 7.0))
        return self._civil(day, part)

    def _civil(self, day: str, part: str) -> str:
        shifted = self._op("Add", day, 719_468.0)
        era = self._floor_div(shifted, 146_097.0)
        of_era = self._op("Sub", shifted, self._op("Mul", era, 146_097.0))
        leaps = self._op("Sub", self._floor_div(of_era, 1_460.0), self._floor_div(of_era, 36_524.0))
        leaps = self._op("Add", leaps, self._floor_div(of_era, 146_096.0))
        year_of_era = self._floor_div(self._op("Sub", of_era, leaps), 365.0)
        before = self._op("Add", self._op("Mul", year_of_era, 365.0), self._floor_div(year_of_era, 4.0))
        before = self._op("Sub", before, self._floor_div(year_of_era, 100.0))
        of_year = self._op("Sub", of_era, before)
        from_march = self._floor_div(self._op("Add", self._op("Mul", of_year, 5.0), 2.0), 153.0)
        if part == "day":
            first = self._floor_div(self._op("Add", self._op("Mul", from_march, 153.0), 2.0), 5.0)
            return self._op("Add", self._op("Sub", of_year, first), 1.0)
        in_year = self._graph.op("Less", from_march, self._graph.double(10.0))
        month = self._graph.op(
            "Where", in_year, self._op("Add", from_march, 3.0), self._op("Sub", from_march, 9.0)
        )
        if part == "month":
            return month
        next_year = self._graph.op("LessOrEqual", month, self._graph.double(2.0))
        year = self._op("Add", year_of_era, self._op("Mul", era, 400.0))
        one = self._graph.op("Where", next_year, self._graph.double(1.0), self._graph.double(0.0))
        return self._op("Add", year, one)

    def _floor_div(self, values: str, by: float) -> str:
        return self._op("Floor", self._op("Div", values, by))

    def _op(self, kind: str, a: str, b: str | float | None = None) -> str:
        if b is None:
            return self._graph.op(kind, a)
        return self._graph.op(kind, a, b if isinstance(b, str) else self._graph.double(b))
