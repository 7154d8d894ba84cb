"""Effects: what steps create in other rooms, recorded while they run, checked on a cache hit, and repeated as references.

A step that committed data or registered a model is taken from the cache like any other, if its effects still exist: the new run
then gets edges to the same things. An effect that cannot be repeated as a reference (a deployment, feedback, an alias that has been
moved since) makes the step run again. What a step writes to tracking runs is not recorded here, except artifacts: use
``context.current().log_metric`` for numbers that a cache hit shall repeat.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mainspring.records.base import from_json, to_json
from mainspring.records.lineage import split_ref
from mainspring.records.pipelines import Effect, RunEffect

if TYPE_CHECKING:
    from mainspring.lineage import Foundation
    from mainspring.storage.sql import Reader, Writer

MAX_EFFECTS = 10_000

_ACTING_ROOMS = frozenset({"deploy", "loop", "labels", "monitoring"})
_ACTIONS = frozenset(
    {"models.approve", "models.remove_alias", "models.rollback", "data.delete_version", "data.erase"}
)


class Collector:
    """An observer of the decisions of one attempt at a step."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []

    def __call__(self, operation: str, arguments: dict[str, Any], result: object) -> None:
        effect = _effect_of_result(operation, arguments, result)
        if effect is not None:
            self.add(effect)

    def add(self, effect: Effect) -> None:
        """Record an effect once; a later move of the same alias replaces the earlier one."""
        if effect.kind in {"alias", "artifact"}:
            self.effects = [e for e in self.effects if (e.kind, e.ref) != (effect.kind, effect.ref)]
        known = any((e.kind, e.ref) == (effect.kind, effect.ref) and e.data for e in self.effects)
        if not known and len(self.effects) < MAX_EFFECTS:
            self.effects.append(effect)

    def with_declared(self, references: Iterable[str]) -> list[Effect]:
        """All recorded effects, and those that the step itself declared with ``produced``."""
        for reference in references:
            kind, _ = split_ref(reference)
            if not any(e.ref == reference for e in self.effects):
                self.add(
                    Effect(
                        kind=kind if kind in {"dataset_version", "model_version"} else "reference",  # type: ignore[arg-type]
                        ref=reference,
                    )
                )
        return self.effects


def _effect_of_result(operation: str, arguments: dict[str, Any], result: object) -> Effect | None:
    room = operation.partition(".")[0]
    if room in _ACTING_ROOMS or operation in _ACTIONS:
        return Effect(kind="action", ref=operation, operation=operation)

    def get(name: str) -> Any:  # results are records of rooms that this one does not import
        return getattr(result, name, None)

    match type(result).__name__:
        case "DatasetVersion":
            return Effect(
                kind="dataset_version",
                ref=f"dataset_version:{get('id')}",
                operation=operation,
                data={"dataset": get("dataset"), "number": get("number")},
            )
        case "ModelVersion":
            return Effect(
                kind="model_version",
                ref=f"model_version:{get('model')}@{get('version')}",
                operation=operation,
                data={"model": get("model"), "version": get("version")},
            )
        case "AliasEvent":
            return Effect(
                kind="alias",
                ref=f"alias:{get('model')}@{get('alias')}",
                operation=operation,
                data={"model": get("model"), "alias": get("alias"), "version": get("version")},
            )
        case "Artifact" if room == "tracking":
            return Effect(
                kind="artifact",
                ref=f"object:{get('digest')}",
                operation=operation,
                data={
                    "run": arguments.get("run"),
                    "path": get("path"),
                    "digest": get("digest"),
                    "size": get("size"),
                },
            )
    return None


def find_missing(tx: Reader, base: Foundation, effects: Iterable[Effect]) -> str | None:
    """Why a result with these effects cannot be taken from the cache; None if all of them still exist."""
    for effect in effects:
        reason = _reason_missing(tx, base, effect)
        if reason is not None:
            return reason
    return None


