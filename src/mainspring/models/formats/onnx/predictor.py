"""Prediction by ONNX Runtime.

One row must be cheap, so a package has at most two inputs: ``numeric`` (``[n, numbers]``, float64; float32 in packages of 0.1
and where no exact form exists) and ``text`` (strings ``[n, texts]``), in the order of the signature. Twelve inputs of one
column each take 21 µs a row to build and bind, two matrices before the same graph 11 µs (docs/rooms/models.md).
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from mainspring.errors import Corrupt, InvalidInput, UnsafeFormat
from mainspring.models.formats.columns import numbers, pick, strings, text
from mainspring.models.formats.onnx.names import NULL_TEXT, NUMERIC, TEXT
from mainspring.models.formats.packaged import PackagedPredictor
from mainspring.models.formats.predictor import Columns, Scores
from mainspring.records.models import Package, Task


class OnnxPredictor(PackagedPredictor):
    """A loaded ONNX payload: one session with one thread of its own. Safe to call from many threads."""

    def __init__(self, package: Package, data: bytes) -> None:
        super().__init__(package)
        signature = package.signature
        self._task = signature.task
        self._width = signature.width
        self._numeric = [c for c in signature.inputs if c.type != "string"]
        self._text = [c for c in signature.inputs if c.type == "string"]
        self._null = "" if package.null_text == "empty" else NULL_TEXT
        self._session = open_session(data)
        self._number: Any = np.float64
        self._check_inputs()
        self._outputs = [_score_output(self._session, self._task)]
        self._probe()

    def _score(self, columns: Columns) -> Scores:
        feeds = self._feed_row(columns) or self._feed_rows(columns)
        first = next(iter(feeds.values()))
        if not len(first):
            return np.empty((0, self._width) if self._width else 0)
        rows = len(first)
        if rows <= _AT_ONCE:
            return self._read_scores(self._session.run(self._outputs, feeds)[0], rows)
        parts = []
        for start in range(0, rows, _AT_ONCE):
            part = {name: values[start : start + _AT_ONCE] for name, values in feeds.items()}
            parts.append(
                self._read_scores(self._session.run(self._outputs, part)[0], min(_AT_ONCE, rows - start))
            )
        return np.concatenate(parts)

    def row_scorer(self) -> OneRow | None:
        """A faster scorer of single rows, or None: it needs inputs that are all numbers and a graph that takes bound buffers.

        It is used only if it answers two trial rows exactly as :meth:`compute_scores` does.
        """
        dated = any(c.type == "datetime" for c in self._numeric)
        if self._text or dated or not self._numeric or self._known or self._task is Task.VALUES:
            return None
        classes = self._width or (2 if self._task is Task.BINARY else 0)
        rows = [[0.0] * len(self._numeric), [1.0] * len(self._numeric)]
        try:
            width = next(o.shape[-1] for o in self._session.get_outputs() if o.name == self._outputs[0])
            scorer = OneRow(
                self._session,
                self._outputs[0],
                inputs=len(self._numeric),
                classes=1 if classes == 2 and width == 1 else classes,
                number=self._number,
            )
            trial = [scorer(row) for row in rows]
        except Exception:  # noqa: BLE001 - the runtime raises its own kinds; then predict() is used
            return None
        for row, score in zip(rows, trial, strict=True):
            expected = self.compute_scores({c.name: [v] for c, v in zip(self._numeric, row, strict=True)})[0]
            if not np.array_equal(np.array(score, dtype=np.float64), expected, equal_nan=True):
                return None
        return scorer

    def _feed_row(self, columns: Columns) -> dict[str, Any] | None:
        """The inputs for exactly one row of plain values, the most frequent case; None for everything else."""
        feeds: dict[str, Any] = {}
        try:
            if self._numeric:
                values = [columns[c.name] for c in self._numeric]
                row = [v[0] for v in values if len(v) == 1]
                if len(row) != len(values) or not _NUMBERS.issuperset(map(type, row)):
                    return None
                feeds[NUMERIC] = np.array([row], dtype=self._number)
            if self._text:
                values = [columns[c.name] for c in self._text]
                row = [
                    v[0] if type(v[0]) is str else text("?", v[0], null=self._null)
                    for v in values
                    if len(v) == 1
                ]
                if len(row) != len(values):
                    return None
                feeds[TEXT] = np.array([row], dtype=object)
        except (KeyError, IndexError, TypeError, OverflowError, InvalidInput, RuntimeWarning):
            return None  # _feed_rows meets the same fault and names the column
        return feeds

    def _feed_rows(self, columns: Columns) -> dict[str, Any]:
        inputs = self._numeric + self._text
        rows, values = pick(columns, inputs)
        split = len(self._numeric)
        feeds: dict[str, Any] = {}
        if self._numeric:
            matrix = np.empty((rows, split), dtype=self._number)
            with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, as it would in ONNX
                for j, column in enumerate(self._numeric):
                    matrix[:, j] = numbers(column, values[j], rows)
            feeds[NUMERIC] = matrix
        if self._text:
            texts = np.empty((rows, len(self._text)), dtype=object)
            for j, column in enumerate(self._text):
                texts[:, j] = strings(column.name, values[split + j], rows, null=self._null)
            feeds[TEXT] = texts
        return feeds

    def _read_scores(self, raw: Any, rows: int) -> Scores:
        if self._task is Task.BINARY and raw.shape == (rows, 1):  # of the positive class alone
            return np.asarray(raw.reshape(rows), dtype=np.float64)
        wide = self._task is not Task.REGRESSION
        expected = (rows, self._width or 2) if wide else (rows, 1)
        if raw.shape != expected and raw.shape != expected[: 1 + wide]:
            raise Corrupt(
                "the model answers in another shape than its signature says",
                value=raw.shape,
                place=f"expected {expected}",
            )
        if self._task is Task.BINARY:
            return np.asarray(raw[:, 1], dtype=np.float64)
        return np.asarray(raw if wide else raw.reshape(rows), dtype=np.float64)

    def _check_inputs(self) -> None:
        types = {i.name: i.type for i in self._session.get_inputs()}
        if types.get(NUMERIC) == "tensor(float)":
            self._number = np.float32
        wanted = {}
        if self._numeric:
            wanted[NUMERIC] = (_TYPES[self._number], len(self._numeric))
        if self._text:
            wanted[TEXT] = ("tensor(string)", len(self._text))
        inputs = {
            i.name: (i.type, i.shape[1] if len(i.shape) == 2 else None) for i in self._session.get_inputs()
        }
        if inputs != wanted:
            raise InvalidInput(
                "the ONNX inputs do not fit the signature",
                value=inputs,
                place="model.onnx",
                next_step=f"Expected {wanted}.",
            )

    def _probe(self) -> None:
        """Score the example of the package, or a row of zeros: a payload that cannot answer is refused when it is loaded, not later."""
        example = self._package.example
        row: dict[str, Any] = {
            c.name: [example.get(c.name, "1970-01-01" if c.type == "datetime" else 0.0)]
            for c in self._numeric
        }
        row |= {c.name: [example.get(c.name, "")] for c in self._text}
        try:
            self._score(row)
        except Corrupt:
            raise
        except Exception as error:  # noqa: BLE001 - the runtime raises its own kinds, all meaning that it cannot answer
            raise InvalidInput(
                f"the ONNX graph does not run: {str(error)[:300]}", place="model.onnx"
            ) from None


class OneRow:
    """Scores of single rows of numbers through buffers bound once: a third of the cost of :meth:`OnnxPredictor.compute_scores`.

    Called with the values in the order of the signature; returns one score (multiclass: a list of scores), or None where
    :meth:`OnnxPredictor.compute_scores` must be used: for a null, for a number that does not fit ``number`` (float32 or float64, as the graph
    takes it), and while another thread uses the buffers.
    """

    def __init__(self, session: Any, output: str, *, inputs: int, classes: int, number: Any) -> None:
        code = "f" if number is np.float32 else "d"
        self._inputs = np.zeros((1, inputs), dtype=number)
        self._outputs = np.zeros((1, classes or 1), dtype=number)
        self._binding = session.io_binding()
        self._binding.bind_input(NUMERIC, "cpu", 0, number, self._inputs.shape, self._inputs.ctypes.data)
        self._binding.bind_output(output, "cpu", 0, number, self._outputs.shape, self._outputs.ctypes.data)
        self._run = session.run_with_iobinding
        self._pack = struct.Struct(f"{inputs}{code}").pack_into
        self._into = memoryview(cast("Any", self._inputs)).cast("B")
        self._out: Any = memoryview(cast("Any", self._outputs)).cast("B").cast(cast("Any", code))
        self._wide = classes > 2
        self._at = 1 if classes == 2 else 0
        self._lock = threading.Lock()

    def __call__(self, values: Sequence[Any]) -> float | list[float] | None:
        # The buffers hold one row. Waiting for them would take longer than the general path, so a busy scorer declines.
        if not self._lock.acquire(blocking=False):
            return None
        try:
            self._pack(self._into, 0, *values)
            self._run(self._binding)
            score: float | list[float] = self._out.tolist() if self._wide else self._out[self._at]
        except (struct.error, OverflowError):
            return None
        else:
            return score
        finally:
            self._lock.release()


_AT_ONCE = 8192
"""Rows of one run: a graph may hold a matrix of rows by support vectors."""
_TYPES = {np.float32: "tensor(float)", np.float64: "tensor(double)"}
_NUMBERS = frozenset({int, float, bool, type(None), np.float64, np.float32, np.int64, np.bool_})


def _runtime() -> Any:
    """ONNX Runtime without its telemetry: from 1.31 on it starts a collector at import unless this variable is set."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime


def open_session(data: bytes) -> Any:
    """A session of ONNX Runtime with one thread, of bytes that were checked."""
    onnxruntime = _runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - the runtime raises its own kinds, all meaning "not a valid model"
        raise UnsafeFormat(
            f"ONNX Runtime refuses the model: {str(error)[:300]}", place="model.onnx"
        ) from None


def _score_output(session: Any, task: Task) -> str:
    """The name of the output with the probabilities (the last of floats), or with a regression's answer (the only one)."""
    floating = [o.name for o in session.get_outputs() if o.type in _TYPES.values()]
    if not floating or (task in (Task.REGRESSION, Task.VALUES) and len(floating) != 1):
        outputs = {o.name: o.type for o in session.get_outputs()}
        raise InvalidInput("the ONNX outputs do not fit the signature", value=outputs, place="model.onnx")
    name: str = floating[-1]
    return name
