"""The gate: a candidate on its locked hold-out, against fixed limits and against the champion on the same rows.

Every comparison is written so that a missing or non-finite number fails it. A gate without rules passes nothing.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from mainspring.errors import InvalidInput, MainspringError, near
from mainspring.records.classes import LabelReader
from mainspring.records.loop import GateRule, RuleResult
from mainspring.records.models import Signature, Task
from mainspring.records.scores import PROBABILITIES, ScoreMeaning, meaning_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from mainspring.models.formats import Predictor

_LATENCY_ROWS = 200
TIME_COLUMN = "event_time"
"""The column with the time of each row of a hold-out, if it is there. A column that the version names itself must be there."""


@dataclass
class HoldoutScores:
    """What a model answered on the hold-out: its scores, and the seconds that each of some single-row calls took."""

    scores: NDArray[np.float64]
    latencies_s: list[float] = field(default_factory=list)
    meaning: ScoreMeaning = PROBABILITIES


def judge(
    rules: list[GateRule],
    *,
    candidate: Predictor,
    champion: Predictor | None,
    rows: pa.Table,
    label: str,
    time_column: str = TIME_COLUMN,
) -> list[RuleResult]:
    """Evaluate every rule, in their order. ``rows``: the hold-out with the inputs, the label and, for day blocks, ``time_column``.

    Raises :class:`InvalidInput` where the hold-out cannot be used for the candidate; a champion that fails on it fails its rules.
    """
    if label not in rows.column_names:
        raise InvalidInput(
            "the hold-out has no label column",
            value=label,
            next_step=f"It has: {', '.join(rows.column_names)}.",
        )
    signature = candidate.signature
    truth = label_array(rows, label, signature)
    blocks = _read_days(rows, time_column)
    candidate_scores = _score_rows(candidate, rows, timed=any(r.metric == "latency_p99_ms" for r in rules))
    champion_scores: HoldoutScores | MainspringError | None = None
    if champion is not None and any(r.versus for r in rules):
        try:
            champion_scores = _score_rows(champion, rows, timed=False)
            champion_scores = _reorder(champion_scores, champion.signature, signature)
        except MainspringError as error:  # a champion that cannot score these rows cannot be beaten on them
            champion_scores = error
    return [
        _evaluate_rule(rule, signature.task, truth, blocks, candidate_scores, champion_scores)
        for rule in rules
    ]


def answers_alike(candidate: Predictor, champion: Predictor, rows: pa.Table) -> bool:
    """Whether both have the same payload, or the same scores (to 9 digits) for every row: then one cannot be better than the other."""
    import numpy as np

    signature = candidate.signature
    if signature == champion.signature and _payload(candidate) == _payload(champion):
        return True
    try:
        ours = _score_rows(candidate, rows, timed=False)
        theirs = _reorder(_score_rows(champion, rows, timed=False), champion.signature, signature)
    except MainspringError:  # the champion answers another question, or cannot read these rows
        return False
    return (
        ours.meaning == theirs.meaning
        and ours.scores.shape == theirs.scores.shape
        and bool(np.allclose(ours.scores, theirs.scores, rtol=1e-9, atol=1e-12))
    )


def _payload(model: Predictor) -> list[tuple[str, str]]:
    return sorted((file.path, file.blake3) for file in model.package.files)


def label_array(rows: pa.Table, label: str, signature: Signature) -> NDArray[np.float64]:
    """Labels as numbers, one per row: 0/1 for binary, class index for multiclass. Raises InvalidInput for a value that is no class."""
    import numpy as np

    reader = LabelReader.of(signature)
    values = rows.column(label).to_pylist()
    numbers = [reader.read(v) for v in values]
    if None in numbers:
        first_bad = numbers.index(None)
        raise reader.refusal(values[first_bad], place=f"row {first_bad} of column {label!r} of the hold-out")
    return np.asarray(numbers, dtype=np.float64)


def _reorder(scored: HoldoutScores, own: Signature, wanted: Signature) -> HoldoutScores:
    """Scores of a model with signature ``own`` in the order of the classes of ``wanted``, matched by value (records.classes).

    Shapes as the model gives them: (rows,) for binary, (rows, classes) for multiclass.

    1, 2, 10 and "1", "10", "2" are the same classes in two orders. Raises :class:`InvalidInput` if they are not the same.
    """
    if own.task is not wanted.task:
        raise InvalidInput(
            "the models have different tasks", value=own.task.value, place=f"expected {wanted.task.value}"
        )
    if own.task in (Task.REGRESSION, Task.VALUES):
        return scored
    reader, other = LabelReader.of(own), LabelReader.of(wanted)
    texts = zip(other.classes, wanted.class_values or other.classes, strict=True)
    places = [next((i for text in pair if (i := reader.read(text)) is not None), None) for pair in texts]
    if None in places or len(set(places)) != len(reader.classes):
        raise InvalidInput(
            f"its classes are {reader.named()}, not {other.named()}, so their scores cannot be compared",
            next_step="Compare models of the same classes.",
        )
    order = [int(i) for i in places if i is not None]
    if order == sorted(order):
        return scored
    if own.task is Task.MULTICLASS:
        return replace(scored, scores=scored.scores[:, order])
    # The classes change places: what spoke for the one speaks against the other.
    whole = 1.0 if scored.meaning.probabilities else 0.0
    meaning = ScoreMeaning(
        probabilities=scored.meaning.probabilities, threshold=whole - scored.meaning.threshold
    )
    return replace(scored, scores=whole - scored.scores, meaning=meaning)


def _score_rows(model: Predictor, rows: pa.Table, *, timed: bool) -> HoldoutScores:
    columns = {c.name: _read_column(rows, c.name) for c in model.signature.inputs}
    scored = HoldoutScores(scores=model.compute_scores(columns), meaning=meaning_of(model.signature))
    if timed:
        for number in range(min(_LATENCY_ROWS, rows.num_rows)):
            row = {name: values[number : number + 1] for name, values in columns.items()}
            start = time.perf_counter()
            model.compute_scores(row)
            scored.latencies_s.append(time.perf_counter() - start)
    return scored


def _read_column(rows: pa.Table, name: str) -> Any:
    import pyarrow as pa

    if name not in rows.column_names:
        raise InvalidInput(
            "the hold-out lacks an input of the model",
            value=name,
            next_step=f"It has: {', '.join(rows.column_names)}.",
        )
    column = rows.column(name)
    if pa.types.is_dictionary(column.type):  # Arrow's own to_numpy gives a null the last of the values
        column = column.cast(column.type.value_type)
    return column.to_numpy(zero_copy_only=False)


def _read_days(rows: pa.Table, column: str) -> NDArray[np.int64] | None:
    """The day of each row by the clock of its zone: rows of one day are not independent. Rows without a time share one.

    None if there is no column of the usual name. Raises :class:`InvalidInput` for one that holds no times: rows taken as independent
    would make the gate too sure.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute

    from mainspring.data.periods import period_keys

    if column not in rows.column_names:
        if column == TIME_COLUMN:
            return None
        raise InvalidInput(
            "the hold-out lacks the time column that the version names",
            value=column,
            next_step=near(column, rows.column_names, what="column"),
        )
    times = rows.column(column)
    kind = times.type
    try:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            zoned = pa.compute.any(pa.compute.match_substring_regex(times, r"(Z|[+-]\d\d:?\d\d)$")).as_py()
            times = times.cast(pa.timestamp("us", "UTC" if zoned else None))
        if not pa.types.is_timestamp(times.type) and not pa.types.is_date(times.type):
            raise pa.ArrowInvalid(f"values of type {kind}")
        keys = period_keys(times, "day")
    except pa.ArrowException as error:
        raise InvalidInput(
            "the time column of the hold-out cannot be read as times, so its days are not known",
            value=str(error)[:200],
            place=f"column {column!r}",
            next_step="Commit it as a timestamp or a date, or name another column in the version's tag 'time_column'.",
        ) from None
    return np.asarray(keys.fill_null(-(2**62)).to_numpy(), dtype=np.int64)


