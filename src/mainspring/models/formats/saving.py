"""Writing a package: convert, prove that nothing changed on what a server admits, then write."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mainspring.errors import InvalidInput, MainspringError, MissingExtra
from mainspring.models.formats import open_package
from mainspring.models.formats.estimators import (
    estimator_input,
    estimator_scores,
    learned_null,
    several_answers,
)
from mainspring.models.formats.model_format import Form, ModelFormat, Payloads, extra_needed
from mainspring.models.formats.package import describe_file, write_package
from mainspring.models.formats.parity import (
    SEED,
    Answers,
    ParityRows,
    answers,
    known_values,
    make_rows,
    refuse_null_errors,
)
from mainspring.models.formats.predictor import Predictor, Scores
from mainspring.models.formats.table import listed, model_format, model_formats, names
from mainspring.models.formats.trust import TrustPolicy
from mainspring.records.models import ClassType, Package, Parity, Signature, Task
from mainspring.records.scores import classes_of

TOLERANCE = 1e-6
"""Probabilities: absolute. Regression: in units of the spread of the estimator's answers on real rows. Our own conversion
stays below 1e-12; a float32 form must stay within this too."""
_ROUNDING = 1e-13
"""Relative, of a regression: what float64 itself may lose on an answer far from the spread."""

_OWN_THRESHOLD = frozenset({"FixedThresholdClassifier", "TunedThresholdClassifierCV"})


class ParityFailed(InvalidInput):
    """The stored payload does not repeat the estimator. ``parity`` has the numbers."""

    code = "parity_failed"
    parity: Parity | None = None


@dataclass(frozen=True)
class Evidence:
    """The rows, the estimator's answers, and the yardstick. ``judged``: rows that choose nothing."""

    rows: ParityRows
    reference: Answers
    judged: Any
    own: Any
    """The class that the estimator itself gives each row (-1: none); None for a regression."""
    spread: float
    tolerance: float


def save_package(
    estimator: Any,
    folder: Path,
    *,
    signature: Signature,
    sample: Any,
    training: Any,
    format: str,  # noqa: A002 - the word the manifest uses
    tolerance: float | None,
    trust: TrustPolicy,
    metrics: Mapping[str, float] | None,
    **provenance: Any,
) -> Package:
    if format not in {*names(), "auto"}:
        raise InvalidInput("unknown model format", value=format, next_step=f"Use {listed(', ')} or 'auto'.")
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput(
            "the folder for a new package is not empty", value=str(folder), next_step="Name a new folder."
        )
    signature = complete(signature, estimator)
    null_text = learned_null(estimator)
    limit = TOLERANCE if tolerance is None else tolerance
    evidence = _evidence(estimator, signature, sample, training, limit)
    known = known_values(estimator, signature, evidence.rows, evidence.reference, null_text)
    finite, odd = _split_metrics(metrics or {})
    notes = dict(provenance.pop("notes") or {})
    if odd:
        notes["metrics_not_finite"] = odd  # JSON has no NaN; said here rather than lost
    draft = Package(
        format="",  # the form that holds decides
        signature=signature,
        files=[],
        created_at=datetime.now(UTC),
        metrics=finite,
        notes=notes,
        example=_example(evidence.rows, signature),
        null_text=null_text,
        known=known,
        **provenance,
    )
    package, payloads = _first_that_holds(estimator, draft, format, evidence, trust)
    write_package(folder, package, payloads)
    return package


def _evidence(estimator: Any, signature: Signature, sample: Any, training: Any, limit: float) -> Evidence:
    null_text = learned_null(estimator)
    rows = make_rows(estimator, signature, sample, training, null_text)
    if not rows.kinds:
        raise InvalidInput(
            "the parity sample holds no rows", next_step="Pass at least one real row as sample=."
        )
    score = partial(estimator_scores, estimator, signature=signature, null_text=null_text)
    score(rows.take(range(1)))  # an estimator that does not run at all says so in its own words
    reference = answers(score, rows)
    real = np.arange(len(rows.kinds)) < rows.real
    if failed := sorted(row for row in reference.errors if row < rows.real):
        raise InvalidInput(
            f"the estimator raises an error on a real row: {reference.errors[failed[0]]}",
            value=failed[0],
            place="sample",
            next_step="Pass rows as the estimator had them in training.",
        )
    if not reference.finite[real].all():
        raise InvalidInput("the estimator itself answers NaN or infinity on the sample", place="sample")
    refuse_null_errors(rows, reference)
    judged = np.random.default_rng(SEED + 1).permutation(len(rows.kinds)) % 2 == 1
    own, spread = None, 1.0
    if signature.task is Task.REGRESSION:
        spread = float(np.std(reference.scores[real])) or float(np.max(np.abs(reference.scores[real]))) or 1.0
    else:
        own = _own_classes(estimator, signature, rows, reference)
    return Evidence(rows, reference, judged, own, spread, limit)


