"""Do intervals hold the truth, and do equal models look equal? A simulation, printed as the table in docs/rooms/metrics.md.

    python -m bench.coverage [--replications 1000] [--quick | --large] [--metric NAME ...]

Rows come in blocks (days). What a block shares is drawn from a normal, a skewed (exponential) or a heavy-tailed (Student's t
with 3 degrees of freedom) distribution; blocks are equal or very unequal in size (log-normal, the largest several times the
smallest). ``cover``: how often a 95 % interval holds the population's figure. ``harm``: how often, of two models that are equally
good, the candidate is called harmful at 5 %. ``miss``: how often the 95 % interval of their difference leaves out 0.
"""

from __future__ import annotations

import argparse
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mainspring.metrics.compare import compare
from mainspring.metrics.intervals import interval
from mainspring.metrics.registry import metric
from mainspring.records.models import Task

Floats = NDArray[np.float64]
TASKS = dict.fromkeys(("mae", "rmse", "r2"), Task.REGRESSION) | dict.fromkeys(
    ("auc", "log_loss", "accuracy"), Task.BINARY
)
BLOCKS = (3, 5, 8, 10, 20, 30)
ROWS = (20, 100, 1_000, 10_000, 100_000)
KINDS = ("normal", "skewed", "heavy")
SIZES = ("equal", "unequal")
TRUTH_BLOCKS, TRUTH_ROWS = 200_000, 10


@dataclass(frozen=True)
class Cell:
    """What is simulated: ``spread`` is the standard deviation of what blocks share, in that of a row."""

    name: str
    blocks: int
    rows: int
    kind: str = "normal"
    sizes: str = "equal"
    spread: float = 0.5

    @property
    def seed(self) -> int:
        return zlib.crc32(repr(self).encode())


@dataclass
class Result:
    """Shares of the replications; ``given`` is how many had an interval at all."""

    cover: float
    harm: float
    miss: float
    given: float


def effects(rng: np.random.Generator, cell: Cell, blocks: int) -> Floats:
    """What each block shares: mean 0, standard deviation ``spread``."""
    drawn = {
        "normal": rng.normal,
        "skewed": lambda size: rng.exponential(size=size) - 1,
        "heavy": lambda size: rng.standard_t(3, size=size) / np.sqrt(3),
    }[cell.kind](size=blocks)
    return np.asarray(drawn * cell.spread)


def block_of_rows(rng: np.random.Generator, cell: Cell) -> NDArray[np.int64]:
    """The block of each row, every block with one row at least."""
    if cell.sizes == "equal":
        return np.arange(cell.rows) % cell.blocks
    shares = rng.lognormal(0.0, 0.7, cell.blocks)
    rest = rng.choice(cell.blocks, cell.rows - cell.blocks, p=shares / shares.sum())
    return np.concatenate([np.arange(cell.blocks), rest])


def rows_of(
    rng: np.random.Generator, cell: Cell, block: NDArray[np.int64], blocks: int, models: int
) -> tuple[Floats, list[Floats]]:
    """Labels, and the scores of models that err alike: each is moved by its own draw in each block."""
    n = len(block)
    if TASKS[cell.name] is Task.REGRESSION:
        y = rng.normal(size=n) * 2
        return y, [y + rng.normal(size=n) + effects(rng, cell, blocks)[block] for _ in range(models)]
    logit = rng.normal(size=n) * 1.5
    y = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    return y, [
        1 / (1 + np.exp(-(logit + rng.normal(size=n) * 0.5 + 2 * effects(rng, cell, blocks)[block])))
        for _ in range(models)
    ]


def truth_of(cell: Cell) -> float:
    """The population's figure, from many blocks."""
    rng = np.random.default_rng(1)
    block = np.repeat(np.arange(TRUTH_BLOCKS), TRUTH_ROWS)
    y, (scores,) = rows_of(rng, cell, block, TRUTH_BLOCKS, 1)
    found = metric(cell.name, TASKS[cell.name])(y, scores)
    assert found is not None
    return found


def simulate(cell: Cell, replications: int, truth: float) -> Result:
    rng = np.random.default_rng(cell.seed)
    task = TASKS[cell.name]
    cover = harm = miss = given = 0
    for _ in range(replications):
        block = block_of_rows(rng, cell)
        y, (one, two) = rows_of(rng, cell, block, cell.blocks, 2)
        alone = interval(cell.name, y, one, task=task, blocks=block)
        if alone.low is None or alone.high is None:
            continue
        given += 1
        cover += alone.low <= truth <= alone.high
        found = compare(y, one, two, task=task, name=cell.name, blocks=block)
        harm += found.harmful
        low, high = found.worse_by.low, found.worse_by.high
        miss += low is not None and high is not None and not low <= 0 <= high
    base = max(1, given)
    return Result(cover / base, harm / base, miss / base, given / replications)


def table(replications: int, *, quick: bool, large: bool, names: Sequence[str]) -> None:
    blocks = (3, 5, 10, 30) if quick or large else BLOCKS
    print(f"{replications} replications a cell; standard error of 95 %: {np.sqrt(0.0475 / replications):.1%}")
    print("| metric | effects | sizes | rows | " + " | ".join(f"{g} blocks" for g in blocks) + " |")
    print("| --- | --- | --- | --- | " + " | ".join("---" for _ in blocks) + " |")
    for name, kind, sizes in itertools.product(names, KINDS, SIZES):
        truth = truth_of(Cell(name, 0, 0, kind))
        for rows in ROWS:
            if (rows > 1_000 and (quick or kind != "normal")) or (large and rows <= 1_000):
                continue
            cells = []
            for count in blocks:
                if rows < 2 * count:
                    cells.append("")
                    continue
                many = max(100, replications * 1_000 // rows) if rows > 1_000 else replications
                got = simulate(Cell(name, count, rows, kind, sizes), many, truth)
                few = "" if got.given > 0.99 else f" ({got.given:.0%} had one)"
                cells.append(f"{got.cover:.3f} / {got.harm:.3f} / {got.miss:.3f}{few}")
            print(f"| {name} | {kind} | {sizes} | {rows} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replications", type=int, default=1_000)
    parser.add_argument("--quick", action="store_true", help="four numbers of blocks, up to 1,000 rows")
    parser.add_argument("--large", action="store_true", help="four numbers of blocks, more than 1,000 rows")
    parser.add_argument("--metric", action="append", choices=list(TASKS), help="only this one")
    given = parser.parse_args()
    names = given.metric or list(TASKS)
    table(given.replications, quick=given.quick, large=given.large, names=names)


if __name__ == "__main__":
    main()
