"""A graph of ONNX operators in float64, built tensor by tensor, and the columns that flow through it.

A table is a list of columns, each a position in a tensor ``[n, width]``; choosing columns costs nothing until somebody needs
them side by side (:meth:`Graph.numbers`). Every numeric tensor is float64: the operators of ``ai.onnx`` compute in it, those
of ``ai.onnx.ml`` other than ``TreeEnsemble`` do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

OPSET, ML_OPSET, IR = 19, 5, 9


class Unsupported(Exception):
    """This part of an estimator has no exact form here; the reason is for the user."""


class Column(NamedTuple):
    """Column ``at`` of tensor ``tensor``; ``kind`` is ``number`` or ``text``."""

    tensor: str
    at: int
    kind: str


Table = list[Column]


class Graph:
    """Nodes and constants under construction. ``width`` knows the columns of every matrix."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], tuple[str, Any]] = {}
        self._made: dict[Any, str] = {}
        self._count = 0
        self.width: dict[str, int] = {}
        self._unbounded: set[str] = set()
        """Tensors that may be infinite or NaN although every input is finite."""

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Append one operator with one output; returns the name of the output. Equal operators are made once."""
        from onnx import helper

        key = (
            (kind, domain, inputs, tuple(sorted((k, _frozen(v)) for k, v in attributes.items())))
            if kind != "TreeEnsemble"
            else None
        )
        if key is not None and key in self._made:
            return self._made[key]
        self._count += 1
        name = f"t{self._count}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], domain=domain, **attributes))
        if key is not None:
            self._made[key] = name
        if self._unbounded.intersection(inputs):
            self._unbounded.add(name)
        return name

    def constant(self, values: Any) -> str:
        from onnx import numpy_helper

        array = np.array(values, order="C")  # ascontiguousarray would make a vector of a scalar
        raw = array.tobytes() if array.dtype != object else repr(array.tolist()).encode()
        key = (array.dtype.str, array.shape, raw)
        if key not in self._constants:
            name = f"c{len(self._constants) + 1}"
            self._constants[key] = name, numpy_helper.from_array(array, name)
        return self._constants[key][0]

    def double(self, values: Any) -> str:
        return self.constant(np.asarray(values, dtype=np.float64))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def may_overflow(self, tensor: str) -> str:
        self._unbounded.add(tensor)
        return tensor

    # --- columns

    def matrix(self, tensor: str, width: int, kind: str = "number") -> Table:
        self.width[tensor] = width
        return [Column(tensor, i, kind) for i in range(width)]

    def numbers(self, table: Table) -> str:
        """The columns side by side, ``[n, len(table)]`` float64."""
        if any(column.kind != "number" for column in table):
            raise Unsupported("a text column where numbers are expected")
        return self._beside(table)

    def texts(self, table: Table) -> str:
        if any(column.kind != "text" for column in table):
            raise Unsupported("numbers and texts in one encoder")
        return self._beside(table)

    def vector(self, column: Column) -> str:
        """One column as ``[n]``."""
        return self.op("Gather", column.tensor, self.constant(np.int64(column.at)), axis=1)

    def _beside(self, table: Table) -> str:
        if not table:
            raise Unsupported("a step without columns")
        runs: list[list[Column]] = []
        for column in table:
            if runs and runs[-1][0].tensor == column.tensor:
                runs[-1].append(column)
            else:
                runs.append([column])
        parts = [self._chosen(run) for run in runs]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=1)

    def _chosen(self, run: list[Column]) -> str:
        tensor, indices = run[0].tensor, [column.at for column in run]
        if indices == list(range(self.width[tensor])):
            return tensor
        if indices == list(range(indices[0], indices[0] + len(indices))):
            return self.op("Slice", tensor, self.ints(indices[0]), self.ints(indices[-1] + 1), self.ints(1))
        return self.op("Gather", tensor, self.ints(*indices), axis=1)

    # --- small sentences

    def cast(self, tensor: str, to: str = "DOUBLE") -> str:
        from onnx import TensorProto

        return self.op("Cast", tensor, to=int(getattr(TensorProto, to)))

    def gemm(self, x: str, weights: Any, bias: Any) -> str:
        """``x @ weights + bias``, weights ``(width, k)``; NaN in rows where ``x`` is not finite (see :meth:`refusing`)."""
        added = self.double(bias)
        if x in self._unbounded:
            nothing = self.op("Sub", x, x)
            added = self.op("Gemm", nothing, self.double(np.ones(np.shape(weights))), added)
        return self.op("Gemm", x, self.double(weights), added)

    def refusing(self, out: str, x: str, *, always: bool = False) -> str:
        """``out``, but NaN in rows where ``x`` is not finite: there scikit-learn raises, and no number may be answered.

        Left out where ``x`` cannot become infinite and ``out`` repeats a NaN by itself (``always`` says it does not).
        """
        if x not in self._unbounded and not always:
            return out
        zero = self.op("ReduceSum", self.op("Sub", x, x), self.ints(1), keepdims=1)
        return self.op("Add", out, zero)

    def model(self, inputs: dict[str, tuple[str, int]], output: str, width: int) -> bytes:
        """The serialised model. ``inputs``: name to (kind, columns)."""
        from onnx import TensorProto, helper

        kinds = {"number": TensorProto.DOUBLE, "text": TensorProto.STRING}
        self._nodes.append(helper.make_node("Identity", [output], ["scores"]))
        last = self._nodes[-2] if len(self._nodes) > 1 else None
        if last is not None and last.output[0] == output and output not in inputs:
            self._nodes.pop()  # the last operator answers itself: one less to run
            last.output[0] = "scores"
        graph = helper.make_graph(
            self._nodes,
            "mainspring",
            [helper.make_tensor_value_info(n, kinds[k], [None, w]) for n, (k, w) in inputs.items()],
            [helper.make_tensor_value_info("scores", TensorProto.DOUBLE, [None, width])],
            [tensor for _, tensor in self._constants.values()],
        )
        made = helper.make_model(
            graph,
            producer_name="mainspring",
            ir_version=IR,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
        )
        data: bytes = made.SerializeToString()
        return data


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def flat(columns: Sequence[Sequence[float]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Values of several columns in one row, and the column of each."""
    values = np.concatenate([np.asarray(c, dtype=np.float64) for c in columns])
    owners = np.repeat(np.arange(len(columns)), [len(c) for c in columns])
    return values, owners
