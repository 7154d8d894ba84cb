"""Writes a package: converts the estimator, shows that the payload repeats it on rows that a server accepts, then writes the files."""

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

from mainspring.errors import Corrupt, InvalidInput, MainspringError, MissingExtra
from mainspring.models.formats import open_package
from mainspring.models.formats.adapt import adapt, bind
from mainspring.models.formats.answers import (
    compute_values,
    find_meaning,
    missing_method,
    name_values,
    several_answers,
    unwrap_search,
)
from mainspring.models.formats.estimators import (
    NullText,
    estimator_input,
    estimator_scores,
    learned_null,
)
from mainspring.models.formats.model_format import Form, ModelFormat, Payloads, extra_needed
from mainspring.models.formats.package import describe_file, write_package
from mainspring.models.formats.parity import (
    SEED,
    Answers,
    ParityRows,
    as_columns,
    collect_answers,
    known_values,
    make_rows,
    refuse_null_errors,
)
from mainspring.models.formats.predictor import Predictor, Scores
from mainspring.models.formats.signature import infer_for_estimator, name_columns
from mainspring.models.formats.table import list_names, model_format, model_formats, names
from mainspring.models.formats.trust import TrustPolicy
from mainspring.records.models import ClassType, Package, Parity, Signature, Task
from mainspring.records.scores import classes_of, meaning_of

TOLERANCE = 1e-6
"""Default tolerance. Probabilities: absolute. Regression: in units of the standard deviation of the estimator's answers on real rows.
The conversion in ``onnx`` stays below 1e-12; a float32 form must stay within this too."""
_ROUNDING, _SINGLE_ROUNDING = 1e-13, 2.0**-22
"""Relative to a regression's answer: the rounding of float64, which an answer much larger than the spread may show, and that of an
estimator which itself answers in float32 (XGBoost)."""
_TIE = 1e-12
"""Two probabilities that differ by less are equal but for rounding."""


class ParityFailed(InvalidInput):
    """The stored payload does not repeat the estimator. ``parity`` has the numbers."""

    code = "parity_failed"
    parity: Parity | None = None


@dataclass(frozen=True)
class Evidence:
    """The rows to compare on, the estimator's answers to them, and the tolerance."""

    rows: ParityRows
    reference: Answers
    judged: Any
    """Bool of each row: True for the half that takes no part in choosing a form, and so judges the choice without bias."""
    own: Any
    """Position of the class that the estimator itself gives each row (-1: none); None for a regression."""
    spread: Any
    """Standard deviation of the answers on the real rows, of each number by itself; 1 for probabilities."""
    tolerance: float
    rounding: float = _ROUNDING
    """Relative to the answer of a regression."""


def save_package(
    estimator: Any,
    folder: Path,
    *,
    signature: Signature | None,
    sample: Any,
    training: Any,
    format: str,  # noqa: A002 - the word the manifest uses
    tolerance: float | None,
    trust: TrustPolicy,
    metrics: Mapping[str, float] | None,
    **origin: Any,
) -> Package:
    """See :func:`mainspring.models.formats.save`."""
    if format not in {*names(), "auto"}:
        raise InvalidInput(
            "unknown model format", value=format, next_step=f"Use {list_names(', ')} or 'auto'."
        )
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput(
            "the folder for a new package is not empty", value=str(folder), next_step="Name a new folder."
        )
    sample, training = (name_columns(r) if isinstance(r, np.ndarray) else r for r in (sample, training))
    estimator = adapt(unwrap_search(estimator), sample)
    if signature is None:
        tables = [rows for rows in (sample, training) if rows is not None]
        signature = infer_for_estimator(estimator, *tables, outputs=[])
    signature = complete_signature(signature, estimator)
    if (missing := missing_method(estimator, signature)) is not None:
        raise InvalidInput(
            f"the estimator has no {missing}",
            value=type(estimator).__name__,
            place=f"task={signature.task.value!r}",
            next_step="Give the signature the task of the estimator, or fit it first.",
        )
    bind(estimator, signature, [as_columns(rows) for rows in (sample, training) if rows is not None])
    null_text = learned_null(estimator)
    if signature.task is Task.VALUES:
        signature = _name_outputs(signature, estimator, sample, null_text)
    limit = TOLERANCE if tolerance is None else tolerance
    evidence = _collect_evidence(estimator, signature, sample, training, limit)
    known = known_values(estimator, signature, evidence.rows, evidence.reference, null_text)
    finite, not_finite = _split_metrics(metrics or {})
    notes = dict(origin.pop("notes") or {})
    if not_finite:
        notes["metrics_not_finite"] = not_finite  # JSON has no NaN: noted as text rather than lost
    draft = Package(
        format="",  # set when a form is chosen
        signature=signature,
        files=[],
        created_at=datetime.now(UTC),
        metrics=finite,
        notes=notes,
        example=_example(evidence.rows, signature),
        null_text=null_text,
        known=known,
        **origin,
    )
    package, payloads = _choose_form(estimator, draft, format, evidence, trust)
    write_package(folder, package, payloads)
    return package


