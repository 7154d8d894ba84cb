"""A user's own ONNX file (of PyTorch, Keras, another converter) as a package: its inputs and its output take the layout of packages.

The file is checked as that of any package before the ``onnx`` library reads it. Its graph stays as it is; operators are put in front that
pick the columns of each input out of the two matrices of a package (:mod:`names`), and behind that turn the answer into ``scores``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from mainspring.errors import InvalidInput, NotFound, TooLarge, near
from mainspring.models.formats.answers import expand_binary
from mainspring.models.formats.columns import numeric_names, text_names
from mainspring.models.formats.onnx.names import NUMERIC, TEXT
from mainspring.models.formats.onnx.wire import check_onnx
from mainspring.models.formats.trust import DEFAULT
from mainspring.records.models import Signature, Task

Activation: TypeAlias = Literal["sigmoid", "softmax"]
Original: TypeAlias = Callable[[Any], Any]

_PREFIX = "own/"
_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64}
_TYPES = {
    **_FLOATS, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_, "tensor(string)": np.object_,
}  # fmt: skip


@dataclass(frozen=True)
class Input:
    """An input of the file: its type, how many dimensions it has, and its columns."""

    name: str
    type: str
    rank: int
    columns: list[str]


class OwnOnnx(BaseEstimator):  # type: ignore[misc]
    """The file with the interface of scikit-learn: it answers as ``original`` does, or where there is none as the file itself."""

    adapted = True
    stored_as = "onnx"

    def __init__(
        self,
        data: bytes,
        signature: Signature,
        *,
        inputs: Mapping[str, Sequence[str]] | None,
        output: str | None,
        activation: Activation | None,
        original: Original | None,
        names: Sequence[str] | None,
    ) -> None:
        check_onnx(data)
        from mainspring.models.formats.onnx.predictor import open_session

        self._data, self._signature, self._original = data, signature, original
        self._session = open_session(data)
        self._inputs = _read_inputs(self._session, signature, inputs)
        self._output = _choose_output(self._session, output)
        self._activation = activation
        self.real_rows_only = original is not None
        """An original is asked for the answers to real rows only: what it does with others, a graph need not repeat."""
        if names is not None:
            self.feature_names_in_ = np.array([c.name for c in signature.inputs], dtype=object)
        if signature.task in (Task.BINARY, Task.MULTICLASS):
            self.classes_ = _classes(signature)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    @property
    def onnx_notes(self) -> dict[str, Any]:
        """What the manifest says about the file."""
        return {
            "onnx_inputs": {i.name: i.columns for i in self._inputs},
            "onnx_output": self._output.name,
            "compared_with": "the original" if self._original is not None else "the file itself",
        }

    def dump_onnx(self) -> bytes:
        """The file in the layout of packages."""
        return _rewrite(self._data, self._signature, self._inputs, self._output, self._activation)

    def _ask(self, features: Any) -> Any:
        """The answers, ``(rows,)`` or ``(rows, numbers)``."""
        if self._original is not None:
            raw = np.asarray(self._original(features))
        else:
            raw = np.asarray(self._session.run([self._output.name], self._feed(features))[0])
            raw = _activate(raw, self._activation)
        if self._signature.task is Task.REGRESSION or (raw.ndim == 2 and raw.shape[1] == 1):
            return raw.reshape(len(raw))
        return raw

    def _feed(self, features: Any) -> dict[str, Any]:
        order = [c.name for c in self._signature.inputs]
        feeds: dict[str, Any] = {}
        for one in self._inputs:
            columns = [
                np.asarray(features[n]) if hasattr(features, "columns") else features[:, order.index(n)]
                for n in one.columns
            ]
            # As the graph of a package has it: numbers come as float64.
            wide = columns if one.type == "tensor(string)" else [c.astype(np.float64) for c in columns]
            with np.errstate(over="ignore", invalid="ignore"):
                table: Any = np.column_stack(wide).astype(_TYPES[one.type])
            feeds[one.name] = table if one.rank == 2 else table[:, 0]
        return feeds


class OwnNumbers(RegressorMixin, OwnOnnx):  # type: ignore[misc]
    """A file that answers numbers."""

    def predict(self, features: Any) -> Any:
        """The numbers."""
        return self._ask(features)


class OwnProbabilities(ClassifierMixin, OwnOnnx):  # type: ignore[misc]
    """A file that answers probabilities."""

    def predict_proba(self, features: Any) -> Any:
        """The probabilities of the classes."""
        raw = self._ask(features)
        wide = expand_binary(raw)
        finite = wide[np.isfinite(wide).all(axis=1)]
        if len(finite) and (
            finite.min() < -1e-6 or finite.max() > 1 + 1e-6 or np.abs(finite.sum(axis=1) - 1).max() > 1e-4
        ):
            raise InvalidInput(
                "the answers are no probabilities",
                value=[float(v) for v in finite[int(np.abs(finite.sum(axis=1) - 1).argmax())]][:5],
                next_step='Say activation="softmax" or "sigmoid", or give the signature scores="decision".',
            )
        return wide

    def predict(self, features: Any) -> Any:
        """The most probable class."""
        return self.classes_[np.argmax(self.predict_proba(features), axis=1)]


class OwnDecisions(ClassifierMixin, OwnOnnx):  # type: ignore[misc]
    """A file that answers decision values."""

    def decision_function(self, features: Any) -> Any:
        """The decision values."""
        return self._ask(features)

    def predict(self, features: Any) -> Any:
        """The class on whose side the decision value is."""
        raw = self.decision_function(features)
        return self.classes_[(raw > 0).astype(int) if raw.ndim == 1 else raw.argmax(axis=1)]


def own_onnx(
    path: Path,
    signature: Signature,
    *,
    sample: Any,
    inputs: Mapping[str, Sequence[str]] | None = None,
    output: str | None = None,
    activation: Activation | None = None,
    original: Original | None = None,
) -> OwnOnnx:
    """See :meth:`mainspring.models.client.ModelsClient.register_onnx`."""
    kind: type[OwnOnnx] = OwnNumbers
    if signature.task in (Task.BINARY, Task.MULTICLASS):
        kind = OwnProbabilities if signature.scores == "probability" else OwnDecisions
    return kind(
        _read_file(path), signature, inputs=inputs, output=output, activation=activation, original=original,
        names=None if isinstance(sample, np.ndarray) else [c.name for c in signature.inputs],
    )  # fmt: skip


def _read_file(path: Path) -> bytes:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise NotFound("no such file", value=str(path)) from None
    if size > DEFAULT.max_bytes:
        raise TooLarge("the file is larger than a package may be", value=size, place=str(path))
    return path.read_bytes()


def _classes(signature: Signature) -> Any:
    if not signature.classes:
        if signature.task is Task.MULTICLASS:
            raise InvalidInput(
                "the classes are not in an ONNX file",
                next_step="Name them in the signature, in the order of the answers.",
            )
        return np.array([0, 1])
    if signature.class_type == "int64":
        return np.array([int(c) for c in signature.classes])
    return np.array(signature.classes, dtype=object)


def _read_inputs(
    session: Any, signature: Signature, given: Mapping[str, Sequence[str]] | None
) -> list[Input]:
    """Which columns each input has: as ``given``, or one input with all of them, or an input for each column by its name."""
    found = {i.name: i for i in session.get_inputs()}
    names = [c.name for c in signature.inputs]
    if given is None:
        if len(found) == 1 and (len(names) > 1 or next(iter(found)) not in names):
            given = {next(iter(found)): names}
        elif set(found) == set(names):
            given = {name: [name] for name in found}
        elif set(found) == {NUMERIC, TEXT}:
            given = {NUMERIC: numeric_names(signature), TEXT: text_names(signature)}
        else:
            raise InvalidInput(
                "it is not known which columns an input of the file has", value=sorted(found), place=f"columns: {names}"[:300],
                next_step="Say inputs={'name of the input': ['column', ...], ...}.",
            )  # fmt: skip
    if set(given) != set(found):
        raise InvalidInput(
            "the inputs are not those of the file", value=sorted(given), place=f"the file has {sorted(found)}"
        )
    used = [c for columns in given.values() for c in columns]
    for column in used:
        if column not in names:
            raise InvalidInput(
                "an input has a column that is not in the signature",
                value=column,
                next_step=near(column, names, what="column"),
            )
    return [_read_input(found[name], signature, list(columns)) for name, columns in given.items()]


def _read_input(found: Any, signature: Signature, columns: list[str]) -> Input:
    shape, place = found.shape, f"input {found.name!r}"
    if found.type not in _TYPES or len(shape) not in (1, 2):
        raise InvalidInput(
            "an input is one number, truth value or text, or several of one kind, for each row", value=f"{found.type} {shape}", place=place,
            next_step="Compute other inputs in front of the model.",
        )  # fmt: skip
    if isinstance(shape[0], int):
        raise InvalidInput(
            f"the file takes exactly {shape[0]} rows at once", value=shape, place=place,
            next_step="Export it with a first dimension of any size (dynamic_axes, dynamic_shapes).",
        )  # fmt: skip
    width = shape[1] if len(shape) == 2 else 1
    if isinstance(width, int) and width != len(columns):
        raise InvalidInput(f"the input has {width} columns", value=columns, place=place)
    kinds = {c.name: c for c in signature.inputs}
    for column in (kinds[name] for name in columns):
        if (column.type == "string") != (found.type == "tensor(string)"):
            raise InvalidInput("a text for a number, or a number for a text", value=column.name, place=place)
        if column.nullable and found.type not in _FLOATS:
            raise InvalidInput(
                "the input has no null, and the column may be null", value=column.name, place=place,
                next_step="Declare the column with nullable=False.",
            )  # fmt: skip
    return Input(found.name, found.type, len(shape), columns)


def _choose_output(session: Any, wanted: str | None) -> Any:
    outputs = {o.name: o for o in session.get_outputs()}
    usable = [o for o in outputs.values() if o.type in _FLOATS and len(o.shape) <= 2]
    if wanted is not None:
        usable = [o for o in usable if o.name == wanted]
    if len(usable) != 1:
        raise InvalidInput(
            "it is not known which output has the answers" if wanted is None else "no output of numbers has this name",
            value=wanted or sorted(outputs), place=str({o.name: o.type for o in outputs.values()})[:300],
            next_step="Say output='name'; of scikit-learn's converters use zipmap=False.",
        )  # fmt: skip
    return usable[0]


def _activate(raw: Any, activation: Activation | None) -> Any:
    with np.errstate(over="ignore"):
        if activation == "sigmoid":
            return 1 / (1 + np.exp(-raw.astype(np.float64)))
        if activation == "softmax":
            each = np.exp(raw.astype(np.float64) - raw.max(axis=1, keepdims=True))
            return each / each.sum(axis=1, keepdims=True)
    return raw


def _rewrite(
    data: bytes, signature: Signature, inputs: Sequence[Input], output: Any, activation: Activation | None
) -> bytes:
    """The file with the inputs of a package in front and the output ``scores`` behind."""
    import onnx
    from onnx import TensorProto, compose, helper, numpy_helper

    model = compose.add_prefix(onnx.load_model_from_string(data), _PREFIX)
    graph = model.graph
    numbers, texts = numeric_names(signature), text_names(signature)
    front: list[Any] = []

    def constant(name: str, values: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
        return name

    for at, one in enumerate(inputs):
        text = one.type == "tensor(string)"
        tensor, order = (TEXT, texts) if text else (NUMERIC, numbers)
        steps = [("Gather", [constant(f"columns_{at}", [order.index(c) for c in one.columns])], {"axis": 1})]
        if not text and one.type != "tensor(double)":
            kind = {"tensor(float)": TensorProto.FLOAT, "tensor(int64)": TensorProto.INT64, "tensor(int32)": TensorProto.INT32,
                    "tensor(bool)": TensorProto.BOOL}[one.type]  # fmt: skip
            steps.append(("Cast", [], {"to": kind}))
        if one.rank == 1:
            steps.append(("Reshape", [constant(f"rows_{at}", [-1])], {}))
        for step, (op, more, attributes) in enumerate(steps):
            name = _PREFIX + one.name if step == len(steps) - 1 else f"input_{at}_{step}"
            front.append(helper.make_node(op, [tensor, *more], [name], **attributes))
            tensor = name
    result, behind = _PREFIX + output.name, []
    tail: list[tuple[str, list[str], dict[str, Any]]] = [("Cast", [], {"to": TensorProto.DOUBLE})]
    if len(output.shape) < 2:
        tail.append(("Reshape", [constant("wide", [-1, 1])], {}))
    if activation is not None:
        tail.append(("Sigmoid", [], {}) if activation == "sigmoid" else ("Softmax", [], {"axis": 1}))
    for step, (op, more, attributes) in enumerate(tail):
        name = "scores" if step == len(tail) - 1 else f"answer_{step}"
        behind.append(helper.make_node(op, [result, *more], [name], **attributes))
        result = name
    nodes = [*front, *graph.node, *behind]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    if numbers:
        graph.input.append(helper.make_tensor_value_info(NUMERIC, TensorProto.DOUBLE, [None, len(numbers)]))
    if texts:
        graph.input.append(helper.make_tensor_value_info(TEXT, TensorProto.STRING, [None, len(texts)]))
    graph.output.append(helper.make_tensor_value_info("scores", TensorProto.DOUBLE, None))
    del model.metadata_props[:]
    made: bytes = model.SerializeToString()
    return made
