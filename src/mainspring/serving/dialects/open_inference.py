"""The Open Inference Protocol v2 (kserve/open-inference-protocol, ``inference_rest.md``).

POST /v2/models/{d}[/versions/{v}]/infer    GET /v2/models/{d}[/versions/{v}][/ready]    GET /v2    /v2/health/live    /v2/health/ready

A model is a deployment. Inputs: one tensor per column, shape ``[n]`` or ``[n, 1]``, strings as BYTES; or a single floating
matrix ``[n, k]`` when all columns are numeric, in the order of the signature. Outputs: binary ``label`` and ``score``;
multiclass ``label`` and ``probabilities``; regression ``value``. FP16 has no JSON form of its own, so its values are plain numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from mainspring.errors import InvalidInput, MainspringError, Malformed, TooManyRows, near
from mainspring.records.classes import class_labels
from mainspring.records.models import Column, Signature, Task
from mainspring.serving.codec import Call, check_duplicates, describe_columns, malformed, parse_times
from mainspring.serving.core import Answer
from mainspring.serving.dialects.dialect import (
    Dialect,
    ModelQuestion,
    Prediction,
    Route,
    ServerQuestion,
    ServerState,
)
from mainspring.serving.options import ServeOptions
from mainspring.serving.table import LiveDeployment, LiveTarget
from mainspring.serving.wire import JSON, Headers, Reply, printable

VERSION = "0.1.0"

_NAME = Annotated[str, msgspec.Meta(max_length=256)]
_PARAMETERS = dict[_NAME, str | int | float | bool]
_INTS = {f"{sign}INT{bits}": (bits, sign) for bits in (8, 16, 32, 64) for sign in ("", "U")}
_FLOATS = ("FP16", "FP32", "FP64")
DATATYPES = frozenset({"BOOL", "BYTES", *_FLOATS, *_INTS})
_ACCEPTS = {
    "float64": frozenset({*_FLOATS, *_INTS}),
    "int64": frozenset(_INTS) - {"UINT64"},
    "bool": frozenset({"BOOL"}),
    "string": frozenset({"BYTES"}),
    "datetime": frozenset({"BYTES"}),
}
_DATATYPES = {"float64": "FP64", "int64": "INT64", "bool": "BOOL", "string": "BYTES", "datetime": "BYTES"}


class Tensor(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An input tensor; ``data`` is decoded when its datatype is known."""

    name: _NAME
    shape: Annotated[
        list[Annotated[int, msgspec.Meta(ge=0, le=2**31)]], msgspec.Meta(min_length=1, max_length=2)
    ]
    datatype: str
    data: msgspec.Raw
    parameters: _PARAMETERS | msgspec.UnsetType = msgspec.UNSET


