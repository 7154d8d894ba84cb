"""Models in processes of their own: what may cost anything, costs nobody else anything."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from mainspring.models.formats.package import describe_file, write_package
from mainspring.records.base import to_json
from mainspring.records.models import Column, Package, Signature, Task
from mainspring.records.serving import Deployment, RouteTable, Target, with_digest
from mainspring.serving import isolation

pytestmark = pytest.mark.timeout(900)  # libraries are imported and imported again: minutes on a busy machine

N, INFO, FLOAT = helper.make_node, helper.make_tensor_value_info, TensorProto.FLOAT
AMOUNT = Signature(inputs=[Column(name="x0", type="float64")], task=Task.REGRESSION)
SLOW, FAST = "/v1/deployments/slow/predict", "/v1/deployments/d/predict"
ROW = {"rows": [{"x0": 1, "x1": 2.5}]}


def counting(*, steps: bool) -> bytes:
    """A standard ONNX graph that counts to the value of the request: in memory, or step by step. It does so in a branch of an ``If``,
    where a size taken from a value is not seen from outside."""
    scalars = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("zero", 0), ("one", 1))]
    scalars.append(numpy_helper.from_array(np.array(True), "yes"))
    inner = [N("Range", ["zero", "limit", "one"], ["many"])]
    if steps:
        body = helper.make_graph(
            [N("Add", ["state", "item"], ["next"])],
            "body",
            [INFO("state", FLOAT, []), INFO("item", FLOAT, [])],
            [INFO("next", FLOAT, [])],
        )
        inner.append(N("Scan", ["zero", "many"], ["counted"], body=body, num_scan_inputs=1))
    else:
        inner.append(N("ReduceSum", ["many"], ["counted"], keepdims=0))
    branch = helper.make_graph(inner, "branch", [], [INFO("counted", FLOAT, [])])
    nodes = [
        N("ReduceMax", ["numeric"], ["most"], keepdims=0),
        N("Add", ["most", "one"], ["limit"]),
        N("If", ["yes"], ["total"], then_branch=branch, else_branch=branch),
        N("Mul", ["total", "zero"], ["nothing"]),
        N("Add", ["numeric", "nothing"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [INFO("numeric", FLOAT, [None, 1])], [INFO("y", FLOAT, [None, 1])], scalars
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def add(bundle: Any, name: str, write: Callable[[Path], Signature]) -> Deployment:
    """A deployment of a package that ``write`` makes."""
    digest = blake3.blake3(name.encode()).hexdigest()
    signature = write(bundle.folder / "packages" / digest)
    return Deployment(name=name, signature=signature, targets=[Target(model=name, version=1, package=digest)])


def onnx_package(data: bytes, example: dict[str, Any] | None = None) -> Callable[[Path], Signature]:
    def write(folder: Path) -> Signature:
        package = Package(
            format="onnx",
            signature=AMOUNT,
            files=[describe_file("model.onnx", data)],
            created_at=datetime.now(UTC),
            example=example or {},
        )
        write_package(folder, package, {"model.onnx": data})
        return AMOUNT

    return write


def skops_package(folder: Path) -> Signature:
    from sklearn.tree import DecisionTreeRegressor

    from mainspring.models import formats

    x = np.arange(20.0)
    estimator = DecisionTreeRegressor().fit(x[:, None], x * 10)
    formats.save(estimator, folder, signature=AMOUNT, sample={"x0": x}, format="skops")
    return AMOUNT


def choosy_package(folder: Path) -> Signature:
    """A skops package whose encoder refuses what it has not learned."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    from mainspring.models import formats

    x = np.array([1.0, 2.0, 3.0] * 10)
    estimator = make_pipeline(OneHotEncoder(), Ridge()).fit(x[:, None], x)
    formats.save(estimator, folder, signature=AMOUNT, sample={"x0": x}, format="skops")
    return AMOUNT


