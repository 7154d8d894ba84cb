"""Check rules compiled to one pass over a table, with the rows that broke them.

A rule that cannot be right (a column that does not exist, an empty range, a pattern that does not compile) is refused
before the data is looked at. Whatever the *data* holds is a finding, never an exception: a text column under a ``range``
rule fails that rule with a reason. The counts of all rules come from one select (Narwhals over DuckDB); only rules that
failed read rows a second time.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import duckdb
import narwhals as nw
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from msgspec.structs import replace

from mainspring.data.engine import connection
from mainspring.data.periods import freshness, period_keys, period_label
from mainspring.data.profile import arrow_kind
from mainspring.data.shown import MAX_SAMPLE, plain_rows, plain_values
from mainspring.data.values import engine_column, row_numbers
from mainspring.errors import InvalidInput, near
from mainspring.records.base import seconds
from mainspring.records.classes import LabelReader
from mainspring.records.data import (
    CheckRule,
    FailedRow,
    Finding,
    FreshnessRule,
    LabelRateRule,
    NotNullRule,
    RangeRule,
    RegexRule,
    RowCountRule,
    SetRule,
    TypeRule,
    UniqueRule,
)
from mainspring.records.models import ClassType, Task

_MAX_COLUMNS_SHOWN = 40
_MAX_GROUPS = 50
_MAX_CLASSES = 1_000
_CLASS_TYPES: dict[str, ClassType] = {
    "string": "string",
    "bool": "bool",
    "int64": "int64",
    "float64": "float64",
}
_ROW = "__row"
_N = "__n"
_SPELLS_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"

Mask = Any  # a Narwhals expression of type boolean


@dataclass(frozen=True)
class _Plan:
    """How a rule is counted: rows where ``mask`` is true fail. Without a mask ``verdict`` stands already."""

    rule: CheckRule
    mask: Mask | None = None
    reason: str = ""
    verdict: bool | None = None
    number: int = 0


def run_checks(table: pa.Table, rules: Sequence[CheckRule], *, now: datetime) -> list[Finding]:
    """Findings in the order of ``rules``. ``now`` is policy time, for freshness.

    Raises :class:`InvalidInput` for a rule that does not fit the table's columns; never for what the data holds.
    """
    validate(rules, table.column_names)
    if not rules:
        return []
    # The engine sees columns by number: it folds case, and reads dots and quotes in a name its own way. What it sees are values to
    # count and compare (``values``); what is shown of a row is taken from the table by the row's number.
    names = {name: f"c{i}" for i, name in enumerate(table.column_names)}
    inner = table.rename_columns(list(names.values()))
    seen = {name: engine_column(inner.column(name)) for name in inner.column_names}
    renamed = [_renamed(rule, names) for rule in rules]
    seen |= _decimal_masks(renamed, inner) | _periods(renamed, inner)
    with connection() as engine:
        _check_patterns(engine, rules)
        frame = nw.from_native(engine.from_arrow(pa.table(seen | {_ROW: row_numbers(table.num_rows)})))
        plans = [_plan(rule, inner.schema, i) for i, rule in enumerate(renamed)]
        counts = _count(frame, plans)
        findings = [_finding(frame, plan, counts.get(i), inner, now) for i, plan in enumerate(plans)]
    back = {alias: name for name, alias in names.items()}
    return [_restored(f, rule, back) for f, rule in zip(findings, rules, strict=True)]


def _renamed(rule: CheckRule, names: Mapping[str, str]) -> CheckRule:
    if isinstance(rule, UniqueRule):
        return replace(rule, columns=[names[c] for c in rule.columns])
    if isinstance(rule, RowCountRule):
        return rule
    if isinstance(rule, LabelRateRule):
        period, by = (names[c] if c else None for c in (rule.period, rule.by))
        return replace(rule, column=names[rule.column], period=period, by=by)
    return replace(rule, column=names[rule.column])


def _restored(finding: Finding, rule: CheckRule, back: Mapping[str, str]) -> Finding:
    sample = [FailedRow(row=r.row, values={back[k]: v for k, v in r.values.items()}) for r in finding.sample]
    return replace(finding, rule=rule, sample=sample)


def validate(rules: Iterable[CheckRule], columns: Sequence[str]) -> None:
    """Whether the rules can be right for a table with these columns; raises :class:`InvalidInput` naming rule and column."""
    for number, rule in enumerate(rules):
        place = f"checks[{number}] ({rule.__struct_config__.tag})"
        for name in columns_of_rule(rule):
            if name not in columns:
                raise InvalidInput(
                    "no such column", value=name, place=place, next_step=near(name, columns, what="column")
                )
        _validate_values(rule, place)


def columns_of_rule(rule: CheckRule) -> list[str]:
    """The columns a rule reads."""
    if isinstance(rule, UniqueRule):
        return list(rule.columns)
    if isinstance(rule, LabelRateRule):
        return [c for c in (rule.column, rule.period, rule.by) if c is not None]
    return [] if isinstance(rule, RowCountRule) else [rule.column]


def _validate_values(rule: CheckRule, place: str) -> None:
    bounds: tuple[float | None, float | None] | None = None
    if isinstance(rule, RangeRule | RowCountRule):
        bounds = (rule.min, rule.max)
        if bounds == (None, None):
            raise InvalidInput(
                "a rule without a bound holds always", place=place, next_step="Give min, max or both."
            )
    elif isinstance(rule, LabelRateRule):
        bounds = (rule.low, rule.high)
    elif isinstance(rule, NotNullRule) and not 0 <= rule.max_null_share <= 1:
        raise InvalidInput("a share is between 0 and 1", value=rule.max_null_share, place=place)
    elif isinstance(rule, UniqueRule) and not rule.columns:
        raise InvalidInput("name at least one column", place=place)
    elif isinstance(rule, FreshnessRule):
        seconds(rule.max_age)
    elif isinstance(rule, SetRule) and not rule.allowed:
        raise InvalidInput("name at least one allowed value", place=place)
    if bounds and any(b is not None and math.isnan(b) for b in bounds):
        raise InvalidInput("a bound is a number", value="nan", place=place)
    if bounds and bounds[0] is not None and bounds[1] is not None and bounds[0] > bounds[1]:
        raise InvalidInput("the lower bound is above the upper one", value=list(bounds), place=place)


def _check_patterns(engine: duckdb.DuckDBPyConnection, rules: Iterable[CheckRule]) -> None:
    for number, rule in enumerate(rules):
        if isinstance(rule, RegexRule):
            try:
                engine.execute("SELECT regexp_matches('', ?)", [_whole(rule.pattern)]).fetchall()
            except duckdb.Error as error:
                raise InvalidInput(
                    f"the pattern does not compile: {str(error).splitlines()[0]}",
                    value=rule.pattern,
                    place=f"checks[{number}] (regex)",
                    next_step="Patterns are RE2: no look-around, no back-references.",
                ) from None


def _whole(pattern: str) -> str:
    return f"^(?:{pattern})$"


# --- from rules to expressions ---------------------------------------------------------------------------------------


def _plan(rule: CheckRule, schema: pa.Schema, number: int) -> _Plan:
    if isinstance(rule, RowCountRule | UniqueRule | FreshnessRule | LabelRateRule):
        return _Plan(rule, number=number)
    kind = schema.field(rule.column).type
    if isinstance(rule, RangeRule | SetRule) and pt.is_decimal(kind):
        return _Plan(rule, nw.col(f"m{number}"))
    plan: _Plan = _PLANNERS[type(rule)](rule, kind)
    return plan


def _plan_type(rule: TypeRule, kind: pa.DataType) -> _Plan:
    if _IS_TYPE[rule.type](kind):
        return _Plan(rule, verdict=True)
    reason = f"the column holds {kind}, not {rule.type}"
    if arrow_kind(kind) == "string" and rule.type in {"number", "int64", "float64"}:
        return _Plan(rule, ~nw.col(rule.column).str.contains(_SPELLS_NUMBER), reason, verdict=False)
    return _Plan(rule, reason=reason, verdict=False)


def _plan_not_null(rule: NotNullRule, kind: pa.DataType) -> _Plan:
    column = nw.col(rule.column)
    mask = column.is_null() | column.is_nan() if pt.is_floating(kind) else column.is_null()
    return _Plan(rule, mask)


def _plan_range(rule: RangeRule, kind: pa.DataType) -> _Plan:
    if pt.is_null(kind):
        return _Plan(rule, verdict=True)
    if not _is_number(kind):
        return _Plan(rule, reason=f"the column holds {kind}, which has no numeric range", verdict=False)
    column = nw.col(rule.column)
    if pt.is_integer(kind):
        return _Plan(rule, _outside_whole(column, rule, kind))
    parts = [column < rule.min] if rule.min is not None else []
    parts += [column > rule.max] if rule.max is not None else []
    parts += [column.is_nan()]
    return _Plan(rule, functools.reduce(operator.or_, parts))


def _outside_whole(column: Any, rule: RangeRule, kind: pa.DataType) -> Mask:
    """Whole numbers are compared with whole bounds: as floats, those beyond 2^53 would be rounded first."""
    signed = pt.is_signed_integer(kind)
    least, most = (
        (-(1 << (kind.bit_width - 1)), (1 << (kind.bit_width - 1)) - 1)
        if signed
        else (0, (1 << kind.bit_width) - 1)
    )
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


def _plan_set(rule: SetRule, kind: pa.DataType) -> _Plan:
    if pt.is_null(kind):
        return _Plan(rule, verdict=True)
    column = nw.col(rule.column)
    allowed = _allowed(rule, kind)
    if not allowed:
        return _Plan(rule, ~column.is_null(), f"no allowed value has the column's type, {kind}")
    return _Plan(rule, ~column.is_in(allowed))


def _allowed(rule: SetRule, kind: pa.DataType) -> list[Any]:
    """The allowed values that a value of this column can equal, as it holds them."""
    wanted = _comparable(kind)
    allowed: list[Any] = [v for v in rule.allowed if wanted is not None and type(v) in wanted]
    if pt.is_integer(kind):
        return [int(v) for v in allowed if not isinstance(v, float) or v.is_integer()]
    if pt.is_floating(kind):
        held = np.float32 if kind.bit_width < 64 else np.float64
        return [float(held(v)) for v in allowed if isinstance(v, float) or int(float(v)) == v]
    return allowed


def _decimal_masks(rules: Sequence[CheckRule], table: pa.Table) -> dict[str, pa.Array]:
    """Where decimals break a rule on numbers, told exactly: the engine would make floats of them."""
    masks = {}
    for number, rule in enumerate(rules):
        if not isinstance(rule, RangeRule | SetRule) or not pt.is_decimal(
            table.schema.field(rule.column).type
        ):
            continue
        if isinstance(rule, SetRule):
            allowed = {
                Decimal(repr(v))
                for v in rule.allowed
                if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
            }
            bad = [v is not None and v not in allowed for v in table.column(rule.column).to_pylist()]
        else:
            low, high = (Decimal("-Infinity") if rule.min is None else Decimal(repr(rule.min)), Decimal("Infinity") if rule.max is None else Decimal(repr(rule.max)))  # fmt: skip
            bad = [v is not None and not low <= v <= high for v in table.column(rule.column).to_pylist()]
        masks[f"m{number}"] = pa.array(bad, pa.bool_())
    return masks


def _plan_regex(rule: RegexRule, kind: pa.DataType) -> _Plan:
    if pt.is_null(kind):
        return _Plan(rule, verdict=True)
    if arrow_kind(kind) != "string":
        return _Plan(rule, reason=f"the column holds {kind}, not text", verdict=False)
    return _Plan(rule, ~nw.col(rule.column).str.contains(_whole(rule.pattern)))


_PLANNERS: dict[type, Any] = {
    TypeRule: _plan_type,
    NotNullRule: _plan_not_null,
    RangeRule: _plan_range,
    SetRule: _plan_set,
    RegexRule: _plan_regex,
}


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind))


_IS_TYPE: dict[str, Any] = {
    "number": _is_number,
    "int64": pt.is_integer,
    "float64": lambda t: pt.is_floating(t) or pt.is_decimal(t),
    "string": lambda t: arrow_kind(t) == "string",
    "bool": pt.is_boolean,
    "timestamp": pt.is_timestamp,
    "date": pt.is_date,
}


def _comparable(kind: pa.DataType) -> set[type] | None:
    """Python types of values that can equal a value of this column."""
    if _is_number(kind):
        return {int, float}
    by_kind: dict[str, set[type]] = {"string": {str}, "bool": {bool}}
    return by_kind.get(arrow_kind(kind))


# --- counting --------------------------------------------------------------------------------------------------------


def _count(frame: Any, plans: Sequence[_Plan]) -> dict[int, int]:
    """Failing rows of every rule that has a mask, in one select."""
    masked = [(i, plan.mask) for i, plan in enumerate(plans) if plan.mask is not None]
    if not masked:
        return {}
    # House rule: booleans are cast before a sum and sums are cast back (Spark refuses the one, DuckDB widens the other).
    sums = [_fails(mask).cast(nw.Int64).sum().cast(nw.Int64).alias(str(i)) for i, mask in masked]
    row = frame.select(*sums).collect("pyarrow").to_native().to_pylist()[0]
    return {i: int(row[str(i)] or 0) for i, _ in masked}


def _fails(mask: Mask) -> Mask:
    """The mask with null (an absent value compared) as false."""
    return nw.when(mask).then(nw.lit(1)).otherwise(nw.lit(0))


def _finding(frame: Any, plan: _Plan, failing: int | None, table: pa.Table, now: datetime) -> Finding:
    rule, rows = plan.rule, table.num_rows
    if isinstance(rule, RowCountRule):
        return _row_count(rule, rows)
    if isinstance(rule, UniqueRule):
        return _unique(frame, rule, table)
    if isinstance(rule, FreshnessRule):
        return freshness(rule, table, now)
    if isinstance(rule, LabelRateRule):
        return _label_rate(frame, rule, plan, table)
    if plan.verdict is not None:
        if plan.verdict:
            return Finding(rule=rule, passed=True, rows=rows)
        bad = failing or rows
        sample = _sample(frame, plan.mask if failing else None, rule, table)
        return Finding(rule=rule, passed=False, rows=rows, failing=bad, reason=plan.reason, sample=sample)
    count = failing or 0
    share = count / rows if rows else 0.0
    allowed = rule.max_null_share if isinstance(rule, NotNullRule) else 0.0
    passed = share <= allowed
    sample = [] if passed else _sample(frame, plan.mask, rule, table)
    reason = "" if passed else plan.reason or f"{count} of {rows} rows"
    return Finding(
        rule=rule, passed=passed, rows=rows, failing=count, value=share, reason=reason, sample=sample
    )


def _row_count(rule: RowCountRule, rows: int) -> Finding:
    passed = (rule.min is None or rows >= rule.min) and (rule.max is None or rows <= rule.max)
    reason = "" if passed else f"{rows} rows, wanted {_between(rule.min, rule.max)}"
    return Finding(
        rule=rule, passed=passed, rows=rows, failing=int(not passed), value=float(rows), reason=reason
    )


def _unique(frame: Any, rule: UniqueRule, table: pa.Table) -> Finding:
    groups = frame.group_by(*rule.columns).agg(nw.len().alias(_N)).filter(nw.col(_N) > 1)
    found = (
        groups.select(nw.col(_N).sum().cast(nw.Int64)).collect("pyarrow").to_native().column(0)[0].as_py()
        or 0
    )
    if not found:
        return Finding(rule=rule, passed=True, rows=table.num_rows)
    repeated = frame.with_columns(nw.len().over(*rule.columns).alias(_N))
    sample = _sample(repeated, nw.col(_N) > 1, rule, table)
    return Finding(
        rule=rule,
        passed=False,
        rows=table.num_rows,
        failing=int(found),
        reason=f"{found} rows share their key",
        sample=sample,
    )


def _label_rate(frame: Any, rule: LabelRateRule, plan: _Plan, table: pa.Table) -> Finding:
    kind, rows = table.schema.field(rule.column).type, table.num_rows
    positive, problem = _positive(rule, table)
    if problem:
        return Finding(rule=rule, passed=False, rows=rows, failing=rows, reason=problem)
    if rule.period and not (pt.is_timestamp(p := table.schema.field(rule.period).type) or pt.is_date(p)):
        return Finding(
            rule=rule,
            passed=False,
            rows=rows,
            failing=rows,
            reason=f"the period column holds {p}, not a time",
        )
    column = nw.col(rule.column)
    if pt.is_decimal(kind):
        frame = frame.with_columns(column.cast(nw.Float64()).alias(rule.column))
    known = frame.filter(~column.is_null() & ~column.is_nan() if pt.is_floating(kind) else ~column.is_null())
    keys = [k for k in (f"p{plan.number}" if rule.period else None, rule.by) if k is not None]
    if rule.period and keys[0] not in frame.columns:
        reason = "the period column holds times that its zone does not know"
        return Finding(rule=rule, passed=False, rows=rows, failing=rows, reason=reason)
    hit = _fails(column == positive).cast(nw.Int64).sum().cast(nw.Int64).alias("positives")
    size, first = nw.len().cast(nw.Int64).alias(_N), nw.col(_ROW).min().cast(nw.Int64).alias(_ROW)
    counted = known.group_by(*keys).agg(size, hit, first) if keys else known.select(size, hit, first)
    groups = counted.collect("pyarrow").to_native().to_pylist()
    return _judge_rates(rule, _labelled(rule, keys, groups, table), rows)


def _positive(rule: LabelRateRule, table: pa.Table) -> tuple[Any, str]:
    """The column's value that ``rule.positive`` names (records.classes), or why there is none."""
    kind = table.schema.field(rule.column).type
    own = pc.unique(table[rule.column]).drop_null().slice(0, _MAX_CLASSES).to_pylist()
    own = [v for v in own if not (isinstance(v, float) and math.isnan(v))]
    class_type: ClassType | None = _CLASS_TYPES.get(arrow_kind(kind))
    if class_type is None:
        return None, f"the column holds {kind}, which is never {rule.positive!r}"
    if class_type == "bool":
        own = [False, True]
    reader = LabelReader(Task.MULTICLASS, [str(v) for v in own], class_type)
    index = reader.read(rule.positive)
    if index is not None:
        named = own[int(index)]
        return (float(named) if isinstance(named, Decimal) else named), ""
    # It may just not occur: a rate of 0. A truth value is a number only where the column holds nothing but 0 and 1.
    if type(rule.positive) in (_comparable(kind) or set()):
        return rule.positive, ""
    if class_type != "string" and isinstance(rule.positive, bool) and set(own) <= {0, 1}:
        return int(rule.positive), ""
    return None, f"the column holds {kind} ({reader.named()}), which is never {rule.positive!r}"


