from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mainspring.records.serving import (
    FEEDBACK_PREFIX,
    LOG_PREFIX,
    LoggedFeedback,
    LoggedPrediction,
    LoggedShadow,
    decode_log,
)
from mainspring.storage.journal import JournalReader

ROW = {"rows": [{"x0": 1, "x1": 2.5}]}
PATH = "/v1/deployments/d/predict"


def wait_for(condition: Callable[[], object], *, within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def logged(bundle, prefix: str = LOG_PREFIX) -> list:
    reader, cursor, found = JournalReader(bundle.folder / "log", prefix), "", []
    while True:
        records, cursor = reader.read(cursor)  # at most 10,000 at a time
        if not records:
            return found
        found += [decode_log(r) for r in records]


def test_one_prediction_is_answered_counted_and_logged(bundle, start) -> None:
    bundle.route(bundle.target(3, 0.75))
    client = start(bundle).client()
    status, headers, body = client.call(
        "POST", PATH, {**ROW, "event_time": "2013-01-01T05:15:00Z", "key": "k"}
    )
    answer = json.loads(body)
    assert status == 200
    assert answer["predictions"][0]["label"] == "yes"
    assert answer["predictions"][0]["score"] == pytest.approx(0.75, abs=1e-6)
    assert headers["mainspring-prediction-id"] == answer["prediction_id"]
    (record,) = logged(bundle)
    assert isinstance(record, LoggedPrediction)
    assert (record.id, record.version, record.role, record.key) == (
        answer["prediction_id"],
        3,
        "champion",
        "k",
    )
    assert (record.event_us, record.columns, record.routes) == (
        1357017300000000,
        {"x0": [1.0], "x1": [2.5]},
        1,
    )
    assert record.scores == [answer["predictions"][0]["score"]]
    metrics = client.call("GET", "/metrics")[2].decode()
    assert (
        'mainspring_predictions_total{deployment="d",model="m",version="3",role="champion",status="ok"} 1'
        in metrics
    )
    assert (
        'mainspring_prediction_seconds_count{deployment="d",model="m",version="3",role="champion"} 1'
        in metrics
    )


def test_open_inference_v2(bundle, start) -> None:
    bundle.route(bundle.target(1, 0.75, weight=0.5), bundle.target(2, 0.25, weight=0.5, role="canary"))
    client = start(bundle).client()
    columns = [{"name": n, "shape": [2], "datatype": "FP64", "data": [1, 2]} for n in ("x0", "x1")]
    answer = client.json("POST", "/v2/models/d/versions/2/infer", {"id": "mine", "inputs": columns})
    assert (answer["model_version"], answer["id"]) == ("2", "mine")
    assert [o["name"] for o in answer["outputs"]] == ["label", "score"]
    assert answer["outputs"][0]["data"] == ["no", "no"]
    matrix = {
        "inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3, 4]]}],
        "outputs": [{"name": "score"}],
    }
    assert len(client.json("POST", "/v2/models/d/infer", matrix)["outputs"]) == 1
    metadata = client.json("GET", "/v2/models/d")
    assert metadata["versions"] == ["2", "1"]
    assert metadata["inputs"][0] == {"name": "x0", "datatype": "FP64", "shape": [-1]}
    assert client.call("GET", "/v2/models/d/versions/9")[0] == 404
    assert client.call("GET", "/v2/models/d/ready")[0] == 200
    assert client.call("GET", "/v2/health/ready")[0] == 200
    status, _, body = client.call("POST", "/v2/models/d/infer", {"inputs": columns[:1]})
    assert status == 422
    assert isinstance(json.loads(body)["error"], str)


def test_without_a_table_it_lives_but_is_not_ready(bundle, start) -> None:
    client = start(bundle).client()
    assert client.call("GET", "/v2/health/live")[0] == 200
    assert client.call("GET", "/v2/health/ready")[0] == 503
    assert client.call("POST", PATH, ROW)[0] == 503
    bundle.route(bundle.target(1, 0.5))
    wait_for(lambda: client.call("GET", "/v2/health/ready")[0] == 200)
    assert client.call("POST", PATH, ROW)[0] == 200


def test_v01_swaps_under_load_fail_no_request_and_mix_no_answer(bundle, start) -> None:
    """Seen red with ``App.switch`` made to clear the old table 20 ms before taking the new one."""
    answers = {1: 0.6, 2: 0.9}
    bundle.route(bundle.target(1, answers[1]))
    server = start(bundle)
    stop = False
    seen: list[tuple[int, str, float]] = []

    async def load() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = json.dumps(ROW).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        while not stop:
            writer.write(head + body)
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines if line)
            payload = json.loads(await reader.readexactly(int(headers["content-length"])))
            assert first.split(" ")[1] == "200", payload
            seen.append(
                (payload["version"], headers["mainspring-version"], payload["predictions"][0]["score"])
            )
            await asyncio.sleep(0.001)
        writer.close()

    async def story() -> None:
        nonlocal stop
        clients = [asyncio.create_task(load()) for _ in range(8)]
        for swap in range(24):
            version = 2 - swap % 2
            number = bundle.route(bundle.target(version, answers[version])).number
            reached = 0
            for _ in range(200):
                reached = len({s[0] for s in seen[-1:]} & {version})
                if reached:
                    break
                await asyncio.sleep(0.02)
            assert reached, f"table {number} never served"
            await asyncio.sleep(0.02)
        stop = True
        await asyncio.gather(*clients)

    asyncio.run(story())
    assert len(seen) > 500
    for version, header, score in seen:
        assert header == f"m@{version}"
        assert score == pytest.approx(answers[version], abs=1e-6)
    assert server.client().json("GET", "/v1/status")["counters"]["swaps"] >= 21
    assert len(logged(bundle)) == len(seen)


