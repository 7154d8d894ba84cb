"""What there is to predict, and from what: the task, the kind of each column, and every assumption in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from mainspring.errors import InvalidInput, near
from mainspring.models.formats.columns import frame, instants
from mainspring.models.formats.dates import compute_parts
from mainspring.records.models import Signature, Task
from mainspring.training.dates import is_date, parse_times

MIN_ROWS = 40
MIN_PER_CLASS = 5
MAX_CLASSES = 20
MAX_CATEGORIES = 50
MAX_KEPT_CATEGORIES = 1000
_DATE_PARTS = ("days", "month", "weekday", "hour")
_IDENTIFIER = re.compile(r"(^|[_\s.-])(id|uuid|guid|key)$|[a-z](Id|ID)$", re.IGNORECASE)


@dataclass
class Problem:
    """Rows with a target, and the columns that may be used. ``left_out`` and ``assumed`` are for people."""

    table: pa.Table
    target: str
    task: Task
    numbers: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    dates: dict[str, list[str]] = field(default_factory=dict)
    """For each date or time the parts of it that are used (models.formats.dates)."""
    time: str | None = None
    group: str | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> list[str]:
        return [*self.numbers, *self.texts, *self.dates]

    def leave_out(self, column: str, reason: str) -> None:
        self.left_out[column] = reason
        for names in (self.numbers, self.texts):
            if column in names:
                names.remove(column)
        if self.dates.pop(column, None) is not None:
            self.assumed = [line for line in self.assumed if not line.startswith(f"{column!r} is a date;")]


def read_problem(
    table: pa.Table,
    *,
    target: str,
    time: str | None = None,
    group: str | None = None,
    task: str | None = None,
    keep: Sequence[str] = (),
) -> Problem:
    """Look at a table. Raises :class:`InvalidInput` for what cannot be predicted, naming the column."""
    for name in (target, *(n for n in (time, group) if n is not None), *keep):
        if name not in table.column_names:
            raise InvalidInput(
                "no such column", value=name, next_step=near(name, table.column_names, what="column")
            )
    if time is not None and group is not None:
        raise InvalidInput(
            "rows are held out by time or by group, not by both",
            value=f"time={time!r}, group={group!r}",
            next_step="Give the one by which new rows will differ from those of training.",
        )
    table = pa.table({name: _simplify_column(table[name]) for name in table.column_names})
    labelled = pc.is_valid(table[target])
    missing = table.num_rows - int(pc.sum(labelled).as_py() or 0)
    problem = Problem(table.filter(labelled), target, Task.REGRESSION, time=time, group=group)
    if missing:
        problem.assumed.append(f"{missing} rows without {target!r} are left out")
    if problem.table.num_rows < MIN_ROWS:
        raise InvalidInput(
            "too few rows with a target",
            value=problem.table.num_rows,
            next_step=f"At least {MIN_ROWS} are needed.",
        )
    _decide_task(problem, task)
    _order_by_time(problem)
    for name in problem.table.column_names:
        if name not in (target, group):
            _add_column(problem, name, kept=name in keep)
    if not problem.inputs:
        raise make_nothing_left_error(problem)
    return problem


def make_nothing_left_error(problem: Problem) -> InvalidInput:
    """The error for a table of which no column may be used."""
    return InvalidInput(
        "no column is left to predict from",
        value="; ".join(f"{n}: {r}" for n, r in problem.left_out.items()) or None,
        next_step="Name columns to use anyway: keep=[...].",
    )


def read_target(table: pa.Table, target: str, task: Task) -> Any:
    """The target as an estimator takes it: numbers, truth values or texts, in their own type."""
    values = table[target]
    if task is Task.REGRESSION:
        return values.to_numpy().astype(np.float64)
    if pt.is_string(values.type):
        return np.array(values.to_pylist(), dtype=object)
    return np.asarray(values.to_pylist())


def read_inputs(table: pa.Table, signature: Signature) -> pa.Table:
    """The inputs as estimators are fitted on them, read as serving reads a request."""
    return frame({c.name: table[c.name] for c in signature.inputs}, signature)


def _simplify_column(column: Any) -> Any:
    """One of few types for a value of many: int64, float64 (NaN is null), bool, string, times as they are."""
    kind = column.type
    if pt.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pt.is_large_string(kind) or pt.is_string_view(kind):
        return column.cast(pa.string())
    if pt.is_uint64(kind) or pt.is_floating(kind) or pt.is_decimal(kind):
        numbers = column.cast(pa.float64(), safe=False)
        return pc.if_else(pc.fill_null(pc.is_nan(numbers), False), None, numbers)
    return column.cast(pa.int64()) if pt.is_integer(kind) else column


def _decide_task(problem: Problem, wanted: str | None) -> None:
    values, name = problem.table[problem.target], problem.target
    if not (pt.is_boolean(values.type) or pt.is_string(values.type) or _is_number(values.type)):
        raise InvalidInput(
            f"a target is a number, a truth value or a text, not {values.type}",
            value=name,
            next_step="Make a column of it that says what is to be predicted.",
        )
    whole = _is_number(values.type) and _holds_everywhere(pc.equal(values, pc.floor(values)))
    distinct = int(pc.count_distinct(values).as_py())
    if distinct < 2:
        raise InvalidInput(
            "the target has one value only", value=values[0].as_py(), place=f"column {name!r}",
            next_step="Give rows of every outcome, or another target.",
        )  # fmt: skip
    if wanted is not None:
        task, why = _parse_task(wanted), "as given"
    elif distinct == 2:
        task, why = Task.BINARY, "two values"
    elif pt.is_string(values.type) or (whole and distinct <= MAX_CLASSES):
        task, why = Task.MULTICLASS, f"{distinct} {'texts' if pt.is_string(values.type) else 'whole numbers'}"
    else:
        task, why = Task.REGRESSION, f"{distinct} numbers"
    if task is not Task.REGRESSION:
        _check_classes(problem, task, distinct)
        if whole and pt.is_floating(values.type):  # what pandas makes of whole numbers with gaps
            _set_column(problem, name, values.cast(pa.int64()))
    elif not _is_number(values.type):
        raise InvalidInput(
            "a regression needs numbers", value=str(values.type), place=f"column {name!r}", next_step="Leave task out."
        )  # fmt: skip
    elif not _holds_everywhere(pc.is_finite(values)):
        raise InvalidInput("the target holds infinities", place=f"column {name!r}")
    problem.task = task
    problem.assumed.append(f"the task is {task.value} ({why} in {name!r})")


def _parse_task(wanted: str) -> Task:
    try:
        return Task(wanted)
    except ValueError:
        raise InvalidInput(
            "no such task", value=wanted, next_step=near(wanted, [t.value for t in Task], what="task")
        ) from None


def _check_classes(problem: Problem, task: Task, distinct: int) -> None:
    if (task is Task.BINARY and distinct != 2) or distinct > MAX_CATEGORIES:
        limit = "2" if task is Task.BINARY else f"at most {MAX_CATEGORIES}"
        raise InvalidInput(
            f"a {task.value} target has {limit} values", value=distinct, place=f"column {problem.target!r}"
        )
    for entry in pc.value_counts(problem.table[problem.target]).to_pylist():
        if entry["counts"] < MIN_PER_CLASS:
            raise InvalidInput(
                f"a class needs at least {MIN_PER_CLASS} rows, this one has {entry['counts']}",
                value=entry["values"],
                place=f"column {problem.target!r}",
                next_step="Leave these rows out, or give them the label of a like class.",
            )


def _order_by_time(problem: Problem) -> None:
    if problem.time is None:
        return
    column = problem.table[problem.time]
    if column.null_count:
        raise InvalidInput(
            f"{column.null_count} rows have no time",
            place=f"column {problem.time!r}",
            next_step="Leave these rows out: they may be newer than the hold-out.",
        )
    times = parse_times(column)
    if times is not None:
        _set_column(problem, problem.time, times)
    elif not _is_number(column.type):
        raise InvalidInput(
            "not a time, or times in several formats", value=_find_unlike(column), place=f"column {problem.time!r}",
            next_step="Give a column of dates, times or numbers that grow with time.",
        )  # fmt: skip
    order = np.argsort(read_times(problem.table[problem.time]), kind="stable")
    problem.table = problem.table.take(order)


def _find_unlike(column: Any) -> Any:
    """The first value with which the column is none of times: no time itself, or written as those before it are not."""
    low, high = 1, len(column)
    while low < high:
        middle = (low + high) // 2
        if parse_times(column.slice(0, middle)) is None:
            high = middle
        else:
            low = middle + 1
    return column[low - 1].as_py()


def read_times(column: Any) -> Any:
    """The time of each row as a number that grows."""
    return (column.cast(pa.int64()) if is_date(column.type) else column).to_numpy()


# --- columns ---------------------------------------------------------------------------------------------------------


def _add_column(problem: Problem, name: str, *, kept: bool) -> None:
    column = problem.table[name]
    if (reason := _explain_unusable(column)) is not None:
        problem.left_out[name] = reason
        return
    times = parse_times(column)
    if times is not None:
        _add_date(problem, name, times)
        return
    if name == problem.time:
        problem.left_out[name] = "it orders the rows: those to come lie beyond it"
        return
    reason = None if kept else _explain_identifier(name, column)
    if reason is None and pt.is_string(column.type):
        most = MAX_KEPT_CATEGORIES if kept else MAX_CATEGORIES
        distinct = int(pc.count_distinct(column).as_py())
        reason = f"text with {distinct} different values" if distinct > most else None
    if reason is not None:
        problem.left_out[name] = reason
    else:
        (problem.texts if pt.is_string(column.type) else problem.numbers).append(name)


def _explain_unusable(column: Any) -> str | None:
    kind = column.type
    if not (pt.is_boolean(kind) or pt.is_string(kind) or _is_number(kind) or is_date(kind)):
        return f"its type is {kind}"
    if column.null_count == len(column):
        return "empty"
    if int(pc.count_distinct(column).as_py()) == 1 and not column.null_count:
        return "the same value everywhere"
    if pt.is_floating(kind) and not _holds_everywhere(pc.fill_null(pc.is_finite(column), True)):
        return "it holds infinities"
    return None


def _explain_identifier(name: str, column: Any) -> str | None:
    """Why a column looks like one value per row that means nothing."""
    valid = len(column) - column.null_count
    distinct = int(pc.count_distinct(column).as_py())
    if pt.is_string(column.type) and distinct >= 0.95 * valid and distinct > MAX_CATEGORIES:
        return "an identifier: nearly every row has its own value"
    if pt.is_integer(column.type) and distinct == valid and not column.null_count:
        ends = pc.min_max(column).as_py()
        if ends["max"] - ends["min"] < 1.5 * valid:
            return "an identifier: it numbers the rows"
    if _IDENTIFIER.search(name) and not pt.is_floating(column.type) and distinct >= 0.5 * valid:
        return "an identifier by its name and its many values"
    return None


def _add_date(problem: Problem, name: str, times: Any) -> None:
    parts = compute_parts(instants(name, times, len(times)))
    # Rows to come lie beyond all days of training where the rows are held out by time.
    wanted = [p for p in _DATE_PARTS if not (p == "days" and name == problem.time)]
    varying = [p for p in wanted if len(np.unique(parts[p][~np.isnan(parts[p])])) > 1]
    if not varying:
        problem.left_out[name] = "a date that says nothing"
        return
    _set_column(problem, name, times)
    problem.dates[name] = varying
    problem.assumed.append(f"{name!r} is a date; used of it: {', '.join(varying)}")


def _set_column(problem: Problem, name: str, values: Any) -> None:
    position = problem.table.schema.get_field_index(name)
    problem.table = problem.table.set_column(position, name, values)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind))


def _holds_everywhere(mask: Any) -> bool:
    return bool(pc.all(mask).as_py())
