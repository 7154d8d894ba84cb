"""The core and the app with predictors that misbehave, served by the real uvicorn on a real socket."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mainspring.errors import InvalidInput
from mainspring.records.models import Column, Signature, Task
from mainspring.records.serving import (
    LOG_PREFIX,
    Deployment,
    LoggedPrediction,
    LoggedShadow,
    Shadow,
    Target,
    decode_log,
)
from mainspring.serving.app import App
from mainspring.serving.core import Core
from mainspring.serving.log import PredictionLog
from mainspring.serving.metrics import MAX_SERIES, Metrics
from mainspring.serving.options import ServeOptions
from mainspring.serving.table import LiveTable, build
from mainspring.serving.versions import Version
from mainspring.storage.journal import JournalReader

SIGNATURE = Signature(inputs=[Column(name="x0", type="float64")], task=Task.BINARY, classes=["no", "yes"])
PATH = "/v1/deployments/d/predict"


class Answers:
    """A predictor that answers what it is told to."""

    signature = SIGNATURE

    def __init__(self, answer: Callable[[int], Any]) -> None:
        self._answer = answer
        self.calls = 0

    def compute_scores(self, columns: Any) -> Any:
        self.calls += 1
        return self._answer(len(columns["x0"]))


class Rig:
    """An app on uvicorn in a thread of its own, with ``versions`` by role: (predictor, answered on the loop?)."""

    def __init__(
        self, folder: Path, routes: Deployment, predictors: dict[str, tuple[Answers, bool]], **options: Any
    ) -> None:
        import uvicorn

        self.folder = folder
        self.options = ServeOptions(bundle=str(folder), **options)
        metrics = Metrics()
        self.log = PredictionLog(folder / "log", metrics=metrics, required=False, sync_s=60)
        self.core = Core(self.options, metrics=metrics, log=self.log)
        self.app = App(self.core)
        versions = {
            d: Version(
                package=d, signature=SIGNATURE, predictor=p, inline_rows=1000 if inline else 0, single_us=1.0
            )
            for d, (p, inline) in predictors.items()
        }
        live, refused = build([routes], versions, {}, options=self.options, metrics=metrics)
        assert not refused
        self.app.switch(LiveTable(number=1, deployments=live))
        config = uvicorn.Config(
            self.app, port=0, http="httptools", lifespan="off", log_config=None, access_log=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self.core.close()
        self.log.close()

    def logged(self) -> list[Any]:
        return [decode_log(r) for r in JournalReader(self.folder / "log", LOG_PREFIX).read("")[0]]

    def call(
        self, count: int = 1, *, at_once: int = 1, rows: int = 1, key: str | None = None
    ) -> list[tuple[int, dict[str, str], Any, float]]:
        """Send ``count`` requests over ``at_once`` connections: (status, headers, answer, seconds) of each."""
        body = json.dumps({"rows": [{"x0": 1}] * rows} | ({"key": key} if key else {})).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        found: list[tuple[int, dict[str, str], Any, float]] = []

        async def client(n: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            for _ in range(n):
                start = time.perf_counter()
                writer.write(head + body)
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines if line)
                payload = json.loads(await reader.readexactly(int(headers["content-length"])))
                found.append((int(first.split(" ")[1]), headers, payload, time.perf_counter() - start))
            writer.close()

        async def all_of_them() -> None:
            jobs: list[Awaitable[None]] = [client(count // at_once) for _ in range(at_once)]
            await asyncio.gather(*jobs)

        asyncio.run(all_of_them())
        return found


MakeRig = Callable[..., Rig]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(
        champion: Answers,
        *,
        canary: Answers | None = None,
        shadow: Answers | None = None,
        inline: bool = True,
        **options: Any,
    ) -> Rig:
        packages = {"champion": "a" * 64, "canary": "b" * 64, "shadow": "c" * 64}
        share = 0.5 if canary else 0.0
        targets = [Target(model="m", version=1, package=packages["champion"], weight=1 - share)]
        predictors = {packages["champion"]: (champion, inline)}
        if canary:
            targets.append(
                Target(model="m", version=2, package=packages["canary"], weight=share, role="canary")
            )
            predictors[packages["canary"]] = (canary, inline)
        shadows = []
        if shadow:
            shadows.append(Shadow(model="m", version=3, package=packages["shadow"], name="s"))
            predictors[packages["shadow"]] = (shadow, False)
        routes = Deployment(name="d", signature=SIGNATURE, targets=targets, shadows=shadows)
        rigs.append(Rig(tmp_path, routes, predictors, **options))
        return rigs[-1]

    yield make
    for one in rigs:
        one.stop()


def good(rows: int) -> Any:
    return np.full(rows, 0.75)


def raising(rows: int) -> Any:
    raise ValueError("model \ud800 says no")


def refusing(rows: int) -> Any:
    raise InvalidInput(
        "the model knows no such value of this column",
        value="x",
        place="column 'x0'",
        next_step="Did you mean 'y'?",
    )


def slow(seconds: float) -> Callable[[int], Any]:
    def answer(rows: int) -> Any:
        time.sleep(seconds)
        return good(rows)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        raising,
        lambda n: None,
        lambda n: np.full(n, math.nan),
        lambda n: np.full(n, math.inf),
        lambda n: np.full(n + 1, 0.5),
        lambda n: np.array(["x"] * n),
        lambda n: np.full((n, 2), 0.5),
    ],
)
def test_d08_a_model_that_answers_nonsense_is_500_with_an_id_and_a_log_row(
    rig: MakeRig, answer: Callable[[int], Any]
) -> None:
    """Seen red with ``_checked`` taken out of ``Version.scores``."""
    one = rig(Answers(answer))
    ((status, headers, body, _),) = one.call()
    assert status == 500
    assert body["error"]["code"] == "model_failed"
    (record,) = one.logged()
    assert isinstance(record, LoggedPrediction)
    assert record.id == body["prediction_id"] == headers["mainspring-prediction-id"]
    assert (record.status, record.scores) == ("model_failed", [])


def test_v14_a_canary_that_raises_is_stood_in_for(rig: MakeRig) -> None:
    """Seen red with the stand-in taken out of ``Core.predict``."""
    one = rig(Answers(good), canary=Answers(raising))
    answers = one.call(60)
    assert {a[0] for a in answers} == {200}
    assert {a[2]["version"] for a in answers} == {1}
    failures = [r for r in one.logged() if isinstance(r, LoggedShadow)]
    assert 10 < len(failures) < 50
    assert {(f.name, f.version, f.status) for f in failures} == {("canary", 2, "model_failed")}
    assert 'version="2",role="canary",status="model_failed"' in one.core.metrics.text()


@pytest.mark.parametrize("inline", [True, False])
def test_a_row_that_the_model_refuses_is_the_callers_to_mend(rig: MakeRig, *, inline: bool) -> None:
    """An encoder with handle_unknown="error". Seen red: it came out as 500 and as a failure of the model."""
    one = rig(Answers(refusing), inline=inline)
    ((status, _, body, _),) = one.call()
    assert status == 422
    said = {k: body["error"][k] for k in ("code", "message", "value", "place", "next_step")}
    assert said == {
        "code": "invalid_input", "message": "the model knows no such value of this column", "value": "x",
        "place": "column 'x0'", "next_step": "Did you mean 'y'?",
    }  # fmt: skip
    (record,) = one.logged()
    assert (record.status, record.scores) == ("invalid_input", [])


@pytest.mark.parametrize("inline", [True, False])
def test_a_canary_that_refuses_what_the_champion_knows_is_stood_in_for(rig: MakeRig, *, inline: bool) -> None:
    """Seen red with ModelFailed alone in ``_NO_ANSWER``: half of the callers got a 422 for a row that is right."""
    one = rig(Answers(good), canary=Answers(refusing), inline=inline)
    answers = one.call(60)
    assert {(a[0], a[2]["version"]) for a in answers} == {(200, 1)}
    failures = [r for r in one.logged() if isinstance(r, LoggedShadow)]
    assert 10 < len(failures) < 50
    assert {(f.name, f.version, f.status) for f in failures} == {("canary", 2, "invalid_input")}


def test_v14_a_slow_or_raising_shadow_does_not_touch_the_primary(rig: MakeRig) -> None:
    """Seen red with the shadow's 0.2 s spent on the event loop."""
    one = rig(Answers(good), shadow=Answers(slow(0.2)), shadow_queue=4)
    answers = one.call(40)
    assert {a[0] for a in answers} == {200}
    assert sorted(a[3] for a in answers)[20] < 0.1
    assert one.core.metrics.counters["shadow_dropped"] >= 30


