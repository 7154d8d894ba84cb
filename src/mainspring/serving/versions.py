"""Loaded versions: a package that is verified, loaded, warmed up and measured, and what one request of it may cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mainspring.errors import InvalidInput, ModelFailed
from mainspring.records.models import Signature

if TYPE_CHECKING:
    from mainspring.models.formats import Cost

BATCH = 64
"""Rows of the batch that is measured beside a single row."""


class Predictor(Protocol):
    """What a loaded package can do (``models.formats``)."""

    @property
    def signature(self) -> Signature: ...

    def compute_scores(self, columns: Mapping[str, Sequence[Any]], /) -> Any: ...


class Host(Protocol):
    """The processes of its own that a version answers in (:class:`mainspring.serving.hosting.Hosted`)."""

    @property
    def full(self) -> bool: ...

    async def scores(self, columns: Mapping[str, Sequence[Any]], rows: int, *, lane: str) -> Any: ...


@dataclass(frozen=True)
class Version:
    """A verified, loaded and warmed-up package. Up to ``inline_rows`` rows are predicted on the event loop; ``single_us``: microseconds for one.

    It has either a ``predictor`` in this process, or a ``host``: processes of its own, used through :meth:`hosted`.
    """

    package: str
    signature: Signature
    predictor: Predictor | None
    inline_rows: int
    single_us: float
    score_row: Callable[[Sequence[Any]], Any] | None = None
    """Scores one row of values in the order of the signature's inputs; returns None for a row that ``predictor`` must score."""
    host: Host | None = None
    example: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _names(self) -> list[str]:
        return [c.name for c in self.signature.inputs]

    def scores(self, columns: Mapping[str, Sequence[Any]], rows: int, *, finite: bool = True) -> list[Any]:
        """One score for each row (multiclass: a list of probabilities), all finite unless ``finite`` is False.

        Raises :class:`InvalidInput` for a row that the model refuses (a value that it does not know),
        :class:`ModelFailed` if it raises or answers something else.
        """
        predictor = self.predictor
        if predictor is None:
            raise ModelFailed("this model answers in a process of its own")  # callers check ``host`` first
        try:
            if rows == 1 and self.score_row is not None:
                score = self.score_row([columns[name][0] for name in self._names])
                if type(score) is float and (not finite or math.isfinite(score)):
                    return [score]
                answer = predictor.compute_scores(columns).tolist() if score is None else [score]
            else:
                answer = predictor.compute_scores(columns).tolist()
        except InvalidInput:
            raise
        except Exception as error:
            raise ModelFailed(f"the model failed: {type(error).__name__}: {str(error)[:200]}") from error
        return _check_scores(answer, rows, self.signature, finite=finite)

    async def hosted(
        self, host: Host, columns: Mapping[str, Sequence[Any]], rows: int, *, lane: str = "primary"
    ) -> list[Any]:
        """:meth:`scores` in the process of its own; what comes from there is checked here."""
        return _check_scores(await host.scores(columns, rows, lane=lane), rows, self.signature, finite=True)

    def try_rows(self, rows: int) -> None:
        """Predict the example row ``rows`` times in one call; raises if the model cannot."""
        self.scores({name: [value] * rows for name, value in self.example.items()}, rows, finite=False)


def _check_scores(answer: Any, rows: int, signature: Signature, *, finite: bool) -> list[Any]:
    if (
        rows == 1
        and type(answer) is list
        and len(answer) == 1
        and not signature.width
        and _is_number(answer[0], finite)
    ):
        return answer  # the common case, without a generator
    if not isinstance(answer, list) or len(answer) != rows:
        raise ModelFailed(
            "the model answered a wrong number of rows",
            value=len(answer) if isinstance(answer, list) else answer,
        )
    if width := signature.width:
        good = all(
            isinstance(row, list) and len(row) == width and all(_is_number(x, finite) for x in row)
            for row in answer
        )
    else:
        good = all(_is_number(x, finite) for x in answer)
    if not good:
        raise ModelFailed("the model answered something that is not a finite number", value=str(answer)[:80])
    return answer


def _is_number(value: Any, finite: bool) -> bool:
    return type(value) is float and (not finite or math.isfinite(value))


STEP_S = 5e-9
"""Seconds for a row to pass a node of a tree, if some nodes are not in the processor's caches."""

