"""SAFETY X04: our reader of ONNX files against the onnx library's, on files made to be read in two ways."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import TensorProto, helper, numpy_helper

from mainspring.errors import InvalidInput, UnsafeFormat
from mainspring.models.formats.onnx.cost import BOUNDED, examine
from mainspring.models.formats.onnx.wire import DOMAINS, SCHEMA, check_onnx

INFO = helper.make_tensor_value_info
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def varint(number: int, *, pad: int = 0) -> bytes:
    """A protobuf number, with ``pad`` bytes more than it needs."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number | (0x80 if pad else 0))
    return bytes(out) + b"\x80" * (pad - 1) + (b"\x00" if pad else b"")


def member(number: int, payload: bytes | int, *, tag: Callable[[int], bytes] = varint) -> bytes:
    if isinstance(payload, int):
        return tag(number << 3) + varint(payload)
    return tag(number << 3 | 2) + varint(len(payload)) + payload


def beyond_32_bits(key: int) -> bytes:
    """The tag with bit 32 set: ONNX Runtime's reader drops it."""
    return varint(key | 1 << 32)


def padded(key: int) -> bytes:
    return varint(key, pad=1)


def model(*nodes: Any, initializers: tuple[Any, ...] = (), more: tuple[Any, ...] = ()) -> bytes:
    """The bytes of a graph ``numeric [n, 1] -> y [n, 1]``."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [INFO("numeric", FLOAT, [None, 1]), *more],
        [INFO("y", FLOAT, [None, 1])],
        list(initializers),
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return bytes(helper.make_model(graph, opset_imports=sets, ir_version=8).SerializeToString())


def rich() -> bytes:
    """A model with something of everything we read: tensors of each encoding, nested graphs, types, attributes, metadata."""
    made = onnx.ModelProto.FromString(
        model(
            helper.make_node("Scaler", ["numeric"], ["s"], domain="ai.onnx.ml", offset=[0.5], scale=[2.0]),
            helper.make_node("Constant", [], ["k"], value=helper.make_tensor("kv", FLOAT, [1], [3.0])),
            helper.make_node("Add", ["s", "w"], ["a"]),
            helper.make_node("Mul", ["a", "k"], ["y"]),
            initializers=(
                numpy_helper.from_array(np.ones((1, 1), np.float32), "w"),
                helper.make_tensor("doubles", TensorProto.DOUBLE, [2], [1.0, 2.0]),
                helper.make_tensor("whole", INT64, [3], [1, 300, -1]),
                helper.make_tensor("words", TensorProto.STRING, [1], [b"word"]),
            ),
        )
    )
    made.metadata_props.add(key="made-by", value="hand")
    made.graph.sparse_initializer.add(
        values=helper.make_tensor("sparse", FLOAT, [1], [1.0]), indices=helper.make_tensor("at", INT64, [1], [0]), dims=[4]
    )  # fmt: skip
    inner = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["z"])], "inner", [], [INFO("z", FLOAT, [1, 1])]
    )
    made.graph.node.append(helper.make_node("If", ["cond"], ["unused"], then_branch=inner, else_branch=inner))
    made.graph.value_info.append(helper.make_tensor_sequence_value_info("seq", FLOAT, ["n", 2]))
    return bytes(made.SerializeToString())


def messages(message: Any) -> Iterator[Any]:
    """``message`` and all inside it."""
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from messages(inner)


def dangers(data: bytes) -> list[str]:
    """What the onnx library sees in ``data`` that must never pass."""
    found = []
    for message in messages(onnx.ModelProto.FromString(data)):
        if len(UnknownFieldSet(message)):
            found.append(f"unknown fields in {message.DESCRIPTOR.name}")
        if isinstance(message, TensorProto) and (message.external_data or message.data_location):
            found.append("external data")
        if isinstance(message, onnx.NodeProto) and (
            message.domain not in DOMAINS or message.op_type == "Loop" or message.overload
        ):
            found.append(f"operator {message.domain}.{message.op_type}")
        if isinstance(message, (onnx.FunctionProto, onnx.TrainingInfoProto)):
            found.append(message.DESCRIPTOR.name)
        if isinstance(message, onnx.ModelProto) and any(
            p.key.startswith(("ort_config", "session.")) for p in message.metadata_props
        ):
            found.append("session configuration")
    return found


def smuggled(rng: random.Random) -> bytes:
    """One dangerous field, written in one of the ways that readers may differ about."""
    entry = member(1, b"location") + member(2, b"secret.bin")
    payload = rng.choice(
        [(13, entry), (14, 1), (5, b"\x6a\x02\x0a\x00"), (7, b"com.evil"), (25, b""), (20, b""), (4, b"Loop")]
    )
    tag = rng.choice([varint, padded, beyond_32_bits, lambda key: varint(key | 1 << rng.randrange(30, 40))])
    return member(*payload, tag=tag)


def mutated(good: bytes, rng: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            data[at:at] = smuggled(rng)
        elif kind == 3:
            end = min(len(data), at + rng.randrange(1, 40))
            data[at:at] = data[at:end]
        else:
            del data[at : at + rng.randrange(1, 4)]
    return bytes(data)


def nested(fields: list[int], payload: bytes, good: bytes) -> bytes:
    """``good`` with ``payload`` appended inside the first message at ``fields``, all lengths mended."""
    if not fields:
        return good + payload
    at = 0
    while at < len(good):
        key, start = _read(good, at)
        if key & 7 == 0:
            _, end = _read(good, start)
        elif key & 7 == 2:
            size, start = _read(good, start)
            end = start + size
        else:
            end = start + (8 if key & 7 == 1 else 4)
        if key == fields[0] << 3 | 2:
            return good[:at] + member(fields[0], nested(fields[1:], payload, good[start:end])) + good[end:]
        at = end
    raise AssertionError(fields)


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


PLACES = {
    "initializer": [7, 5],
    "sparse initializer": [7, 15, 1],
    "attribute tensor": [7, 1, 5, 5],
    "node": [7, 1],
    "graph": [7],
    "model": [],
    "attribute": [7, 1, 5],
    "input": [7, 11],
    "type": [7, 11, 2],
    "dimension": [7, 11, 2, 1, 2, 1],
    "operator set": [8],
    "metadata": [14],
}


def with_constant_first(data: bytes) -> bytes:
    made = onnx.ModelProto.FromString(data)
    nodes = sorted(made.graph.node, key=lambda n: n.op_type != "Constant")
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return bytes(made.SerializeToString())


def test_X04_what_we_let_through_the_onnx_library_reads_the_same() -> None:
    """6,000 mutants of one rich model, some with a dangerous field smuggled in. Seen red with the reader of 0.1 (tags beyond 32 bits,
    unknown fields in tensors) and with each of: tags not held to their shortest form, unknown fields skipped, wire types not compared.
    """
    rng = random.Random(20)
    good = with_constant_first(rich())
    check_onnx(good)
    passed = 0
    for _ in range(3_000):
        where = rng.choice(list(PLACES.values()))
        for data in (mutated(good, rng), nested(where, smuggled(rng), good)):
            try:
                graph = check_onnx(data)
            except UnsafeFormat:
                continue
            passed += 1
            assert dangers(data) == []
            ops = {
                m.op_type for m in messages(onnx.ModelProto.FromString(data)) if isinstance(m, onnx.NodeProto)
            }
            assert graph.operators() == ops
    assert passed > 200, "mutants that pass are what the comparison is about"


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize(
    "payload",
    [
        member(13, member(1, b"location") + member(2, b"x"), tag=beyond_32_bits),
        member(13, b"", tag=padded),
        member(14, 1, tag=beyond_32_bits),
        member(200, b"new"),
        b"\xa3\x06\xa4\x06",  # a group, number 100, empty
        b"\xa0\x06\x80\x00",  # a number that is not in its shortest form
        b"\x00\x01",
    ],
    ids=[
        "external-overlong",
        "padded-tag",
        "location-overlong",
        "unknown",
        "group",
        "long-number",
        "field-zero",
    ],
)
def test_X04_what_two_readers_may_read_differently_is_refused_everywhere(place: str, payload: bytes) -> None:
    """Seen red with the reader of 0.1: unknown fields passed in tensors and types, overlong tags everywhere."""
    with pytest.raises(UnsafeFormat):
        check_onnx(nested(PLACES[place], payload, with_constant_first(rich())))


@pytest.mark.parametrize(
    ("place", "payload"),
    [
        ([7, 1], member(4, b"Add")),
        ([7, 1], member(7, b"")),
        ([7, 5], member(2, 1)),
        ([7, 5], member(14, 0) + member(14, 0)),
        ([7, 11], member(1, b"other")),
        ([], member(7, b"")),
        ([7, 11, 2], member(4, b"")),
        ([8], member(2, 9)),
    ],
    ids=["op", "domain", "data_type", "location", "input", "graph", "oneof", "version"],
)
def test_X04_a_single_field_given_twice_is_refused(place: list[int], payload: bytes) -> None:
    """Protobuf readers take the last one, or merge. Seen red without the set of fields seen."""
    good = with_constant_first(rich())
    if place == [7, 1] and payload == member(7, b""):
        payload += payload
    with pytest.raises(UnsafeFormat, match="twice"):
        check_onnx(nested(place, payload, good))


def test_X04_a_tensor_that_says_it_is_elsewhere_is_refused() -> None:
    """Without a word of where, which is refused by itself. Seen red with ``data_location`` let through: readers look beside the file."""
    here = numpy_helper.from_array(np.ones((1, 1), np.float32), "w")
    add = helper.make_node("Add", ["numeric", "w"], ["y"])
    check_onnx(model(add, initializers=(here,)))
    here.data_location = TensorProto.EXTERNAL
    with pytest.raises(UnsafeFormat, match="outside the file"):
        check_onnx(model(add, initializers=(here,)))


def test_the_schema_is_that_of_onnx_proto() -> None:
    """Each field that we read has the type that the onnx library gives it, and each of its fields is known here or refused."""
    names = {
        "Model": onnx.ModelProto, "OperatorSet": onnx.OperatorSetIdProto, "Entry": onnx.StringStringEntryProto, "Graph": onnx.GraphProto,
        "Node": onnx.NodeProto, "Attribute": onnx.AttributeProto, "Tensor": onnx.TensorProto, "Sparse": onnx.SparseTensorProto,
        "ValueInfo": onnx.ValueInfoProto, "Annotation": onnx.TensorAnnotation, "Type": onnx.TypeProto, "TensorType": onnx.TypeProto.Tensor,
        "Shape": onnx.TensorShapeProto, "Dimension": onnx.TensorShapeProto.Dimension, "SequenceType": onnx.TypeProto.Sequence,
        "MapType": onnx.TypeProto.Map,
    }  # fmt: skip
    kinds = {
        FieldDescriptor.TYPE_INT64: "int", FieldDescriptor.TYPE_UINT64: "int", FieldDescriptor.TYPE_INT32: "int32", FieldDescriptor.TYPE_ENUM: "int32",
        FieldDescriptor.TYPE_FLOAT: "f32", FieldDescriptor.TYPE_DOUBLE: "f64", FieldDescriptor.TYPE_STRING: "str", FieldDescriptor.TYPE_BYTES: "bytes",
    }  # fmt: skip
    assert set(names) == set(SCHEMA)
    for name, message in names.items():
        descriptor: Descriptor = message.DESCRIPTOR
        assert {f.number for f in descriptor.fields} == set(SCHEMA[name]), name
        for field in descriptor.fields:
            ours = SCHEMA[name][field.number]
            assert ours.endswith("*") == field.is_repeated, (name, field.name)
            if ours.startswith("Refused"):
                continue
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                alike = {"Optional": "Sequence", "SparseTensor": "Tensor"}  # messages of the same fields
                found = alike.get(field.message_type.name, field.message_type.name)
                assert found == names[ours.rstrip("*")].DESCRIPTOR.name, field.name
            elif (
                ours.rstrip("*") != "int" or field.number != 5
            ):  # int32_data: its values are data, not structure
                assert kinds[field.type] == ours.rstrip("*").replace("enum", "int32"), (name, field.name)


N = helper.make_node
HEAD = [
    N("ReduceMax", ["numeric"], ["mx"], keepdims=0),
    N("Cast", ["mx"], ["k"], to=INT64),
    N("Reshape", ["k", "one"], ["size"]),
]
TAIL = [N("ReduceSum", ["big"], ["s"], keepdims=0), N("Add", ["numeric", "s"], ["y"])]
ONE = numpy_helper.from_array(np.array([1], np.int64), "one")
ZERO = numpy_helper.from_array(np.array([0], np.int64), "zero")


@pytest.mark.parametrize(
    "nodes",
    [
        [N("ConstantOfShape", ["size"], ["big"])],
        [N("Expand", ["numeric", "size"], ["big"])],
        [N("Tile", ["numeric", "size2"], ["big"])],
        [N("Reshape", ["numeric", "size2"], ["big"])],
        [N("Slice", ["numeric", "zero", "size"], ["big"])],
        [N("Pad", ["numeric", "size2"], ["big"])],
        [N("OneHot", ["k", "k", "numeric"], ["big"])],
        [N("TopK", ["numeric", "size"], ["big", "at"])],
        [N("CastLike", ["size", "one"], ["c"]), N("Concat", ["c", "one"], ["d"], axis=0), N("ConstantOfShape", ["d"], ["big"])],
    ],
    ids=lambda nodes: nodes[-1].op_type,
)  # fmt: skip
def test_X04_a_tensor_as_large_as_a_value_says_is_refused(nodes: list[Any]) -> None:
    """Seen red with the call of ``examine`` taken out of ``check_onnx``."""
    doubled = N("Concat", ["size", "size"], ["size2"], axis=0)
    with pytest.raises(UnsafeFormat, match="as large as a value"):
        check_onnx(model(*HEAD, doubled, *nodes, *TAIL, initializers=(ONE, ZERO)))


SHAPE = [N("Shape", ["numeric"], ["shape"]), N("Gather", ["shape", "zero"], ["rows"])]
FILL = [N("ConstantOfShape", ["rows"], ["big"])]


@pytest.mark.parametrize(
    ("nodes", "bounded"),
    [
        ([*SHAPE, *FILL], True),
        ([*SHAPE, N("Concat", ["rows", "one"], ["two"], axis=0), N("Reshape", ["numeric", "two"], ["big"])], True),
        ([N("ConstantOfShape", ["one"], ["big"])], True),
        ([N("Tile", ["numeric", "pair"], ["big"])], True),
        ([N("Range", ["zero", "one", "one"], ["big"])], True),
        ([*SHAPE, N("Squeeze", ["rows"], ["n"]), N("Range", ["zero", "n", "one"], ["big"])], False),
        ([N("Range", ["zero", "numeric", "one"], ["big"])], None),
        ([*SHAPE, N("Gather", ["pair", "rows"], ["looked"]), N("ConstantOfShape", ["looked"], ["big"])], None),
        ([*SHAPE, N("Mul", ["rows", "rows"], ["square"]), N("ConstantOfShape", ["square"], ["big"])], None),
        ([*SHAPE, N("Slice", ["numeric", "zero", "rows"], ["big"])], False),
        ([N("NonZero", ["numeric"], ["big"])], False),
        ([N("RandomNormalLike", ["numeric"], ["big"])], False),
        ([N("StringConcat", ["numeric", "numeric"], ["big"])], False),
    ],
    ids=["fill", "reshape", "constant", "tile", "range", "range-rows", "range-values", "table", "square", "slice", "nonzero", "random", "strings"],
)  # fmt: skip
def test_only_what_rows_alone_decide_is_bounded(nodes: list[Any], bounded: bool | None) -> None:
    """True: in the server's own process. False: in a process of its own. None: refused, since a size is computed."""
    pair = numpy_helper.from_array(np.array([1, 2], np.int64), "pair")
    data = model(*nodes, *TAIL, initializers=(ONE, ZERO, pair))
    if bounded is None:
        with pytest.raises(UnsafeFormat):
            check_onnx(data)
    else:
        assert examine(check_onnx(data)).bounded is bounded


