"""Rows for models of other libraries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


def make_numbers(rows: int, seed: int = 1, *, null: float = 0.1) -> Any:
    """Six columns of numbers, of which the second and third have nulls."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 6)) * [1, 10, 0.01, 1e4, 1, 1]
    x[:, 4] = rng.integers(-3, 9, rows)
    for column in (1, 2):
        x[rng.random(rows) < null, column] = np.nan
    return x


def make_target(x: Any) -> Any:
    """A number that depends on all columns."""
    filled = np.nan_to_num(x)
    return (
        filled[:, 0]
        + np.sin(filled[:, 1] / 5)
        + 100 * filled[:, 2]
        + filled[:, 3] / 1e4
        + np.isnan(x[:, 1])
        + (filled[:, 4] > 3)
    )


@pytest.fixture(scope="session")
def numbers() -> Any:
    return make_numbers(1500)