_LONGEST_S = 3.0
"""Most seconds for one request in a thread, which cannot be stopped."""

_SURPRISE_S = 0.1
"""Most seconds for a request on the event loop whose rows reach the deepest leaf of every tree, while the example reached the nearest."""


def open_version(folder: Path, digest: str, *, inline_ms: float, max_rows: int) -> tuple[Version, str | None]:
    """Load and warm up the package in this process; returns it, and why it must not run in a process that others share (None: it may)."""
    from mainspring.models import formats
    from mainspring.models.formats.package import read_package

    package, payloads = read_package(folder)
    predictor: Predictor = formats.open_package(package, payloads)
    cost = formats.prediction_cost(package, payloads)
    why = cost.unbounded
    if why is None and cost.steps * max_rows * STEP_S > _LONGEST_S:
        why = f"its trees may take {cost.steps} steps for a row"
    make_scorer = getattr(predictor, "row_scorer", None)
    score_row = make_scorer() if make_scorer is not None else None
    version = Version(
        package=digest,
        signature=predictor.signature,
        predictor=predictor,
        inline_rows=0,
        single_us=math.nan,
        score_row=score_row,
        example=package.example,
    )
    if not _row_fits(package.example, package.signature):
        version = replace(version, example=_make_row(package.signature))
        try:
            version.try_rows(1)
        except (ModelFailed, InvalidInput) as error:  # a model may rightly refuse a made-up row
            return replace(version, single_us=0.0), why or f"it could not be warmed up: {error.message}"
    single, per_row = _measure(version)
    inline = 0 if why is not None else _inline_rows(version, single, per_row, inline_ms / 1000, cost)
    return replace(version, inline_rows=inline, single_us=single * 1e6), why


def _inline_rows(version: Version, single: float, per_row: float, budget_s: float, cost: Cost) -> int:
    """How many rows the event loop may predict at once within ``budget_s`` seconds, for any values in them.

    The measured times are those of the example. Another row may pass many more nodes of a tree, so the longest paths are counted too. And
    the time may grow with the square of the rows, so only a number of rows that was tried is trusted.
    """
    longest = cost.steps * STEP_S
    # A step costs at least a fifth of entering a tree: so any use of the trees takes at most deepest/5 times the measured time.
    seen_s = min(budget_s, _SURPRISE_S / max(1.0, cost.deepest / 5))
    if single > seen_s or longest > budget_s:
        return 0
    # One row has the fixed costs; each further row costs per_row.
    further = min((seen_s - single) / max(per_row, 1e-9), (budget_s - longest) / max(per_row, longest, 1e-9))
    wanted, rows = 1 + int(min(further, 100_000)), BATCH
    while rows < wanted:
        more = min(2 * rows, wanted)
        try:
            took = _best_time(version, more, repeat=2)
        except ModelFailed:
            return rows
        if took > 2 * seen_s:
            return rows
        rows = more
    return wanted


def _row_fits(row: Mapping[str, Any], signature: Signature) -> bool:
    kinds: dict[str, tuple[type, ...]] = {
        "float64": (float, int),
        "int64": (int,),
        "string": (str,),
        "bool": (bool,),
        "datetime": (str,),
    }
    return row.keys() == {c.name for c in signature.inputs} and all(
        type(row[c.name]) in kinds[c.type] or (row[c.name] is None and c.nullable) for c in signature.inputs
    )


def _make_row(signature: Signature) -> dict[str, Any]:
    """A row that fits the signature, for packages without an example."""
    neutral: dict[str, Any] = {
        "float64": 0.0,
        "int64": 0,
        "string": "a",
        "bool": False,
        "datetime": "2020-01-01",
    }
    return {c.name: None if c.nullable else neutral[c.type] for c in signature.inputs}


def _measure(version: Version, batch: int = BATCH) -> tuple[float, float]:
    """Seconds for one row, and for each further row, measured on the example. Raises if the model cannot predict."""
    single, many = (_best_time(version, rows, repeat=repeat) for rows, repeat in ((1, 5), (batch, 3)))
    return single, max(many - single, 0.0) / (batch - 1)


def _best_time(version: Version, rows: int, *, repeat: int) -> float:
    # The shortest of several runs: other processes only make a run longer.
    best = math.inf
    for _ in range(repeat):
        start = time.perf_counter()
        version.try_rows(rows)
        best = min(best, time.perf_counter() - start)
    return best
