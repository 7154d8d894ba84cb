"""Writing a package: convert, prove on real rows that nothing changed, then write."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mainspring.errors import InvalidInput
from mainspring.models.formats import _open
from mainspring.models.formats.columns import as_estimator_input
from mainspring.models.formats.package import PAYLOADS, describe_file, write_package
from mainspring.models.formats.predictor import Predictor, Scores
from mainspring.models.formats.skops import dump, estimator_scores
from mainspring.models.formats.trust import TrustPolicy
from mainspring.records.models import Package, Parity, Signature, Task

TOLERANCES = {Task.BINARY: 1e-5, Task.MULTICLASS: 1e-5, Task.REGRESSION: 1e-4}
"""Probabilities: absolute. Regression: relative to ``max(|y|, rms(y))``. float32 arithmetic stays well inside both."""

_LIBRARIES = ("scikit-learn", "numpy", "skl2onnx", "onnxruntime", "skops")


class ParityFailed(InvalidInput):
    """The stored payload does not repeat the estimator. ``parity`` has the numbers."""

    code = "parity_failed"
    parity: Parity | None = None


def save_package(
    estimator: Any,
    folder: Path,
    *,
    signature: Signature,
    sample: Mapping[str, Any],
    format: str,  # noqa: A002 - the word the manifest uses
    tolerance: float | None,
    trust: TrustPolicy,
    metrics: Mapping[str, float] | None,
    **provenance: Any,
) -> Package:
    if format not in {*PAYLOADS, "auto"}:
        raise InvalidInput("unknown model format", value=format, next_step="Use 'onnx', 'skops' or 'auto'.")
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput(
            "the folder for a new package is not empty", value=str(folder), next_step="Name a new folder."
        )
    signature = _complete(signature, estimator)
    reference = estimator_scores(estimator, sample, signature)
    if not len(reference):
        raise InvalidInput(
            "the parity sample holds no rows", next_step="Pass at least one real row as sample=."
        )
    if not np.isfinite(reference).all():
        raise InvalidInput("the estimator itself answers NaN or infinity on the sample", place="sample")
    finite, odd = _split_metrics(metrics or {})
    notes = dict(provenance.pop("notes") or {})
    if odd:
        notes["metrics_not_finite"] = odd  # JSON has no NaN; said here rather than lost
    draft = Package(
        format="onnx",
        signature=signature,
        files=[],
        created_at=datetime.now(UTC),
        metrics=finite,
        libraries=_versions(),
        notes=notes,
        example=_example(sample, signature),
        **provenance,
    )
    limit = TOLERANCES[signature.task] if tolerance is None else tolerance
    attempts = ["onnx", "skops"] if format == "auto" else [format]
    for attempt in attempts:
        try:
            package, payload = _attempt(estimator, draft, attempt, sample, reference, limit, trust)
        except InvalidInput as error:
            if attempt == attempts[-1]:
                raise
            draft = msgspec.structs.replace(draft, notes={**draft.notes, "onnx_refused": error.message})
            continue
        write_package(folder, package, {PAYLOADS[attempt]: payload})
        return package
    raise AssertionError  # pragma: no cover - the loop returns or raises


def _attempt(
    estimator: Any,
    draft: Package,
    form: str,
    sample: Mapping[str, Any],
    reference: Scores,
    tolerance: float,
    trust: TrustPolicy,
) -> tuple[Package, bytes]:
    """One format: convert, load it the way everybody will, compare; for ONNX trees a second time with room at the splits."""
    if form != "onnx":
        return _proven(estimator, draft, form, dump(estimator), sample, reference, tolerance, trust)
    from mainspring.models.formats.onnx import convert, with_room_at_splits

    payload = convert(estimator, draft.signature)
    try:
        return _proven(estimator, draft, form, payload, sample, reference, tolerance, trust)
    except ParityFailed:
        features = _tree_features(estimator, sample, draft.signature)
        moved = None if features is None else with_room_at_splits(payload, features)
        if moved is None:
            raise
        noted = msgspec.structs.replace(
            draft,
            notes={
                **draft.notes,
                "tree_thresholds": "moved by at most 1e-6 of their size, away from data values (float32)",
            },
        )
        try:
            return _proven(estimator, noted, form, moved, sample, reference, tolerance, trust)
        except ParityFailed:
            pass
        raise  # the unmoved payload's numbers


def _tree_features(estimator: Any, sample: Mapping[str, Any], signature: Signature) -> Any:
    """What the last step of a pipeline sees of the sample, float32; None where that is unknown."""
    steps = getattr(estimator, "steps", None)
    names = getattr(estimator, "feature_names_in_", None)
    table = as_estimator_input(sample, signature, None if names is None else [str(n) for n in names])
    seen = estimator[:-1].transform(table) if steps and len(steps) > 1 else table
    if not isinstance(seen, np.ndarray) or seen.dtype.kind != "f":
        return None
    return seen.astype(np.float32)  # as ONNX has the thresholds: equal numbers stay equal


def _proven(
    estimator: Any,
    draft: Package,
    form: str,
    payload: bytes,
    sample: Mapping[str, Any],
    reference: Scores,
    tolerance: float,
    trust: TrustPolicy,
) -> tuple[Package, bytes]:
    files = [describe_file(PAYLOADS[form], payload)]
    package = msgspec.structs.replace(draft, format=form, files=files)
    predictor = _open(package, {PAYLOADS[form]: payload}, trust=trust)
    parity = compare(predictor, sample, reference, estimator=estimator, tolerance=tolerance)
    if parity.label_mismatches or not parity.max_abs_difference <= tolerance:
        error = ParityFailed(
            f"the {form} payload does not repeat the estimator on {parity.rows} rows: largest difference "
            f"{parity.max_abs_difference:.3g} (tolerance {tolerance:g}), {parity.label_mismatches} labels differ",
            value=parity.max_abs_difference,
            place=f"{type(estimator).__name__} as {form}",
            next_step='Save it with format="skops", or scale the inputs so that float32 suffices.',
        )
        error.parity = parity
        raise error
    return msgspec.structs.replace(package, parity=parity), payload


def compare(
    predictor: Predictor, sample: Mapping[str, Any], reference: Scores, *, estimator: Any, tolerance: float
) -> Parity:
    """How closely ``predictor`` repeats ``reference`` on ``sample``. Regression differences are relative (see TOLERANCES).

    A label counts as different unless the estimator's two best classes are within ``tolerance``: such a tie is decided by
    rounding, not by the model.
    """
    signature = predictor.signature
    answers = predictor.predict(sample)
    if answers.shape != reference.shape:
        raise InvalidInput(
            "the payload answers in another shape", value=answers.shape, place=f"expected {reference.shape}"
        )
    difference = np.abs(answers - reference)
    if signature.task is Task.REGRESSION:
        scale = np.maximum(np.abs(reference), math.sqrt(float(np.mean(reference**2))))
        difference = difference / np.where(scale > 0, scale, 1.0)
        mismatches = 0
    else:
        wide, ours = _by_class(reference), _by_class(answers)
        best = np.sort(wide, axis=1)
        tie = best[:, -1] - best[:, -2] <= 2 * tolerance
        mismatches = int(np.sum((wide.argmax(axis=1) != ours.argmax(axis=1)) & ~tie))
        mismatches += _own_labels_differ(estimator, sample, signature, wide, tie)
    largest = float(np.max(difference)) if np.isfinite(difference).all() else math.inf
    if not math.isfinite(largest):
        raise InvalidInput(
            "the payload answers NaN or infinity where the estimator does not", place="parity check"
        )
    return Parity(
        rows=len(reference), max_abs_difference=largest, tolerance=tolerance, label_mismatches=mismatches
    )


def _own_labels_differ(
    estimator: Any, sample: Mapping[str, Any], signature: Signature, wide: Scores, tie: Any
) -> int:
    """Rows whose most probable class is not what the estimator itself would say (it may apply another threshold)."""
    names = getattr(estimator, "feature_names_in_", None)
    table = as_estimator_input(sample, signature, None if names is None else [str(n) for n in names])
    said = np.asarray(estimator.predict(table))
    ours = np.asarray(estimator.classes_)[wide.argmax(axis=1)]
    return int(np.sum((said != ours) & ~tie))


def _by_class(scores: Scores) -> Scores:
    return np.column_stack([1 - scores, scores]) if scores.ndim == 1 else scores


def _complete(signature: Signature, estimator: Any) -> Signature:
    """The signature with the estimator's classes, after checking that both mean the same."""
    if not signature.inputs:
        raise InvalidInput("the signature names no input column")
    names = [c.name for c in signature.inputs]
    if len(set(names)) != len(names):
        raise InvalidInput("the signature names a column twice", value=names)
    if signature.task is Task.REGRESSION:
        return signature
    if not hasattr(estimator, "predict_proba"):
        raise InvalidInput(
            "a classifier needs predict_proba",
            value=type(estimator).__name__,
            next_step="Use an estimator that gives probabilities.",
        )
    own = [str(label) for label in estimator.classes_]
    declared = signature.classes or own
    if len(declared) != len(own) or (set(declared) == set(own) and declared != own):
        raise InvalidInput(
            "the classes of the signature are not the estimator's, in its order",
            value=declared,
            place=f"estimator: {own}",
        )
    if signature.task is Task.BINARY and len(own) != 2:
        raise InvalidInput("a binary model has exactly two classes", value=own)
    return msgspec.structs.replace(signature, classes=declared)


def _example(sample: Mapping[str, Any], signature: Signature) -> dict[str, Any]:
    """The first row of the sample with the fewest nulls, as plain values; a number that JSON does not have is null."""
    kinds: dict[str, Any] = {"float64": float, "int64": int, "string": str, "bool": bool}
    columns = {c.name: sample[c.name] for c in signature.inputs if c.name in sample}
    best: dict[str, Any] = {}
    for index in range(min(100, *(len(values) for values in columns.values()))):
        row: dict[str, Any] = {}
        for column in signature.inputs:
            value = (
                np.asarray(columns[column.name][index : index + 1], dtype=object)[0]
                if column.name in columns
                else None
            )
            null = value is None or value != value or value in (math.inf, -math.inf)  # noqa: PLR0124 - NaN and NaT
            row[column.name] = None if null else kinds[column.type](value)
        if not best or _nulls(row) < _nulls(best):
            best = row
        if not _nulls(best):
            break
    return best


def _nulls(row: Mapping[str, Any]) -> int:
    return sum(value is None for value in row.values())


def _split_metrics(metrics: Mapping[str, float]) -> tuple[dict[str, float], dict[str, str]]:
    finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    return finite, {name: repr(float(value)) for name, value in metrics.items() if name not in finite}


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
