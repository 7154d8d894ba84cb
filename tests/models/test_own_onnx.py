"""An ONNX file of one's own: as PyTorch exports it, as skl2onnx makes it, and as nobody should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mainspring.errors import InvalidInput, UnsafeFormat
from mainspring.lineage import Foundation
from mainspring.models import ModelsClient, formats
from mainspring.models.formats.saving import ParityFailed

pytestmark = pytest.mark.filterwarnings("ignore:.* is unwatched")
"""Models are registered here without the rows that they were trained on."""

_RNG = np.random.default_rng(3)
_W1, _W2 = _RNG.normal(size=(3, 8)).astype(np.float32), _RNG.normal(size=(8, 3)).astype(np.float32)
_ROWS = _RNG.normal(size=(200, 3))
SIGNATURE = formats.infer_signature(
    {f"x{i}": _ROWS[:, i] for i in range(3)}, task="multiclass", classes=["low", "middle", "high"]
)

_Client = Callable[[Foundation], ModelsClient]


def logits(rows: Any) -> Any:
    """The network in NumPy, in float32 as PyTorch computes it."""
    return np.maximum(np.asarray(rows, dtype=np.float32) @ _W1, 0) @ _W2


def probabilities(rows: Any) -> Any:
    each = np.exp(logits(rows).astype(np.float64))
    return each / each.sum(axis=1, keepdims=True)


def make_network(path: Path, *, rows: Any = "batch", extra: Any = ()) -> Path:
    """A network of two layers, with the names that ``torch.onnx.export`` gives."""
    graph = helper.make_graph(
        [
            helper.make_node(
                "MatMul", ["x", "w1"], ["numeric"]
            ),  # a name that packages use for something else
            helper.make_node("Relu", ["numeric"], ["h"]),
            helper.make_node("MatMul", ["h", "w2"], ["scores"]),
            *extra,
        ],
        "main_graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [rows, 3])],
        [numpy_helper.from_array(_W1, "w1"), numpy_helper.from_array(_W2, "w2")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="pytorch"
    )
    path.write_bytes(model.SerializeToString())
    return path


def test_a_network_of_logits_beside_its_original(
    foundation: Foundation, client_of: _Client, tmp_path: Path
) -> None:
    client = client_of(foundation)
    path = make_network(tmp_path / "net.onnx")
    version = client.register_onnx(
        path, model="net", signature=SIGNATURE, sample=_ROWS, activation="softmax", original=probabilities
    )
    assert version.format == "onnx"
    loaded = client.load("net")
    notes = loaded.package.notes
    assert notes["onnx_inputs"] == {"x": ["x0", "x1", "x2"]}
    assert notes["compared_with"] == "the original"
    assert loaded.package.parity is not None
    assert loaded.package.parity.rows == 200
    other = np.random.default_rng(4).normal(size=(10_000, 3))
    np.testing.assert_allclose(loaded.predict_proba(other), probabilities(other), atol=1e-6)
    assert loaded.predict(other[:5]).tolist() == [
        SIGNATURE.classes[i] for i in logits(other[:5]).argmax(axis=1)
    ]


def test_columns_go_to_the_inputs_that_are_named(
    foundation: Foundation, client_of: _Client, tmp_path: Path
) -> None:
    """In the order of the input, not of the signature."""
    client = client_of(foundation)
    columns = {"c": _ROWS[:, 2], "a": _ROWS[:, 0], "unused": _ROWS[:, 1], "b": _ROWS[:, 1]}
    signature = formats.infer_signature(columns, task="multiclass", classes=SIGNATURE.classes)
    client.register_onnx(
        make_network(tmp_path / "net.onnx"),
        model="net", signature=signature, sample=columns, inputs={"x": ["a", "b", "c"]}, activation="softmax",
    )  # fmt: skip
    loaded = client.load("net")
    np.testing.assert_allclose(loaded.predict_proba(columns), probabilities(_ROWS), atol=1e-6)
    assert loaded.package.notes["compared_with"] == "the file itself"


def test_a_file_with_an_input_for_each_column(
    foundation: Foundation, client_of: _Client, tmp_path: Path
) -> None:
    """As skl2onnx makes it of a pipeline: label and probabilities, numbers ``[n, 1]`` and texts, by the names of the columns."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"size": _ROWS[:, 0], "kind": np.where(_ROWS[:, 1] > 0, "u", "v")})
    parts = [("n", StandardScaler(), ["size"]), ("t", OneHotEncoder(sparse_output=False), ["kind"])]
    pipeline = Pipeline([("c", ColumnTransformer(parts)), ("m", LogisticRegression())])
    pipeline.fit(frame, np.where(_ROWS[:, 0] + (_ROWS[:, 1] > 0) > 0.3, "yes", "no"))
    made = convert_sklearn(
        pipeline,
        initial_types=[("size", FloatTensorType([None, 1])), ("kind", StringTensorType([None, 1]))],
        options={"zipmap": False},
    )
    path = tmp_path / "own.onnx"
    path.write_bytes(made.SerializeToString())
    client = client_of(foundation)
    signature = formats.infer_signature(frame, task="binary", classes=["no", "yes"])
    version = client.register_onnx(
        path, model="own", signature=signature, sample=frame, original=pipeline.predict_proba
    )
    loaded = client.load("own", version.version)
    np.testing.assert_allclose(loaded.predict_proba(frame), pipeline.predict_proba(frame), atol=1e-6)
    np.testing.assert_array_equal(loaded.predict(frame), pipeline.predict(frame))


