from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mainspring.errors import InvalidInput
from mainspring.records.models import Task
from mainspring.training.compare import compare, paired_difference


def _rows(seed: int, *, harm: float = 0.0):
    """Labels, a good model's scores, and the same with its logits moved by ``harm``; 20 days of 60 rows."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1, 1, 1200)
    y = (rng.random(1200) < 1 / (1 + np.exp(-logit))).astype(float)
    return y, 1 / (1 + np.exp(-(logit + harm))), 1 / (1 + np.exp(-logit)), np.repeat(np.arange(20), 60)


def test_rows_without_blocks_equal_scipys_paired_t_test() -> None:
    y, candidate, baseline, _ = _rows(0, harm=0.5)
    found = compare(y, candidate, baseline, task=Task.BINARY)
    loss = lambda p: -(y * np.log(p) + (1 - y) * np.log(1 - p))  # noqa: E731
    assert found.p_harm == pytest.approx(
        stats.ttest_rel(loss(candidate), loss(baseline), alternative="greater").pvalue, abs=1e-9
    )
    low, high = stats.ttest_rel(loss(candidate), loss(baseline)).confidence_interval(0.95)
    assert (found.worse_by.low, found.worse_by.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("name", ["log_loss", "auc", "accuracy"])
def test_harm_is_found_in_every_direction(name: str) -> None:
    y, _, baseline, days = _rows(1)
    noise = np.random.default_rng(2).random(len(y))
    found = compare(
        y, 0.2 * baseline + 0.8 * noise, baseline, task=Task.BINARY, name=name, blocks=days, replicates=300
    )
    assert found.worse_by.value > 0
    assert found.worse_by.low > 0
    assert found.harmful
    assert not found.non_inferior
    mirrored = compare(
        y, baseline, 0.2 * baseline + 0.8 * noise, task=Task.BINARY, name=name, blocks=days, replicates=300
    )
    assert mirrored.worse_by.value == pytest.approx(-found.worse_by.value)
    assert mirrored.non_inferior


def test_false_alarms_stay_within_the_level_when_days_are_correlated() -> None:
    """Two equally good models on days that favour one or the other: blocks keep the level, independent rows do not."""
    blocked = naive = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        days = np.repeat(np.arange(15), 80)
        difference = rng.normal(0, 0.05, 15)[days] + rng.normal(0, 0.2, 1200)
        blocked += paired_difference(difference, blocks=days).harmful
        naive += paired_difference(difference).harmful
    assert blocked <= 27  # 15 expected at 5 %; P(> 27) < 0.2 %
    assert naive > 45


def test_identical_models_are_no_evidence_within_no_margin() -> None:
    y, _, baseline, days = _rows(3)
    strict = compare(y, baseline, baseline, task=Task.BINARY, blocks=days)
    assert (strict.worse_by.value, strict.p_harm, strict.p_non_inferior) == (0.0, 0.5, 0.5)
    assert not strict.non_inferior
    assert compare(y, baseline, baseline, task=Task.BINARY, blocks=days, margin=0.001).non_inferior


def test_a_margin_forgives_a_small_loss_only() -> None:
    y, candidate, baseline, days = _rows(4, harm=0.15)
    plain = compare(y, candidate, baseline, task=Task.BINARY, blocks=days)
    assert plain.worse_by.value > 0
    assert compare(y, candidate, baseline, task=Task.BINARY, blocks=days, margin=0.05).non_inferior
    _, bad, _, _ = _rows(4, harm=2.0)
    assert not compare(y, bad, baseline, task=Task.BINARY, blocks=days, margin=0.05).non_inferior


def test_too_few_days_show_nothing() -> None:
    found = paired_difference(np.ones(400), blocks=np.repeat([1, 2, 3, 4], 100))
    assert found.worse_by.value == 1.0
    assert (found.worse_by.low, found.p_harm, found.harmful, found.non_inferior) == (None, None, False, False)


def test_no_rows_show_nothing() -> None:
    found = compare([], [], [], task=Task.BINARY)
    assert (found.worse_by.value, found.p_harm) == (None, None)


def test_a_negative_margin_is_refused() -> None:
    with pytest.raises(InvalidInput):
        compare([0, 1], [0.1, 0.2], [0.1, 0.2], task=Task.BINARY, margin=float("nan"))
