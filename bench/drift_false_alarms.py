"""How often drift and quality alarm when nothing changed, and how often they find a change: by simulation.

Prints a table for docs/rooms/monitoring.md: per kind of column, number of categories and sizes of both sides the share of
repetitions with p < 0.05, with the verdict ``drift``, and with an ``unseen`` or ``outside`` warning. Then the same with a change. Profiles
of windows are merged from parts, as ingestion does. ``python -m bench.drift_false_alarms [REPETITIONS [COLUMN]]`` (default 300; changes and
10^6 rows with a tenth of that). ``COLUMN``: only those whose name begins so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mainspring.data.profile import ProfileBuilder, merge
from mainspring.monitoring.bins import Reference
from mainspring.monitoring.drift import drift_report
from mainspring.monitoring.quality import issues
from mainspring.records.monitoring import MonitorPolicy
from mainspring.records.profile import Profile

Draw = Callable[[np.random.Generator, int], pa.Array]
POLICY = MonitorPolicy()
SIZES = [
    (200, 100),
    (200, 1_000),
    (500, 500),
    (1_000, 20_000),
    (20_000, 100),
    (20_000, 1_000),
    (1_000_000, 1_000),
]
LARGE = [(1_000_000, 1_000), (200, 1_000_000), (1_000_000, 1_000_000)]
CATEGORIES = (2, 10, 50, 200, 1_000, 5_000, 100_000)


def shares(kind: str, categories: int) -> npt.NDArray[np.float64]:
    """Probabilities of the categories: ``uniform``, or ``zipf`` (the i-th is 1/i as likely as the first)."""
    weights = np.ones(categories) if kind == "uniform" else 1.0 / np.arange(1, categories + 1)
    return weights / weights.sum()


def text(p: npt.NDArray[np.float64], *, prefix: str = "k") -> Draw:
    """Draws of categories named after their number, as a dictionary column."""
    names = pa.array([f"{prefix}{i}" for i in range(len(p))])
    steps = np.cumsum(p)

    def draw(rng: np.random.Generator, n: int) -> pa.Array:
        codes = np.minimum(np.searchsorted(steps, rng.random(n) * steps[-1], side="right"), len(p) - 1)
        return names.take(pa.array(codes))

    return draw


def numbers(kind: str, shift: float = 0.0) -> Draw:
    """Draws of numbers: ``normal``, ``counts`` (Poisson, mean 2), ``zeros`` (60 % zeros, the rest exponential), ``tenths``."""

    def draw(rng: np.random.Generator, n: int) -> pa.Array:
        match kind:
            case "normal":
                x = rng.normal(shift, 1.0, n)
            case "counts":
                x = rng.poisson(2.0 + shift, n).astype(float)
            case "zeros":
                x = np.where(rng.random(n) < 0.6 - shift / 2, 0.0, rng.exponential(1.0, n))
            case _:
                x = np.round(rng.integers(0, 8, n) * 0.1 + (rng.random(n) < shift) * 0.1, 1)
        return pa.array(x)

    return draw


def profile(draw: Draw, rng: np.random.Generator, n: int, parts: int = 1) -> Profile:
    """The profile of ``n`` rows, built in batches, merged from ``parts`` (a window is: one per reading of the log)."""
    found: Profile | None = None
    for size in np.diff(np.linspace(0, n, parts + 1).astype(int)).tolist():
        builder = ProfileBuilder()
        for start in range(0, size, 65_536):
            builder.add(pa.table({"x": draw(rng, min(65_536, size - start))}))
        built = builder.build()
        found = built if found is None else merge(found, built)
    assert found is not None
    return found


def rates(
    before: Draw, after: Draw, m: int, n: int, repetitions: int, seed: int
) -> tuple[int, int, int, int]:
    """Of the repetitions: how many had a p-value, p < 0.05, the verdict ``drift``, a warning of ``unseen`` or ``outside``.

    Every repetition draws both sides anew.
    """
    rng = np.random.default_rng(seed)
    tested = small = drifted = warned = 0
    for _ in range(repetitions):
        reference = Reference(profile(before, rng, m), name="r", bins=POLICY.bins)
        window = profile(after, rng, n, parts=min(8, max(1, n // 500)))
        column = drift_report(reference, [reference.count([window])], rows=n, policy=POLICY).columns[0]
        tested += column.p_value is not None
        small += column.p_value is not None and column.p_value < 0.05
        drifted += column.verdict == "drift"
        found = issues(window, reference, POLICY)
        warned += any(i.severity == "warning" for i in found)
    return tested, small, drifted, warned


def cases(repetitions: int) -> Iterator[tuple[str, Draw, Draw, int, int, int]]:
    """``(name, before, after, rows of the reference, of the window, repetitions)``: without a change, then with one."""
    few = max(1, repetitions // 10)
    for kind in ("uniform", "zipf"):
        for k in CATEGORIES:
            same = text(shares(kind, k))
            for m, n in SIZES:
                if max(m, n) <= 100_000:
                    yield f"{kind} {k}", same, same, m, n, repetitions
            if k in {50, 100_000}:
                for m, n in LARGE:
                    yield f"{kind} {k}", same, same, m, n, few
    for kind in ("normal", "counts", "zeros", "tenths"):
        for m, n in SIZES:
            yield kind, numbers(kind), numbers(kind), m, n, repetitions
        for m, n in LARGE:
            yield kind, numbers(kind), numbers(kind), m, n, few
    for kind in ("uniform", "zipf"):
        for k in (10, 1_000, 100_000):
            p = shares(kind, k)
            one, half = p.copy(), p.copy()
            one[0] += 0.5
            half[k // 2 :] = 0.0
            shuffled = p[np.random.default_rng(1).permutation(k)]
            changes = {
                "all categories new": text(p, prefix="new"),
                "a third of the rows more are one category": text(one / one.sum()),
                "half of the categories gone": text(half / half.sum()),
            } | ({"shares shuffled": text(shuffled)} if kind == "zipf" else {})
            for change, after in changes.items():
                for m, n in ((500, 500), (20_000, 1_000)):
                    yield f"{kind} {k}, {change}", text(p), after, m, n, few
    for kind in ("normal", "counts", "zeros", "tenths"):
        yield f"{kind}, shifted by 0.7", numbers(kind), numbers(kind, 0.7), 20_000, 1_000, few


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    print("| column | reference | window | repetitions | p < 0.05 | drift | quality warning |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for seed, (name, before, after, m, n, count) in enumerate(cases(repetitions)):
        if not name.startswith(wanted):
            continue
        tested, small, drifted, warned = rates(before, after, m, n, count, seed)
        p = f"{small / tested:.3f}" if tested else "no test"
        print(
            f"| {name} | {m:,} | {n:,} | {count} | {p} | {drifted / count:.3f} | {warned / count:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