def _periods(rules: Sequence[CheckRule], table: pa.Table) -> dict[str, pa.Array]:
    """The period of each row, for each rule that has periods."""
    found = {}
    for number, rule in enumerate(rules):
        if not isinstance(rule, LabelRateRule) or rule.period is None:
            continue
        kind = table.schema.field(rule.period).type
        if pt.is_timestamp(kind) or pt.is_date(kind):
            with contextlib.suppress(pa.ArrowException):
                found[f"p{number}"] = period_keys(table.column(rule.period), rule.per)
    return found


def _labelled(
    rule: LabelRateRule, keys: list[str], groups: list[dict[str, Any]], table: pa.Table
) -> list[dict[str, Any]]:
    """The groups under the names that are shown: a period by its start, a group by the value of its first row."""
    labelled = []
    values = None
    if rule.by:
        first = [g[_ROW] for g in groups]
        values = plain_values(table.column(rule.by).take(pa.array(first, pa.int64())))
    for number, group in enumerate(groups):
        shown: dict[str, Any] = {}
        if rule.period:
            shown["period"] = period_label(group[keys[0]], table.schema.field(rule.period).type, rule.per)
        if values is not None:
            shown["group"] = values[number]
        labelled.append({"shown": shown, _N: group[_N], "positives": group["positives"]})
    return labelled