def _collect_evidence(
    estimator: Any, signature: Signature, sample: Any, training: Any, limit: float
) -> Evidence:
    null_text = learned_null(estimator)
    rows = make_rows(estimator, signature, sample, training, null_text)
    if not rows.kinds:
        raise InvalidInput(
            "the parity sample holds no rows", next_step="Pass at least one real row as sample=."
        )
    score = partial(estimator_scores, estimator, signature=signature, null_text=null_text)
    score(columns=rows.take(range(1)))  # an estimator that does not run at all raises its own error
    reference = collect_answers(score, rows)
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
    own: Any = None
    spread: Any = 1.0
    if not _has_unit(signature):
        # The standard deviation, so that the tolerance has no unit; constant answers have none, so their size is used, and for zeros 1.
        answers = reference.scores[real]
        spread, size = np.std(answers, axis=0), np.max(np.abs(answers), axis=0)
        spread = np.where(spread > 0, spread, np.where(size > 0, size, 1.0))
    if signature.task in (Task.BINARY, Task.MULTICLASS):
        own = _own_classes(estimator, signature, rows, reference)
    rounding = _SINGLE_ROUNDING if _answers_single(estimator, signature, rows) else _ROUNDING
    return Evidence(rows, reference, judged, own, spread, limit, rounding)


def _answers_single(estimator: Any, signature: Signature, rows: ParityRows) -> bool:
    """Whether the estimator's own answers are float32."""
    ask = getattr(estimator, "predict_proba", None) or getattr(estimator, "predict", None)
    if ask is None:
        return False
    answer = ask(estimator_input(estimator, rows.take(range(1)), signature, learned_null(estimator)))
    return bool(getattr(answer, "dtype", None) == np.float32)


def _has_unit(signature: Signature) -> bool:
    """Whether the answers are probabilities, whose differences mean the same for every model."""
    return signature.task in (Task.BINARY, Task.MULTICLASS) and signature.scores == "probability"


def _own_classes(estimator: Any, signature: Signature, rows: ParityRows, reference: Answers) -> Any:
    """The labels that ``predict`` gives each row, as positions in the classes."""
    import warnings

    null_text = learned_null(estimator)
    answered = np.flatnonzero(reference.finite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = np.asarray(
            estimator.predict(estimator_input(estimator, rows.take(answered), signature, null_text))
        )
    if labels.ndim != 1:  # one 0 or 1 for each of several labels
        raise several_answers(estimator)
    own = np.full(len(rows.kinds), -1)
    for position, label in enumerate(estimator.classes_):
        own[answered[labels == label]] = position
    return own


def _choose_form(
    estimator: Any, draft: Package, wanted: str, evidence: Evidence, trust: TrustPolicy
) -> tuple[Package, Payloads]:
    """The first form that repeats the estimator on the choosing half of the rows, and then on all rows.

    A form that is chosen and fails on the judging half is not replaced by the next form of its format: trying forms until one fits
    those rows would make them choosing rows too.
    """
    refusals: list[_Refusal] = []
    chosen: set[str] = set()
    for entry, form in _list_forms(estimator, draft.signature, wanted, refusals):
        if entry.name in chosen:
            continue  # its chosen form failed on the judging half
        try:
            with extra_needed(entry):
                payloads = form.make()
            package = _describe_form(draft, entry, form, payloads, refusals)
            predictor = open_package(package, payloads, trust=trust)
            scored = collect_answers(predictor.compute_scores, evidence.rows)
            _require_parity(predictor, evidence, scored, ~evidence.judged, estimator, entry.name)
            chosen.add(entry.name)
            every = np.ones(len(evidence.judged), dtype=bool)
            parity = _require_parity(predictor, evidence, scored, every, estimator, entry.name)
        except (InvalidInput, Corrupt, MissingExtra) as error:
            refusals.append((entry, form.name, error))
            continue
        return msgspec.structs.replace(package, parity=parity), payloads
    raise _make_refusal(refusals, wanted, estimator)


_Refusal = tuple[ModelFormat, str, MainspringError]


def _list_forms(
    estimator: Any, signature: Signature, wanted: str, refusals: list[_Refusal]
) -> Iterator[tuple[ModelFormat, Form]]:
    """The forms of the wanted format, or with ``auto`` of all formats in the order of the table."""
    for entry in model_formats() if wanted == "auto" else [model_format(wanted)]:
        try:
            with extra_needed(entry):
                forms = list(entry.forms(estimator, signature))
        except MissingExtra as error:
            refusals.append((entry, entry.name, error))
            continue
        for form in forms:
            yield entry, form


def _describe_form(
    draft: Package, entry: ModelFormat, form: Form, payloads: Payloads, refusals: list[_Refusal]
) -> Package:
    """The manifest of this form: its files, the versions of its libraries, and why the forms before it were refused."""
    notes = {**draft.notes, **form.notes}
    if refusals:
        notes["refused"] = {name: error.message[:500] for _, name, error in refusals}
    return msgspec.structs.replace(
        draft,
        format=entry.name,
        files=[describe_file(path, payloads[path]) for path in sorted(payloads)],
        libraries=_read_versions(entry.libraries),
        notes=notes,
    )


def _make_refusal(refusals: list[_Refusal], wanted: str, estimator: Any) -> MainspringError:
    """One error with the reasons of all refusals: ParityFailed if there was one, since it has the numbers."""
    if not refusals:
        return InvalidInput(
            f"{wanted} takes no estimator of this kind",
            value=type(estimator).__name__,
            next_step='Save it with format="auto".',
        )
    if isinstance(last := refusals[-1][2], MissingExtra):
        return last  # no other format could take its place
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
        next_step=_advise(refusals, wanted),
    )
    if isinstance(error, ParityFailed):
        error.parity = failed[0].parity
    return error


