"""``ms.Fitted``: a fitted estimator together with its rows, which is all that registering it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

if TYPE_CHECKING:
    from mainspring.records.data import DatasetVersion


class StepLike(Protocol):
    """What is needed of the context of a step (``pipelines.context.StepContext``)."""

    run: str

    def workspace(self) -> Any: ...
    def log_metric(self, name: str, value: float) -> None: ...
    def used(self, reference: str) -> None: ...
    def produced(self, reference: str) -> None: ...


class ModelOptions(TypedDict, total=False):
    """What may be said of a fitted estimator beside its rows: see :class:`Fitted`."""

    time: str | None
    group: str | None
    metrics: Sequence[str]
    slices: Sequence[str]
    nullable: Sequence[str]
    classes: Sequence[str]
    tags: Mapping[str, str]
    source: DatasetVersion | str | None
    format: str
    seed: int
    replicates: int | None


@dataclass(frozen=True)
class Fitted:
    """A fitted estimator, the rows that it was fitted on, and those that judge it. A step that returns one registers it.

    ``train`` and ``holdout`` are tables (pandas, Polars, Arrow), arrays or lists. ``target`` names the column of the labels in both; or
    it is the labels of ``train`` themselves, and ``holdout`` is then a pair (rows, labels). Without a target (detectors, clusterings,
    transformers) nothing is evaluated. Columns that the estimator does not use may be in the tables: they are kept with the rows.

    ``time`` or ``group`` names the column by which rows depend on one another, for the intervals. ``metrics``: what is measured
    beside what is usual for the task. ``slices``: columns by whose values it is measured, too. ``nullable``: inputs that may be null in
    a request although no row here is. ``classes``: names for the codes 0, 1, ... of the labels. ``source``: the dataset version
    that the rows come from (or its id, or a name such as ``churn@3``), of which the run does not know by itself. ``seed`` and ``replicates`` are of the bootstrap.
    """

    estimator: Any
    train: Any
    target: Any = None
    holdout: Any = None
    name: str = field(kw_only=True)
    """The model's name."""
    time: str | None = field(default=None, kw_only=True)
    group: str | None = field(default=None, kw_only=True)
    metrics: Sequence[str] = field(default=(), kw_only=True)
    slices: Sequence[str] = field(default=(), kw_only=True)
    nullable: Sequence[str] = field(default=(), kw_only=True)
    classes: Sequence[str] = field(default=(), kw_only=True)
    tags: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    source: DatasetVersion | str | None = field(default=None, kw_only=True)
    format: str = field(default="auto", kw_only=True)
    seed: int = field(default=0, kw_only=True)
    replicates: int | None = field(default=None, kw_only=True)

    def __mainspring_output__(self, context: StepLike) -> dict[str, Any]:
        """What a step keeps of it: the registered version's model, number and metrics. Called by the room pipelines."""
        from mainspring.training.registering import StepRun, register_rows

        version = register_rows(context.workspace(), StepRun(context), self)
        context.produced(f"model_version:{version.model}@{version.version}")
        return {"model": version.model, "version": version.version, "metrics": dict(version.metrics)}