def publish(bundle: Any, *deployments: Deployment) -> None:
    """All of them beside deployment ``d``."""
    bundle.number += 1
    mine = Deployment(name="d", signature=_signature(bundle), targets=[bundle.target(1, 0.75)])
    bundle.write(
        to_json(with_digest(RouteTable(number=bundle.number, created_us=0, deployments=[mine, *deployments])))
    )


def _signature(bundle: Any) -> Signature:
    from mainspring.records.base import from_json

    folder = bundle.folder / "packages" / bundle.package(0.75)
    package: Package = from_json((folder / "model.json").read_bytes(), Package)
    return package.signature


def ask(client: Any, value: float) -> tuple[int, Any]:
    status, _, body = client.call("POST", SLOW, {"rows": [{"x0": value}]})
    return status, body


def answers_with(client: Any, path: str, part: bytes) -> bool:
    return part in client.call("POST", path, ROW if path == FAST else {"rows": [{"x0": 1}]})[2]


def fails(client: Any) -> bool:
    return "failure" in client.json("GET", "/v2")


def versions(client: Any) -> dict[str, Any]:
    return {d["name"]: d["versions"][0] for d in client.json("GET", "/v1/status")["deployments"]}


def until(condition: Callable[[], object], what: str, within_s: float = 300.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_d03_steps_that_a_value_asks_for_are_stopped_and_nobody_else_waits(bundle: Any, start: Any) -> None:
    """Case 33, a small request that takes half a minute: 504 after the deadline, and all the while the other deployment answers.
    Seen red with the model in the worker's own process (``Cost.unbounded`` None): no answer from anybody for 30 s.
    """
    publish(bundle, add(bundle, "slow", onnx_package(counting(steps=True))))
    server = start(bundle, "--deadline", "5", "--no-spare")
    client, other = server.client(), server.client()
    until(lambda: "slow" in versions(other), "it is loaded, however long that takes")
    assert versions(other)["slow"]["own_process"]
    assert not versions(other)["d"]["own_process"]
    until(lambda: ask(client, 10)[0] == 200, "it answers small requests")
    answers: list[tuple[int, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(ask(client, 3e7)))
    asking.start()
    meanwhile = 0
    while asking.is_alive():
        assert other.call("POST", FAST, ROW)[0] == 200
        meanwhile += 1
    status, body = answers[0]
    assert status == 504, body
    assert b"was stopped" in body
    assert meanwhile > 20, "others were answered in the meantime"
    until(lambda: ask(client, 10)[0] == 200, "it answers again")


def test_d03_memory_that_a_value_asks_for_is_refused_in_its_own_process(bundle: Any, start: Any) -> None:
    """Case 33, one row that asks for 4 GB. Seen red with ``RLIMIT_AS`` left alone in ``_bound_memory``: the process took them."""
    publish(bundle, add(bundle, "slow", onnx_package(counting(steps=False))))
    server = start(bundle, "--no-spare", "--model-memory-mb", "300")
    client = server.client()
    until(lambda: ask(client, 10)[0] == 200, "it answers small requests")
    worker = psutil.Process(server.ready["worker"])
    before = worker.memory_info().rss
    status, body = ask(client, 1e9)
    assert status == 500, body
    assert b"model_failed" in body
    assert worker.memory_info().rss - before < 64 << 20
    assert all(p.memory_info().rss < 600 << 20 for p in worker.children(recursive=True))
    assert client.call("POST", FAST, ROW)[0] == 200
    until(lambda: ask(client, 10)[0] == 200, "it answers again")


def test_a_row_that_a_model_in_its_own_process_refuses_is_422(bundle: Any, start: Any) -> None:
    """Seen red: 500, "the model failed", without the value and the column."""
    publish(bundle, add(bundle, "slow", choosy_package))
    client = start(bundle, "--no-spare").client()
    until(lambda: ask(client, 2.0)[0] == 200, "it answers what it knows")
    status, body = ask(client, 7.0)
    assert status == 422, body
    error = json.loads(body)["error"]
    assert (error["code"], error["value"], error["place"]) == ("invalid_input", "7.0", "column 'x0'")
    assert ask(client, 3.0)[0] == 200


def test_models_of_other_formats_have_a_process_of_their_own_and_answer_many_clients(
    bundle: Any, start: Any
) -> None:
    publish(bundle, add(bundle, "slow", skops_package))
    server = start(bundle, "--no-spare")
    until(lambda: "slow" in versions(server.client()), "it is loaded, however long that takes")
    assert versions(server.client())["slow"]["own_process"]
    found: list[tuple[int, bytes]] = []

    def many(number: int) -> None:
        client = server.client()
        for _ in range(25):
            answered = ask(client, float(number))
            found.append((answered[0], answered[1][-30:]))

    threads = [threading.Thread(target=many, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 200
    assert {status for status, _ in found} <= {200, 503}, "answered, or shed"
    assert sum(status == 200 for status, _ in found) > 20
    assert all(b'"value":' in tail for status, tail in found if status == 200)


@pytest.mark.parametrize("whom", ["predictor", "keeper"])
def test_v07_a_model_process_that_dies_is_replaced(bundle: Any, start: Any, whom: str) -> None:
    """Seen red with ``_replace`` (predictor) and ``_revive`` (keeper) doing nothing."""
    publish(bundle, add(bundle, "slow", skops_package))
    server = start(bundle, "--no-spare")
    client = server.client()
    until(lambda: ask(client, 3)[0] == 200, "it answers")
    nursery = psutil.Process(server.ready["worker"]).children()[0]
    keeper = nursery.children()[0]
    victim = keeper if whom == "keeper" else keeper.children()[0]
    family = [victim, *victim.children(recursive=True)]
    os.kill(victim.pid, signal.SIGKILL)
    until(lambda: not any(map(_alive, family)), "they are gone")
    until(lambda: ask(client, 3)[0] == 200, "it answers again")
    assert server.client().call("POST", FAST, ROW)[0] == 200


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_the_processes_of_a_model_end_with_it(bundle: Any, start: Any) -> None:
    """Seen red without ``weakref.finalize`` in ``load_version``."""
    publish(bundle, add(bundle, "slow", skops_package))
    server = start(bundle, "--no-spare")
    client = server.client()
    until(lambda: "slow" in versions(client), "it is loaded, however long that takes")
    nursery = psutil.Process(server.ready["worker"]).children()[0]
    assert len(nursery.children()) == 1
    publish(bundle)
    until(lambda: not nursery.children(), "the keeper is gone")
    server.process.kill()
    server.process.wait(30)
    until(lambda: not _alive(nursery), "the nursery is gone")


def test_a_package_that_dies_while_loading_is_an_error_of_its_own(bundle: Any, start: Any) -> None:
    """Constants of the file may be as large as they like: only the process that loads first dies of it."""
    big = numpy_helper.from_array(np.array([40_000, 40_000], np.int64), "big")
    graph = helper.make_graph(
        [N("ConstantOfShape", ["big"], ["m"]), N("ReduceSum", ["m"], ["s"], keepdims=0), N("Add", ["numeric", "s"], ["y"])],
        "g", [INFO("numeric", FLOAT, [None, 1])], [INFO("y", FLOAT, [None, 1])], [big],
    )  # fmt: skip
    data = bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        ).SerializeToString()
    )
    publish(bundle, add(bundle, "slow", onnx_package(data)))
    server = start(bundle, "--no-spare", "--model-memory-mb", "300")
    client = server.client()
    assert client.call("POST", FAST, ROW)[0] == 200
    status, body = ask(client, 1)
    assert status == 503, body
    assert b"not in service" in body
    assert psutil.Process(server.ready["worker"]).memory_info().rss < 600 << 20


def damage(bundle: Any, deployment: Deployment) -> Path:
    """One flipped byte in the payload of its champion."""
    payload = next(
        p
        for p in (bundle.folder / "packages" / deployment.targets[0].package).iterdir()
        if p.name != "model.json"
    )
    data = bytearray(payload.read_bytes())
    data[len(data) // 2] ^= 1
    payload.write_bytes(data)
    return Path(payload)


def test_v02_a_deployment_that_cannot_load_holds_up_no_other(bundle: Any, start: Any) -> None:
    """Published together with a good change, after a restart, and mended: the others answer, this one says why it does not.
    Seen red with one failure refusing the whole table.
    """
    bundle.route(bundle.target(1, 0.75))
    server = start(bundle, "--no-spare")
    bad = add(bundle, "slow", onnx_package(counting(steps=True)))
    payload = damage(bundle, bad)
    whole = bytearray(payload.read_bytes())
    mine = Deployment(name="d", signature=_signature(bundle), targets=[bundle.target(2, 0.6)])
    bundle.number += 1
    bundle.write(
        to_json(with_digest(RouteTable(number=bundle.number, created_us=0, deployments=[bad, mine])))
    )
    for again in (False, True):
        if again:
            assert server.stop() == 0
            server = start(bundle, "--no-spare")
        client = server.client()
        until(functools.partial(answers_with, client, FAST, b'"version":2'), "the good one is switched")
        until(
            functools.partial(answers_with, client, SLOW, b"not what model.json says"), "the bad one says why"
        )
        assert ask(client, 1)[0] == 503
        assert client.call("GET", "/v2/models/slow/ready")[0] == 503
        status, _, body = client.call("GET", "/v2/health/ready")
        assert status == 200
        assert b"not what model.json says" in body
        assert "slow" in client.json("GET", "/v1/status")["failure"]["deployments"]
    whole[len(whole) // 2] ^= 1
    payload.write_bytes(whole)
    until(lambda: ask(client, 10)[0] == 200, "mended, it is taken up")
    assert "failure" not in client.json("GET", "/v2")


def test_v02_the_number_of_a_table_is_shown_when_all_of_it_was_taken(bundle: Any, start: Any) -> None:
    """Who waits for it may ask at once. Seen red with the number shown while packages were still being loaded: 503."""
    bundle.route(bundle.target(1, 0.75))
    server = start(bundle, "--no-spare")
    client = server.client()
    publish(bundle, add(bundle, "slow", skops_package))
    until(lambda: client.json("GET", "/v1/status")["routes"] == bundle.number, "the table is taken")
    assert ask(client, 3)[0] == 200


def test_v02_a_damaged_package_keeps_the_version_before(bundle: Any, start: Any) -> None:
    """While the server runs, and after a restart from the last good routes."""
    publish(bundle, add(bundle, "slow", skops_package))
    server = start(bundle, "--no-spare")
    until(lambda: ask(server.client(), 3)[0] == 200, "the first version answers")
    worse = add(bundle, "worse", skops_package)
    damage(bundle, worse)
    target = Target(model="slow", version=2, package=worse.targets[0].package)
    publish(bundle, Deployment(name="slow", signature=AMOUNT, targets=[target]))
    for again in (False, True):
        if again:
            assert server.stop() == 0
            server = start(bundle, "--no-spare")
        client = server.client()
        until(functools.partial(fails, client), "it says so")
        until(functools.partial(answers_with, client, SLOW, b'"version":1'), "the one before answers")
        assert client.json("POST", FAST, ROW)["version"] == 1


def test_v07_a_spare_takes_over_at_once(bundle: Any, start: Any) -> None:
    """A model whose libraries take seconds to import, a worker that is killed: the spare serves, and has not been started for it.
    Seen red with the spare not promoted: a worker that did not exist before answered.
    """
    publish(bundle, add(bundle, "slow", skops_package))
    server = start(bundle)
    supervisor = psutil.Process(server.process.pid)
    first = server.ready["worker"]
    until(lambda: len(supervisor.children()) == 2, "a spare is started")
    (spare,) = (p for p in supervisor.children() if p.pid != first)
    until(lambda: server.errors.read_text().count("2 of 2 deployments") == 2, "it has loaded the models too")
    os.kill(first, signal.SIGKILL)
    client = server.client()
    until(lambda: ask(client, 3)[0] == 200, "it answers")
    assert spare.is_running()
    assert [c.laddr.port for c in spare.net_connections() if c.status == "ESTABLISHED"] == [server.port]
    until(lambda: len(supervisor.children()) == 2, "there is a spare again")


def test_v09_sigterm_to_the_worker_drains_it_and_loses_no_request(bundle: Any, start: Any) -> None:
    """A worker told to end answers what it took; the spare takes what comes. Seen red with the worker's handler ending it at once."""
    bundle.route(bundle.target(1, 0.75))
    server = start(bundle)
    supervisor = psutil.Process(server.process.pid)
    until(lambda: len(supervisor.children()) == 2, "a spare is started")
    problems: list[str] = []
    answered = [0]
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            client = server.client()
            closing = False
            while not closing and not stop.is_set():
                try:
                    status, headers, _ = client.call("POST", FAST, ROW)
                except OSError as error:
                    problems.append(repr(error))
                    return
                closing = headers.get("connection") == "close"
                answered[0] += 1
                if status != 200:
                    problems.append(str(status))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: answered[0] > 50, "the first worker answers")
    os.kill(server.ready["worker"], signal.SIGTERM)
    until(lambda: not psutil.pid_exists(server.ready["worker"]), "it has ended")
    so_far = answered[0]
    until(lambda: answered[0] > so_far + 50 or problems, "the next one answers")
    stop.set()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert server.process.poll() is None


def strict_about_words(folder: Path) -> Signature:
    """A model that raises for a word it has not learnt."""
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    from mainspring.models import formats

    words = np.array([["red"], ["blue"], ["red"], ["green"]], dtype=object)
    estimator = make_pipeline(make_column_transformer((OneHotEncoder(), [0])), LinearRegression())
    estimator.fit(words, np.arange(4.0))
    signature = Signature(inputs=[Column(name="colour", type="string")], task=Task.REGRESSION)
    formats.save(estimator, folder, signature=signature, sample={"colour": ["blue", "red"]}, format="skops")
    return signature


@pytest.mark.parametrize("example", [True, False], ids=["its own row", "a package from before"])
def test_a_model_is_warmed_up_with_a_row_it_knows(tmp_path: Path, example: bool) -> None:
    """Seen red with a row of empty text, and (packages from before) with a failure on a row that we made up taken for the model's."""
    import json

    from mainspring.serving.versions import open_version

    strict_about_words(tmp_path / "p")
    manifest = json.loads((tmp_path / "p" / "model.json").read_text())
    assert manifest["example"] == {"colour": "blue"}
    if not example:
        del manifest["example"]
        (tmp_path / "p" / "model.json").write_text(json.dumps(manifest))
    version, why = open_version(tmp_path / "p", "0" * 64, inline_ms=1.0, max_rows=1000)
    assert (version.single_us > 0) is example
    assert why is not None
    assert len(version.scores({"colour": ["green"]}, 1)) == 1


def test_the_first_text_of_a_process_leaves_room_for_the_model() -> None:
    """Arrow holds the texts of pandas. Seen red with Arrow's own choice of an allocator: 1,027 MiB of address space for one text, so that
    a forest of 3 MB, which may have 1,036, now and then did not load ("malloc of size 64 failed").
    """
    code = (
        "def size(): return int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() >> 20\n"
        "before = size(); pa.array(['x']); print(size() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import resource, pyarrow as pa\n{code}"],
        env=isolation.environment(), capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    assert int(done.stdout) < 300
