"""A look at an ONNX file's structure before ONNX Runtime sees it, without the onnx library.

Reads the protobuf wire format (protobuf.dev, "Encoding") with the field numbers of onnx.proto (IR version 10), and refuses
what could reach outside the file or run something other than a standard operator: external tensor data, operators of
another domain, model-local functions, training graphs, ``Loop`` (may never end), ONNX Runtime's own flatbuffer format, a
session configuration in the metadata. Unknown fields are refused too: what we cannot read we do not hand on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

from mainspring.errors import UnsafeFormat

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_FORBIDDEN_OPS = frozenset({"Loop"})
_MAX_DEPTH = 8

_Value: TypeAlias = "int | memoryview"


# Long runs inside an attribute (tree nodes, weights): skipped at C speed. Each branch is one whole field, so the match
# always ends on a field boundary; possessive, so it never backtracks.
_RUN = re.compile(
    rb"(?:\x3d[\x00-\xff]{4}"  # floats (field 7, fixed32)
    rb"|\x40[\x80-\xff]{0,9}[\x00-\x7f]"  # ints (field 8, varint)
    rb"|\x4a(?:\x0aBRANCH_LEQ|\x04LEAF|\x09BRANCH_LT|\x09BRANCH_GT|\x0aBRANCH_GTE|\x09BRANCH_EQ))++"  # strings (field 9)
)


def check_onnx(data: bytes) -> None:
    """Raise :class:`~mainspring.errors.UnsafeFormat` unless ``data`` is a self-contained model of standard operators."""
    if data[4:8] == b"ORTM":
        raise _refuse("this is an ONNX Runtime flatbuffer, not ONNX")
    seen: set[int] = set()
    _model(memoryview(data), seen)
    if not {7, 8} <= seen:
        raise _refuse("not an ONNX model: it has no graph or names no operator set")


def _model(data: memoryview, seen: set[int]) -> None:
    for field, value in _fields(data):
        seen.add(field)
        if field == 7:
            _graph(_bytes(value), 0)
        elif field == 8:
            _operator_set(_bytes(value))
        elif field == 14:
            _metadata(_bytes(value))
        elif field in (20, 25):
            raise _refuse("training graphs and model-local functions are not loaded")
        elif field not in (1, 2, 3, 4, 5, 6):
            raise _refuse(f"a model field that is not defined: {field}")


def _operator_set(data: memoryview) -> None:
    for field, value in _fields(data):
        if field == 1:
            _domain(_text(value))


def _metadata(data: memoryview) -> None:
    for field, value in _fields(data):
        if field == 1 and _text(value).startswith(("ort_config", "session.")):
            raise _refuse("the model carries a session configuration")


def _graph(data: memoryview, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _refuse("graphs are nested too deeply")
    for field, value in _fields(data):
        if field == 1:
            _node(_bytes(value), depth)
        elif field == 5:
            _tensor(_bytes(value))
        elif field == 15:
            _sparse(_bytes(value))
        elif field not in (2, 10, 11, 12, 13, 14, 16):
            raise _refuse(f"a graph field that is not defined: {field}")


def _node(data: memoryview, depth: int) -> None:
    for field, value in _fields(data):
        if field == 4:
            if (name := _text(value)) in _FORBIDDEN_OPS:
                raise _refuse(f"operator {name!r} may run without end")
        elif field == 5:
            _attribute(_bytes(value), depth)
        elif field == 7:
            _domain(_text(value))
        elif field not in (1, 2, 3, 6, 9):
            raise _refuse(f"a node field that is not defined: {field}")


def _attribute(data: memoryview, depth: int) -> None:
    for field, value in _fields(data, _RUN):
        if field in (5, 10):
            _tensor(_bytes(value))
        elif field in (6, 11):
            _graph(_bytes(value), depth + 1)
        elif field in (22, 23):
            _sparse(_bytes(value))
        elif field not in (1, 2, 3, 4, 7, 8, 9, 13, 14, 15, 20):
            raise _refuse(f"an attribute field that is not defined: {field}")


def _sparse(data: memoryview) -> None:
    for field, value in _fields(data):
        if field in (1, 2):
            _tensor(_bytes(value))


def _tensor(data: memoryview) -> None:
    for field, value in _fields(data):
        if field == 13 or (field == 14 and value != 0):
            raise _refuse("a tensor lives outside the file (external_data)")


def _domain(name: str) -> None:
    if name not in DOMAINS:
        raise _refuse(f"operators of domain {name!r} are not loaded; only ai.onnx and ai.onnx.ml are")


def _fields(data: memoryview, run: re.Pattern[bytes] | None = None) -> Iterator[tuple[int, _Value]]:
    """The fields of one message, in order. Groups and truncated values are refused."""
    position, end = 0, len(data)
    while position < end:
        if run is not None and (match := run.match(data, position)):
            position = match.end()
            continue
        key, position = _varint(data, position)
        field, wire = key >> 3, key & 7
        if wire == 0:
            number, position = _varint(data, position)
            yield field, number
        elif wire == 2:
            size, position = _varint(data, position)
            if size > end - position:
                raise _refuse("a field runs past the end of the file")
            yield field, data[position : position + size]
            position += size
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
            if position > end:
                raise _refuse("a field runs past the end of the file")
            yield field, 0
        else:
            raise _refuse("these bytes are not an ONNX model")
        if field == 0:
            raise _refuse("these bytes are not an ONNX model")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _refuse("these bytes are not an ONNX model")


def _bytes(value: _Value) -> memoryview:
    if isinstance(value, int):
        raise _refuse("these bytes are not an ONNX model")
    return value


def _text(value: _Value) -> str:
    return bytes(_bytes(value)[:200]).decode("utf-8", "replace")


def _refuse(why: str) -> UnsafeFormat:
    return UnsafeFormat(
        why,
        place="model.onnx",
        next_step="Save the estimator with mainspring.models.formats.save; pickle, joblib and torch files are never loaded.",
    )
