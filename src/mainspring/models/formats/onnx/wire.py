"""Checks the structure of an ONNX file before ONNX Runtime reads it, without the onnx library.

Reads the protobuf wire format (protobuf.dev, "Encoding") against the whole of onnx.proto (IR version 13, ``SCHEMA``), and refuses every
byte that two readers could understand differently: a tag or a number longer than necessary, a field that onnx.proto does not define, a
single field that occurs twice, two members of a oneof, groups, names that are not UTF-8. So the rest means to ONNX Runtime what it
means here. Of that, everything is refused that could reach outside the file or run something other than a standard operator: external
tensor data, operators of another domain, model-local functions, training graphs, ``Loop`` (may never end), a tensor as large as a value
of the request says (``cost``), ONNX Runtime's own flatbuffer format, a session configuration in the metadata.
``tests/abuse/test_x_onnx.py`` compares this reader with the onnx library's parser on mutated bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from mainspring.errors import UnsafeFormat
from mainspring.models.formats.onnx.cost import TREES, Graph, Node, examine
from mainspring.models.formats.onnx.steps import Read, tree_steps, varints

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_FORBIDDEN_OPS = frozenset({"Loop"})
_MAX_DEPTH = 8
_MAX_TYPE_DEPTH = 16
_LAST_ATTRIBUTE_TYPE = 14

_Value: TypeAlias = "int | memoryview"

_ENTRY = {1: "str", 2: "str"}
SCHEMA: Mapping[str, Mapping[int, str]] = {
    "Model": {
        1: "int", 2: "str", 3: "str", 4: "str", 5: "int", 6: "str", 7: "Graph", 8: "OperatorSet*", 14: "Entry*", 20: "Refused*",
        25: "Refused*", 26: "Refused*",
    },
    "OperatorSet": {1: "str", 2: "int"},
    "Entry": _ENTRY,
    "Graph": {
        1: "Node*", 2: "str", 5: "Tensor*", 10: "str", 11: "ValueInfo*", 12: "ValueInfo*", 13: "ValueInfo*", 14: "Annotation*",
        15: "Sparse*", 16: "Entry*",
    },
    "Node": {
        1: "str*", 2: "str*", 3: "str", 4: "str", 5: "Attribute*", 6: "str", 7: "str", 8: "Refused", 9: "Entry*", 10: "Refused*",
    },
    "Attribute": {
        1: "str", 2: "f32", 3: "int", 4: "bytes", 5: "Tensor", 6: "Graph", 7: "f32*", 8: "int*", 9: "bytes*", 10: "Tensor*", 11: "Graph*",
        13: "str", 14: "Type", 15: "Type*", 20: "enum", 21: "Refused", 22: "Sparse", 23: "Sparse*",
    },
    "Tensor": {
        1: "int*", 2: "int32", 3: "Refused", 4: "f32*", 5: "int*", 6: "bytes*", 7: "int*", 8: "str", 9: "bytes", 10: "f64*", 11: "int*",
        12: "str", 13: "Refused*", 14: "int32", 16: "Entry*",
    },
    "Sparse": {1: "Tensor", 2: "Tensor", 3: "int*"},
    "ValueInfo": {1: "str", 2: "Type", 3: "str", 4: "Entry*"},
    "Annotation": {1: "str", 2: "Entry*"},
    "Type": {1: "TensorType", 4: "SequenceType", 5: "MapType", 6: "str", 7: "Refused", 8: "TensorType", 9: "SequenceType"},
    "TensorType": {1: "int32", 2: "Shape"},
    "Shape": {1: "Dimension*"},
    "Dimension": {1: "int", 2: "str", 3: "str"},
    "SequenceType": {1: "Type"},
    "MapType": {1: "int32", 2: "Type"},
}  # fmt: skip
"""Message → field number → kind, with ``*`` if repeated. ``Refused``: defined in onnx.proto, and never loaded here."""

_ONE_OF = {"Type": frozenset({1, 4, 5, 7, 8, 9}), "Dimension": frozenset({1, 2})}
_WHY_REFUSED = {
    ("Model", 20): "training graphs and model-local functions are not loaded",
    ("Model", 25): "training graphs and model-local functions are not loaded",
    ("Attribute", 21): "training graphs and model-local functions are not loaded",
    ("Node", 8): "training graphs and model-local functions are not loaded",
    ("Tensor", 13): "a tensor lives outside the file (external_data)",
}
_WIRE = {"int": 0, "int32": 0, "enum": 0, "f64": 1, "f32": 5}  # all others: 2, length-delimited
_WIDTH = {"f32": 4, "f64": 8}

_VARINT = rb"(?:[\x00-\x7f]|[\x80-\xff]{1,8}[\x01-\x7f]|[\x80-\xff]{9}\x01)"
"""A 64-bit number in its shortest form."""

_PACKED = re.compile(_VARINT + rb"*+")
_INTS = re.compile(rb"(?:\x40" + _VARINT + rb")++")
_NAMES = rb"\x04LEAF|\x0aBRANCH_LEQ|\x09BRANCH_LT|\x09BRANCH_GT|\x0aBRANCH_GTE|\x09BRANCH_EQ|\x0aBRANCH_NEQ"
_MODE = re.compile(rb"\x4a(" + _NAMES + rb")")
_MODES = re.compile(rb"(?:\x4a(?:" + _NAMES + rb"))++")
# Long runs inside an attribute (tree nodes, weights): skipped at C speed. Each branch is one whole field, so the match
# always ends on a field boundary; possessive, so it never backtracks.
_RUN = re.compile(
    rb"(?:\x3d[\x00-\xff]{4}"  # floats (field 7, fixed32)
    rb"|\x40" + _VARINT +  # ints (field 8, varint)
    rb"|\x4a(?:\x0aBRANCH_LEQ|\x04LEAF|\x09BRANCH_LT|\x09BRANCH_GT|\x0aBRANCH_GTE|\x09BRANCH_EQ))++"  # strings (field 9)
)  # fmt: skip


def check_onnx(data: bytes) -> Graph:
    """Check a self-contained model of standard operators; returns its structure.

    Raises :class:`~mainspring.errors.UnsafeFormat` for anything else, and for bytes that protobuf readers may read differently.
    """
    if data[4:8] == b"ORTM":
        raise _refuse("this is an ONNX Runtime flatbuffer, not ONNX")
    graph = None
    operator_sets = False
    for number, value in _fields("Model", memoryview(data)):
        if number == 7:
            graph = _read_graph(_bytes(value), 0)
        elif number == 8:
            operator_sets = True
            for inner, name in _fields("OperatorSet", _bytes(value)):
                if inner == 1:
                    _check_domain(_text(name))
        elif number == 14:
            _check_metadata(_bytes(value))
    if graph is None or not operator_sets:
        raise _refuse("not an ONNX model: it has no graph or names no operator set")
    if (why := examine(graph).by_values) is not None:
        raise _refuse(why)
    return graph


def _check_metadata(data: memoryview) -> None:
    for number, value in _fields("Entry", data):
        if number == 1 and _text(value).startswith(("ort_config", "session.")):
            raise _refuse("the model carries a session configuration")


def _read_graph(data: memoryview, depth: int) -> Graph:
    if depth > _MAX_DEPTH:
        raise _refuse("graphs are nested too deeply")
    graph = Graph()
    for number, value in _fields("Graph", data):
        if number == 1:
            graph.nodes.append(_read_node(_bytes(value), depth))
        elif number in (5, 15):
            name = (_check_tensor if number == 5 else _check_sparse)(_bytes(value))
            if name in graph.constants:
                raise _refuse("two initializers have one name")
            graph.constants.add(name)
        elif number in (11, 12, 13):
            name = _check_value_info(_bytes(value))
            if number == 11:
                graph.inputs.add(name)
        elif number in (14, 16):
            _check_message("Annotation" if number == 14 else "Entry", _bytes(value))
    return graph


def _read_node(data: memoryview, depth: int) -> Node:
    node = Node()
    attributes: dict[str, memoryview] = {}
    for number, value in _fields("Node", data):
        if number == 1:
            node.inputs.append(_text(value))
        elif number == 2:
            node.outputs.append(_text(value))
        elif number == 4:
            node.op = _text(value)
            if node.op in _FORBIDDEN_OPS:
                raise _refuse(f"operator {node.op!r} may run without end")
        elif number == 5:
            name = _check_attribute(_bytes(value), depth, node.graphs)
            if name in node.attributes:
                raise _refuse(f"an attribute is there twice: {name[:100]!r}")
            node.attributes.add(name)
            attributes[name] = _bytes(value)
        elif number == 7:
            _check_domain(_text(value))
        elif number == 9:
            _check_message("Entry", _bytes(value))
    if node.op in TREES:
        node.steps = tree_steps(
            attributes, Read(ints=_read_ints, leaves=_read_leaves, tensor=_read_raw_tensor)
        )
    return node


def _read_ints(attribute: memoryview) -> Any:
    """The integers of an attribute that was checked."""
    import numpy as np

    parts = [
        varints(_bytes(value))
        if number == 8
        else varints(_bytes(value))[1::2]  # a run of fields: each value follows its tag
        for number, value in _fields("Attribute", attribute, _INTS)
        if number in (0, 8)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _read_leaves(attribute: memoryview) -> Any:
    """Which of the strings of an attribute that was checked are ``LEAF``."""
    import numpy as np

    are_leaves = [
        text == b"\x04LEAF"
        for number, value in _fields("Attribute", attribute, _MODES)
        if number in (0, 9)
        for text in (_MODE.findall(_bytes(value)) if number == 0 else [b"\x04" + bytes(_bytes(value))])
    ]
    return np.array(are_leaves, dtype=bool)


def _read_raw_tensor(attribute: memoryview) -> tuple[int, memoryview]:
    """Type and bytes of the tensor of an attribute that was checked; ValueError if its values are not raw bytes."""
    for number, value in _fields("Attribute", attribute):
        if number == 5:
            fields = dict(_fields("Tensor", _bytes(value)))
            kind, raw = fields.get(2), fields.get(9)
            if (
                isinstance(kind, int)
                and isinstance(raw, memoryview)
                and not fields.keys() & {4, 5, 7, 10, 11}
            ):
                return kind, raw
    raise ValueError


def _check_attribute(data: memoryview, depth: int, graphs: list[Graph]) -> str:
    name = ""
    for number, value in _fields("Attribute", data, _RUN):
        if number == 1:
            name = _text(value)
        elif number in (5, 10):
            _check_tensor(_bytes(value))
        elif number in (6, 11):
            graphs.append(_read_graph(_bytes(value), depth + 1))
        elif number in (22, 23):
            _check_sparse(_bytes(value))
        elif number in (14, 15):
            _check_message("Type", _bytes(value))
    return name


def _check_sparse(data: memoryview) -> str:
    """The name of a sparse tensor: that of its values."""
    name = ""
    for number, value in _fields("Sparse", data):
        if number in (1, 2):
            inner = _check_tensor(_bytes(value))
            name = inner if number == 1 else name
    return name


def _check_tensor(data: memoryview) -> str:
    name = ""
    for number, value in _fields("Tensor", data):
        if number == 8:
            name = _text(value)
        elif number == 14 and value != 0:
            raise _refuse("a tensor lives outside the file (external_data)")
        elif number == 16:
            _check_message("Entry", _bytes(value))
    return name


def _check_value_info(data: memoryview) -> str:
    name = ""
    for number, value in _fields("ValueInfo", data):
        if number == 1:
            name = _text(value)
        elif number in (2, 4):
            _check_message("Type" if number == 2 else "Entry", _bytes(value))
    return name


def _check_message(message: str, data: memoryview, depth: int = 0) -> None:
    """Check a message whose content is not needed: it must be readable in one way only."""
    if depth > _MAX_TYPE_DEPTH:
        raise _refuse("types are nested too deeply")
    for number, value in _fields(message, data):
        inner = SCHEMA[message][number].rstrip("*")
        if inner in SCHEMA:
            _check_message(inner, _bytes(value), depth + 1)


def _check_domain(name: str) -> None:
    if name not in DOMAINS:
        raise _refuse(f"operators of domain {name[:200]!r} are not loaded; only ai.onnx and ai.onnx.ml are")


def _fields(
    message: str, data: memoryview, run: re.Pattern[bytes] | None = None
) -> Iterator[tuple[int, _Value]]:
    """The fields of one message in order, as (number, value), checked against the schema. Whole fields that ``run`` matches come as field 0."""
    schema, one_of = SCHEMA[message], _ONE_OF.get(message, frozenset())
    seen: set[int] = set()
    position, end = 0, len(data)
    while position < end:
        if run is not None and (match := run.match(data, position)):
            yield 0, data[position : match.end()]
            position = match.end()
            continue
        key, position = _read_varint(data, position)
        number, wire = key >> 3, key & 7
        kind = schema.get(number) if key < 1 << 32 else None
        if kind is None:
            raise _refuse(f"a field that onnx.proto does not define: {message} {number}")
        if kind.startswith("Refused"):
            raise _refuse(
                _WHY_REFUSED.get((message, number), f"a field that is not loaded here: {message} {number}")
            )
        repeated, kind = kind.endswith("*"), kind.rstrip("*")
        if not repeated:
            if number in seen or (number in one_of and seen & one_of):
                raise _refuse(f"a field that may be there once is there twice: {message} {number}")
            seen.add(number)
        value, position = _read_value(data, position, kind, wire, packed=repeated)
        yield number, value


def _read_value(data: memoryview, position: int, kind: str, wire: int, *, packed: bool) -> tuple[_Value, int]:
    """The value at ``position`` and the position after it. Floats are skipped, and returned as 0."""
    expected = _WIRE.get(kind, 2)
    if wire == 2 and (expected == 2 or packed):
        size, position = _read_varint(data, position)
        if size > len(data) - position:
            raise _refuse("a field runs past the end of the file")
        value = data[position : position + size]
        if expected != 2:
            _check_packed(value, kind)
        elif kind == "str":
            _text(value)
        return value, position + size
    if wire != expected:
        raise _refuse("a field is encoded in a way that its type does not have")
    if wire == 0:
        integer, position = _read_varint(data, position)
        if kind == "int32" and (1 << 31) <= integer < (1 << 64) - (1 << 31):
            raise _refuse("a number is larger than its field")
        if kind == "enum" and integer > _LAST_ATTRIBUTE_TYPE:
            raise _refuse(
                "an attribute of a type that onnx.proto does not define"
            )  # readers keep it as an unknown field
        return integer, position
    position += _WIDTH[kind]
    if position > len(data):
        raise _refuse("a field runs past the end of the file")
    return 0, position


def _check_packed(value: memoryview, kind: str) -> None:
    if kind in _WIDTH:
        good = len(value) % _WIDTH[kind] == 0
    else:
        match = _PACKED.match(value)
        good = match is not None and match.end() == len(value)
    if not good:
        raise _refuse("a list of numbers is not well formed")


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number in its shortest form, below 2**64: readers differ on others."""
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if (byte == 0 and shift) or value >= 1 << 64:
                raise _refuse("a number is not in its shortest form, so that readers may differ about it")
            return value, position
        shift += 7
    raise _refuse("these bytes are not an ONNX model")


def _bytes(value: _Value) -> memoryview:
    if isinstance(value, int):
        raise _refuse("these bytes are not an ONNX model")
    return value


def _text(value: _Value) -> str:
    try:
        return bytes(_bytes(value)).decode()
    except UnicodeDecodeError:
        raise _refuse("a name is not UTF-8") from None


def _refuse(why: str) -> UnsafeFormat:
    return UnsafeFormat(
        why,
        place="model.onnx",
        next_step="Save the estimator with mainspring.models.formats.save; pickle, joblib and torch files are never loaded.",
    )
