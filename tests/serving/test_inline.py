"""What may run on the event loop: bounded by the worst row, not by the sample that was measured."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mainspring.serving.hosting import _exchange
from mainspring.serving.model_process import LENGTH
from mainspring.serving.versions import Version, open_version

pytestmark = pytest.mark.timeout(900)

N, INFO, FLOAT = helper.make_node, helper.make_tensor_value_info, TensorProto.FLOAT


def _hosting() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "hosting_helpers", Path(__file__).with_name("test_hosting.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hosting = _hosting()


def graph(*nodes: Any, constants: dict[str, Any] | None = None) -> bytes:
    """``numeric [n, 1] -> y [n, 1]``."""
    initializers = [numpy_helper.from_array(np.array(v), k) for k, v in (constants or {}).items()]
    made = helper.make_graph(
        list(nodes), "g", [INFO("numeric", FLOAT, [None, 1])], [INFO("y", FLOAT, [None, 1])], initializers
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return bytes(helper.make_model(made, opset_imports=sets, ir_version=8).SerializeToString())


def trees(true: list[int], false: list[int], values: list[float], *, leaves: int) -> bytes:
    """One tree of the nodes given, the last ``leaves`` of which are leaves that answer 7."""
    count = len(true)
    modes = ["BRANCH_LEQ"] * (count - leaves) + ["LEAF"] * leaves
    ends = list(range(count - leaves, count))
    return graph(
        N(
            "TreeEnsembleRegressor", ["numeric"], ["y"], domain="ai.onnx.ml", n_targets=1, nodes_treeids=[0] * count,
            nodes_nodeids=list(range(count)), nodes_featureids=[0] * count, nodes_values=values, nodes_modes=modes,
            nodes_truenodeids=true, nodes_falsenodeids=false, nodes_missing_value_tracks_true=[0] * count,
            target_treeids=[0] * leaves, target_nodeids=ends, target_ids=[0] * leaves, target_weights=[7.0] * leaves,
        )
    )  # fmt: skip


def endless() -> bytes:
    """A tree whose third node leads back to its second for values above 20 and up to 100: ONNX Runtime loads it, and never answers."""
    return trees([3, 4, 1, 0, 0, 0], [1, 2, 5, 0, 0, 0], [20.0, -5.0, 100.0, 0.0, 0.0, 0.0], leaves=3)


def chain(length: int) -> bytes:
    """A tree that the value 0 leaves at its first node, and a large value at its last one."""
    ends = [0] * (length + 1)
    return trees(
        [length + i for i in range(length)] + ends,
        [i + 1 for i in range(length - 1)] + [2 * length] + ends,
        [float(i) for i in range(2 * length + 1)],
        leaves=length + 1,
    )


def pairs() -> bytes:
    """A product of two matrices of all pairs of rows on the way: the cube of the rows."""
    return graph(
        N("Transpose", ["numeric"], ["across"]),
        N("Sub", ["numeric", "across"], ["table"]),
        N("MatMul", ["table", "table"], ["product"]),
        N("ReduceSum", ["product", "axis"], ["sums"], keepdims=1),
        N("Mul", ["sums", "zero"], ["nothing"]),
        N("Add", ["numeric", "nothing"], ["y"]),
        constants={"axis": np.array([1]), "zero": np.float32(0)},
    )


def opened(folder: Path, data: bytes, *, max_rows: int = 10_000) -> tuple[Version, str | None]:
    hosting.onnx_package(data, {"x0": 0.0})(folder)
    return open_version(folder, "0" * 64, inline_ms=1.0, max_rows=max_rows)


def test_d03_a_tree_that_leads_round_in_circles_stops_nobody_else(bundle: Any, start: Any) -> None:
    """The value 50 never arrives: 504 after the deadline, and all the while the other deployment answers. Seen red with
    ``tree_steps`` not asked: the tree was taken onto the event loop, and nobody was answered any more."""
    hosting.publish(bundle, hosting.add(bundle, "slow", hosting.onnx_package(endless(), {"x0": 0.0})))
    client = start(bundle, "--deadline", "2", "--no-spare").client()
    hosting.until(lambda: "slow" in hosting.versions(client), "it is loaded, however long that takes")
    assert hosting.versions(client)["slow"]["own_process"]
    hosting.until(lambda: hosting.ask(client, 0.0)[0] == 200, "it answers what it can")
    status, told = hosting.ask(client, 50.0)
    assert status == 504, told
    assert hosting.answers_with(client, hosting.FAST, b'"score":0.75')
    hosting.until(lambda: hosting.ask(client, 1e9)[0] == 200, "its process was replaced")


def test_d03_a_chain_that_the_sample_leaves_at_once_is_counted_to_its_end(tmp_path: Path) -> None:
    """Seen red with the measured row alone deciding: thousands of rows were taken onto the event loop."""
    version, why = opened(tmp_path / "chain", chain(4000))
    assert why is None
    assert version.inline_rows <= 50
    short, why = opened(tmp_path / "short", chain(5))
    assert why is None
    assert short.inline_rows > version.inline_rows
    far, why = opened(tmp_path / "far", chain(4000), max_rows=1_000_000)
    assert far.inline_rows == 0
    assert why is not None
    assert "steps" in why


def test_d03_a_cost_that_grows_faster_than_the_rows_is_tried_out(tmp_path: Path) -> None:
    """Seen red with what 64 rows cost carried on in a straight line on the event loop."""
    version, why = opened(tmp_path / "pairs", pairs())
    assert why is None
    assert version.inline_rows <= 512


def test_d03_an_answer_larger_than_its_rows_is_not_read() -> None:
    """A model's process that was taken over sends lists of lists, which become gigabytes here. Seen red with one bound of 64 MiB for
    all of them."""

    async def ask(size: int) -> bytes:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.sendall(LENGTH.pack(size) + b"x" * size)
            return await _exchange(ours, b"", 100)

    assert asyncio.run(ask(100)) == b"x" * 100
    with pytest.raises(EOFError):
        asyncio.run(ask(101))
