"""Rules about the values of one column: their type, nulls, range, set and pattern."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from mainspring.data.profile import arrow_kind
from mainspring.data.rules.base import Check, Derived, Plan, Scan, check_bounded, check_bounds
from mainspring.errors import InvalidInput
from mainspring.records.data import NotNullRule, RangeRule, RegexRule, SetRule, TypeRule

_SPELLS_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


class TypeCheck(Check[TypeRule]):
    """The column has the type, whatever its values are."""

    record = TypeRule

    def plan(self, table: Scan) -> Plan:
        rule, kind = self.rule, table.type(self.rule.column)
        if _IS_TYPE[rule.type](kind):
            return Plan(verdict=True)
        reason = f"the column holds {kind}, not {rule.type}"
        if arrow_kind(kind) == "string" and rule.type in {"number", "int64", "float64"}:
            return _masked_plan(
                self,
                lambda text: pc.invert(match_pattern(text, _SPELLS_NUMBER)),
                reason=reason,
                verdict=False,
            )
        return Plan(reason=reason, verdict=False)


class NotNullCheck(Check[NotNullRule]):
    """The share of nulls is within the limit; NaN counts as null."""

    record = NotNullRule

    def validate(self, place: str) -> None:
        if not 0 <= self.rule.max_null_share <= 1:
            raise InvalidInput("a share is between 0 and 1", value=self.rule.max_null_share, place=place)

    def plan(self, table: Scan) -> Plan:
        column = table.column(self.rule.column)
        floating = pt.is_floating(table.type(self.rule.column))
        return Plan(mask=column.is_null() | column.is_nan() if floating else column.is_null())

    def allowed(self) -> float:
        return self.rule.max_null_share


class RangeCheck(Check[RangeRule]):
    """Every value lies within the bounds, which are inclusive; NaN does not."""

    record = RangeRule

    def validate(self, place: str) -> None:
        check_bounded(self.rule.min, self.rule.max, place)
        check_bounds(self.rule.min, self.rule.max, place)

    def plan(self, table: Scan) -> Plan:
        rule, kind = self.rule, table.type(self.rule.column)
        if pt.is_null(kind):
            return Plan(verdict=True)
        if not is_number(kind):
            return Plan(reason=f"the column holds {kind}, which has no numeric range", verdict=False)
        if pt.is_decimal(kind):
            low = Decimal("-Infinity") if rule.min is None else Decimal(repr(rule.min))
            high = Decimal("Infinity") if rule.max is None else Decimal(repr(rule.max))
            return _masked_plan(self, lambda column: _fail_each(column, lambda v: not low <= v <= high))
        column = table.column(rule.column)
        if pt.is_integer(kind):
            return Plan(mask=_outside_mask(column, rule, kind))
        column = column.cast(nw.Float64)  # a bound is not rounded to the column's width
        parts = [column < float(rule.min)] if rule.min is not None else []
        parts += [column > float(rule.max)] if rule.max is not None else []
        parts += [column.is_nan()]
        return Plan(mask=functools.reduce(operator.or_, parts))


def _outside_mask(column: nw.Expr, rule: RangeRule, kind: pa.DataType) -> nw.Expr:
    """The mask of values outside the bounds. Whole numbers are compared with whole bounds: as floats, those beyond 2^53 would be rounded."""
    least, most = whole_limits(kind)
    low = (
        least
        if rule.min is None or rule.min <= least
        else math.ceil(rule.min)
        if rule.min <= most
        else most + 1
    )
    high = (
        most
        if rule.max is None or rule.max >= most
        else math.floor(rule.max)
        if rule.max >= least
        else least - 1
    )
    if low > most or high < least:
        return ~column.is_null()
    mask = column < low if low > least else None
    if high < most:
        mask = column > high if mask is None else mask | (column > high)
    return mask if mask is not None else column.is_null() & ~column.is_null()


class SetCheck(Check[SetRule]):
    """Every value is one of the allowed ones."""

    record = SetRule

    def validate(self, place: str) -> None:
        if not self.rule.allowed:
            raise InvalidInput("name at least one allowed value", place=place)

    def plan(self, table: Scan) -> Plan:
        rule, kind = self.rule, table.type(self.rule.column)
        if pt.is_null(kind):
            return Plan(verdict=True)
        if pt.is_decimal(kind):
            exact = {
                Decimal(repr(v))
                for v in rule.allowed
                if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
            }
            return _masked_plan(self, lambda column: _fail_each(column, lambda v: v not in exact))
        column = table.column(rule.column)
        allowed = _allowed_in_type(rule, kind)
        if not allowed:
            return Plan(mask=~column.is_null(), reason=f"no allowed value has the column's type, {kind}")
        if pt.is_floating(kind):
            column = column.cast(nw.Float64)
        # Engines differ in how they treat a number that the column's type cannot hold.
        if pt.is_integer(kind):
            least, most = whole_limits(kind)
            allowed = [v for v in allowed if least <= v <= most]
        return Plan(mask=~column.is_in(allowed) if allowed else ~column.is_null())


def _allowed_in_type(rule: SetRule, kind: pa.DataType) -> list[Any]:
    """The allowed values that a value of this column can equal, as it holds them."""
    wanted = comparable(kind)
    allowed: list[Any] = [v for v in rule.allowed if wanted is not None and type(v) in wanted]
    if pt.is_integer(kind):
        return [int(v) for v in allowed if not isinstance(v, float) or v.is_integer()]
    if pt.is_floating(kind):
        held = np.float32 if kind.bit_width < 64 else np.float64
        with np.errstate(over="ignore"):
            pairs = [(v, float(held(v))) for v in allowed if isinstance(v, float) or int(float(v)) == v]
        # A finite number that the column can only hold as infinity equals none of its values.
        return [kept for v, kept in pairs if math.isfinite(kept) or not math.isfinite(v)]
    return allowed


class RegexCheck(Check[RegexRule]):
    """Every value matches the whole pattern."""

    record = RegexRule

    def validate(self, place: str) -> None:
        try:
            match_pattern(pa.array([""]), full_match_pattern(self.rule.pattern))
        except pa.ArrowException as error:
            raise InvalidInput(
                f"the pattern does not compile: {str(error).splitlines()[0]}",
                value=self.rule.pattern,
                place=place,
                next_step="Patterns are RE2: no look-around, no back-references.",
            ) from None

    def plan(self, table: Scan) -> Plan:
        kind = table.type(self.rule.column)
        if pt.is_null(kind):
            return Plan(verdict=True)
        if arrow_kind(kind) != "string":
            return Plan(reason=f"the column holds {kind}, not text", verdict=False)
        pattern = full_match_pattern(self.rule.pattern)
        return _masked_plan(self, lambda text: pc.invert(match_pattern(text, pattern)))


def full_match_pattern(pattern: str) -> str:
    """A pattern that matches only if the whole text matches ``pattern``."""
    return f"^(?:{pattern})$"


def match_pattern(text: Any, pattern: str) -> Any:
    """A mask of the values that match (RE2). Engines differ in their dialects, so patterns are matched here, in Arrow, for all of them."""
    return pc.match_substring_regex(text, pattern)


def _masked_plan(check: Check[Any], make: Callable[[Any], Any], **facts: Any) -> Plan:
    """A plan whose mask is made in Arrow from the rule's column."""
    name = check.name("mask")
    return Plan(mask=nw.col(name), derived={name: Derived(check.columns(), pa.bool_(), make)}, **facts)