def _own_classes(estimator: Any, signature: Signature, rows: ParityRows, reference: Answers) -> Any:
    """What ``predict`` says, as positions in the classes."""
    import warnings

    null_text = learned_null(estimator)
    sound = np.flatnonzero(reference.finite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = np.asarray(
            estimator.predict(estimator_input(estimator, rows.take(sound), signature, null_text))
        )
    if said.ndim != 1:  # one 0 or 1 for each of several labels
        raise several_answers(estimator)
    own = np.full(len(rows.kinds), -1)
    for position, label in enumerate(estimator.classes_):
        own[sound[said == label]] = position
    return own


def _first_that_holds(
    estimator: Any, draft: Package, wanted: str, evidence: Evidence, trust: TrustPolicy
) -> tuple[Package, Payloads]:
    """The first form that repeats the estimator on the rows that choose; it must then hold on the rows that do not."""
    refusals: list[_Refusal] = []
    chosen: set[str] = set()
    for entry, form in _forms(estimator, draft.signature, wanted, refusals):
        if entry.name in chosen:
            continue  # this format has had its choice, and was refused by rows that may not choose another
        try:
            with extra_needed(entry):
                payloads = form.make()
            package = _described(draft, entry, form, payloads, refusals)
            predictor = open_package(package, payloads, trust=trust)
            found = answers(predictor.predict, evidence.rows)
            _require(predictor, evidence, found, ~evidence.judged, estimator, entry.name)
            chosen.add(entry.name)
            every = np.ones(len(evidence.judged), dtype=bool)
            parity = _require(predictor, evidence, found, every, estimator, entry.name)
        except (InvalidInput, MissingExtra) as error:
            refusals.append((entry, form.name, error))
            continue
        return msgspec.structs.replace(package, parity=parity), payloads
    raise _refused(refusals, wanted, estimator)


_Refusal = tuple[ModelFormat, str, MainspringError]


def _forms(
    estimator: Any, signature: Signature, wanted: str, refusals: list[_Refusal]
) -> Iterator[tuple[ModelFormat, Form]]:
    """The forms of the format that is wanted, or of all in the order of the table."""
    for entry in model_formats() if wanted == "auto" else [model_format(wanted)]:
        try:
            with extra_needed(entry):
                forms = list(entry.forms(estimator, signature))
        except MissingExtra as error:
            refusals.append((entry, entry.name, error))
            continue
        for form in forms:
            yield entry, form


def _described(
    draft: Package, entry: ModelFormat, form: Form, payloads: Payloads, refusals: list[_Refusal]
) -> Package:
    """The manifest of this form: its files, the versions of its libraries, and why others were not taken."""
    notes = {**draft.notes, **form.notes}
    if refusals:
        notes["refused"] = {name: error.message[:500] for _, name, error in refusals}
    return msgspec.structs.replace(
        draft,
        format=entry.name,
        files=[describe_file(path, payloads[path]) for path in sorted(payloads)],
        libraries=_versions(entry.libraries),
        notes=notes,
    )


def _refused(refusals: list[_Refusal], wanted: str, estimator: Any) -> MainspringError:
    """One error with every reason, of the kind that says most."""
    if not refusals:
        return InvalidInput(
            f"{wanted} takes no estimator of this kind",
            value=type(estimator).__name__,
            next_step='Save it with format="auto".',
        )
    if isinstance(last := refusals[-1][2], MissingExtra):
        return last  # no format behind it made up for it
    failed = [e for _, _, e in refusals if isinstance(e, ParityFailed)]
    kind: type[MainspringError] = ParityFailed if failed else InvalidInput
    if len(refusals) == 1 and not failed:
        kind = type(last)
    reasons = "; ".join(f"{name}: {error.message}" for _, name, error in refusals)
    subject = "no format stores" if wanted == "auto" else f"{wanted} does not store"
    error = kind(
        f"{subject} this estimator as it is: {reasons}",
        value=refusals[0][2].value,
        place=refusals[0][2].place,
        next_step=_way_out(refusals, wanted),
    )
    if isinstance(error, ParityFailed):
        error.parity = failed[0].parity
    return error


_WAY_OUT = (
    "Use scikit-learn's own classes without functions of your own (do such steps before the model), or let the operator of the loader "
    "allow the class that is named (trust=TrustPolicy(skops_types=...))."
)


def _way_out(refusals: list[_Refusal], wanted: str) -> str:
    specific = [entry.instead[str(e.value)] for entry, _, e in refusals if str(e.value) in entry.instead]
    if specific:
        return specific[-1]
    return _WAY_OUT if wanted == "auto" else refusals[-1][0].next_step


# --- comparing


def _require(
    predictor: Predictor, evidence: Evidence, found: Answers, chosen: Any, estimator: Any, form: str
) -> Parity:
    parity, worst = compare(predictor, evidence, found, chosen)
    if not parity.label_mismatches and parity.max_abs_difference <= parity.tolerance:
        return parity
    kind, column = evidence.rows.kinds[worst]
    error = ParityFailed(
        f"it does not repeat the estimator on {parity.rows} rows: largest difference {parity.max_abs_difference:.3g} "
        f"(tolerance {parity.tolerance:g}), {parity.label_mismatches} labels differ, for example on a row for "
        f"{kind}{f' in {column!r}' if column else ''}",
        value=parity.max_abs_difference,
        place=f"{type(estimator).__name__} as {form}",
    )
    error.parity = parity
    raise error


def compare(predictor: Predictor, evidence: Evidence, found: Answers, chosen: Any) -> tuple[Parity, int]:
    """How closely the answers repeat the estimator's on the ``chosen`` rows, and the row that differs most.

    A number where the estimator raises or overflows, or none where it has one, is an infinite difference. A label counts as
    different if it is not what the estimator's own ``predict`` says; where rounding alone decides between the two best
    classes (a difference up to 1e-12, other than none at all), either is right.
    """
    reference, answer = evidence.reference.scores, found.scores
    if answer.shape != reference.shape and not found.errors:
        raise InvalidInput(
            "the payload answers in another shape", value=answer.shape, place=f"expected {reference.shape}"
        )
    both = evidence.reference.finite & found.finite
    size = np.zeros(len(evidence.judged))
    size[evidence.reference.finite != found.finite] = math.inf
    with np.errstate(all="ignore"):
        difference = np.abs(answer[both] - reference[both])
        if predictor.signature.task is Task.REGRESSION:
            rounding = _ROUNDING * np.abs(reference[both])
            difference = np.maximum(difference - rounding, 0.0) / evidence.spread
    size[both] = difference if difference.ndim == 1 else difference.max(axis=1)
    wrong = np.zeros(len(size), dtype=bool)
    if evidence.own is not None:
        wrong[both] = _wrong_labels(reference[both], answer[both], evidence.own[both])
    rows = chosen.nonzero()[0]
    worst = rows[int(np.argmax(np.where(wrong[rows], np.inf, size[rows])))]
    parity = Parity(
        rows=len(rows),
        max_abs_difference=min(float(np.max(size[rows])), 1e308),  # JSON has no infinity
        tolerance=evidence.tolerance,
        label_mismatches=int(wrong[rows].sum()),
        generated=int((rows >= evidence.rows.real).sum()),
        judged=int(evidence.judged[rows].sum()),
        refused=int((~evidence.reference.finite[rows]).sum()),
    )
    return parity, int(worst)


def _wrong_labels(reference: Scores, answer: Scores, own: Any) -> Any:
    wide = np.column_stack([1 - reference, reference]) if reference.ndim == 1 else reference
    best = np.sort(wide, axis=1)
    margin = best[:, -1] - best[:, -2]
    said = classes_of(answer)
    by_rounding = (margin > 0) & (margin <= 1e-12)
    # At an exact tie an estimator may decide by more than its probabilities (a margin of 1e-17); the rule is the first class.
    exact = (margin == 0) & (own != classes_of(reference))
    return (said != own) & ~by_rounding & ~exact


# --- the signature


def complete(signature: Signature, estimator: Any) -> Signature:
    """The signature with the estimator's classes, after checking that both mean the same."""
    if not signature.inputs:
        raise InvalidInput("the signature names no input column")
    columns = [c.name for c in signature.inputs]
    if len(set(columns)) != len(columns):
        raise InvalidInput("the signature names a column twice", value=columns)
    if type(estimator).__name__ in _OWN_THRESHOLD:
        raise InvalidInput(
            "the estimator decides by a threshold of its own; a package stores probabilities, and the label is the most probable class",
            value=type(estimator).__name__,
            next_step="Save the fitted estimator inside (.estimator_) and apply the threshold to its score where the decision is made.",
        )
    own_classes = getattr(estimator, "classes_", None)
    if isinstance(own_classes, list):
        raise several_answers(estimator)
    if signature.task is Task.REGRESSION:
        if own_classes is not None and np.asarray(own_classes).dtype.kind not in "biuf":
            raise InvalidInput(
                "the estimator answers classes, not numbers",
                value=type(estimator).__name__,
                place="task='regression'",
                next_step="Give the signature the task 'binary' or 'multiclass'.",
            )
        return signature
    if not hasattr(estimator, "predict_proba"):
        raise InvalidInput(
            "a classifier needs predict_proba",
            value=type(estimator).__name__,
            next_step="Use an estimator that gives probabilities, or wrap it in CalibratedClassifierCV.",
        )
    own = [str(label) for label in estimator.classes_]
    if signature.task is Task.BINARY and len(own) != 2:
        raise InvalidInput("a binary model has exactly two classes", value=own)
    names = signature.classes or own
    if names != own and not _names_codes(names, estimator.classes_):
        raise InvalidInput(
            "the classes of the signature are not the estimator's, in its order",
            value=signature.classes,
            place=f"estimator: {own}",
            next_step="Leave the classes of the signature empty to take the estimator's, or fit on labels of those names.",
        )
    return msgspec.structs.replace(
        signature,
        classes=names,
        class_type=_class_type(estimator.classes_),
        class_values=[] if names == own else own,
    )


def _class_type(classes: Any) -> ClassType:
    """The type of an estimator's classes, by which labels will be matched."""
    kinds: dict[str, ClassType] = {"b": "bool", "i": "int64", "u": "int64", "f": "float64"}
    array = np.asarray(classes)
    if array.dtype == object:  # as pandas gives them; one Python type says it
        array = np.asarray(list(classes))
        if len({type(c) for c in classes}) != 1:
            return "string"
    return kinds.get(array.dtype.kind, "string")


def _names_codes(names: list[str], classes: Any) -> bool:
    """Whether ``names`` name the codes 0, 1, ... (or False, True) that the estimator was fitted on: one each, none a code."""
    codes = [c.item() if isinstance(c, np.generic) else c for c in classes]
    if len(names) != len(codes) or len(set(names)) != len(names):
        return False
    coded = all(isinstance(c, int | float) and c == i for i, c in enumerate(codes))
    return coded and not set(names) & {str(c) for c in codes}


def _example(rows: ParityRows, signature: Signature) -> dict[str, Any]:
    """The real row with the fewest nulls, as plain values; a number that JSON does not have is null."""
    kinds: dict[str, Any] = {"float64": float, "int64": int, "string": str, "bool": bool}
    best: dict[str, Any] = {}
    for index in range(min(100, rows.real)):
        row = {c.name: _plain(rows.columns[c.name][index], kinds[c.type]) for c in signature.inputs}
        if not best or _nulls(row) < _nulls(best):
            best = row
    return best


def _plain(value: Any, kind: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return kind(value)


def _nulls(row: Mapping[str, Any]) -> int:
    return sum(value is None for value in row.values())


def _split_metrics(metrics: Mapping[str, float]) -> tuple[dict[str, float], dict[str, str]]:
    finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    return finite, {name: repr(float(value)) for name, value in metrics.items() if name not in finite}


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
