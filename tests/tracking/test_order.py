"""The order of runs by several keys, against a model in plain Python, on both engines."""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mainspring.errors import InvalidInput
from mainspring.records.base import from_json, to_json
from mainspring.records.tracking import Point, Run
from mainspring.tracking import Tracking, operations, order, search
from mainspring.tracking.order import parse_order

_NUMBERS = [
    0.0,
    -0.0,
    1.0,
    10.0,
    9.0,
    -1.5,
    5e-324,
    1.7976931348623157e308,
    math.inf,
    -math.inf,
    math.nan,
    None,
]
_TEXTS = ["9", "10", "2", "", "a", "A", "é", "z", "x" * 200 + "1", "x" * 200 + "2", "it's", None]


@pytest.fixture
def runs(both: Tracking) -> list[Run]:
    """Runs in the order of their making, with many values alike."""
    made = []
    for i in range(36):
        texts = {"p": _TEXTS[i % 12], "q": _TEXTS[i * 5 % 12]}
        run = both.create_run(
            experiment=("b", "a", "c")[i % 3],
            name="n" * 200 + str(i % 2) if i % 4 == 0 else f"run {i % 5}",
            params={k: v for k, v in texts.items() if v is not None},
            tags={"t, u": "same"} if i % 2 else {},
            started_us=1_000_000 * (i // 6),
            parent=f"parent {i % 2}" if i % 3 else None,
        )
        numbers = {"m": _NUMBERS[i % 12], "n": _NUMBERS[i * 7 % 12], "same": 1.0}
        points = [Point.of(k, v) for k, v in numbers.items() if v is not None]
        both.log_batch(run=run.id, batch_id="1", metrics=points)
        if i % 2:
            both.finish_run(
                run=run.id, status="failed" if i % 3 else "finished", ended_us=5_000_000 * (i % 4)
            )
        made.append(run.id)
    # A run's number is the order of its making, not that of its id.
    return [both.get_run(run=ident) for ident in made]


_FIELDS = [
    "metrics.m", "metrics.n", "metrics.same", "metrics.none", "params.p", "params.q", "params.none", "tags.`t, u`", "started", "ended",
    "status", "name", "experiment", "experiment_id", "parent", "id", "created_by",
]  # fmt: skip
_keys = st.tuples(st.sampled_from(_FIELDS), st.sampled_from(["", "-", " ASC", " DESC"]))


def _term(field: str, way: str) -> str:
    return f"-{field}" if way == "-" else f"{field}{way}"


def _value(run: Run, field: str) -> Any:
    kind, _, name = field.partition(".")
    if kind == "metrics":
        number = run.metrics[name].number if name in run.metrics else math.nan
        return None if math.isnan(number) else number
    if kind in {"params", "tags"}:
        text = (run.params if kind == "params" else run.tags).get(name.strip("`"))
        return None if text is None else text[:200]
    found = {
        "started": run.started_at, "ended": run.ended_at, "status": str(run.status), "name": run.name[:200], "experiment": run.experiment,
        "experiment_id": run.experiment_id, "parent": run.parent, "id": run.id, "created_by": run.created_by,
    }  # fmt: skip
    return found[field]


def sorted_by_model(runs: list[Run], keys: list[tuple[str, str]]) -> list[str]:
    """Numbers by size, texts by code points, nothing last, then the order of making in the direction of the last key."""

    def compare(a: tuple[int, Run], b: tuple[int, Run]) -> int:
        for field, way in keys:
            one, other = _value(a[1], field), _value(b[1], field)
            if one == other:
                continue
            if one is None or other is None:
                return 1 if one is None else -1
            return (1 if one > other else -1) * (-1 if way in {"-", " DESC"} else 1)
        return (a[0] - b[0]) * (-1 if keys[-1][1] in {"-", " DESC"} else 1)

    return [run.id for _, run in sorted(enumerate(runs), key=functools.cmp_to_key(compare))]


def paged(both: Tracking, limit: int, **query: Any) -> list[str]:
    seen: list[str] = []
    after = None
    while True:
        page = both.search_runs(after=after, limit=limit, **query)
        seen += [run.id for run in page.items]
        after = page.next
        if after is None:
            return seen
        assert len(page.items) == limit


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    keys=st.lists(_keys, min_size=1, max_size=4, unique_by=lambda k: k[0]),
    limit=st.sampled_from([1, 4, 7]),
    few=st.sampled_from([-1, 500]),
    filtered=st.booleans(),
)
@example(keys=[("metrics.m", ""), ("params.p", "-"), ("started", "-")], limit=1, few=-1, filtered=False)
@example(keys=[("metrics.m", " DESC"), ("metrics.n", "")], limit=4, few=-1, filtered=False)
@example(keys=[("metrics.same", ""), ("tags.`t, u`", "-"), ("params.q", "")], limit=1, few=500, filtered=True)
@example(keys=[("ended", "-"), ("metrics.none", ""), ("name", "")], limit=7, few=-1, filtered=False)
@example(keys=[("params.p", "")], limit=1, few=-1, filtered=False)
@example(keys=[("status", "-"), ("parent", ""), ("metrics.m", "-")], limit=1, few=500, filtered=True)
def test_any_order_is_that_of_the_model_on_any_pages(
    both: Tracking, runs: list[Run], keys: list[tuple[str, str]], limit: int, few: int, filtered: bool
) -> None:
    """Seen red with NULLS LAST left out of the ordering, with runs without a value left out of what comes after a page, with infinities
    in page marks as JSON writes them (null), and with the last key's direction not that of the ties."""
    query: dict[str, Any] = {"order_by": [_term(*k) for k in keys]}
    chosen = runs
    if filtered:
        query["filter"] = "params.p IN ('9', 'a', 'z') or metrics.m > 0"
        chosen = [
            r for r in runs if r.params.get("p") in {"9", "a", "z"} or (_value(r, "metrics.m") or 0.0) > 0
        ]
    expected = sorted_by_model(chosen, keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "FEW", few)
        patch.setattr(operations, "FEW", few)
        assert [r.id for r in both.search_runs(**query, limit=1000).items] == expected
        assert paged(both, limit, **query) == expected