@pytest.mark.parametrize(
    "fault", ["tampered", "missing", "foreign_digest", "older", "half_written", "no_champion"]
)
def test_v02_a_broken_table_keeps_the_old_one_serving_and_says_why(bundle, start, fault: str) -> None:
    """Seen red with the ``except`` in ``Watcher.poll`` taken out: the watcher died and said nothing."""
    good = bundle.route(bundle.target(1, 0.75), number=5)
    client = start(bundle).client()
    target = bundle.target(2, 0.9)
    folder = bundle.folder / "packages" / target.package
    if fault == "tampered":
        payload = folder / "model.onnx"
        data = bytearray(payload.read_bytes())
        data[len(data) // 2] ^= 1
        payload.write_bytes(data)
        bundle.route(target)
    elif fault == "missing":
        folder.rename(bundle.folder / "elsewhere")
        bundle.route(target)
    elif fault == "foreign_digest":
        bundle.write(
            (bundle.folder / "routes.json")
            .read_bytes()
            .replace(good.digest.encode(), b"0" * 64)
            .replace(b'"number":5', b'"number":6')
        )
    elif fault == "older":
        bundle.route(target, number=4)
    elif fault == "half_written":
        bundle.write((bundle.folder / "routes.json").read_bytes()[:-40])
    else:
        bundle.route(bundle.target(2, 0.9, role="canary"))
    wait_for(lambda: "failure" in client.json("GET", "/v2"))
    reason = client.json("GET", "/v2")["failure"]["reason"]
    assert reason
    answer = client.json("POST", PATH, ROW)
    assert answer["version"] == 1
    assert client.call("GET", "/v2/health/ready")[0] == 200
    bundle.route(bundle.target(7, 0.6), number=9)
    wait_for(lambda: client.json("POST", PATH, ROW)["version"] == 7)
    assert "failure" not in client.json("GET", "/v2")


def test_v02_a_restart_on_a_broken_table_serves_the_last_good_one(bundle, start) -> None:
    """Seen red with ``_fall_back`` taken out of ``Watcher.start``: the new worker had nothing to serve."""
    bundle.route(bundle.target(1, 0.75))
    server = start(bundle)
    assert server.client().json("POST", PATH, ROW)["version"] == 1
    bundle.write(b"{")
    assert server.stop() == 0
    assert start(bundle).client().json("POST", PATH, ROW)["version"] == 1


def test_v14_shadows_are_logged_and_never_answer(bundle, start) -> None:
    bundle.route(
        bundle.target(1, 0.75, weight=0.5),
        bundle.target(2, 0.6, weight=0.5, role="canary"),
        shadows=(bundle.shadow(3, 0.9, name="frozen"), bundle.shadow(1, 0.75, name="champion", on="canary")),
    )
    client = start(bundle).client()
    answers = [client.json("POST", PATH, {**ROW, "key": f"k{i}"}) for i in range(40)]
    canary = {a["prediction_id"] for a in answers if a["version"] == 2}
    assert 5 < len(canary) < 35
    assert {a["version"] for a in answers} == {1, 2}
    wait_for(lambda: len(logged(bundle)) == 40 + 40 + len(canary))
    shadows = [r for r in logged(bundle) if isinstance(r, LoggedShadow)]
    assert {s.id for s in shadows if s.name == "champion"} == canary
    assert all(s.scores[0] == pytest.approx(0.9, abs=1e-6) for s in shadows if s.name == "frozen")


def test_feedback_is_relayed_through_the_journal(bundle, start) -> None:
    bundle.route(bundle.target(1, 0.75))
    client = start(bundle).client()
    item = {"prediction_id": client.json("POST", PATH, ROW)["prediction_id"], "value": 1}
    assert client.call("POST", "/v1/feedback", [item, {**item, "at": "2013-01-02T00:00:00Z"}])[0] == 202
    first, second = logged(bundle, FEEDBACK_PREFIX)
    assert isinstance(first, LoggedFeedback)
    assert (first.prediction_id, first.value, first.at_us) == (item["prediction_id"], 1, None)
    assert second.at_us == 1357084800000000
    assert client.call("POST", "/v1/feedback", [{"prediction_id": "x", "valeu": 1}])[0] == 422
    assert client.call("POST", "/v1/feedback", b'[{"prediction_id":"x","value":1,"value":2}]')[0] == 400


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": "late"}, "no (0), yes (1)"),
        ({"value": 2}, "no (0), yes (1)"),
        ({"value": 0.5}, "no (0), yes (1)"),
        ({"prediction_id": "nonsense"}, "no prediction can have this id"),
        ({"prediction_id": "3f2b8c1e-0000-4000-8000-000000000000/0"}, "no prediction can have this id"),
        ({"at": "2013-01-02T00:00:00"}, "needs a zone"),
        ({"value": 10**30}, "64 bits"),
        ({"source": "s" * 300}, "short plain text"),
    ],
)
def test_feedback_that_cannot_be_true_is_refused(bundle, start, change, said) -> None:
    """The whole batch is refused, its place named. Seen red with the call of ``_refuse_impossible`` removed: taken with 202, and
    for a time without a zone or a number beyond 64 bits 500, after the items before it had been kept.
    """
    bundle.route(bundle.target(1, 0.75))
    client = start(bundle).client()
    ident = client.json("POST", PATH, ROW)["prediction_id"]
    items = [{"prediction_id": ident, "value": v} for v in (1, 0.0, True, "yes", "1")]
    status, _, body = client.call("POST", "/v1/feedback", [*items, {**items[0], **change}])
    assert status == 422
    assert said in body.decode()
    assert "feedback[5]" in body.decode()
    assert logged(bundle, FEEDBACK_PREFIX) == []
    assert client.call("POST", "/v1/feedback", items)[0] == 202