def test_v05_overload_is_503_at_once_and_good_answers_go_on(rig: MakeRig) -> None:
    """Seen red with the queue's bound taken out of ``Admission``."""
    one = rig(Answers(slow(0.02)), inline=False, slots=2, queue=4, queue_deadline_s=0.5)
    answers = one.call(320, at_once=32)
    statuses = [a[0] for a in answers]
    assert set(statuses) == {200, 503}
    shed = [a for a in answers if a[0] == 503]
    assert all(a[1]["retry-after"] == "1" and a[2]["error"]["code"] == "overloaded" for a in shed)
    assert (
        max(a[3] for a in answers if a[0] == 200) < 0.5 + 2 * 0.02 + 5
    )  # a busy machine is slow, not broken
    assert statuses.count(200) >= 6
    assert [a[0] for a in one.call(3)] == [200, 200, 200]
    assert one.core.metrics.refused["overloaded"] == len(shed)
    assert len(one.logged()) == statuses.count(200) + 3


def test_v08_a_prediction_that_takes_too_long_is_504_and_shows_as_stuck(rig: MakeRig) -> None:
    """Seen red with ``wait_for`` taken out of ``Admission.run``."""
    one = rig(Answers(slow(1.0)), inline=False, deadline_s=0.1, hang_s=0.3)
    ((status, _, body, seconds),) = one.call()
    assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
    assert seconds < 0.8
    assert one.logged()[0].status == "deadline_exceeded"
    time.sleep(0.3)
    assert not one.app.ready
    time.sleep(0.7)
    assert one.app.ready