def _evaluate_rule(
    rule: GateRule,
    task: Task,
    truth: NDArray[np.float64],
    blocks: NDArray[np.int64] | None,
    candidate: HoldoutScores,
    champion: HoldoutScores | MainspringError | None,
) -> RuleResult:
    described = {k: v for k, v in msgspec.to_builtins(rule).items() if v is not None}
    if rule.metric == "latency_p99_ms":
        slowest = sorted(candidate.latencies_s)
        value = slowest[min(len(slowest) - 1, int(len(slowest) * 0.99))] * 1000 if slowest else None
        return _check_limits(rule, described, value, len(slowest))
    from mainspring.metrics.registry import metric

    if rule.versus is None:
        measured = metric(rule.metric, task, candidate.meaning)
        return _check_limits(rule, described, measured(truth, candidate.scores), len(truth))
    if champion is None:
        return RuleResult(
            rule=described,
            passed=True,
            value=None,
            rows=len(truth),
            reason="there is no champion to compare with",
        )
    if isinstance(champion, MainspringError):
        return RuleResult(
            rule=described,
            passed=False,
            value=None,
            rows=len(truth),
            reason=f"the champion cannot score the hold-out: {champion.message}",
        )
    return _compare_with_champion(rule, described, task, truth, blocks, candidate, champion)


