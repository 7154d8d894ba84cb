"""D01, D02, D07 on the inference port: malformed, oversized, lying. A real server, raw sockets."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest


def _helpers() -> ModuleType:
    """The serving room's fixtures: the same real server."""
    path = Path(__file__).parents[1] / "serving" / "conftest.py"
    spec = importlib.util.spec_from_file_location("serving_helpers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serving_helpers"] = module
    spec.loader.exec_module(module)
    return module


helpers = _helpers()
packages = helpers.packages
MAX_BODY = 1 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, packages: Callable[[float], Path]) -> Iterator[Any]:
    bundle = helpers.Bundle(tmp_path_factory.mktemp("d") / "bundle", packages)
    bundle.route(bundle.target(1, 0.75))
    server = helpers.Server(bundle.folder, "--max-body", str(MAX_BODY), "--max-rows", "100")
    yield server
    server.stop()


PREDICT, INFER, FEEDBACK = "/v1/deployments/d/predict", "/v2/models/d/infer", "/v1/feedback"

GOOD = {
    PREDICT: '{"rows":[{"x0":%s,"x1":2}]}',
    INFER: '{"inputs":[{"name":"x0","shape":[1],"datatype":"FP64","data":[%s]},{"name":"x1","shape":[1],"datatype":"FP64","data":[2]}]}',
    FEEDBACK: '[{"prediction_id":"01900000-0000-7000-8000-000000000000","value":%s}]',
}

VALUES = {
    "nan": b"NaN", "infinity": b"Infinity", "minus_infinity": b"-Infinity", "1e400": b"1e400", "5000_digits": b"9" * 5000,
    "lone_surrogate": b'"\\ud800"', "nul": b'"a\\u0000b"', "raw_nul": b'"\x00"', "invalid_utf8": b'"\xff\xfe"', "deep_list": b"[" * 100_000 + b"]" * 100_000,
    "deep_object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "list": b"[1]", "object": b"{}", "hex": b"0x10", "plus": b"+1", "comment": b"1/**/",
    "million_keys": b"{" + b",".join(b'"%d":1' % i for i in range(60_000)) + b"}",
}  # fmt: skip


def whole(path: str) -> dict[str, bytes]:
    good = (GOOD[path] % "1").encode()
    return {
        "bad_key": b'{"\xff":1}' if good[:1] == b"{" else b'[{"\xff":1}]', "empty": b"", "space": b" ", "truncated": good[:-2], "trailing": good + b"x", "two": good + good, "bom": b"\xef\xbb\xbf" + good,
        "utf16": good.decode().encode("utf-16"), "null": b"null", "number": b"1", "string": b'"x"', "top_level_keys": b"{" + b",".join(b'"%d":1' % i for i in range(60_000)) + b"}",
        "deep": b"[" * 100_000, "duplicate": good.replace(b'"x0":1', b'"x0":1,"x0":2').replace(b'"name":"x1"', b'"name":"x1","name":"x1"').replace(b'"value":1', b'"value":1,"value":1'),
    }  # fmt: skip


@pytest.mark.parametrize("path", list(GOOD))
def test_d01_malformed_json_is_4xx_with_a_stable_code(served: Any, path: str) -> None:
    """Never 5xx, the worker's pid unchanged. Seen red with ``RecursionError`` and ``UnicodeDecodeError`` not caught where a body is decoded."""
    client = served.client()
    bodies = {
        name: (GOOD[path] % "§").encode().replace("§".encode(), value) for name, value in VALUES.items()
    } | whole(path)
    for name, body in bodies.items():
        status, headers, answer = client.call("POST", path, body)
        assert 400 <= status < 500, (name, status, answer[:200])
        error = json.loads(answer)
        code = error["code"] if path == INFER else error["error"]["code"]
        assert code in {"malformed_json", "invalid_input"}, (name, code)
        assert headers["content-type"] == "application/json"
        assert len(answer) < 4000, name
    assert client.call("POST", path, (GOOD[path] % "1").encode())[0] in {200, 202}
    assert served.client().json("GET", "/v1/status")["ready"]
    assert psutil.pid_exists(served.ready["worker"])


def test_d02_a_declared_size_over_the_limit_is_refused_before_a_byte_is_read(served: Any) -> None:
    """Seen red with the length check taken out of ``Bodies._check``."""
    client = served.client()
    client.raw(
        f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n".encode()
    )
    assert client.receive()[0] == 413


def test_d02_an_endless_chunked_body_is_cut_off_and_memory_stays_bounded(served: Any) -> None:
    """Seen red with the running sum taken out of ``Bodies._rest``."""
    worker = psutil.Process(served.ready["worker"])
    before = worker.memory_info().rss
    client = served.client()
    client.raw(f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    try:
        for _ in range(1024):
            client.raw(piece)
        sent_all = True
    except (BrokenPipeError, ConnectionResetError, TimeoutError):
        sent_all = False
    if sent_all:
        assert client.receive()[0] == 413
    assert worker.memory_info().rss - before < 24 << 20
    assert served.client().json("GET", "/v1/status")["ready"]


def test_d02_tiny_chunks_are_one_body(served: Any) -> None:
    client = served.client()
    body = (GOOD[PREDICT] % "1").encode()
    client.raw(f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    client.raw(b"".join(b"1\r\n%c\r\n" % byte for byte in b" " * 50_000 + body) + b"0\r\n\r\n")
    assert client.receive()[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Length": "-1"}, 400),
        ({"Content-Length": "9" * 30}, 413),
        ({"Mainspring-Event-Time": "soon"}, 422),
        ({"Mainspring-Key": "k" * 300}, 422),
    ],
)
def test_d02_headers_that_lie_or_do_not_fit(served: Any, headers: dict[str, str], status: int) -> None:
    client = served.client()
    answered = client.call("POST", PREDICT, (GOOD[PREDICT] % "1").encode(), headers)[0]
    assert answered == status or (answered == 400 and "Content-Length" in headers)


def test_d02_a_body_shorter_than_declared_holds_nobody_up(served: Any) -> None:
    waiting = socket.create_connection(("127.0.0.1", served.port))
    waiting.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{{".encode())
    assert served.client().call("POST", PREDICT, (GOOD[PREDICT] % "1").encode())[0] == 200
    waiting.close()
    assert served.client().call("GET", "/v2/health/ready")[0] == 200


@pytest.mark.parametrize(
    "inputs",
    [
        [{"name": "x0", "shape": [1], "datatype": "FP64", "data": [1]}],
        [{"name": n, "shape": [1], "datatype": "FP64", "data": [1]} for n in ("x0", "x1", "x2")],
        [{"name": n, "shape": [1], "datatype": "FP64", "data": [1]} for n in ("x0", "x0")],
        [{"name": n, "shape": [s], "datatype": "FP64", "data": [1] * s} for n, s in (("x0", 1), ("x1", 2))],
        [{"name": n, "shape": [2], "datatype": "FP64", "data": [1]} for n in ("x0", "x1")],
        [{"name": n, "shape": [0], "datatype": "FP64", "data": []} for n in ("x0", "x1")],
        [{"name": n, "shape": [-1], "datatype": "FP64", "data": [1]} for n in ("x0", "x1")],
        [{"name": n, "shape": [1], "datatype": "BYTES", "data": ["1"]} for n in ("x0", "x1")],
        [{"name": n, "shape": [1], "datatype": "BOOL", "data": [True]} for n in ("x0", "x1")],
        [{"name": n, "shape": [1], "datatype": "FP64", "data": [True]} for n in ("x0", "x1")],
        [{"name": n, "shape": [1], "datatype": "FP64", "data": [None]} for n in ("x0", "x1")],
        [{"name": n, "shape": [1], "datatype": "COMPLEX", "data": [1]} for n in ("x0", "x1")],
        [{"name": n, "shape": [101], "datatype": "FP64", "data": [1] * 101} for n in ("x0", "x1")],
        [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3]]}],
        [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}],
        [{"name": "x", "shape": [1, 2], "datatype": "INT8", "data": [[1, 300]]}],
        [],
    ],
)
def test_d07_tensors_that_do_not_fit_are_422_and_reach_no_model(
    served: Any, inputs: list[dict[str, Any]]
) -> None:
    """Seen red with the checks of length and null taken out of ``V2Codec``."""
    client = served.client()
    before = client.json("GET", "/v1/status")["counters"]["log_records"]
    status, _, body = client.call("POST", INFER, {"inputs": inputs})
    assert status == 422, body
    assert isinstance(json.loads(body)["error"], str)
    assert client.json("GET", "/v1/status")["counters"]["log_records"] == before


@pytest.mark.parametrize(
    "rows",
    [
        [{"x0": 1}], [{"x0": 1, "x1": 1, "x2": 1}], [{"x0": 1, "X1": 1}], [{"x0": True, "x1": 1}], [{"x0": "1", "x1": 1}], [{"x0": None, "x1": 1}],
        [{"x0": [1], "x1": 1}], [{"x0": 1, "x1": 1}, {"x0": 1}], [], [{"x0": 1, "x1": 1}] * 101, [1], {"x0": 1}, [{"x0": "s" * 500_000, "x1": 1}],
    ],
)  # fmt: skip
def test_d07_rows_that_do_not_fit_are_422_with_the_columns(served: Any, rows: Any) -> None:
    """Seen red with the columns' types replaced by ``Any``."""
    client = served.client()
    before = client.json("GET", "/v1/status")["counters"]["log_records"]
    status, _, body = client.call("POST", PREDICT, {"rows": rows})
    assert status == 422, body
    text = body.decode()
    assert "x0:float64, x1:float64" in text or "no rows" in text or "too many rows" in text
    assert client.json("GET", "/v1/status")["counters"]["log_records"] == before


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v2/models",
        "/v2/models/d/nothing",
        "/v1/deployments/e/predict",
        "/v2/models/..%2f..%2fetc/infer",
        "/v1/deployments/d/predict/",
        "//",
    ],
)
def test_unknown_paths_are_404(served: Any, path: str) -> None:
    assert served.client().call("POST", path, b"{}")[0] == 404


def test_wrong_methods_are_405(served: Any) -> None:
    client = served.client()
    assert client.call("GET", PREDICT)[0] == 405
    assert client.call("PUT", INFER, b"{}")[0] == 405
    assert client.call("POST", "/metrics", b"{}")[0] == 405