def test_metrics_have_bounded_series_and_escape_labels() -> None:
    metrics = Metrics()
    for number in range(MAX_SERIES + 5):
        metrics.series(deployment='d"\n', model="m", version=number, role="r").observe("ok", 1, 100)
    text = metrics.text()
    assert 'deployment="d\\"\\n"' in text
    assert 'deployment="other",model="other",version="other",role="other",status="ok"} 5' in text


def test_one_deployment_that_cannot_be_made_ready_leaves_the_others_in_service() -> None:
    """Seen red with invalid input alone caught: the table was refused whole, and no deployment was in service."""
    newer = msgspec.structs.replace(
        SIGNATURE, inputs=[msgspec.structs.replace(SIGNATURE.inputs[0], type="of tomorrow")]
    )
    records, versions = [], {}
    for name, signature in (("good", SIGNATURE), ("newer", newer)):
        versions[name] = Version(
            package=name, signature=signature, predictor=Answers(np.zeros), inline_rows=1, single_us=1.0
        )  # fmt: skip
        target = Target(model="m", version=1, package=name, role="champion", weight=1.0)
        records.append(Deployment(name=name, signature=signature, targets=[target]))
    live, refused = build(records, versions, {}, options=ServeOptions(bundle="unused"), metrics=Metrics())
    assert list(live) == ["good"]
    assert "of tomorrow" in refused["newer"]