_ADVICE = (
    "Use scikit-learn's own classes without functions of your own (do such steps before the model), or let the operator of the loader "
    "allow the class that is named (trust=TrustPolicy(skops_types=...))."
)


def _advise(refusals: list[_Refusal], wanted: str) -> str:
    specific = [entry.instead[str(e.value)] for entry, _, e in refusals if str(e.value) in entry.instead]
    if specific:
        return specific[-1]
    return _ADVICE if wanted == "auto" else refusals[-1][0].next_step


# --- comparing


def _require_parity(
    predictor: Predictor, evidence: Evidence, scored: Answers, chosen: Any, estimator: Any, form: str
) -> Parity:
    parity, worst = compare(predictor, evidence, scored, chosen)
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


def compare(predictor: Predictor, evidence: Evidence, scored: Answers, chosen: Any) -> tuple[Parity, int]:
    """How closely the answers repeat the estimator's on the ``chosen`` rows, and the row that differs most.

    A number where the estimator raises or overflows, or none where it has one, is an infinite difference. A label counts as
    different if it is not what the estimator's own ``predict`` gives; if rounding alone decides between the two most probable classes
    (they differ by less than that of the estimator's own answers, for decision values in units of their spread, and are not equal), both
    labels are right.
    """
    reference, answer = evidence.reference.scores, scored.scores
    if answer.shape != reference.shape and not scored.errors:
        raise InvalidInput(
            "the payload answers in another shape", value=answer.shape, place=f"expected {reference.shape}"
        )
    both = evidence.reference.finite & scored.finite
    size = np.zeros(len(evidence.judged))
    size[evidence.reference.finite != scored.finite] = math.inf
    with np.errstate(all="ignore"):
        difference = np.abs(answer[both] - reference[both])
        if not _has_unit(predictor.signature):
            # Without the rounding of the answer itself: a spread of 1 around an answer of 1e12 cannot show 1e-6.
            rounding = evidence.rounding * np.abs(reference[both])
            difference = np.maximum(difference - rounding, 0.0) / evidence.spread
    size[both] = difference if difference.ndim == 1 else difference.max(axis=1)
    wrong = np.zeros(len(size), dtype=bool)
    if evidence.own is not None:
        threshold = meaning_of(predictor.signature).threshold
        rounding = _TIE if evidence.rounding == _ROUNDING else evidence.rounding
        rounding *= float(np.max(evidence.spread))
        real = (np.arange(len(size)) < evidence.rows.real)[both]
        wrong[both] = _wrong_labels(
            reference[both], answer[both], evidence.own[both], real, threshold=threshold, rounding=rounding
        )
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


_MOST_TIES = 0.01
"""Most real rows whose label may be decided at an exact tie in another way than here; with more, the estimator decides by something else."""


