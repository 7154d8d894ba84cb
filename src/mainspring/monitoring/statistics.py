"""Comparison of distributions: effect sizes that do not depend on n, and tests with their assumptions stated.

Functions take counts per bin and return finite floats or None; no data raises. Sources:

- PSI, its null distribution and bias: B. Yurdakul, *Statistical Properties of Population Stability Index* (2018):
  under "no change" PSI / (1/n + 1/m) is about chi-square with k - 1 degrees of freedom.
- Jensen-Shannon divergence: J. Lin, IEEE Trans. Inf. Theory 37 (1991).
- Clustered rows (all flights of a day share the weather): J. Rao and A. Scott, *Ann. Statist.* 12 (1984):
  the statistic is divided by a design effect, its degrees of freedom by the spread of the effects.
- Over columns: Benjamini and Hochberg (1995); R. Simes (1986) for the window as a whole.
- Over time: LORD++, A. Ramdas, F. Yang, M. Wainwright, M. Jordan, *Online control of the false discovery rate* (2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MIN_EXPECTED = 5.0
"""Cochran's rule: bins with a smaller expected count are pooled before a chi-square test."""

MIN_REPEATS = 30
"""A sparse test needs this many values beyond the first of their category: values that are all different carry no evidence."""


def chi2_sf(x: float, df: float) -> float:
    """P(chi-square with ``df`` degrees of freedom > ``x``): the regularised upper incomplete gamma function.

    Series below the mean, continued fraction (Lentz) above it; DLMF 8.11.4 and 8.9.2. Relative error below 1e-10.

    >>> round(chi2_sf(3.841458820694124, 1), 12)
    0.05
    """
    if not x > 0 or df <= 0:
        return 1.0
    if math.isinf(x):
        return 0.0
    a, z = df / 2, x / 2
    scale = a * math.log(z) - z - math.lgamma(a)
    if z < a + 1:
        term = total = 1 / a
        step = a
        for _ in range(10_000):
            step += 1
            term *= z / step
            total += term
            if term < total * 1e-15:
                break
        return min(1.0, max(0.0, 1 - total * math.exp(scale)))
    tiny = 1e-300
    b = z + 1 - a
    c, d = 1 / tiny, 1 / b
    h = d
    for i in range(1, 10_000):
        an = -i * (i - a)
        b += 2
        d = an * d + b
        d = 1 / (d if abs(d) > tiny else tiny)
        c = b + an / c
        c = c if abs(c) > tiny else tiny
        h *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return min(1.0, math.exp(scale) * h) if scale > -745 else 0.0


