"""Check rules over a table, with the rows that broke them.

A rule that cannot be right (a column that does not exist, an empty range, a pattern that does not compile) is refused
before the data is looked at. Whatever the *data* holds is a finding, never an exception: a text column under a ``range``
rule fails that rule with a reason. ``data/rules`` defines the rules, ``data/engines`` computes: the counts of all rules come from one
select over one reading of the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from mainspring.data.engines import ArrowSource, Source, TableEngine, open_engine
from mainspring.data.rules import Plan, Scan, check_of, sum_of_counts, zero_or_one
from mainspring.data.rules.base import FAILING, Check
from mainspring.errors import InvalidInput, near
from mainspring.records.data import CheckRule, Finding


def run_checks(
    table: pa.Table | Source, rules: Sequence[CheckRule], *, now: datetime, engine: TableEngine | None = None
) -> list[Finding]:
    """Findings in the order of ``rules``. ``now`` is policy time, for freshness; ``engine`` a fresh default one unless given.

    Raises :class:`InvalidInput` for a rule that does not fit the table's columns; never for what the data holds.
    """
    source = ArrowSource(table) if isinstance(table, pa.Table) else table
    validate(rules, source.schema.names)
    if not rules:
        return []
    if engine is not None:
        return _findings(Scan(source, engine, now=now), rules)
    with open_engine() as default:
        return _findings(Scan(source, default, now=now), rules)


def validate(rules: Iterable[CheckRule], columns: Sequence[str]) -> None:
    """Check that the rules fit a table with these columns; raises :class:`InvalidInput` naming rule and column."""
    for number, rule in enumerate(rules):
        check = check_of(rule, number)
        place = f"checks[{number}] ({rule.__struct_config__.tag})"
        for name in check.columns():
            if name not in columns:
                raise InvalidInput(
                    "no such column", value=name, place=place, next_step=near(name, columns, what="column")
                )
        check.validate(place)


def columns_of_rule(rule: CheckRule) -> list[str]:
    """The columns a rule reads."""
    return check_of(rule).columns()


def _findings(table: Scan, rules: Sequence[CheckRule]) -> list[Finding]:
    checks = [check_of(rule, number) for number, rule in enumerate(rules)]
    plans = [check.plan(table) for check in checks]
    counts = _count(table, checks, plans)
    return [c.judge(table, plan, n) for c, plan, n in zip(checks, plans, counts, strict=True)]


def _count(table: Scan, checks: Sequence[Check[Any]], plans: Sequence[Plan]) -> list[dict[str, int]]:
    """What each plan counts, computed by one select for all of them: the table is read once, however many rules there are."""
    wanted = [
        ({FAILING: sum_of_counts(zero_or_one(p.mask))} if p.mask is not None else {}) | dict(p.counts)
        for p in plans
    ]
    counting = [
        (check, plan) for check, plan, aggregates in zip(checks, plans, wanted, strict=True) if aggregates
    ]
    if not counting:
        return [{} for _ in plans]
    frame = table.frame(
        [name for check, _ in counting for name in check.columns()],
        {name: derived for _, plan in counting for name, derived in plan.derived.items()},
    )
    named = {
        check.name(key): e
        for check, aggregates in zip(checks, wanted, strict=True)
        for key, e in aggregates.items()
    }
    row = table.scalars(frame, named)
    # The sum over no rows is null.
    return [
        {key: (row[check.name(key)] or 0) if key == FAILING else row[check.name(key)] for key in aggregates}
        for check, aggregates in zip(checks, wanted, strict=True)
    ]