def test_an_initializer_that_is_an_input_too_is_not_a_constant() -> None:
    """Its value may be given with the request."""
    data = model(
        N("ConstantOfShape", ["one"], ["big"]), *TAIL, initializers=(ONE,), more=(INFO("one", INT64, [1]),)
    )
    with pytest.raises(UnsafeFormat, match="as large as a value"):
        check_onnx(data)


EMITTED = (
    "Abs Add And ArgMax ArgMin Cast Clip Concat Constant ConstantOfShape CumSum Div Equal Erf Exp Expand Flatten Floor Gather GatherElements Gemm "
    "GlobalAveragePool Greater GreaterOrEqual Identity IsNaN Less LessOrEqual Log LogSoftmax MatMul Max Min Mod Mul Neg Not OneHot Or Pow "
    "Range ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceProd ReduceSum ReduceSumSquare Relu Reshape ScatterElements Shape Sigmoid "
    "Sign Slice Softmax Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Unsqueeze Where ArrayFeatureExtractor Binarizer Imputer LabelEncoder "
    "LinearClassifier LinearRegressor Normalizer OneHotEncoder SVMClassifier SVMRegressor Scaler TreeEnsemble TreeEnsembleClassifier "
    "TreeEnsembleRegressor"
)
"""Operators that our converters write (skl2onnx's ``Scan``, for distances to neighbours, aside: such a model has a process of its own)."""


def test_what_our_converters_write_is_bounded() -> None:
    """Or ordinary models would leave the event loop. Seen red with ``GlobalAveragePool`` missing."""
    assert set(EMITTED.split()) - BOUNDED == set()


def converted(forms: list[tuple[str, Callable[[], bytes]]]) -> bytes:
    """The first form that there is."""
    for _, convert in forms:
        with contextlib.suppress(InvalidInput):
            return convert()
    pytest.fail("no form at all")


def test_ordinary_estimators_stay_in_the_servers_own_process() -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from mainspring.models.formats import infer_signature
    from mainspring.models.formats.onnx.convert import list_forms

    x = np.random.default_rng(0).normal(size=(80, 3))
    signature = infer_signature({f"c{i}": x[:, i] for i in range(3)}, task="binary")
    for estimator in (
        LogisticRegression(), RandomForestClassifier(5), HistGradientBoostingClassifier(max_iter=5), GaussianNB(),
        MLPClassifier((4,), max_iter=5), make_pipeline(StandardScaler(), LogisticRegression()),
    ):  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = converted(list_forms(estimator.fit(x, x[:, 0] > 0), signature))
        assert examine(check_onnx(data)).bounded, type(estimator).__name__
