"""Training: estimates with intervals, paired comparisons, searches, and the locked hold-out."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from mainspring.records.base import Record
from mainspring.records.models import Task


class Interval(Record, frozen=True, kw_only=True):
    """An estimate and its confidence interval, in the metric's own unit.

    ``value`` is None where the metric is undefined on these rows (AUC of one class); ``low``/``high`` are None where
    there is too little evidence for an interval, and ``reason`` says what is missing. ``n`` counts rows, ``blocks`` the
    independent groups they came in.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    n: int = 0
    blocks: int = 0
    method: str = ""
    reason: str = ""


class SliceResult(Record, frozen=True, kw_only=True):
    """Metrics of the rows where ``column`` equals ``value``. ``enough`` is False below the least number of rows."""

    column: str
    value: str
    n: int
    metrics: dict[str, Interval] = {}
    enough: bool = True


class Evaluation(Record, frozen=True, kw_only=True):
    """The metrics of a model on given rows. ``id`` and ``at`` are set when it is recorded."""

    task: Task
    rows: int
    metrics: dict[str, Interval]
    slices: list[SliceResult] = []
    subject: str | None = None
    """A reference to what was evaluated, e.g. ``model_version:delay@3`` or ``run:<id>``."""
    dataset_version: str | None = None
    id: str | None = None
    at: datetime | None = None
    actor: str | None = None


class EvaluationPage(Record, frozen=True, kw_only=True):
    items: list[Evaluation]
    next: str | None = None


class Comparison(Record, frozen=True, kw_only=True):
    """Two models on the same rows. ``worse_by`` is positive where the candidate is worse, whatever the metric's direction.

    ``p_harm``: how likely a difference like this is if the candidate were at most ``margin`` worse (small: harm shown).
    ``p_non_inferior``: how likely it is if the candidate were ``margin`` worse or more (small: non-inferiority shown).
    """

    metric: str
    candidate: float | None
    baseline: float | None
    worse_by: Interval
    margin: float
    p_harm: float | None
    p_non_inferior: float | None

    @property
    def non_inferior(self) -> bool:
        """Whether non-inferiority within ``margin`` is shown at ``worse_by.confidence``. Too little evidence shows nothing."""
        return self.p_non_inferior is not None and self.p_non_inferior <= 1.0 - self.worse_by.confidence

    @property
    def harmful(self) -> bool:
        """Whether harm beyond ``margin`` is shown at ``worse_by.confidence``."""
        return self.p_harm is not None and self.p_harm <= 1.0 - self.worse_by.confidence


class TrialResult(Record, frozen=True, kw_only=True):
    """One trial of a search. ``loss`` is the mean over all validation rows of all folds; None if the trial failed."""

    number: int
    family: str
    params: dict[str, Any]
    loss: float | None
    fold_losses: list[float] = []
    seconds: float = 0.0
    state: Literal["finished", "failed"] = "finished"
    error: str | None = None


class SearchResult(Record, frozen=True, kw_only=True):
    """All trials of a search, which one was selected and why. ``versus`` compares the best of each other family with the overall best."""

    trials: list[TrialResult]
    best: int
    selected: int
    metric: str
    seed: int
    reason: str
    versus: dict[str, Comparison] = {}

    @property
    def family(self) -> str:
        """The family of the selected trial."""
        return self.trials[self.selected].family

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the selected trial."""
        return self.trials[self.selected].params


class HoldoutUse(Record, frozen=True, kw_only=True):
    """One look at a locked hold-out; ``count`` is how many there have been, this one included."""

    id: str
    dataset_version: str
    purpose: str
    by: str
    at: datetime
    count: int


class Holdout(Record, frozen=True, kw_only=True):
    """A dataset version kept for judging. After ``max_uses`` looks (None: no limit) further ones are refused."""

    dataset_version: str
    uses: int
    max_uses: int | None
    locked_at: datetime
