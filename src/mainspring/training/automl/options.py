"""The options of a search, stated once: for ``ms.train``, the engine and ``mainspring new``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from mainspring.errors import InvalidInput, near
from mainspring.training.automl.rungs import OnProgress


class TrainOptions(TypedDict, total=False):
    """What may be chosen; :data:`DEFAULTS` says what is taken where nothing is."""

    time: str | None
    """A column by which the newest rows are held out; without it and ``group`` rows are held out at random."""
    group: str | None
    """A column whose groups are held out as a whole."""
    task: str | None
    """``binary``, ``multiclass`` or ``regression``; it follows from the target."""
    metric: str | None
    """What is compared: by default the log-loss, or the RMSE of a regression."""
    budget: str | float
    """A length of time for all of it, such as ``"5m"``, or seconds."""
    name: str | None
    """The model's, by default the dataset's."""
    seed: int
    """A search that ends within its budget gives the same for the same seed."""
    keep: Sequence[str]
    """Columns to use although they look like identifiers, or give the target away."""
    max_trials: int
    """Candidates to try, beside the dummy."""
    families: Sequence[str] | None
    """Families of models to try; all by default."""
    on_progress: OnProgress | None
    """Called after each turn of a candidate; by default a line on a terminal."""


DEFAULTS = TrainOptions(
    time=None,
    group=None,
    task=None,
    metric=None,
    budget="60s",
    name=None,
    seed=0,
    keep=(),
    max_trials=24,
    families=None,
    on_progress=None,
)


def complete_options(options: TrainOptions) -> TrainOptions:
    """The options with the defaults of those not given. Raises :class:`InvalidInput` for a name that is none."""
    for name in options:
        if name not in DEFAULTS:
            raise InvalidInput(
                "training has no such option", value=name, next_step=near(name, DEFAULTS, what="option")
            )
    given = {k: v for k, v in options.items() if v is not None}
    return TrainOptions(**{**DEFAULTS, **given})  # type: ignore[typeddict-item]
