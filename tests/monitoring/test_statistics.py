"""Statistics against known values, and their promises under simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from mainspring.data.profile import ProfileBuilder
from mainspring.monitoring import statistics as s
from mainspring.monitoring.bins import Reference
from mainspring.monitoring.drift import drift_report, judge
from mainspring.monitoring.performance import losses, metrics_of
from mainspring.records.models import Task
from mainspring.records.monitoring import ColumnDrift, MonitorPolicy, Verdict


@pytest.mark.parametrize(
    ("x", "df", "p"),
    [  # from tables and from an independent implementation (scipy.stats.chi2.sf)
        (3.841458820694124, 1, 0.05),
        (16.918977604620448, 9, 0.05),
        (21.665994333461924, 9, 0.01),
        (100.0, 9, 1.57351763e-17),
        (0.5, 10, 0.999993388),
        (300.0, 255, 0.02772752205),
    ],
)
def test_chi_square_tail(x: float, df: int, p: float) -> None:
    assert s.chi2_sf(x, df) == pytest.approx(p, rel=1e-6, abs=0)


def test_chi_square_tail_at_the_ends() -> None:
    assert s.chi2_sf(0, 3) == 1.0
    assert s.chi2_sf(math.inf, 3) == 0.0
    assert s.chi2_sf(1e6, 3) == 0.0
    assert s.chi2_sf(2 * math.log(20), 2) == pytest.approx(0.05)  # df 2: exp(-x/2)


def test_benjamini_hochberg_and_simes() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert s.benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert s.simes(p) == pytest.approx(0.02)
    assert s.simes([]) == 1.0


def test_a_column_s_q_value_is_corrected_for_the_columns_tested_beside_it() -> None:
    """As SciPy corrects; one of twenty columns at 0.02 is no discovery. Seen red with the p-values themselves."""
    p = [0.02, *np.linspace(0.06, 0.97, 19)]
    columns = [
        ColumnDrift(column=f"c{i}", verdict=Verdict.OK, psi=1.0, threshold=0.25, p_value=float(v))
        for i, v in enumerate(p)
    ]
    report = judge(columns, rows=1000, reference="r", windows=9, control=None, level=0.05)
    found = {c.column: c.q_value for c in report.columns}
    expected = scipy.stats.false_discovery_control(p)
    assert [found[f"c{i}"] for i in range(20)] == pytest.approx(expected.tolist())
    assert report.verdict is Verdict.OK
    alone = judge(columns[:1], rows=1000, reference="r", windows=9, control=None, level=0.05)
    assert alone.verdict is Verdict.DRIFT


def test_the_error_budget_is_never_overspent() -> None:
    assert sum(s.spending(j) for j in range(1, 200_000)) < 1


def test_a_stream_without_rejections_spends_less_than_half_alpha() -> None:
    control = s.OnlineControl(0.05)
    spent = 0.0
    for _ in range(5_000):
        spent += control.level()
        control.test(1.0)
    assert spent < 0.025


def test_a_rejection_earns_budget_back_and_survives_a_restart() -> None:
    control = s.OnlineControl(0.05)
    for _ in range(100):
        control.test(1.0)
    before = control.level()
    assert control.test(1e-12)
    restored = s.OnlineControl.restore(0.05, control.state())
    assert restored.level() == control.level() > 5 * before


def test_effect_does_not_depend_on_n_and_has_no_bias() -> None:
    """The same change measured on 200 and on 20,000 rows; no change measures about 0 although raw PSI does not."""
    rng = np.random.default_rng(0)
    p, q = np.full(10, 0.1), np.array([0.04, 0.06, 0.08, 0.1, 0.1, 0.1, 0.1, 0.12, 0.14, 0.16])
    reference = rng.multinomial(30_000, p).astype(float)

    def mean_effect(n: int, shares: np.ndarray) -> tuple[float, float]:
        raws = [s.psi(rng.multinomial(n, shares).astype(float), reference) for _ in range(400)]
        return float(np.mean(raws)) - s.psi_bias(10, n, 30_000), float(np.mean(raws))

    small, large = mean_effect(200, q)[0], mean_effect(20_000, q)[0]
    assert small == pytest.approx(large, rel=0.15)
    corrected, raw = mean_effect(200, p)
    assert abs(corrected) < 0.006 < 0.03 < raw


def test_p_values_are_uniform_when_nothing_changed() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(11) * 3)
    values = [
        s.homogeneity(rng.multinomial(300, p).astype(float), rng.multinomial(5_000, p).astype(float))
        for _ in range(2_000)
    ]
    got = np.array([v for v in values if v is not None])
    for level in (0.01, 0.05, 0.2):
        assert np.mean(got <= level) == pytest.approx(
            level, abs=4 * math.sqrt(level * (1 - level) / got.size)
        )


def test_design_effect_sees_days_that_are_alike_within() -> None:
    """Rows of a day share the weather: the naive test screams, the corrected one does not."""
    rng = np.random.default_rng(2)

    def days(k: int) -> np.ndarray:
        return np.stack([rng.multinomial(100, rng.dirichlet(np.full(6, 4.0))) for _ in range(k)]).astype(
            float
        )

    naive = corrected = 0
    for _ in range(200):
        current, reference = days(14), days(30)
        effect = s.design_effect(current)
        naive += (s.homogeneity(current.sum(0), reference.sum(0)) or 0) < 0.001
        corrected += (s.homogeneity(current.sum(0), reference.sum(0), effect) or 0) < 0.001
    assert naive > 100
    assert corrected < 10
    independent = np.stack([rng.multinomial(100, np.full(6, 1 / 6)) for _ in range(14)]).astype(float)
    assert s.design_effect(independent) < 1.6


def test_jensen_shannon_ends() -> None:
    assert s.jensen_shannon(np.array([5.0, 0.0]), np.array([0.0, 3.0])) == 1.0
    assert s.jensen_shannon(np.array([5.0, 5.0]), np.array([3.0, 3.0])) == 0.0


@given(st.lists(st.floats(0, 1e9), min_size=2, max_size=20), st.integers(0, 3))
def test_anything_countable_gives_finite_numbers(counts: list[float], zeros: int) -> None:
    current = np.array(counts)
    reference = np.roll(current, 1)
    reference[:zeros] = 0
    for value in (
        s.psi(current, reference),
        s.jensen_shannon(current, reference),
        s.homogeneity(current, reference),
        s.design_effect(np.stack([current, reference])),
    ):
        assert value is None or math.isfinite(value)


def _profiles(rng: np.random.Generator, n: int, columns: int) -> object:
    return ProfileBuilder().add({f"c{i}": rng.normal(size=n) for i in range(columns)}).build()


def test_m10_no_drift_windows_raise_no_more_alarms_than_alpha() -> None:
    """M10: 40 histories of 60 no-drift windows (2,400) of 8 columns at PSI limit 0: only the control stands against alarms.

    A history alarms with probability below alpha / 2. Seen red with the control replaced by a constant level.
    """
    rng = np.random.default_rng(3)
    policy = MonitorPolicy(psi=0.0, alpha=0.2, min_rows=50)
    alarmed = 0
    for _ in range(40):
        p = [rng.dirichlet(np.ones(8) * 5) for _ in range(8)]
        base = [rng.multinomial(5_000, q).astype(float) for q in p]
        control = s.OnlineControl(policy.alpha)
        found = False
        for _ in range(60):
            pvalues = [
                s.homogeneity(rng.multinomial(130, q).astype(float), b) or 1.0
                for q, b in zip(p, base, strict=True)
            ]
            found = control.test(s.simes(pvalues)) or found
        alarmed += found
    # Binomial(40, 0.1): 10 or more has probability 0.005; a constant level of 0.2 alarms in all 40.
    assert alarmed < 10


@pytest.mark.soak
def test_m10_ten_thousand_no_drift_windows() -> None:
    rng = np.random.default_rng(4)
    p = [rng.dirichlet(np.ones(11) * 5) for _ in range(50)]
    base = [rng.multinomial(30_000, q).astype(float) for q in p]
    alarms = 0
    for _ in range(20):
        control = s.OnlineControl(0.05)
        for _ in range(500):
            alarms += control.test(
                s.simes(
                    [
                        s.homogeneity(rng.multinomial(130, q).astype(float), b) or 1.0
                        for q, b in zip(p, base, strict=True)
                    ]
                )
            )
    assert alarms <= 3


@pytest.mark.parametrize(("shift", "latest"), [(1.0, 1), (0.7, 3)])
def test_m10_a_known_shift_is_found_soon(shift: float, latest: int) -> None:
    """M10: after 100 quiet windows of 130 rows, a shift by so many standard deviations is found within that many windows."""
    rng = np.random.default_rng(5)
    policy = MonitorPolicy(min_rows=100)
    reference = Reference(_profiles(rng, 20_000, 8), name="r", bins=10)  # type: ignore[arg-type]
    control = s.OnlineControl(policy.alpha)
    for window in range(100 + latest):
        columns = {f"c{i}": rng.normal(size=130) for i in range(8)}
        if window >= 100:
            columns["c3"] = columns["c3"] + shift
        counts = reference.count([ProfileBuilder().add(columns).build()])
        report = drift_report(reference, [counts], rows=130, policy=policy, control=control)
        if window < 100:
            assert report.verdict is Verdict.OK
        if report.verdict is Verdict.DRIFT:
            break
    assert report.verdict is Verdict.DRIFT
    assert report.columns[0].column == "c3"


def test_metrics_by_hand() -> None:
    scores, y = np.array([0.9, 0.2, 0.6]), np.array([1.0, 0.0, 0.0])
    metrics, sums = metrics_of(scores, y, Task.BINARY)
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.4)) / 3
    assert metrics["log_loss"].value == pytest.approx(expected)
    assert metrics["accuracy"].value == pytest.approx(2 / 3)
    assert metrics["brier"].value == pytest.approx((0.01 + 0.04 + 0.36) / 3)
    assert sums["log_loss"][0] == pytest.approx(3 * expected)
    metrics, _ = metrics_of(np.array([1.0, 5.0]), np.array([2.0, 2.0]), Task.REGRESSION)
    assert (metrics["mae"].value, metrics["rmse"].value) == (2.0, pytest.approx(math.sqrt(5)))
    metrics, _ = metrics_of(
        np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]), np.array([0.0, 1.0]), Task.MULTICLASS
    )
    assert metrics["log_loss"].value == pytest.approx(-(math.log(0.7) + math.log(0.1)) / 2)
    assert metrics["accuracy"].value == 0.5


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False)
        ),
        min_size=1,
        max_size=20,
    )
)
def test_m07_regression_of_any_magnitude_stays_finite(pairs: list[tuple[float, float]]) -> None:
    """M07. Seen red without the clip in ``losses`` and the finite checks on sums and means (inf and NaN)."""
    scores, y = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
    metrics, _ = metrics_of(scores, y, Task.REGRESSION)
    for metric in metrics.values():
        assert all(v is None or math.isfinite(v) for v in (metric.value, metric.low, metric.high))
        assert metric.value is not None or metric.reason


def test_certain_and_wrong_is_a_large_finite_loss() -> None:
    assert math.isfinite(losses(np.array([0.0, 1.0]), np.array([1.0, 0.0]), Task.BINARY)["log_loss"].sum())