def test_another_model_than_the_file_is_refused(
    foundation: Foundation, client_of: _Client, tmp_path: Path
) -> None:
    with pytest.raises(ParityFailed, match="does not repeat"):
        client_of(foundation).register_onnx(
            make_network(tmp_path / "net.onnx"),
            model="net", signature=SIGNATURE, sample=_ROWS, activation="softmax", original=lambda r: probabilities(r * 1.001),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "arguments", "error", "why"),
    [
        ({}, {}, InvalidInput, "no probabilities"),
        ({"rows": 1}, {"activation": "softmax"}, InvalidInput, "exactly 1 rows"),
        ({}, {"inputs": {"x": ["x0", "x1"]}, "activation": "softmax"}, InvalidInput, "3 columns"),
        (
            {},
            {"inputs": {"y": ["x0", "x1", "x2"]}, "activation": "softmax"},
            InvalidInput,
            "not those of the file",
        ),
        (
            {},
            {"inputs": {"x": ["x0", "x1", "x3"]}, "activation": "softmax"},
            InvalidInput,
            "not in the signature",
        ),
        ({}, {"output": "h", "activation": "softmax"}, InvalidInput, "no output of numbers"),
        (
            {"extra": [helper.make_node("Evil", ["h"], ["e"], domain="com.microsoft")]},
            {},
            UnsafeFormat,
            "com.microsoft",
        ),
        (
            {"extra": [helper.make_node("ConstantOfShape", ["n"], ["e"])]},
            {},
            UnsafeFormat,
            "as large as a value",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(
    foundation: Foundation,
    client_of: _Client,
    tmp_path: Path,
    change: Any,
    arguments: Any,
    error: Any,
    why: str,
) -> None:
    extra = change.get("extra", [])
    if extra and extra[0].op_type == "ConstantOfShape":
        change = {"extra": [helper.make_node("Cast", ["x"], ["n"], to=TensorProto.INT64), *extra]}
    with pytest.raises(error, match=why):
        client_of(foundation).register_onnx(
            make_network(tmp_path / "net.onnx", **change),
            model="net",
            signature=SIGNATURE,
            sample=_ROWS,
            **arguments,
        )


def test_a_file_that_leads_outside_is_refused(
    foundation: Foundation, client_of: _Client, tmp_path: Path
) -> None:
    """Weights in another file: the check refuses before the ``onnx`` library would read it."""
    model = onnx.load(make_network(tmp_path / "net.onnx"))
    (tmp_path / "secret").write_bytes(_W1.tobytes())
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="secret")
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeFormat, match="outside the file"):
        client_of(foundation).register_onnx(
            tmp_path / "net.onnx", model="net", signature=SIGNATURE, sample=_ROWS, activation="softmax"
        )


def test_a_number_from_a_vector(foundation: Foundation, client_of: _Client, tmp_path: Path) -> None:
    """An input ``[n]`` of whole numbers and one of numbers that may be null, an answer ``[n]``."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["k"], ["kf"], to=TensorProto.DOUBLE),
            helper.make_node("Add", ["kf", "v"], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("k", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("v", TensorProto.DOUBLE, [None]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [None])],
    )
    path = tmp_path / "own.onnx"
    path.write_bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9
        ).SerializeToString()
    )
    columns = {"v": [0.5, 1.5, None], "k": [1, 2, 3]}
    signature = formats.infer_signature(columns, task="regression")
    client = client_of(foundation)
    whole = {"v": [0.5, 1.5], "k": [1, 2]}
    client.register_onnx(path, model="sum", signature=signature, sample=whole)
    loaded = client.load("sum")
    assert loaded.compute_scores({"v": [0.25], "k": [40]}).tolist() == [40.25]
    assert np.isnan(loaded.compute_scores({"v": [None], "k": [40]})).all()