def test_b_hosts_and_origins_that_are_not_ours_are_refused(bundle, start) -> None:
    """B01, B02, an origin with its port. Seen red with ``Gate.check`` returning at once, and with ports not compared."""
    bundle.route(bundle.target(1, 0.75))
    client = start(bundle).client()
    for headers in (
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://localhost:3000"},
        {"Host": "localhost:8710", "Origin": "http://localhost:3000"},
        {"Host": "localhost:8710", "Origin": "http://localhost"},
        {"Host": "localhost:8710", "Origin": "http://127.0.0.1:8710"},
        {"Host": "localhost:8710", "Origin": "ftp://localhost:8710"},
    ):
        assert client.call("POST", PATH, ROW, headers)[0] == 403, headers
    assert client.call("GET", "/v2/health/live", headers={"Host": "10.0.0.7:8710"})[0] == 200
    for headers in (
        {"Host": "LOCALHOST:1"},
        {"Host": "[::1]"},
        {"Host": "localhost:8710", "Origin": "http://localhost:8710"},
        {"Host": "[::1]:8710", "Origin": "http://[::1]:8710"},
        {"Host": "localhost", "Origin": "http://localhost:80"},
    ):
        status, sent, _ = client.call("POST", PATH, ROW, headers)
        assert status == 200
        assert sent["x-content-type-options"] == "nosniff"