def _judge_rates(rule: LabelRateRule, groups: list[dict[str, Any]], rows: int) -> Finding:
    judged = [g for g in groups if g[_N] >= max(1, rule.min_rows)]
    total = sum(g[_N] for g in groups)
    rate = sum(g["positives"] or 0 for g in groups) / total if total else None
    if not judged:
        reason = f"insufficient data: {total} labelled rows, no group of {rule.min_rows}"
        return Finding(rule=rule, passed=True, rows=rows, value=rate, reason=reason)
    bad = [
        g | {"rate": g["positives"] / g[_N]}
        for g in judged
        if not rule.low <= g["positives"] / g[_N] <= rule.high
    ]
    bad.sort(key=lambda g: [str(v) for v in g["shown"].values()])
    shown = [g["shown"] | {"rows": g[_N], "rate": g["rate"]} for g in bad[:_MAX_GROUPS]]
    reason = f"{len(bad)} of {len(judged)} groups outside {_between(rule.low, rule.high)}" if bad else ""
    return Finding(
        rule=rule,
        passed=not bad,
        rows=rows,
        failing=sum(g[_N] for g in bad),
        value=rate,
        reason=reason,
        groups=shown,
    )


# --- what a person sees ----------------------------------------------------------------------------------------------


def _sample(frame: Any, mask: Mask | None, rule: CheckRule, table: pa.Table) -> list[FailedRow]:
    """The first failing rows, the rule's own columns first."""
    first = columns_of_rule(rule)
    names = [*first, *(n for n in table.column_names if n not in first)][:_MAX_COLUMNS_SHOWN]
    bad = frame if mask is None else frame.filter(mask)
    found = bad.sort(_ROW).head(MAX_SAMPLE).select(_ROW).collect("pyarrow").to_native().column(0).to_pylist()
    rows = plain_rows(table.select(names).take(pa.array(found, pa.int64())))
    return [FailedRow(row=number, values=row) for number, row in zip(found, rows, strict=True)]


def _between(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {_shown(high)}"
    return f"at least {_shown(low)}" if high is None else f"{_shown(low)} to {_shown(high)}"


def _shown(bound: float | None) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)