def _check_limits(rule: GateRule, described: dict[str, Any], value: float | None, rows: int) -> RuleResult:
    if rule.min is None and rule.max is None:
        return RuleResult(
            rule=described,
            passed=False,
            value=value,
            rows=rows,
            reason=f"{rule.metric}: the rule sets no limit",
        )
    finite = value is not None and math.isfinite(value)
    shown = f"{value:.4g}" if finite else "not computable"
    passed = finite and (rule.min is None or value >= rule.min) and (rule.max is None or value <= rule.max)  # type: ignore[operator]
    bounds = " and ".join(
        text
        for text in (
            f">= {rule.min}" if rule.min is not None else "",
            f"<= {rule.max}" if rule.max is not None else "",
        )
        if text
    )
    return RuleResult(
        rule=described,
        passed=passed,
        value=value if finite else None,
        rows=rows,
        reason=f"{rule.metric} is {shown}, must be {bounds}",
    )


def _compare_with_champion(
    rule: GateRule,
    described: dict[str, Any],
    task: Task,
    truth: NDArray[np.float64],
    blocks: NDArray[np.int64] | None,
    candidate: HoldoutScores,
    champion: HoldoutScores,
) -> RuleResult:
    from mainspring.metrics.compare import compare

    margin = rule.max_worse or 0.0
    comparison = compare(
        truth,
        candidate.scores,
        champion.scores,
        task=task,
        name=rule.metric,
        blocks=blocks,
        margin=margin,
        confidence=rule.confidence,
        meanings=(candidate.meaning, champion.meaning),
    )
    worse = comparison.worse_by
    if worse.value is None or not math.isfinite(worse.value):
        return RuleResult(
            rule=described,
            passed=False,
            value=None,
            rows=len(truth),
            reason=f"{rule.metric} cannot be compared on these rows",
        )
    passed = comparison.non_inferior if rule.test == "paired" else worse.value <= margin
    interval = (
        f" [{worse.low:+.4f}, {worse.high:+.4f}]"
        if worse.low is not None and worse.high is not None
        else f" ({worse.reason})"
    )
    verb = "shown to be at most" if rule.test == "paired" else "at most"
    return RuleResult(
        rule=described,
        passed=passed,
        value=worse.value,
        low=worse.low,
        high=worse.high,
        rows=len(truth),
        reason=f"{rule.metric} is {worse.value:+.4f}{interval} against the champion's (positive: worse), must be {verb} {margin:+g}",
    )