def test_one_text_with_commas_is_as_several_keys(both: Tracking, runs: list[Run]) -> None:
    one = paged(both, 5, order_by=["metrics.same, -tags.`t, u`,started DESC"])
    assert one == paged(both, 5, order_by=["metrics.same", "tags.`t, u` DESC", "-started"])
    assert one == sorted_by_model(runs, [("metrics.same", ""), ("tags.`t, u`", "-"), ("started", "-")])


def test_pages_stay_when_runs_and_keys_come_and_change(both: Tracking, runs: list[Run]) -> None:
    """What was there and does not change is shown once. Also when the name of a key comes into being between two pages."""
    query: dict[str, Any] = {"order_by": ["metrics.same", "metrics.late", "-params.p"]}
    first = both.search_runs(**query, limit=9)
    for i in range(5):
        extra = both.create_run(params={"p": str(i)})
        both.log_batch(
            run=extra.id, batch_id="1", metrics=[Point.of("same", float(i)), Point.of("late", 1.0)]
        )
    seen = [r.id for r in first.items]
    after = first.next
    while after is not None:
        page = both.search_runs(**query, after=after, limit=9)
        seen += [r.id for r in page.items]
        after = page.next
    ours = {r.id for r in runs}
    assert len(set(seen)) == len(seen)
    assert [i for i in seen if i in ours] == sorted_by_model(runs, [("metrics.same", ""), ("params.p", "-")])


def test_an_order_is_refused_with_the_mark_of_another(both: Tracking, runs: list[Run]) -> None:
    """Seen red with the signature left unchecked."""
    orders = [
        ["metrics.m"],
        ["-metrics.m"],
        ["metrics.m", "started"],
        ["started", "metrics.m"],
        ["params.m"],
        [],
    ]
    marks = {i: both.search_runs(order_by=o, limit=2).next for i, o in enumerate(orders) if o != ["params.m"]}
    for (i, mark), (j, other) in itertools.product(marks.items(), enumerate(orders)):
        if i != j:
            with pytest.raises(InvalidInput, match="another order"):
                both.search_runs(order_by=other, after=mark, limit=2)


_ORDER = ["metrics.m", "params.p", "-started"]


def mark(values: list[Any], number: Any = 1, signature: str | None = None) -> str:
    signature = parse_order(_ORDER).signature if signature is None else signature
    return base64.urlsafe_b64encode(to_json([signature, values, number])).decode()


@pytest.mark.parametrize(
    "bad",
    [
        "", "x", "W10=", "é", "A" * 20_000, mark([]), mark([1.0, "a"]), mark([1.0, "a", 5, 5]), mark(["a", "a", 5]), mark([1.0, 1.0, 5]),
        mark([1.0, "a", None]), mark([1.0, "a", 2**63]), mark([1.0, "a", 5], "1"), mark([1.0, "a", 5], True), mark([1.0, "a\x00", 5]),
        mark([1, "a", 5]), mark([[], {}, 5]), mark([1.0, "a", 5], 2**63), base64.urlsafe_b64encode(b"[" * 5000).decode(),
    ],
)  # fmt: skip
def test_a_page_mark_is_checked_before_the_database_sees_it(both: Tracking, bad: str) -> None:
    """Seen red with the values' types left unchecked."""
    with pytest.raises(InvalidInput, match="not a page mark"):
        both.search_runs(order_by=_ORDER, after=bad)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    values=st.lists(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)), max_size=4
    )
)
@example(values=[None, None, 5])
@example(values=["Infinity", "a", 5])
def test_any_page_mark_is_answered_or_refused(both: Tracking, values: list[Any]) -> None:
    with contextlib.suppress(InvalidInput):
        both.search_runs(order_by=_ORDER, after=mark(values))


def test_a_page_mark_is_short_whatever_is_sorted_by(both: Tracking) -> None:
    """Seen red with names in page marks as long as they are."""
    keys = [f"params.p{i}" for i in range(6)]
    for _ in range(2):
        both.create_run(name="\x01" * 100_000, params={k.partition(".")[2]: "\x01" * 5000 for k in keys})
    query: dict[str, Any] = {"order_by": [*keys, "name", "-started"], "limit": 1}
    after = both.search_runs(**query).next
    assert after is not None
    assert len(after) <= order.MAX_MARK
    assert len(both.search_runs(**query, after=after).items) == 1
    assert from_json(base64.urlsafe_b64decode(after), list[Any])[1][-2] == "\x01" * 200


def test_params_sort_as_texts_and_metrics_as_numbers(both: Tracking) -> None:
    for depth in ("10", "9", "2"):
        run = both.create_run(params={"depth": depth}).id
        both.log_batch(run=run, batch_id="1", metrics=[Point.of("depth", float(depth))])
    assert [r.params["depth"] for r in both.search_runs(order_by=["params.depth"]).items] == ["10", "2", "9"]
    assert [r.params["depth"] for r in both.search_runs(order_by=["-metrics.depth"]).items] == [
        "10",
        "9",
        "2",
    ]
