"""Reads single predictions: their record, their causes, the predictions of a model version, two scorers on the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mainspring.clock import from_us
from mainspring.errors import InvalidInput, MainspringError, NotFound
from mainspring.lineage import Foundation
from mainspring.metrics.metric import Floats
from mainspring.monitoring.bins import BinnedColumn
from mainspring.monitoring.drift import compare_column
from mainspring.monitoring.ingest import PREDICTION, journal_records, log_folder, segment_records
from mainspring.monitoring.performance import losses
from mainspring.monitoring.references import References
from mainspring.monitoring.scores import Scored, meaning_for, reader_of, score_array, split_readable
from mainspring.records.base import from_json
from mainspring.records.classes import LabelReader
from mainspring.records.lineage import Edge, ref
from mainspring.records.models import Task
from mainspring.records.monitoring import BlastRadius, Paired, PredictionRecord
from mainspring.records.scores import PROBABILITIES, ScoreMeaning
from mainspring.records.serving import LOG_PREFIX, LoggedPrediction
from mainspring.storage.journal import JournalReader
from mainspring.storage.sql import Reader, Row

_SAMPLE = 20
_MAX_PAIRS = 100_000


def split_id(prediction_id: str) -> tuple[str, int]:
    """``(request, row)``; a bare request id is its row 0."""
    request, _, row = prediction_id.partition("/")
    if not request or (row and not (row.isascii() and row.isdecimal() and len(row) < 10)):
        raise InvalidInput(
            "not a prediction id",
            value=prediction_id,
            next_step="Use the id from the response, or id/row for a row of a batch.",
        )
    return request, int(row or 0)


def read_prediction(base: Foundation, prediction_id: str) -> PredictionRecord:
    """One predicted row, with its inputs from the log and its label if it has one."""
    request, number = split_id(prediction_id)
    where, key = "project = ? AND request = ? AND row_no = ?", (base.project, request, number)
    with base.store.read() as tx:
        row = tx.first(f"SELECT * FROM predictions WHERE {where}", *key)
        if row is None:
            raise NotFound(
                "no such prediction",
                value=prediction_id,
                next_step="It may not be ingested yet: try again in a moment.",
            )
        label = tx.first(f"SELECT value, arrived_us FROM labelled_predictions WHERE {where}", *key)
        shadows = tx.all(
            f"SELECT name, score, scores FROM shadow_predictions WHERE {where} ORDER BY name", *key
        )
    logged = _read_logged(base, request)
    inputs = None
    if logged is not None and all(len(v) > number for v in logged.columns.values()):
        inputs = {name: values[number] for name, values in logged.columns.items()}
    return PredictionRecord(
        id=f"{request}/{number}",
        deployment=row["deployment"],
        model=row["model"],
        version=row["version"],
        role=row["role"],
        event_time=from_us(row["event_us"]),
        latency_us=row["latency_us"],
        routes=row["routes"],
        status=row["status"],
        score=row["score"],
        scores=from_json(row["scores"]) if row["scores"] else None,
        inputs=inputs,
        label=from_json(label["value"]) if label else None,
        label_arrived_at=from_us(label["arrived_us"]) if label else None,
        shadows={s["name"]: from_json(s["scores"]) if s["scores"] else s["score"] for s in shadows},
    )


def _read_logged(base: Foundation, request: str) -> LoggedPrediction | None:
    """The log record of a request: from an archived segment, else from the segments still in the bundle."""
    with base.store.read() as tx:
        rows = tx.all(
            "SELECT name, digest FROM log_segments WHERE project = ? AND min_id <= ? AND max_id >= ? ORDER BY name",
            base.project,
            request,
            request,
        )
    for row in rows:
        try:
            data = base.objects.read(row["digest"])
        except MainspringError:
            continue  # the row itself is still worth showing
        for record in segment_records(data, row["name"]):
            if record.id == request:
                return record
    return next(
        (r for r in journal_records(JournalReader(log_folder(base), LOG_PREFIX)) if r.id == request), None
    )


def list_prediction_causes(base: Foundation, ident: str) -> list[Edge]:
    """Edges into a prediction: the model version that scored it, the deployment whose route table chose that version."""
    request, number = split_id(ident)
    with base.store.read() as tx:
        row = tx.first(
            "SELECT deployment, model, version, role, at_us FROM predictions WHERE project = ? AND request = ? AND row_no = ?",
            base.project,
            request,
            number,
        )
    if row is None:
        return []
    here, at = ref("prediction", ident), from_us(row["at_us"])
    return [
        Edge(
            source=ref("model_version", f"{row['model']}@{row['version']}"),
            target=here,
            kind="predicted",
            at=at,
        ),
        Edge(
            source=ref("deployment", row["deployment"]), target=here, kind=f"routed as {row['role']}", at=at
        ),
    ]


def read_prediction_facts(base: Foundation, ident: str) -> dict[str, object] | None:
    """Short facts of a prediction, or None if it is not known."""
    try:
        record = read_prediction(base, ident)
    except (NotFound, InvalidInput):
        return None
    return {
        "deployment": record.deployment,
        "model_version": f"{record.model}@{record.version}",
        "role": record.role,
        "at": record.event_time.isoformat(),
        "routes": record.routes,
        "score": record.score if record.scores is None else record.scores,
        "label": record.label,
        "inputs": record.inputs,
    }


def split_version(ident: str) -> tuple[str, int] | None:
    """``(model, number)`` of the id of a model version, e.g. ``delay@3``."""
    model, at, number = ident.rpartition("@")
    return (
        (model, int(number)) if at and number.isdecimal() and number.isascii() and len(number) < 18 else None
    )


def list_prediction_effects(base: Foundation, model_version: str) -> list[Edge]:
    """Edges from a model version to a bounded sample of its predictions (the first ones). Counts: :func:`read_blast_radius`."""
    version = split_version(model_version)
    if version is None:
        return []
    radius = read_blast_radius(base, *version)
    source = ref("model_version", model_version)
    return [Edge(source=source, target=ref("prediction", p), kind="predicted") for p in radius.sample]


def read_blast_radius(base: Foundation, model: str, version: int) -> BlastRadius:
    """How many predictions a model version made, and a sample of their ids."""
    where, key = "project = ? AND model = ? AND version = ?", (base.project, model, version)
    with base.store.read() as tx:
        total = tx.all(
            f"SELECT count(*) AS n, min(at_us) AS first, max(at_us) AS last FROM predictions WHERE {where} AND status = 'ok'",
            *key,
        )[0]
        shadows = tx.scalar(
            f"SELECT count(*) AS n FROM shadow_predictions WHERE {where} AND status = 'ok'", *key
        )
        sample = tx.all(
            f"SELECT request, row_no FROM predictions WHERE {where} AND status = 'ok' ORDER BY at_us, request, row_no LIMIT ?",
            *key,
            _SAMPLE,
        )
    return BlastRadius(
        model=model,
        version=version,
        predictions=int(total["n"]),
        shadow_predictions=int(shadows),
        first=from_us(total["first"]) if total["n"] else None,
        last=from_us(total["last"]) if total["n"] else None,
        sample=[f"{r['request']}/{r['row_no']}" for r in sample],
    )


def iterate_predictions(base: Foundation, model: str, version: int, *, batch: int = 2_000) -> Iterator[str]:
    """Ids of all predictions of a model version, in time order, in bounded memory."""
    # Pages by keyset along the index of model, version and time: an OFFSET would read all rows before it for every page.
    at, request, row = -(2**62), "", -1
    while True:
        with base.store.read() as tx:
            rows = tx.all(
                "SELECT request, row_no, at_us FROM predictions WHERE project = ? AND model = ? AND version = ? AND status = 'ok'"
                " AND (at_us > ? OR (at_us = ? AND (request > ? OR (request = ? AND row_no > ?)))) ORDER BY at_us, request, row_no LIMIT ?",
                base.project, model, version, at, at, request, request, row, batch,
            )  # fmt: skip
        if not rows:
            return
        at, request, row = rows[-1]["at_us"], rows[-1]["request"], rows[-1]["row_no"]
        yield from (f"{r['request']}/{r['row_no']}" for r in rows)


# --- two scorers on the same rows -------------------------------------------------------------------------------------


def compare_scorers(
    base: Foundation,
    references: References,
    deployment: str,
    a: str,
    b: str,
    since_us: int,
    until_us: int,
    min_rows: int,
) -> Paired:
    """Compare two scorers on the rows that both scored. ``a`` and ``b`` name a version by its number, or a shadow by its name.

    Errors count whether or not the other scored the row: where a canary fails the champion answers, and no shadow
    of the champion is run beside it.
    """
    with base.store.read() as tx:
        rows_a = _read_scored(tx, base.project, deployment, a, since_us, until_us)
        rows_b = _read_scored(tx, base.project, deployment, b, since_us, until_us)
        labels = {
            (r["request"], r["row_no"]): r["value"]
            for r in tx.all(
                "SELECT request, row_no, value FROM labelled_predictions WHERE project = ? AND deployment = ? AND at_us >= ? AND at_us < ? ORDER BY at_us DESC LIMIT ?",
                base.project, deployment, since_us, until_us, _MAX_PAIRS,
            )
        }  # fmt: skip
    both = sorted(rows_a.keys() & rows_b.keys(), key=lambda k: (rows_a[k]["at_us"], k))
    answered = [k for k in both if _has_score(rows_a[k]) and _has_score(rows_b[k])]
    truncated = len(rows_a) >= _MAX_PAIRS or len(rows_b) >= _MAX_PAIRS
    reader = LabelReader(Task.BINARY)
    if answered:
        sample = [dict(rows_a[k], value=labels.get(k, "0")) for k in answered[:200]]
        reader = reader_of(references, Scored(sample[0]["model"], sample[0]["version"], sample))
    task = reader.task
    labelled_rows = [dict(rows_a[k], value=labels[k], key=k) for k in answered if k in labels]
    usable_rows, y, _ = split_readable(labelled_rows, reader)
    scores_a = score_array(usable_rows) if usable_rows else None
    scores_b = score_array([rows_b[r["key"]] for r in usable_rows]) if usable_rows else None
    meanings = [_meaning_of_first(references, rows, answered) for rows in (rows_a, rows_b)]
    loss, name = "log_loss", "log_loss"
    if task is Task.REGRESSION:
        loss, name = "squared_error", "mse"
    elif not all(m.probabilities for m in meanings):
        loss, name = "error", "accuracy"
    usable = scores_a is not None and scores_b is not None and scores_a.shape == scores_b.shape
    loss_a = _row_losses(scores_a, y, task, name, meanings[0]) if usable else []
    loss_b = _row_losses(scores_b, y, task, name, meanings[1]) if usable else []
    usable = bool(loss_a) and bool(loss_b)
    if not usable:
        loss_a = loss_b = []
    return Paired(
        a=a, b=b, loss=loss, rows=len(answered), labelled=len(loss_a),
        errors_a=_count_errors(rows_a), errors_b=_count_errors(rows_b),
        score_shift=_score_shift([rows_b[k] for k in answered], [rows_a[k] for k in answered], min_rows, task),
        at_us=[r["at_us"] for r in usable_rows] if usable else [], loss_a=loss_a, loss_b=loss_b, truncated=truncated,
    )  # fmt: skip


def _meaning_of_first(
    references: References, rows: dict[tuple[str, int], Row], keys: list[tuple[str, int]]
) -> ScoreMeaning:
    """What the scores of a scorer mean: of the version that made the first of its rows."""
    if not keys:
        return PROBABILITIES
    return meaning_for(references, rows[keys[0]]["model"], rows[keys[0]]["version"])


def _row_losses(
    scores: Floats | None, y: Floats, task: Task, name: str, meaning: ScoreMeaning
) -> list[float]:
    """Loss per row, finite: an error too large for a number counts as 1e300. Empty if the scores are not those of this task."""
    if scores is None:
        return []
    try:
        values = losses(scores, y, task, meaning)[name].tolist()
    except (InvalidInput, KeyError):  # KeyError: a task without labels has no losses
        return []
    return [1.0 - v for v in values] if name == "accuracy" else [min(v, 1e300) for v in values]


def _count_errors(rows: dict[tuple[str, int], Row]) -> int:
    return sum(1 for row in rows.values() if row["status"] != "ok")


def _has_score(row: Row) -> bool:
    return row["status"] == "ok" and (row["score"] is not None or bool(row["scores"]))


def _read_scored(
    tx: Reader, project: str, deployment: str, who: str, since_us: int, until_us: int
) -> dict[tuple[str, int], Row]:
    columns = "request, row_no, model, version, at_us, status, score, scores"
    where = "project = ? AND deployment = ? AND at_us >= ? AND at_us < ?"
    values: tuple[Any, ...] = (project, deployment, since_us, until_us)
    name = who.removeprefix("shadow:")
    rows: list[Row] = []
    if name.isascii() and name.isdecimal() and name == who:
        rows += tx.all(
            f"SELECT {columns} FROM shadow_predictions WHERE {where} AND version = ? ORDER BY at_us DESC LIMIT ?",
            *values,
            int(name),
            _MAX_PAIRS,
        )
        rows += tx.all(
            f"SELECT {columns} FROM predictions WHERE {where} AND version = ? ORDER BY at_us DESC LIMIT ?",
            *values,
            int(name),
            _MAX_PAIRS,
        )
    else:
        rows += tx.all(
            f"SELECT {columns} FROM shadow_predictions WHERE {where} AND name = ? ORDER BY at_us DESC LIMIT ?",
            *values,
            name,
            _MAX_PAIRS,
        )
    # Answers come last: on the same row an answer replaces the shadow of the same version.
    return {(r["request"], r["row_no"]): r for r in rows}


def _score_shift(reference: list[Row], current: list[Row], min_rows: int, task: Task) -> float | None:
    """Bias-corrected PSI of the current scores against the reference's; None below ``min_rows`` rows or without comparable scores.

    Multiclass: of the predicted class; several numbers: of the first.
    """
    from mainspring.data.profile import ProfileBuilder

    if len(reference) < max(2, min_rows):
        return None
    arrays = [score_array(reference), score_array(current)]
    if any(x is None for x in arrays):
        return None
    columns = []
    for array in arrays:
        assert array is not None  # noqa: S101 - narrowed above
        values: Any = array if array.ndim == 1 else [f"class {i}" for i in np.argmax(array, axis=1)]
        if task is Task.VALUES and array.ndim == 2:
            values = array[:, 0]
        columns.append(ProfileBuilder(k=4096).add({PREDICTION: values}).build().columns[0])
    if columns[0].type != columns[1].type and "string" in {c.type for c in columns}:
        return None
    binned = BinnedColumn(columns[0], 10)
    return compare_column(binned, [binned.count(columns[1])], threshold=1.0, min_rows=2).psi