class RequestedOutput(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An output that the client asks for."""

    name: _NAME
    parameters: _PARAMETERS | msgspec.UnsetType = msgspec.UNSET


class ReplyForm(msgspec.Struct, frozen=True, gc=False):
    """What a client wants in the reply: its own id, and some of the outputs."""

    ident: str | None
    outputs: list[str]


class InferRequest(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The body of an infer call."""

    inputs: Annotated[list[Tensor], msgspec.Meta(min_length=1, max_length=10_000)]
    id: _NAME | msgspec.UnsetType = msgspec.UNSET
    parameters: _PARAMETERS | msgspec.UnsetType = msgspec.UNSET
    outputs: Annotated[list[RequestedOutput], msgspec.Meta(max_length=16)] | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(InferRequest).decode


def _number_type(datatype: str) -> Any:
    if datatype in _FLOATS:
        return float
    if datatype == "BOOL":
        return bool
    bits, sign = _INTS[datatype]
    low, high = (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if high > 2**63 - 1:  # msgspec's bounds are 64-bit and signed; it refuses more than 64 bits by itself
        return Annotated[int, msgspec.Meta(ge=low)]
    return Annotated[int, msgspec.Meta(ge=low, le=high)]


def _make_decoders(max_text: int) -> dict[str, Any]:
    decoders = {}
    for datatype in DATATYPES:
        kind: Any = (
            Annotated[str, msgspec.Meta(max_length=max_text)]
            if datatype == "BYTES"
            else _number_type(datatype)
        )
        cell = kind | None
        decoders[datatype] = msgspec.json.Decoder(list[cell | list[cell]]).decode  # type: ignore[valid-type]
    return decoders


class OpenInference(Dialect[ReplyForm]):
    """The dialect of KServe, Triton, Seldon and MLServer."""

    name = "open-inference"
    prefixes = ("/v2",)
    media = (JSON,)
    home = "GET /v2"

    def __init__(self, options: ServeOptions) -> None:
        self._codec = TensorCodec(max_rows=options.max_rows, max_text=options.max_text)

    def match(self, path: str) -> Route | None:
        question = _SERVER.get(path)
        if question is not None:
            return question
        parts = path.split("/")
        if len(parts) < 4 or parts[1:3] != ["v2", "models"]:
            return None
        name, version, rest = parts[3], None, parts[4:]
        if len(rest) > 1 and rest[0] == "versions":
            version, rest = rest[1], rest[2:]
        if rest == ["infer"]:
            return Prediction(name, version)
        if not rest:
            return ModelQuestion(name, version, describe_model)
        return ModelQuestion(name, version, _reply_model_ready) if rest == ["ready"] else None

    def exact(self, deployments: Iterable[str]) -> Iterable[str]:
        return [f"/v2/models/{name}/infer" for name in deployments]

    def decode(self, body: bytes, deployment: LiveDeployment, headers: Headers) -> tuple[Call, ReplyForm]:  # noqa: ARG002 - JSON only
        call, request = self._codec.decode(body, deployment.signature)
        ident = request.id if isinstance(request.id, str) else None
        return call, ReplyForm(ident, list_requested(request, deployment.signature))

    def encode(self, answer: Answer, deployment: LiveDeployment, form: ReplyForm, ident: str) -> Reply:
        reply_id = ident if form.ident is None else form.ident
        return Reply(
            200, encode_reply(deployment, answer.target, answer.scores, ident=reply_id, outputs=form.outputs)
        )

    def error(self, error: MainspringError, ident: str | None) -> Reply:
        body = {"error": printable(str(error)), "code": error.code}
        if ident is not None:
            body["prediction_id"] = ident
        return Reply(error.status, msgspec.json.encode(body))


class TensorCodec:
    """Decodes infer requests of any deployment."""

    def __init__(self, *, max_rows: int, max_text: int) -> None:
        self._max_rows = max_rows
        self._data = _make_decoders(max_text)

    def decode(self, body: bytes, signature: Signature) -> tuple[Call, InferRequest]:
        """The call, and the request that it came in. Raises as :meth:`RowCodec.decode` does."""
        try:
            request = _decode(body)
        except msgspec.ValidationError as error:
            raise InvalidInput(
                f"not an infer request: {str(error)[:300]}",
                next_step=f"Columns: {describe_columns(signature)}.",
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise malformed(error) from None
        self._check_keys(body, request)
        by_name = {t.name: t for t in request.inputs}
        if len(by_name) != len(request.inputs):
            raise InvalidInput("an input is there twice", place="inputs")
        names = [c.name for c in signature.inputs]
        if len(request.inputs) == 1 and request.inputs[0].name not in names:
            columns, rows = self._matrix(request.inputs[0], signature)
        else:
            columns, rows = self._columns(by_name, signature)
        if b"\\" in body and any(
            isinstance(v, str) and "\0" in v for values in columns.values() for v in values
        ):
            raise InvalidInput("NUL in a string", place="inputs")
        key = request.parameters.get("key") if isinstance(request.parameters, dict) else None
        return Call(dict(columns), rows, key if isinstance(key, str) else None, None), request

    def _check_keys(self, body: bytes, request: InferRequest) -> None:
        unset = msgspec.UNSET
        plain = (
            request.parameters is unset
            and request.outputs is unset
            and all(t.parameters is unset for t in request.inputs)
        )
        keys = 1 + 4 * len(request.inputs) + (0 if request.id is unset else 1)
        if not plain or b"\\" in body or body.count(b":") != keys:
            check_duplicates(body)

    def _columns(self, tensors: dict[str, Tensor], signature: Signature) -> tuple[dict[str, list[Any]], int]:
        names = {c.name for c in signature.inputs}
        extra = sorted(set(tensors) - names)
        if extra:
            raise _refuse(
                signature, "unknown input", value=extra[0], hint=near(extra[0], names, what="column") + " "
            )
        columns: dict[str, list[Any]] = {}
        lengths = set()
        for column in signature.inputs:
            tensor = tensors.get(column.name)
            if tensor is None:
                if not column.nullable:
                    raise _refuse(signature, "missing input", value=column.name)
                continue
            columns[column.name] = self._values(tensor, column, signature)
            lengths.add(len(columns[column.name]))
        if len(lengths) != 1 or 0 in lengths:
            raise _refuse(
                signature,
                "inputs must have one and the same number of rows, at least 1",
                value=sorted(lengths),
            )
        rows = lengths.pop()
        parse_times(columns, [c.name for c in signature.inputs if c.type == "datetime" and c.name in columns])
        return {c.name: columns.get(c.name) or [None] * rows for c in signature.inputs}, rows

    def _values(self, tensor: Tensor, column: Column, signature: Signature) -> list[Any]:
        if tensor.datatype not in _ACCEPTS[column.type]:
            raise _refuse(signature, f"input {column.name!r} cannot be", value=tensor.datatype)
        if len(tensor.shape) == 2 and tensor.shape[1] != 1:
            raise _refuse(signature, f"input {column.name!r} has shape [n] or [n, 1]", value=tensor.shape)
        values = self._read_flat(tensor)
        if not column.nullable and None in values:
            raise _refuse(signature, f"input {column.name!r} has a null", place=column.name)
        return [None if v is None else float(v) for v in values] if column.type == "float64" else values

    def _matrix(self, tensor: Tensor, signature: Signature) -> tuple[dict[str, list[Any]], int]:
        width = len(signature.inputs)
        if tensor.datatype not in _FLOATS or any(c.type != "float64" for c in signature.inputs):
            raise _refuse(
                signature,
                "a single matrix needs a floating datatype and float64 columns only",
                value=f"{tensor.name}: {tensor.datatype}",
            )
        if len(tensor.shape) != 2 or tensor.shape[1] != width or not tensor.shape[0]:
            raise _refuse(signature, f"the matrix has shape [n, {width}]", value=tensor.shape)
        values = self._read_flat(tensor)
        columns = {c.name: values[i::width] for i, c in enumerate(signature.inputs)}
        for column in signature.inputs:
            if not column.nullable and None in columns[column.name]:
                raise _refuse(signature, f"column {column.name!r} has a null", place=column.name)
        return columns, tensor.shape[0]

    def _read_flat(self, tensor: Tensor) -> list[Any]:
        if tensor.shape[0] > self._max_rows:
            raise TooManyRows(
                "too many rows in one request",
                value=tensor.shape[0],
                next_step=f"Send at most {self._max_rows}.",
            )
        try:
            data: list[Any] = self._data[tensor.datatype](tensor.data)
        except msgspec.ValidationError as error:
            raise InvalidInput(
                f"input {tensor.name!r}: {str(error)[:300]}", value=tensor.datatype, place=tensor.name
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise malformed(error) from None
        if any(type(v) is list for v in data):
            width = tensor.shape[1] if len(tensor.shape) == 2 else 0
            if not all(type(v) is list and len(v) == width for v in data):
                raise InvalidInput("the data are ragged", value=tensor.shape, place=tensor.name)
            data = [x for row in data for x in row]
        size = tensor.shape[0] * (tensor.shape[1] if len(tensor.shape) == 2 else 1)
        if len(data) != size:
            raise InvalidInput(
                f"the shape has {size} elements, the data {len(data)}", value=tensor.shape, place=tensor.name
            )
        return data


def _refuse(
    signature: Signature, message: str, *, value: object = None, place: str | None = None, hint: str = ""
) -> InvalidInput:
    return InvalidInput(
        message, value=value, place=place, next_step=f"{hint}Columns: {describe_columns(signature)}."
    )


def list_requested(request: InferRequest, signature: Signature) -> list[str]:
    """The names of the outputs to send. Raises for one that does not exist or is listed twice."""
    known = [o["name"] for o in outputs_of(signature)]
    if not isinstance(request.outputs, list) or not request.outputs:
        return known
    names = [o.name for o in request.outputs]
    for name in names:
        if name not in known:
            raise InvalidInput(
                "there is no such output", value=name, next_step=near(name, known, what="output")
            )
    if len(set(names)) != len(names):
        raise Malformed("an output is asked for twice", place="outputs")
    return names


def encode_reply(
    deployment: LiveDeployment, target: LiveTarget, scores: list[Any], *, ident: str, outputs: list[str]
) -> bytes:
    """The reply to an infer call."""
    signature, rows = deployment.signature, len(scores)
    tensors: list[dict[str, Any]] = []
    types = {o["name"]: o["datatype"] for o in outputs_of(signature)}
    for name in outputs:
        if signature.task is Task.VALUES:
            at = signature.outputs.index(name)
            data = [row[at] for row in scores]
            tensors.append({"name": name, "shape": [rows], "datatype": "FP64", "data": data})
        elif name == "label":
            labels = target.encoder.list_labels(scores)
            tensors.append({"name": name, "shape": [rows], "datatype": types[name], "data": labels})
        elif name in ("probabilities", "decisions"):
            tensors.append(
                {
                    "name": name,
                    "shape": [rows, len(signature.classes)],
                    "datatype": "FP64",
                    "data": [x for row in scores for x in row],
                }
            )
        else:
            tensors.append({"name": name, "shape": [rows], "datatype": "FP64", "data": scores})
    return msgspec.json.encode(
        {"model_name": deployment.name, "model_version": str(target.number), "id": ident, "outputs": tensors}
    )


_LABELS = {str: "BYTES", int: "INT64", float: "FP64", bool: "BOOL"}
"""The data type of labels, by the type of the classes."""


def outputs_of(signature: Signature) -> list[dict[str, Any]]:
    """The outputs of a signature, as model metadata lists them."""
    if signature.task is Task.VALUES:
        return [{"name": name, "datatype": "FP64", "shape": [-1]} for name in signature.outputs]
    kinds = {type(label) for label in class_labels(signature)}
    label = {"name": "label", "datatype": _LABELS[kinds.pop()] if len(kinds) == 1 else "BYTES", "shape": [-1]}
    if signature.task is Task.BINARY:
        return [label, {"name": "score", "datatype": "FP64", "shape": [-1]}]
    if signature.task is Task.MULTICLASS:
        name = "probabilities" if signature.scores == "probability" else "decisions"
        return [label, {"name": name, "datatype": "FP64", "shape": [-1, len(signature.classes)]}]
    return [{"name": "value", "datatype": "FP64", "shape": [-1]}]


def _describe_outputs(signature: Signature) -> list[dict[str, Any]]:
    """The outputs, and with the label the classes in the order of the scores: a binary score is of the second."""
    described = outputs_of(signature)
    if classes := class_labels(signature):
        described[0] = {**described[0], "parameters": {"classes": classes}}
    return described


def describe_model(deployment: LiveDeployment, targets: list[LiveTarget]) -> Reply:
    """The reply with the metadata of a model."""
    inputs: list[dict[str, Any]] = [
        {"name": c.name, "datatype": _DATATYPES[c.type], "shape": [-1]} for c in deployment.signature.inputs
    ]
    for column, described in zip(deployment.signature.inputs, inputs, strict=True):
        if column.type == "datetime":
            described["parameters"] = {"content_type": "datetime"}  # as MLServer calls a text in ISO 8601
    body = {
        "name": deployment.name,
        "versions": [str(t.number) for t in targets],
        "platform": "mainspring",
        "inputs": inputs,
        "outputs": _describe_outputs(deployment.signature),
    }
    return Reply(200, msgspec.json.encode(body))


def _reply_model_ready(deployment: LiveDeployment, targets: list[LiveTarget]) -> Reply:  # noqa: ARG001 - a deployment in the table is ready
    return Reply(200, msgspec.json.encode({"name": deployment.name, "ready": True}))


def _describe_server(server: ServerState) -> Reply:
    body = {"name": "mainspring", "version": VERSION, "extensions": [], "routes": server.core.table.number}
    if server.failure is not None:
        body["failure"] = server.failure
    return Reply(200, msgspec.json.encode(body))


def _reply_live(server: ServerState) -> Reply:  # noqa: ARG001 - a process that answers is alive
    return Reply(200, b'{"live":true}')


def _reply_ready(server: ServerState) -> Reply:
    # The specification shows the key "live" here; clients look at the status only, so both are sent.
    body: dict[str, Any] = {"live": True, "ready": server.ready}
    if server.core.table.problems:
        body["problems"] = server.core.table.problems
    return Reply(200 if server.ready else 503, msgspec.json.encode(body))


_SERVER = {
    "/v2": ServerQuestion(_describe_server),
    "/v2/health/live": ServerQuestion(_reply_live, open=True),
    "/v2/health/ready": ServerQuestion(_reply_ready, open=True),
}
