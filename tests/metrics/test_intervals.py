from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mainspring.errors import InvalidInput
from mainspring.records.models import Task
from mainspring.training.distributions import t_cdf, t_quantile
from mainspring.training.intervals import interval


@pytest.mark.parametrize("df", [1, 2, 4.5, 30, 400, 1e5])
def test_students_t_equals_scipy(df: float) -> None:
    for t in (-40.0, -3.0, -0.2, 0.0, 0.7, 2.5, 15.0):
        assert t_cdf(t, df) == pytest.approx(stats.t.cdf(t, df), abs=1e-10)
    for p in (0.005, 0.3, 0.5, 0.9, 0.975):
        assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-7)


def _covered(*, blocked: bool, method: str = "percentile") -> int:
    """How many of 100 samples of correlated rows have an interval that holds the true mean squared error of 1 + 1."""
    hits = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        days = np.repeat(np.arange(40), 25)
        y = rng.normal(size=40)[days] + rng.normal(size=1000)
        found = interval(
            "mae",
            y,
            np.zeros(1000),
            task=Task.REGRESSION,
            blocks=days if blocked else None,
            replicates=200,
            method=method,
            seed=seed,
        )
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= np.sqrt(2) * np.sqrt(2 / np.pi) <= found.high
    return hits


def test_block_intervals_cover_and_row_intervals_do_not() -> None:
    assert _covered(blocked=True) >= 88
    assert _covered(blocked=True, method="bca") >= 88
    assert _covered(blocked=False) < 75  # why blocks exist


def test_same_seed_same_interval() -> None:
    rng = np.random.default_rng(0)
    y, p = (rng.random(300) < 0.4).astype(float), rng.random(300)
    first, again, other = (interval("auc", y, p, task=Task.BINARY, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert first.low < first.value < first.high


def test_too_little_evidence_gives_no_interval() -> None:
    days = np.array([1, 1, 2, 2])
    found = interval("log_loss", [0, 1, 0, 1], [0.4, 0.6, 0.4, 0.6], task=Task.BINARY, blocks=days)
    assert (found.low, found.high, found.blocks) == (None, None, 2)
    assert found.value == pytest.approx(-np.log(0.6))
    assert interval("auc", [1] * 20, [0.5] * 20, task=Task.BINARY).value is None


def test_confidence_is_checked() -> None:
    with pytest.raises(InvalidInput):
        interval("auc", [0, 1], [0.1, 0.2], task=Task.BINARY, confidence=95)
