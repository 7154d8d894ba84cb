"""When nothing changes, drift and quality alarm as rarely as configured, for any number of categories; changes are found.

bench/drift_false_alarms.py does the same at large; its table is in docs/rooms/monitoring.md.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from mainspring.data.profile import ProfileBuilder, merge
from mainspring.monitoring import statistics as s
from mainspring.monitoring.bins import Reference
from mainspring.monitoring.drift import drift_report
from mainspring.monitoring.quality import issues
from mainspring.records.monitoring import ColumnDrift, MonitorPolicy, Verdict
from mainspring.records.profile import ColumnProfile, Profile

POLICY = MonitorPolicy()
SIZES = [(200, 100), (500, 1_000), (20_000, 500)]


def shares(kind: str, categories: int) -> np.ndarray:
    weights = np.ones(categories) if kind == "uniform" else 1.0 / np.arange(1, categories + 1)
    return weights / weights.sum()


def drawn(rng: np.random.Generator, p: np.ndarray, n: int, *, prefix: str = "k", parts: int = 1) -> Profile:
    """A profile of ``n`` categories, merged from parts as ingestion does."""
    whole: Profile | None = None
    for codes in np.array_split(rng.choice(len(p), n, p=p), parts):
        built = ProfileBuilder().add({"x": [f"{prefix}{i}" for i in codes]}).build()
        whole = built if whole is None else merge(whole, built)
    assert whole is not None
    return whole


def compared(reference: Profile, window: Profile) -> tuple[ColumnDrift, set[str]]:
    binned = Reference(reference, name="r", bins=10)
    report = drift_report(binned, [binned.count([window])], rows=window.rows, policy=POLICY)
    found = {i.code for i in issues(window, binned, POLICY) if i.severity == "warning"}
    return report.columns[0], found


def at_most(n: int, rate: float) -> float:
    """A bound that a binomial count exceeds with a chance of about 1e-5."""
    return n * rate + 4.3 * math.sqrt(n * rate * (1 - rate)) + 2


@pytest.mark.parametrize("kind", ["uniform", "zipf"])
def test_no_change_in_many_categories_alarms_no_more_than_configured(kind: str) -> None:
    """Seen red on 0.1: p < 0.05 in 74 and 81 of 112 tests, `unseen` in 47 and 48 of them."""
    rng = np.random.default_rng(7)
    tested = small = drifted = warned = 0
    for categories in (2, 200, 5_000, 100_000):
        p = shares(kind, categories)
        for m, n in SIZES:
            for _ in range(4 if max(m, n) > 5_000 else 12):
                parts = 4 if n >= 1_000 else 1
                column, warnings = compared(drawn(rng, p, m), drawn(rng, p, n, parts=parts))
                tested += column.p_value is not None
                small += column.p_value is not None and column.p_value < 0.05
                drifted += column.verdict is Verdict.DRIFT
                warned += bool(warnings)
    assert tested > 90
    assert small <= at_most(tested, 0.05)
    assert drifted <= at_most(tested, 0.01)
    assert warned <= at_most(tested, 0.002)


@pytest.mark.parametrize("kind", ["normal", "few", "zeros"])
def test_no_change_in_numbers_alarms_no_more_than_configured(kind: str) -> None:
    """The sketch's own error counts too. Seen red on 0.1 with the zeros: p < 0.05 in 21 of 100, 16 of them of 20 with 100,000 rows."""
    rng = np.random.default_rng(8)

    def numbers(n: int) -> Profile:
        x = rng.normal(size=n)
        x = {"normal": x, "few": np.round(np.clip(x, -2, 2)) * 0.1, "zeros": np.where(x < 0.5, 0.0, x)}[kind]
        return ProfileBuilder().add({"x": x}).build()

    tested = small = drifted = 0
    for m, n, times in ((200, 100, 40), (500, 1_000, 40), (100_000, 100_000, 20)):
        for _ in range(times):
            column, warnings = compared(numbers(m), numbers(n))
            assert not warnings
            tested += column.p_value is not None
            small += column.p_value is not None and column.p_value < 0.05
            drifted += column.verdict is Verdict.DRIFT
    assert tested == 100
    assert small <= at_most(tested, 0.05)
    assert drifted <= 2