def normal_sf(z: float) -> float:
    """P(standard normal > ``z``)."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def binomial_sf(k: int, n: int, p: float) -> float:
    """P(at least ``k`` of ``n``), each with probability ``p``; summed term by term, so for ``n`` of up to thousands.

    >>> round(binomial_sf(2, 2, 0.5), 3), binomial_sf(0, 5, 0.1)
    (0.25, 1.0)
    """
    if k <= 0:
        return 1.0
    if not 0 < p < 1:
        return 0.0 if p <= 0 else 1.0
    head = math.lgamma(n + 1)
    log = [
        head - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k, n + 1)
    ]
    return min(1.0, math.fsum(math.exp(v) for v in log))


def shares(counts: Floats) -> Floats:
    """Counts as proportions, half a count added to each bin (Jeffreys' prior), so that no bin is empty."""
    return np.asarray((counts + 0.5) / (counts.sum() + 0.5 * counts.size))


def psi(current: Floats, reference: Floats) -> float:
    """Population stability index of two sets of counts over the same bins (uncorrected, in nats)."""
    p, q = shares(current), shares(reference)
    return float(np.sum((p - q) * np.log(p / q)))


def psi_bias(bins: int, n: float, m: float, design_effect: float = 1.0) -> float:
    """What PSI is expected to be when nothing changed: ``(bins - 1) (1/n + 1/m)``, times the design effect."""
    if bins < 2 or n <= 0 or m <= 0:
        return 0.0
    return (bins - 1) * (1 / n + 1 / m) * design_effect


def jensen_shannon(current: Floats, reference: Floats) -> float:
    """Jensen-Shannon divergence in bits: 0 for equal distributions, 1 for disjoint ones. Its root is a distance."""
    p, q = current / max(current.sum(), 1e-300), reference / max(reference.sum(), 1e-300)
    mid = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(p > 0, p * np.log2(p / mid), 0.0)
        right = np.where(q > 0, q * np.log2(q / mid), 0.0)
    return float(min(1.0, max(0.0, (left.sum() + right.sum()) / 2)))


def js_distance(current: Floats, reference: Floats, bias_psi: float) -> float:
    """Jensen-Shannon distance with its small-n bias subtracted (near equality the divergence is PSI / 8 ln 2)."""
    return math.sqrt(max(0.0, jensen_shannon(current, reference) - bias_psi / (8 * math.log(2))))


def pooled_bins(table: Floats, minimum: float = MIN_EXPECTED) -> list[npt.NDArray[np.int64]]:
    """Which columns of a (samples, bins) table go together so that every expected count is at least ``minimum``, if possible.

    The choice rests on column totals and sample sizes alone, so a test on the merged table is fair. Empty columns are dropped.
    """
    totals, rows = table.sum(axis=0), table.sum(axis=1)
    n = rows.sum()
    if n <= 0:
        return []
    smallest = totals * (rows[rows > 0].min() / n)
    keep = smallest >= minimum
    groups = [np.array([i]) for i in np.flatnonzero(keep)]
    rest = np.flatnonzero(~keep & (totals > 0))
    if not len(rest):
        return groups
    if smallest[rest].sum() >= minimum or not groups:
        return [*groups, rest]
    # Together they are still too few: merge them with the rarest of the kept bins.
    rarest = int(np.argmin([totals[g[0]] for g in groups]))
    groups[rarest] = np.concatenate([groups[rarest], rest])
    return groups


def pool(counts: Floats, groups: Sequence[npt.NDArray[np.int64]]) -> Floats:
    """Counts of the merged bins; the last axis is the bins'."""
    if len(groups) == counts.shape[-1]:
        return counts
    return np.stack([counts[..., g].sum(axis=-1) for g in groups], axis=-1) if groups else counts[..., :0]


def pool_sparse(table: Floats, minimum: float = MIN_EXPECTED) -> Floats:
    """A (samples, bins) table with its sparse columns merged (:func:`pooled_bins`)."""
    return pool(table, pooled_bins(table, minimum))


def chi_square(table: Floats) -> tuple[float, int]:
    """Pearson's statistic and degrees of freedom of a (samples, bins) table; empty rows and columns do not count."""
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    rows, columns = table.shape
    if rows < 2 or columns < 2:
        return 0.0, 0
    expected = table.sum(axis=1, keepdims=True) * (table.sum(axis=0, keepdims=True) / table.sum())
    return float(np.sum((table - expected) ** 2 / expected)), (rows - 1) * (columns - 1)


def design_effect(parts: Floats) -> float:
    """How much more windows differ among themselves than independent rows would: at least 1.

    ``parts`` is (windows, bins). The heterogeneity statistic over its degrees of freedom estimates the variance
    inflation of a pooled proportion when rows of a window are alike. 1.0 with fewer than two windows.
    """
    parts = parts[parts.sum(axis=1) > 0]
    if parts.shape[0] < 2:
        return 1.0
    statistic, df = chi_square(pool_sparse(parts, minimum=1.0))
    return max(1.0, statistic / df) if df else 1.0


def design_spread(parts: Floats) -> float:
    """``1 + a^2`` of Rao and Scott's second-order correction, ``a`` being the coefficient of variation of the design effects.

    When windows differ in one direction only (all bins of a warm day move together), the statistic has far fewer
    effective degrees of freedom than bins. At least 1; sampling noise with few windows makes it larger: stricter.
    """
    parts = parts[parts.sum(axis=1) > 0]
    pooled = pool_sparse(parts, minimum=1.0) if parts.shape[0] > 1 else parts
    if parts.shape[0] < 2 or pooled.shape[1] < 3:
        return 1.0
    sizes = pooled.sum(axis=1, keepdims=True)
    p = pooled.sum(axis=0) / pooled.sum()
    residuals = np.sqrt(sizes) * (pooled / sizes - p) / np.sqrt(p)
    matrix = residuals.T @ residuals / (parts.shape[0] - 1)
    total = float(np.trace(matrix))
    if total <= 0:
        return 1.0
    bins = pooled.shape[1] - 1
    return float(min(float(bins), max(1.0, float(np.sum(matrix * matrix)) * bins / (total * total))))


def homogeneity(current: Floats, reference: Floats, effect: float = 1.0, spread: float = 1.0) -> float | None:
    """P-value that both counts come from one distribution; None when too few rows for the approximation.

    ``effect`` and ``spread`` correct for rows of a window being alike (:func:`design_effect`, :func:`design_spread`).
    """
    table = pool_sparse(np.stack([current, reference]))
    if table.shape[1] < 2:
        # Everything in one bin: no difference is visible, if there were enough rows to see one.
        return 1.0 if min(current.sum(), reference.sum()) >= 2 * MIN_EXPECTED else None
    statistic, df = chi_square(table)
    # With both margins given, the statistic's mean is df N / (N - 1), not df (the "N - 1" chi-square: Campbell 2007).
    statistic *= 1 - 1 / max(2.0, float(table.sum()))
    spread = min(max(spread, 1.0), float(max(df, 1)))
    return chi2_sf(statistic / (max(effect, 1.0) * spread), df / spread)


def sparse_homogeneity(
    current: Floats, reference: Floats, effect: float = 1.0, spread: float = 1.0
) -> float | None:
    """P-value that both counts come from one distribution, for many cells with few rows each; None without evidence.

    Pearson's statistic over all cells, none merged. Its mean and variance are those given both margins (each cell's
    count binomial given the pooled one, corrected for the total: C. Morris, *Ann. Statist.* 3, 1975; exact moments:
    J. Haldane, *Biometrika* 31, 1940), its tail that of the scaled chi-square with these moments. So it needs no smallest expected count.
    """
    n, m = float(current.sum()), float(reference.sum())
    pooled = current + reference
    keep = pooled > 0
    cells, total = int(keep.sum()), n + m
    if cells < 2 or n <= 0 or m <= 0 or total - cells < MIN_REPEATS:
        return None
    f = n / total
    spread_of = pooled[keep] * f * (1 - f)
    statistic = float(np.sum((current[keep] - pooled[keep] * f) ** 2 / spread_of))
    mean = (cells - 1) * total / max(total - 1, 1.0)
    variance = 2 * (cells - 1) + (1 - 6 * f * (1 - f)) * float(np.sum(1 / spread_of))
    variance -= (cells * (1 - 2 * f)) ** 2 / (total * f * (1 - f))
    if variance <= 1e-9 * mean:
        return None
    df = 2 * mean * mean / variance
    spread = min(max(spread, 1.0), max(df, 1.0))
    return chi2_sf(statistic * df / mean / (max(effect, 1.0) * spread), df / spread)


def sparse_effect(current: Floats, reference: Floats, effect: float = 1.0) -> float:
    """How far two distributions over many sparse cells are apart, on the scale of PSI, without the bias of small counts.

    The triangular discrimination ``sum (p - q)^2 / ((p + q) / 2)`` (F. Topsoe, IEEE Trans. Inf. Theory 46, 2000): close to PSI for
    small changes, at most 4. The expected value of each cell's term by chance is subtracted, by enumeration over
    the binomial distribution of its count given the pooled one.
    """
    n, m = float(current.sum()), float(reference.sum())
    if n <= 0 or m <= 0:
        return 0.0
    if n > m:  # symmetric; the enumeration below is shorter when the first is the smaller
        current, reference, n, m = reference, current, m, n
    pooled = np.round(current + reference)
    keep = pooled > 0
    a, c = current[keep], pooled[keep]
    distance = float(np.sum(_triangular_terms(a / n, (c - a) / m)))
    sizes, counts = np.unique(c, return_counts=True)
    expected = 0.0
    for size, repeats in zip(sizes.tolist(), counts.tolist(), strict=True):
        expected += repeats * _expected_term(size, n, m)
    return max(0.0, distance - expected * max(effect, 1.0))


def _triangular_terms(p: Floats, q: Floats) -> Floats:
    """The terms of the triangular discrimination, by cell."""
    both = p + q
    return np.asarray(np.where(both > 0, 2 * (p - q) ** 2 / np.where(both > 0, both, 1.0), 0.0))


def _expected_term(size: float, n: float, m: float) -> float:
    """The expected term of a cell with ``size`` rows on both sides together, if both have the same distribution."""
    f = n / (n + m)
    mean = size * f
    if mean > 50:
        return 1 / n + 1 / m  # Taylor: the next term is smaller by the factor 1 / mean
    k = np.arange(0, min(size, math.ceil(mean + 12 * math.sqrt(mean) + 25)) + 1)
    binomial = math.lgamma(size + 1) - _log_gamma(k + 1) - _log_gamma(size - k + 1)
    weights = np.exp(binomial + k * math.log(f) + (size - k) * math.log1p(-f))
    return float(np.sum(weights * _triangular_terms(k / n, (size - k) / m)))


def _log_gamma(x: Floats) -> Floats:
    return np.array([math.lgamma(v) for v in x.tolist()])


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjusted p-values (q-values): rejecting q <= alpha keeps the expected share of false discoveries below alpha."""
    if not p:
        return []
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    ranked = values[order] * values.size / np.arange(1, values.size + 1)
    adjusted = np.minimum.accumulate(ranked[::-1])[::-1]
    q_values = np.empty_like(values)
    q_values[order] = np.minimum(adjusted, 1.0)
    return [float(v) for v in q_values]


def simes(p: Sequence[float]) -> float:
    """One p-value for "none of these": the smallest Benjamini-Hochberg q-value."""
    return min(benjamini_hochberg(p), default=1.0)


def spending(step: int) -> float:
    """Share of the error budget given to the ``step``-th test after a starting point; the shares add up to less than 1.

    Proportional to ``log(max(j, 2)) / (j exp(sqrt(log j)))``, the sequence of Javanmard and Montanari used with LORD.
    """
    if step < 1:
        return 0.0
    # With this factor the infinite sum is below 1 (about 0.91).
    return 0.0722 * math.log(max(step, 2)) / (step * math.exp(math.sqrt(math.log(step))))


class OnlineControl:
    """LORD++: grants each test of a stream its own level, so that false discoveries stay rare over all time.

    Before the first rejection the levels add up to less than ``alpha / 2``: the chance that a stream in which nothing
    ever changes raises *any* alert is below that, whatever the dependence between its tests. A rejection earns
    budget back. Only the newest 50 rejections are kept; forgetting older ones makes it stricter, never laxer.
    """

    def __init__(self, alpha: float, *, tests: int = 0, rejections: Sequence[int] = ()) -> None:
        self.alpha = alpha
        self.tests = tests
        self.rejections = list(rejections)

    @classmethod
    def restore(cls, alpha: float, state: dict[str, Any]) -> OnlineControl:
        return cls(
            alpha, tests=int(state.get("tests", 0)), rejections=[int(t) for t in state.get("rejections", [])]
        )

    def state(self) -> dict[str, Any]:
        return {"tests": self.tests, "rejections": self.rejections}

    def level(self) -> float:
        """The significance level of the next test."""
        t = self.tests + 1
        start = self.alpha / 2
        total = spending(t) * start
        for i, at in enumerate(self.rejections):
            earned = self.alpha - start if i == 0 else self.alpha
            total += earned * spending(t - at)
        return total

    def test(self, p: float) -> bool:
        """Record the next test of the stream; returns whether its p-value is a discovery."""
        rejected = p <= self.level()
        self.tests += 1
        if rejected:
            self.rejections = [*self.rejections, self.tests][-50:]
        return rejected


def mean_interval(
    total: float, squares: float, n: int, z: float = 1.959963984540054, effect: float = 1.0
) -> tuple[float, float, float]:
    """Mean, and its normal interval, from a sum and a sum of squares of ``n`` values; ``effect`` inflates the variance."""
    mean = total / n
    variance = max(0.0, (squares - n * mean * mean) / (n - 1)) if n > 1 else 0.0
    half = z * math.sqrt(variance * effect / n)
    return mean, mean - half, mean + half