def _reason_missing(tx: Reader, base: Foundation, effect: Effect) -> str | None:
    match effect.kind:
        case "action":
            return f"it called {effect.ref}, which no earlier result can replace"
        case "dataset_version":
            return _reason_data_missing(tx, base, effect)
        case "model_version":
            return _reason_model_missing(tx, base, effect)
        case "alias":
            from mainspring.models import rows

            model, alias, version = (effect.data[n] for n in ("model", "alias", "version"))
            now = rows.read_alias(tx, base, model, alias)
            if now is None or now.version != version:
                return f"alias {alias} of model {model} does not point at version {version} any more"
        case "artifact":
            if not base.objects.has(effect.data["digest"]):
                return f"artifact {effect.data['path']} that it logged is gone"
        case "reference":
            pass
    return None


def _reason_data_missing(tx: Reader, base: Foundation, effect: Effect) -> str | None:
    ident, dataset = split_ref(effect.ref)[1], effect.data.get("dataset")
    row = tx.first(
        "SELECT tree FROM dataset_versions WHERE project = ? AND id = ? AND deleted_us IS NULL AND (dataset = ? OR ? = '') LIMIT 1",
        base.project, ident, dataset or "", dataset or "",
    )  # fmt: skip
    if row is not None and base.objects.has(str(row["tree"])):
        return None
    named = (
        f"version {effect.data.get('number')} of dataset {dataset}"
        if dataset
        else f"dataset version {ident[:12]}"
    )
    return f"{named}, which it committed, was deleted"


def _reason_model_missing(tx: Reader, base: Foundation, effect: Effect) -> str | None:
    from mainspring.errors import MainspringError
    from mainspring.models import rows

    ident = split_ref(effect.ref)[1]
    model, _, number = ident.rpartition("@")
    try:
        version = rows.read_version(tx, base, model, int(number)) if number.isdecimal() else None
    except MainspringError:
        version = None
    if version is not None and base.objects.has(version.package):
        return None
    return f"model version {ident}, which it registered, is gone"


# --- rows ---------------------------------------------------------------------------------------------------------------


def insert_effects(tx: Writer, project: str, execution: str, effects: Iterable[Effect]) -> None:
    """Store the effects of an execution, in their order."""
    tx.many(
        "INSERT INTO step_effects (project, execution, number, effect) VALUES (?, ?, ?, ?)",
        [(project, execution, n, to_json(e).decode()) for n, e in enumerate(effects, 1)],
    )


def read_effects(tx: Reader, project: str, execution: str) -> list[Effect]:
    """The effects of an execution, in their order."""
    rows = tx.all(
        "SELECT effect FROM step_effects WHERE project = ? AND execution = ? ORDER BY number",
        project,
        execution,
    )
    return [from_json(r["effect"], Effect) for r in rows]


def list_run_effects(tx: Reader, project: str, run: str) -> list[RunEffect]:
    """Effects of the run's finished steps, and of the executions whose results its cached steps took, in the order of the steps."""
    rows = tx.all(
        "SELECT x.step AS step, x.cached_from AS origin, e.effect AS effect FROM step_executions x "
        "JOIN step_effects e ON e.project = x.project AND e.execution = COALESCE(x.cached_from, x.id) "
        "WHERE x.project = ? AND x.run = ? AND x.state IN ('finished', 'cached') ORDER BY x.id, e.number",
        project, run,
    )  # fmt: skip
    return [
        RunEffect(step=r["step"], effect=from_json(r["effect"], Effect), reused=r["origin"] is not None)
        for r in rows
    ]


def is_new_since(tx: Reader, project: str, reference: str, *, since_us: int) -> bool:
    """Whether the thing did not exist before ``since_us`` (machine time, microseconds): only then can a step have caused it."""
    first_us = tx.scalar(
        "SELECT wall_us FROM events WHERE project = ? AND subject = ? AND kind IN ('dataset.committed', 'model.registered') ORDER BY seq LIMIT 1",
        project, reference,
    )  # fmt: skip
    return first_us is None or int(first_us) >= since_us