CHANGES = {
    "all new": lambda p: p,
    "one more frequent": lambda p: (p + np.eye(1, len(p))[0] / 2) / 1.5,
    "half gone": lambda p: np.where(np.arange(len(p)) < len(p) // 2, p, 0) / p[: len(p) // 2].sum(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("categories", [10, 200, 1_000])
def test_a_change_is_found_among_many_categories(categories: int, change: str) -> None:
    """Seen red with the test and the effect by single category left out ("half gone" of 1,000 was ok)."""
    rng = np.random.default_rng(9)
    p = shares("uniform", categories)
    window = drawn(rng, CHANGES[change](p), 1_000, prefix="new" if change == "all new" else "k")
    column, warnings = compared(drawn(rng, p, 20_000), window)
    assert column.verdict is Verdict.DRIFT
    assert ("unseen" in warnings) == (change == "all new")


def test_new_categories_are_found_where_neither_side_keeps_all_of_them() -> None:
    """Seen red on 0.1, which did not look at "unseen" where the reference has more than 256 categories."""
    rng = np.random.default_rng(10)
    p = shares("zipf", 20_000)
    mixed = drawn(rng, p, 3_000)
    new = drawn(rng, p, 1_500, prefix="new")
    reference = drawn(rng, p, 20_000)
    assert "unseen" in compared(reference, merge(mixed, new))[1]
    assert "unseen" not in compared(reference, mixed)[1]


def test_an_older_reference_that_dropped_categories_is_compared_by_its_frequent_ones() -> None:
    rng = np.random.default_rng(11)
    p = shares("zipf", 5_000)
    new = drawn(rng, p, 20_000)
    column = new.columns[0]
    old = ColumnProfile(name="x", type="string", rows=20_000, counts=column.counts, other=column.other)
    reference = Profile(rows=20_000, columns=[old])
    assert compared(reference, drawn(rng, p, 2_000))[0].verdict is Verdict.OK
    assert compared(reference, drawn(rng, p, 2_000, prefix="new"))[0].verdict is Verdict.DRIFT


def test_the_sparse_test_keeps_its_level_and_its_effect_has_no_bias() -> None:
    """Seen red with the variance of a table with large counts, 2 (cells - 1), in place of the exact one."""
    rng = np.random.default_rng(12)
    for n, m in ((400, 400), (300, 3_000)):
        p = np.full(1_000, 0.001)
        tables = [
            (rng.multinomial(n, p).astype(float), rng.multinomial(m, p).astype(float)) for _ in range(400)
        ]
        values = np.array([s.sparse_homogeneity(a, b) for a, b in tables], dtype=float)
        for level in (0.05, 0.2):
            assert np.mean(values <= level) == pytest.approx(
                level, abs=4 * math.sqrt(level * (1 - level) / 400)
            )
        assert np.mean([s.sparse_effect(a, b) for a, b in tables[:100]]) < 0.05
    p = rng.dirichlet(np.ones(400))
    other = rng.permutation(p)
    found = s.sparse_effect(
        rng.multinomial(20_000, p).astype(float), rng.multinomial(20_000, other).astype(float)
    )
    assert found == pytest.approx(float(np.sum((p - other) ** 2 / ((p + other) / 2))), abs=0.05)


def test_values_that_are_all_different_say_nothing_by_category() -> None:
    ones = np.ones(500)
    assert s.sparse_homogeneity(np.r_[ones, 0 * ones], np.r_[0 * ones, ones]) is None


def test_two_rates_of_nothing_and_of_little_are_no_growth() -> None:
    """A reference of 200 rows without a null does not promise that there is none."""
    reference = Reference(ProfileBuilder().add({"x": [1.0, 2.0] * 100}).build(), name="r", bins=10)
    few = ProfileBuilder().add({"x": [None] * 6 + [1.0, 2.0] * 47}).build()
    many = ProfileBuilder().add({"x": [None] * 30 + [1.0, 2.0] * 35}).build()
    for window, expected in ((few, False), (many, True)):
        found = {i.code for i in issues(window, reference, POLICY) if i.severity == "warning"}
        assert ("nulls" in found) == expected
