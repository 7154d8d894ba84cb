"""What every table engine must do: read batches for every query anew, and answer as every other engine.

Subclass in a test module and give the fixture; pytest collects the rest::

    class TestMine(TableEngineContract):
        @pytest.fixture
        def engine(self) -> Iterator[TableEngine]: ...
"""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from mainspring.errors import Corrupt
from mainspring.records.base import to_json
from mainspring.records.data import (
    CheckRule,
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

NOW = dt.datetime(2013, 1, 10, tzinfo=dt.UTC)
_DAY = 86_400
_BASE = 1_357_700_000
"""A moment of 9 January 2013, in seconds."""
Values = Callable[[random.Random], Any]


def _choose_from(*values: Any) -> Values:
    return lambda r: r.choice(values)


def _times(per_second: int) -> Values:
    return lambda r: (
        r.choice([_BASE, _BASE + 1, _BASE + _DAY, _BASE - 40 * _DAY, -1, 2**31]) * per_second
        + r.choice([0, 0, 1]) * (per_second > 1)
    )


KINDS: dict[str, tuple[pa.DataType, Values]] = {
    "bool": (pa.bool_(), lambda r: r.random() < 0.5),
    **{
        f"int{bits}": (getattr(pa, f"int{bits}")(), _choose_from(0, 1, 2, 5, -1, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
        for bits in (8, 16, 32, 64)
    },
    **{
        f"uint{bits}": (getattr(pa, f"uint{bits}")(), _choose_from(0, 1, 2, 5, 2**bits - 1, 2**bits - 2))
        for bits in (8, 16, 32, 64)
    },
    "float32": (pa.float32(), lambda r: r.choice([0.0, -0.0, 0.1, 1.0, 2.5, float("nan"), float("inf"), -float("inf"), 1e-40])),
    "float64": (pa.float64(), lambda r: r.choice([0.0, -0.0, 0.1, 1.0, float(2**53), 1e300, float("nan"), float("inf"), 5e-324])),
    "decimal128": (pa.decimal128(20, 2), lambda r: Decimal(r.choice(["0.10", "1.00", "0.00", "-2.50", "100000000000000000.01"]))),
    "decimal256": (pa.decimal256(60, 2), lambda r: Decimal(r.choice(["0.10", "1.00", str(10**45)]))),
    "string": (pa.string(), lambda r: r.choice(["a", "A", "", "1", "01", " 2e3", "aa\n", "é", "e\u0301", "日本", "true", "a\0b", "x" * 300])),
    "large_string": (pa.large_string(), lambda r: r.choice(["a", "b", "1"])),
    "words": (pa.dictionary(pa.int32(), pa.string()), lambda r: r.choice(["k", "k2", "1"])),
    "binary": (pa.binary(), lambda r: r.choice([b"", b"\0", b"\xff", b"a"])),
    "date32": (pa.date32(), lambda r: r.choice([-1, 0, 15_714, 15_715, 16_000, 40_000])),
    "time32": (pa.time32("ms"), lambda r: r.choice([0, 1, _DAY * 1000 - 1])),
    "time64": (pa.time64("ns"), lambda r: r.choice([0, 1, _DAY * 10**9 - 1])),
    "timestamp_s": (pa.timestamp("s"), _times(1)),
    "timestamp_ms": (pa.timestamp("ms", "UTC"), _times(10**3)),
    "timestamp_us": (pa.timestamp("us", "Europe/Berlin"), _times(10**6)),
    "timestamp_ns": (pa.timestamp("ns", "Asia/Kathmandu"), _times(10**9)),
    "far": (pa.timestamp("us"), lambda r: r.choice([2**62, -(2**62), 0])),
    "duration": (pa.duration("ns"), lambda r: r.choice([0, 1, -(10**12)])),
    "null": (pa.null(), lambda _r: None),
}  # fmt: skip


def generated_table(seed: int) -> pa.Table:
    """A table with a column of each type, its edges and nulls among the values, in pieces of a few rows."""
    r = random.Random(seed)
    rows = r.choice([0, 1, 2, 7, 30])
    columns = {}
    for name, (kind, value) in KINDS.items():
        values = [None if r.random() < 0.2 else value(r) for _ in range(rows)]
        plain = (
            pa.int64()
            if pa.types.is_temporal(kind) and kind.bit_width == 64
            else pa.int32()
            if pa.types.is_temporal(kind)
            else kind
        )
        columns[name] = (
            pa.array(values, plain).cast(kind)
            if not pa.types.is_dictionary(kind)
            else pa.array(values, pa.string()).dictionary_encode()
        )
    table = pa.table(columns)
    return pa.concat_tables([table.slice(start, 7) for start in range(0, rows, 7)]) if rows else table


def generated_rules(seed: int) -> list[CheckRule]:
    """Rules of every kind over the columns of :func:`generated_table`."""
    r = random.Random(seed)
    numbers: list[Any] = [
        0,
        1,
        0.1,
        2.5,
        -1,
        127,
        2**53,
        2**53 + 1,
        2**63,
        2**64 - 2,
        1e300,
        -1e300,
        float("inf"),
    ]
    labels: list[Any] = [True, 1, "a"]
    values: list[Any] = [*numbers, "a", "1", "k", "aa\n", True, False]
    rules: list[CheckRule] = [RowCountRule(min=2, max=20), UniqueRule(columns=r.sample(sorted(KINDS), 3))]
    for name in KINDS:
        low, high = sorted(r.sample(numbers, 2))
        other = r.choice(sorted(KINDS))
        rules += [
            TypeRule(column=name, type=r.choice(["number", "int64", "float64", "string", "bool", "timestamp", "date"])),
            NotNullRule(column=name, max_null_share=r.choice([0.0, 0.2, 0.5])),
            RangeRule(column=name, min=r.choice([None, low]), max=high),
            SetRule(column=name, allowed=r.sample(values, r.randint(1, 6))),
            RegexRule(column=name, pattern=r.choice(["a", "[A-Za]+", r"\w*", r"\d+", "(?i)A.*", ".", r"\pL+"])),
            UniqueRule(columns=[name]),
            FreshnessRule(column=name, max_age=r.choice(["1d", "60d"]), tolerance=r.choice([None, "1m"])),
            LabelRateRule(column=name, low=0.3, high=0.5, positive=r.choice(values), min_rows=1),
            LabelRateRule(column=r.choice(["bool", "int8", "string"]), low=0.3, high=0.5, positive=r.choice(labels), by=name, min_rows=1),
            LabelRateRule(column="bool", low=0.3, high=0.5, period=name, per=r.choice(["hour", "day", "month"]), by=r.choice([None, other]), min_rows=1),
        ]  # fmt: skip
    return rules


def find_problems(engine: Any, seed: int) -> list[bytes]:
    """The findings of an engine about a generated table, as they would be stored."""
    from mainspring.data.checks import run_checks

    return [
        to_json(f) for f in run_checks(generated_table(seed), generated_rules(seed), now=NOW, engine=engine)
    ]


class TableEngineContract:
    """Needs a fixture ``engine``: an open engine for each test."""

    def test_a_frame_can_be_asked_twice(self, engine: Any) -> None:
        """Seen red: an engine that reads its batches once answers the second query with 0 rows and no error."""
        import narwhals as nw

        frame = engine.frame(_stream({"c0": [1, 2, None]}))
        for _ in range(2):
            result = engine.collect(
                frame.select(nw.col("c0").sum().cast(nw.Int64), nw.len().cast(nw.Int64).alias("n"))
            )
            assert result.to_pylist() == [{"c0": 3, "n": 3}]

    def test_an_error_of_the_batches_is_raised_as_it_was(self, engine: Any) -> None:
        import narwhals as nw

        from mainspring.data.engines import Stream

        whole = _stream({"c0": list(range(10))})

        def broken() -> Iterator[pa.RecordBatch]:
            yield from whole
            raise Corrupt("bytes differ")

        stream = Stream(whole.schema, broken)
        with pytest.raises(Corrupt, match="bytes differ"):
            engine.collect(engine.frame(stream).select(nw.col("c0").sum()))
        with pytest.raises(Corrupt, match="bytes differ"):
            engine.compare_bags(stream, whole, columns=["c0"], limit=10)
        with pytest.raises(Corrupt, match="bytes differ"):
            engine.compare_by_key(stream, whole, key=["c0"], rest=[], limit=10)

    @pytest.mark.parametrize("seed", range(3))
    def test_findings_are_the_same_to_the_byte(self, engine: Any, seed: int) -> None:
        from mainspring.data.engines import open_engine

        with open_engine() as default:
            wanted = find_problems(default, seed)
        assert find_problems(engine, seed) == wanted

    @pytest.mark.parametrize("seed", range(4))
    def test_rows_by_key_are_those_of_python(self, engine: Any, seed: int) -> None:
        r = random.Random(seed)
        before, after = (
            {k: r.choice([None, 0.0, 1.5, float("nan")]) for k in r.sample([None, *range(30)], 20)}
            for _ in range(2)
        )
        difference = engine.compare_by_key(_keyed(before), _keyed(after), key=["c0"], rest=["c1"], limit=5)
        added, removed = (
            [n for n, k in enumerate(a) if k not in b] for a, b in ((after, before), (before, after))
        )
        differ = [
            (n, list(after).index(k))
            for n, k in enumerate(before)
            if k in after and repr(before[k]) != repr(after[k])
        ]
        assert (difference.added.count, difference.added.first, difference.removed.count, difference.removed.first) == (len(added), added[:5], len(removed), removed[:5])  # fmt: skip
        assert (difference.matched, difference.changed) == (len(before.keys() & after.keys()), len(differ))
        assert list(difference.changes) == differ[:5]

    @pytest.mark.parametrize("seed", range(4))
    def test_bags_are_those_of_python(self, engine: Any, seed: int) -> None:
        r = random.Random(seed)
        before, after = (
            [(r.choice([None, 1, 2]), r.choice([None, "a", "b"])) for _ in range(25)] for _ in range(2)
        )
        added, removed = engine.compare_bags(_rows(before), _rows(after), columns=["c0", "c1"], limit=5)
        for rows, mine, other in ((added, after, before), (removed, before, after)):
            left, only = Counter(other), []
            for number, row in enumerate(mine):
                if left[row]:
                    left[row] -= 1
                else:
                    only.append(number)
            assert (rows.count, rows.first) == (len(only), only[:5])

    @pytest.mark.parametrize("name", sorted(KINDS))
    def test_a_table_does_not_differ_from_itself(self, engine: Any, name: str) -> None:
        """In every type: as values, and as a key where no value repeats."""
        from mainspring.data.difference import row_difference

        table = pa.concat_tables([generated_table(s) for s in range(8)]).select([name])
        once = pa.table({name: table.column(name).unique()})
        bag = row_difference(table, table.slice(0), [], engine=engine)
        assert (bag.added, bag.removed, bag.unchanged) == (0, 0, table.num_rows)
        if name not in {"float32", "float64"}:  # Arrow tells the two zeros apart
            keyed = row_difference(once, once.slice(0), [name], engine=engine)
            assert (keyed.added, keyed.removed, keyed.unchanged) == (0, 0, once.num_rows)


def _stream(columns: dict[str, Any]) -> Any:
    from mainspring.data.engines import ROW, Stream

    rows = max(len(v) for v in columns.values())
    table = pa.table(columns | {ROW: pa.array(range(rows), pa.int64())})
    return Stream(table.schema, lambda: iter(table.to_batches(max_chunksize=4)))


def _keyed(rows: dict[int | None, float | None]) -> Any:
    return _stream(
        {"c0": pa.array(list(rows), pa.int64()), "c1": pa.array(list(rows.values()), pa.float64())}
    )


def _rows(rows: list[tuple[int | None, str | None]]) -> Any:
    return _stream(
        {"c0": pa.array([r[0] for r in rows], pa.int64()), "c1": pa.array([r[1] for r in rows], pa.string())}
    )