def _fail_each(column: Any, fails: Callable[[Any], bool]) -> pa.Array:
    """A mask of the decimals that fail, computed exactly in Python, because engines would convert them to floats."""
    return pa.array([v is not None and fails(v) for v in column.to_pylist()], pa.bool_())


def is_number(kind: pa.DataType) -> bool:
    """Integers, floats and decimals."""
    return bool(pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind))


def whole_limits(kind: pa.DataType) -> tuple[int, int]:
    """The least and the greatest value of an integer type."""
    if pt.is_signed_integer(kind):
        return -(1 << (kind.bit_width - 1)), (1 << (kind.bit_width - 1)) - 1
    return 0, (1 << kind.bit_width) - 1


_IS_TYPE: dict[str, Any] = {
    "number": is_number,
    "int64": pt.is_integer,
    "float64": lambda t: pt.is_floating(t) or pt.is_decimal(t),
    "string": lambda t: arrow_kind(t) == "string",
    "bool": pt.is_boolean,
    "timestamp": pt.is_timestamp,
    "date": pt.is_date,
}


def comparable(kind: pa.DataType) -> set[type] | None:
    """Python types of values that can equal a value of this column."""
    if is_number(kind):
        return {int, float}
    by_kind: dict[str, set[type]] = {"string": {str}, "bool": {bool}}
    return by_kind.get(arrow_kind(kind))