def _wrong_labels(
    reference: Scores, answer: Scores, own: Any, real: Any, *, threshold: float, rounding: float
) -> Any:
    if reference.ndim == 1:
        margin = np.abs(reference - threshold)
    else:
        best = np.sort(reference, axis=1)
        margin = best[:, -1] - best[:, -2]
    labels = classes_of(answer, threshold)
    by_rounding = (margin > 0) & (margin <= rounding)
    # At an exact tie an estimator may decide by more digits than its probabilities show (a margin of 1e-17); here the first class wins.
    exact = (margin == 0) & (own != classes_of(reference, threshold))
    if real.any() and exact[real].mean() > _MOST_TIES:
        exact[:] = False
    return (labels != own) & ~by_rounding & ~exact


# --- the signature


def complete_signature(signature: Signature, estimator: Any) -> Signature:
    """The signature with the estimator's classes; raises InvalidInput if the two disagree, or if a classifier has no probabilities."""
    if not signature.inputs:
        raise InvalidInput("the signature names no input column")
    columns = [c.name for c in signature.inputs]
    if len(set(columns)) != len(columns):
        raise InvalidInput("the signature names a column twice", value=columns)
    if signature.task is Task.VALUES:
        return signature  # the names of its outputs follow from the first row that it answers
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
    if own_classes is None or not hasattr(estimator, "predict"):
        raise InvalidInput(
            "the estimator is no classifier",
            value=type(estimator).__name__,
            place=f"task={signature.task.value!r}",
            next_step="Give the signature the task 'regression' or 'values'.",
        )
    scores, threshold = find_meaning(estimator)
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
        scores=scores,
        threshold=threshold if signature.task is Task.BINARY else None,
    )


def _name_outputs(signature: Signature, estimator: Any, sample: Any, null_text: NullText) -> Signature:
    """The signature with the names of the numbers that the estimator answers."""
    columns = {name: values[:1] for name, values in as_columns(sample).items()}
    width = compute_values(estimator, estimator_input(estimator, columns, signature, null_text)).shape[1]
    outputs = signature.outputs or name_values(estimator, width)
    if len(outputs) != width or len(set(outputs)) != width:
        raise InvalidInput(
            f"the estimator answers {width} numbers for a row, and each needs a name of its own",
            value=outputs,
            place="outputs",
        )
    return msgspec.structs.replace(signature, outputs=outputs)


def _class_type(classes: Any) -> ClassType:
    """The type of an estimator's classes, which decides how labels are compared with them."""
    kinds: dict[str, ClassType] = {"b": "bool", "i": "int64", "u": "int64", "f": "float64"}
    array = np.asarray(classes)
    if array.dtype == object:
        # As pandas gives them: the type of the Python values decides, if they have only one.
        array = np.asarray(list(classes))
        if len({type(c) for c in classes}) != 1:
            return "string"
    return kinds.get(array.dtype.kind, "string")


def _names_codes(names: list[str], classes: Any) -> bool:
    """Whether ``names`` are names for the codes 0, 1, ... (or False, True) that the estimator was fitted on.

    One name for each code, and none that reads like a code: it could be meant as the code.
    """
    codes = [c.item() if isinstance(c, np.generic) else c for c in classes]
    if len(names) != len(codes) or len(set(names)) != len(names):
        return False
    coded = all(isinstance(c, int | float) and c == i for i, c in enumerate(codes))
    return coded and not set(names) & {str(c) for c in codes}


def _example(rows: ParityRows, signature: Signature) -> dict[str, Any]:
    """The real row with the fewest nulls, as plain values; a number that JSON does not have is null."""
    kinds: dict[str, Any] = {
        "float64": float,
        "int64": int,
        "string": str,
        "bool": bool,
        "datetime": datetime.isoformat,
    }
    best: dict[str, Any] = {}
    for index in range(min(100, rows.real)):
        row = {c.name: _plain_value(rows.columns[c.name][index], kinds[c.type]) for c in signature.inputs}
        if not best or _count_nulls(row) < _count_nulls(best):
            best = row
    return best


def _plain_value(value: Any, kind: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return kind(value)


def _count_nulls(row: Mapping[str, Any]) -> int:
    return sum(value is None for value in row.values())


def _split_metrics(metrics: Mapping[str, float]) -> tuple[dict[str, float], dict[str, str]]:
    finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    return finite, {name: repr(float(value)) for name, value in metrics.items() if name not in finite}


def _read_versions(libraries: Sequence[str]) -> dict[str, str]:
    installed = {}
    for name in libraries:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed
