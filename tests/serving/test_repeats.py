"""A request that comes again under its idempotency key is answered as it was, and counts once."""

from __future__ import annotations

import json

import pytest

from mainspring.errors import Conflict, InvalidInput, Unavailable
from mainspring.records.base import new_id
from mainspring.records.serving import LOG_PREFIX, decode_log
from mainspring.serving.repeats import Repeats
from mainspring.serving.wire import Reply as Kept
from mainspring.storage.journal import JournalReader

ROW = {"rows": [{"x0": 1, "x1": 2.5}]}
V2 = {"inputs": [{"name": n, "shape": [1], "datatype": "FP64", "data": [1.0]} for n in ("x0", "x1")]}


@pytest.mark.parametrize(("path", "body"), [("/v1/deployments/d/predict", ROW), ("/v2/models/d/infer", V2)])
def test_a_repeated_request_counts_once(bundle, start, path, body) -> None:
    """Seen red without the memory of answers: two records in the log, two requests in /metrics."""
    bundle.route(bundle.target(1, 0.75))
    client = start(bundle).client()
    key = {"Idempotency-Key": new_id()}
    first = client.call("POST", path, body, key)
    again = client.call("POST", path, body, key)
    assert first[0] == 200
    assert (again[0], again[2]) == (200, first[2])
    assert again[1]["mainspring-prediction-id"] == key["Idempotency-Key"]
    (record,) = [decode_log(r) for r in JournalReader(bundle.folder / "log", prefix=LOG_PREFIX).read("")[0]]
    assert record.id == key["Idempotency-Key"]
    text = client.call("GET", "/metrics")[2].decode()
    (line,) = [t for t in text.splitlines() if t.startswith("mainspring_predictions_total{")]
    assert line.endswith(" 1")


def test_a_key_belongs_to_one_request(bundle, start) -> None:
    bundle.route(bundle.target(1, 0.75))
    client = start(bundle).client()
    key = {"Idempotency-Key": new_id()}
    path = "/v1/deployments/d/predict"
    assert client.call("POST", path, ROW, key)[0] == 200
    status, _, body = client.call("POST", path, {"rows": [{"x0": 2, "x1": 2.5}]}, key)
    assert (status, json.loads(body)["error"]["code"]) == (409, "conflict")
    status, _, body = client.call("POST", path, ROW, {"Idempotency-Key": "my key"})
    assert status == 422
    assert "UUIDv7" in body.decode()


def test_a_refused_request_leaves_its_key_free(bundle, start) -> None:
    bundle.route(bundle.target(1, 0.75))
    client = start(bundle).client()
    key, path = {"Idempotency-Key": new_id()}, "/v1/deployments/d/predict"
    assert client.call("POST", path, {"rows": [{}]}, key)[0] == 422
    assert client.call("POST", path, ROW, key)[0] == 200


def test_while_it_is_answered_a_repeat_has_to_wait() -> None:
    repeats, key = Repeats(), new_id()
    assert repeats.begin(key.encode(), "d", b"x") == (key, None)
    with pytest.raises(Unavailable, match="still being answered"):
        repeats.begin(key.encode(), "d", b"x")
    kept = Kept(200, b"answer", [])
    repeats.end(key, kept)
    assert repeats.begin(key.encode(), "d", b"x") == (key, kept)
    with pytest.raises(Conflict):
        repeats.begin(key.encode(), "other", b"x")
    with pytest.raises(InvalidInput):
        repeats.begin(b"0", "d", b"x")


def test_what_is_kept_is_bounded() -> None:
    repeats = Repeats(entries=3, max_bytes=100)
    keys = [new_id() for _ in range(5)]
    for key in keys:
        repeats.begin(key.encode(), "d", b"x")
        repeats.end(key, Kept(200, b"a" * 40, []))
    assert [repeats.begin(k.encode(), "d", b"x")[1] is not None for k in keys[3:]] == [True, True]
    assert repeats.begin(keys[0].encode(), "d", b"x")[1] is None
