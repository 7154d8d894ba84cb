"""Builds a graph of ONNX operators in float64, tensor by tensor, and keeps track of the columns in its tensors.

A table is a list of columns, each a position in a tensor ``[n, width]``; selecting columns adds no operator until they are needed in
one matrix (:meth:`Graph.numbers`). Every numeric tensor is float64: the operators of ``ai.onnx`` compute in it, those of
``ai.onnx.ml`` other than ``TreeEnsemble`` do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

OPSET, ML_OPSET, IR = 19, 5, 9


class Unsupported(Exception):
    """This part of an estimator has no exact form here. The text is shown to the user."""


class Column(NamedTuple):
    """Column ``at`` of tensor ``tensor``; ``kind`` is ``number`` or ``text``."""

    tensor: str
    at: int
    kind: str


Table = list[Column]


class Graph:
    """A graph under construction: its nodes and constants. ``width`` has the number of columns of every matrix."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], tuple[str, Any]] = {}
        self._by_key: dict[Any, str] = {}
        self._count = 0
        self.width: dict[str, int] = {}
        self._unbounded: set[str] = set()
        """Tensors that may be infinite or NaN although every input is finite."""

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Append one operator with one output; returns the output's name. An operator with equal inputs and attributes is reused."""
        from onnx import helper

        key = (
            (kind, domain, inputs, tuple(sorted((k, _hashable(v)) for k, v in attributes.items())))
            if kind != "TreeEnsemble"
            else None
        )
        if key is not None and key in self._by_key:
            return self._by_key[key]
        self._count += 1
        name = f"t{self._count}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], domain=domain, **attributes))
        if key is not None:
            self._by_key[key] = name
        if self._unbounded.intersection(inputs):
            self._unbounded.add(name)
        return name

    def constant(self, values: Any) -> str:
        """The name of a constant tensor, made once for equal values of one type and shape."""
        from onnx import numpy_helper

        array = np.array(values, order="C")  # ascontiguousarray would turn a scalar into a vector
        raw = array.tobytes() if array.dtype != object else repr(array.tolist()).encode()
        key = (array.dtype.str, array.shape, raw)
        if key not in self._constants:
            name = f"c{len(self._constants) + 1}"
            self._constants[key] = name, numpy_helper.from_array(array, name)
        return self._constants[key][0]

    def double(self, values: Any) -> str:
        """A float64 constant."""
        return self.constant(np.asarray(values, dtype=np.float64))

    def ints(self, *values: int) -> str:
        """An int64 vector constant."""
        return self.constant(np.array(values, dtype=np.int64))

    def may_overflow(self, tensor: str) -> str:
        """Note that ``tensor`` may be infinite or NaN for finite inputs, and what is computed from it too; returns its name."""
        self._unbounded.add(tensor)
        return tensor

    # --- columns

    def matrix(self, tensor: str, width: int, kind: str = "number") -> Table:
        """The columns of a tensor ``[n, width]``."""
        self.width[tensor] = width
        return [Column(tensor, i, kind) for i in range(width)]

    def numbers(self, table: Table) -> str:
        """The columns as one matrix, ``[n, len(table)]`` float64."""
        if any(column.kind != "number" for column in table):
            raise Unsupported("a text column where numbers are expected")
        return self._join(table)

    def texts(self, table: Table) -> str:
        """The columns as one matrix of strings, ``[n, len(table)]``."""
        if any(column.kind != "text" for column in table):
            raise Unsupported("numbers and texts in one encoder")
        return self._join(table)

    def vector(self, column: Column) -> str:
        """One column as ``[n]``."""
        return self.op("Gather", column.tensor, self.constant(np.int64(column.at)), axis=1)

    def _join(self, table: Table) -> str:
        if not table:
            raise Unsupported("a step without columns")
        runs: list[list[Column]] = []
        for column in table:
            if runs and runs[-1][0].tensor == column.tensor:
                runs[-1].append(column)
            else:
                runs.append([column])
        parts = [self._select_columns(run) for run in runs]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=1)

    def _select_columns(self, run: list[Column]) -> str:
        tensor, indices = run[0].tensor, [column.at for column in run]
        if indices == list(range(self.width[tensor])):
            return tensor
        if indices == list(range(indices[0], indices[0] + len(indices))):
            return self.op("Slice", tensor, self.ints(indices[0]), self.ints(indices[-1] + 1), self.ints(1))
        return self.op("Gather", tensor, self.ints(*indices), axis=1)

    # --- common expressions

    def cast(self, tensor: str, to: str = "DOUBLE") -> str:
        """``tensor`` as another type, by its name in ``TensorProto``."""
        from onnx import TensorProto

        return self.op("Cast", tensor, to=int(getattr(TensorProto, to)))

    def gemm(self, x: str, weights: Any, bias: Any) -> str:
        """``x @ weights + bias``, weights ``(width, k)``; NaN in rows where ``x`` is not finite (see :meth:`nan_unless_finite`)."""
        added = self.double(bias)
        if x in self._unbounded:
            # x - x is 0 where x is finite, else NaN; multiplied by ones it makes all outputs of that row NaN.
            zero_or_nan = self.op("Sub", x, x)
            added = self.op("Gemm", zero_or_nan, self.double(np.ones(np.shape(weights))), added)
        return self.op("Gemm", x, self.double(weights), added)

    def smallest_first(self, x: str, width: int) -> str:
        """The places of the values of each row in their order, ``[n, width]``."""
        from onnx import helper

        self._count += 1
        values, places = f"t{self._count}v", f"t{self._count}"
        self._nodes.append(
            helper.make_node("TopK", [x, self.ints(width)], [values, places], axis=1, largest=0, sorted=1)
        )
        return places

    def nan_unless_finite(self, out: str, x: str, *, always: bool = False) -> str:
        """``out``, but NaN in rows where ``x`` is not finite: scikit-learn raises there, so no number may be answered.

        Adds nothing if ``x`` is finite whenever the inputs are, because then ``out`` repeats a NaN of the inputs anyway. ``always``:
        ``out`` does not repeat a NaN.
        """
        if x not in self._unbounded and not always:
            return out
        zero = self.op("ReduceSum", self.op("Sub", x, x), self.ints(1), keepdims=1)
        return self.op("Add", out, zero)

    def nan_without_answer(self, out: str, scores: str, table: Table) -> str:
        """``out``, but NaN in rows where ``scores`` hold a NaN or a number of ``table`` is not finite. Scores may be infinite: a sum overflowed."""
        nothing = self.op("Where", self.op("IsNaN", scores), self.double(np.nan), self.double(0.0))
        out = self.op("Add", out, self.op("ReduceSum", nothing, self.ints(1), keepdims=1))
        numeric = [column for column in table if column.kind == "number"]
        return self.nan_unless_finite(out, self.numbers(numeric), always=True) if numeric else out

    def model(self, inputs: dict[str, tuple[str, int]], output: str, width: int) -> bytes:
        """The serialised model with output ``scores``, ``[n, width]``. ``inputs``: name to (kind, number of columns)."""
        from onnx import TensorProto, helper

        kinds = {"number": TensorProto.DOUBLE, "text": TensorProto.STRING}
        self._nodes.append(helper.make_node("Identity", [output], ["scores"]))
        last = self._nodes[-2] if len(self._nodes) > 1 else None
        if last is not None and last.output[0] == output and output not in inputs:
            self._nodes.pop()  # the last operator gets the output's name: one operator less to run
            last.output[0] = "scores"
        graph = helper.make_graph(
            self._nodes,
            "mainspring",
            [helper.make_tensor_value_info(n, kinds[k], [None, w]) for n, (k, w) in inputs.items()],
            [helper.make_tensor_value_info("scores", TensorProto.DOUBLE, [None, width])],
            [tensor for _, tensor in self._constants.values()],
        )
        model = helper.make_model(
            graph,
            producer_name="mainspring",
            ir_version=IR,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
        )
        data: bytes = model.SerializeToString()
        return data


def one_hot(graph: Graph, place: str, classes: int) -> str:
    """1 at the class at ``place`` ``[n, 1]``, else 0: ``[n, classes]``."""
    return graph.cast(graph.op("Equal", place, graph.constant(np.arange(classes, dtype=np.int64)[None, :])))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def flatten(columns: Sequence[Sequence[float]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The values of several columns in one vector, and the position of each value's column."""
    values = np.concatenate([np.asarray(c, dtype=np.float64) for c in columns])
    owners = np.repeat(np.arange(len(columns)), [len(c) for c in columns])
    return values, owners