def test_a_key_is_asked_for_where_there_is_one(bundle, start, tmp_path: Path) -> None:
    bundle.route(bundle.target(1, 0.75))
    (tmp_path / "key").write_text("correct horse battery\n")
    client = start(bundle, "--api-key-file", str(tmp_path / "key")).client()
    assert client.call("POST", PATH, ROW)[0] == 401
    assert client.call("POST", PATH, ROW, {"Authorization": "Bearer wrong"})[0] == 401
    assert client.call("GET", "/metrics")[0] == 401
    assert client.call("GET", "/v2/health/ready")[0] == 200
    assert client.call("POST", PATH, ROW, {"Authorization": "Bearer correct horse battery"})[0] == 200


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--host", "0.0.0.0"], "invalid_config"), (["--auth", "key"], "invalid_config")]
)
def test_an_unsafe_start_is_refused(bundle, arguments: list[str], code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mainspring.serving", "--bundle", str(bundle.folder), *arguments],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert f"error[{code}]".encode() in done.stderr


def test_a_port_in_use_is_a_clear_error(bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "mainspring.serving", "--bundle", str(bundle.folder), "--port", port],
            capture_output=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert b"error[conflict]: the port is in use" in done.stderr


def test_v07_a_killed_worker_is_replaced_and_connections_wait(bundle, start) -> None:
    """Seen red with the supervisor's loop ended after the first worker."""
    bundle.route(bundle.target(1, 0.75))
    server = start(bundle)
    os.kill(server.ready["worker"], signal.SIGKILL)
    assert server.client().json("POST", PATH, ROW)["version"] == 1


def test_v10_killing_the_parent_kills_the_worker_and_frees_the_port(bundle, start) -> None:
    """Seen red with ``die_with_parent`` taken out of the worker: it lived on, an orphan."""
    bundle.route(bundle.target(1, 0.75))
    server = start(bundle)
    worker = server.ready["worker"]
    server.process.kill()
    server.process.wait(10)
    wait_for(lambda: not _alive(worker), within_s=5)
    wait_for(lambda: _bindable(server.port), within_s=5)  # its threads may hold the socket a moment longer


def _bindable(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_v09_sigterm_drains_and_closes_the_log(bundle, start) -> None:
    bundle.route(bundle.target(1, 0.75))
    server = start(bundle)
    client = server.client()
    assert client.call("POST", PATH, ROW)[0] == 200
    assert server.stop() == 0
    assert [p.suffix for p in (bundle.folder / "log").glob(f"{LOG_PREFIX}-*")] == [".seg"]


def test_v11_a_log_that_cannot_be_written_is_counted_and_the_answer_goes_out(bundle, start) -> None:
    """Seen red with the ``except`` of ``PredictionLog.append`` removed."""
    bundle.route(bundle.target(1, 0.75))
    env = {**os.environ, "MAINSPRING_FAILPOINTS": "serving.log.append:enospc"}
    client = start(bundle, env=env).client()
    for _ in range(3):
        assert client.call("POST", PATH, ROW)[0] == 200
    status = client.json("GET", "/v1/status")
    assert status["counters"]["log_dropped"] == 3
    assert status["log"]["broken"] is True


def test_v11_in_required_mode_it_answers_503(bundle, start) -> None:
    """Seen red with ``required`` ignored: unlogged answers went out."""
    bundle.route(bundle.target(1, 0.75))
    env = {**os.environ, "MAINSPRING_FAILPOINTS": "serving.log.append:enospc:2"}
    client = start(bundle, "--log-mode", "required", env=env).client()
    assert [client.call("POST", PATH, ROW)[0] for _ in range(3)] == [200, 503, 200]


@pytest.mark.kernel
def test_the_worker_is_confined(bundle, start) -> None:
    from mainspring.serving.sandbox import landlock_abi

    if not landlock_abi():
        pytest.skip("this kernel has no Landlock")
    bundle.route(bundle.target(1, 0.75))
    server = start(bundle, "--sandbox", "require")
    assert server.ready["sandbox"] == "landlock"
    assert server.client().json("POST", PATH, ROW)["version"] == 1


@pytest.mark.kernel
def test_x_what_the_cage_holds(tmp_path: Path) -> None:
    """Outside paths, writes to the bundle and outgoing connections are refused. Seen red with mode ``off``."""
    from mainspring.serving.sandbox import landlock_abi

    if landlock_abi() < 4:
        pytest.skip("this kernel has no Landlock for TCP")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "log").mkdir()
    (tmp_path / "secret").write_text("s")
    code = f"""
import socket
from pathlib import Path
from mainspring.serving.sandbox import confine
root = Path({str(tmp_path)!r})
assert confine(read=[root / "in"], write=[root / "in" / "log"], mode="require") == "landlock"
(root / "in" / "log" / "x").write_text("fine")
for attempt in (lambda: (root / "secret").read_text(), lambda: (root / "in" / "x").write_text("no"), lambda: socket.create_connection(("127.0.0.1", 9), 1)):
    try:
        attempt()
    except PermissionError:
        continue
    raise SystemExit("it got out")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_program_leaves_the_path_alone() -> None:
    """Seen red before: whoever imported it lost the working directory from the path, and with it their own modules."""
    code = "import os, sys; sys.path.insert(0, os.getcwd()); import mainspring.serving.__main__; print(sys.path[0] == os.getcwd())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "True"
