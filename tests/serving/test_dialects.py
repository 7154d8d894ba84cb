"""A third dialect, declared here and nowhere else, goes through everything that the two that come with the server go through."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mainspring.errors import InvalidInput, MainspringError, NotFound, Unavailable
from mainspring.records.base import new_id
from mainspring.records.models import Column, Signature, Task
from mainspring.records.serving import LOG_PREFIX, Deployment, Target, decode_log
from mainspring.serving.app import App, QuickTarget
from mainspring.serving.codec import Call, malformed
from mainspring.serving.core import Answer, Core
from mainspring.serving.dialects import DIALECTS, Dialect, MakeDialect
from mainspring.serving.dialects.dialect import ModelQuestion, Prediction, Route
from mainspring.serving.log import PredictionLog
from mainspring.serving.lookup import find_deployment
from mainspring.serving.metrics import Metrics
from mainspring.serving.options import ServeOptions
from mainspring.serving.protocol import Protocol
from mainspring.serving.table import LiveDeployment, LiveTable, LiveTarget, build
from mainspring.serving.versions import Version
from mainspring.serving.wire import JSON, Headers, RawHeaders, Reply
from mainspring.storage.journal import JournalReader

SIGNATURE = Signature(inputs=[Column(name="x0", type="float64")], task=Task.BINARY, classes=["no", "yes"])
PREDICT, ROW = "/tf/v1/models/d:predict", b'{"instances":[{"x0":1}]}'


class Instances(msgspec.Struct, forbid_unknown_fields=True):
    instances: msgspec.Raw
    signature_name: str = ""


class TensorFlowServing(Dialect[None]):
    """The row format of TensorFlow Serving's REST API."""

    name = "tf-serving"
    prefixes = ("/tf/v1/models",)
    media = (JSON,)
    home = "GET /tf/v1/models/NAME"

    def __init__(self, options: ServeOptions) -> None:
        pass

    def match(self, path: str) -> Route | None:
        match path.split("/")[4:]:
            case [last]:
                name, _, verb = last.partition(":")
                version = None
            case [name, "versions", last]:
                version, _, verb = last.partition(":")
            case _:
                return None
        if verb == "predict":
            return Prediction(name or None, version)
        return None if verb else ModelQuestion(name, version, self._model)

    def exact(self, deployments: Iterable[str]) -> Iterable[str]:
        return ["/tf/v1/models/:predict", *(f"/tf/v1/models/{name}:predict" for name in deployments)]

    def decode(self, body: bytes, deployment: LiveDeployment, headers: Headers) -> tuple[Call, None]:
        try:
            request = msgspec.json.decode(body, type=Instances)
        except msgspec.ValidationError as error:
            raise InvalidInput(str(error), next_step='Send {"instances": [{...}]}.') from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise malformed(error) from None
        return deployment.codec.decode(b'{"rows":' + bytes(request.instances) + b"}"), None

    def encode(self, answer: Answer, deployment: LiveDeployment, form: None, ident: str) -> Reply:
        return Reply(200, b'{"predictions":' + answer.target.encoder.encode_predictions(answer.scores) + b"}")

    def error(self, error: MainspringError, ident: str | None) -> Reply:
        status = 400 if error.status == 422 else error.status
        return Reply(status, msgspec.json.encode({"error": f"{error.code}: {error.message}"}))

    @staticmethod
    def _model(deployment: LiveDeployment, targets: list[LiveTarget]) -> Reply:
        states = [{"version": str(t.number), "state": "AVAILABLE"} for t in targets]
        return Reply(200, msgspec.json.encode({"model_version_status": states}))


class Csv(TensorFlowServing):
    """One that answers with another media type."""

    def encode(self, answer: Answer, deployment: LiveDeployment, form: None, ident: str) -> Reply:
        lines = b"".join(b"%a\n" % score for score in answer.scores)
        return Reply(200, lines, [(b"x-rows", b"%d" % len(answer.scores))], b"text/csv")


class CountingApp(App):
    """Counts the answers that the protocol gives by itself."""

    quick_answers = 0

    def quick(self, target: QuickTarget, raw: RawHeaders, body: bytes) -> bytes | None:
        found = super().quick(target, raw, body)
        self.quick_answers += found is not None
        return found


class Constant:
    signature = SIGNATURE

    def __init__(self, answer: float) -> None:
        self._answer = answer

    def compute_scores(self, columns: Any) -> Any:
        if columns["x0"][0] == 13:
            raise ValueError("no")
        return np.full(len(columns["x0"]), self._answer)


class Rig:
    """A server on a real socket with the worker's own protocol: version 1 is the champion, version 2 the canary."""

    def __init__(self, folder: Path, dialect: MakeDialect) -> None:
        import uvicorn

        self.folder = folder
        options = ServeOptions(bundle=str(folder))
        metrics = Metrics()
        self.log = PredictionLog(folder / "log", metrics=metrics, required=False, sync_s=60)
        self.core = Core(options, metrics=metrics, log=self.log)
        self.app = CountingApp(self.core, dialects=(dialect, *DIALECTS))
        versions = {
            letter * 64: Version(
                package=letter * 64,
                signature=SIGNATURE,
                predictor=Constant(answer),
                inline_rows=4,
                single_us=1.0,
            )
            for letter, answer in (("a", 0.75), ("b", 0.25))
        }
        targets = [
            Target(model="m", version=1, package="a" * 64, weight=1.0),
            Target(model="m", version=2, package="b" * 64, weight=0.0, role="canary"),
        ]
        routes = [Deployment(name="d", signature=SIGNATURE, targets=targets)]
        live, refused = build(routes, versions, {}, options=options, metrics=metrics)
        assert not refused
        self.app.switch(LiveTable(number=1, deployments=live))
        config = uvicorn.Config(
            self.app,
            port=0,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            self._thread.join(0.005)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._reader = self._socket.makefile("rb")

    def stop(self) -> None:
        self._reader.close()
        self._socket.close()
        self._server.should_exit = True
        self._thread.join(60)
        self.core.close()
        self.log.close()

    def logged(self) -> list[Any]:
        return [decode_log(r) for r in JournalReader(self.folder / "log", LOG_PREFIX).read("")[0]]

    def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Head and body in one packet: what the protocol may answer by itself, it does."""
        given = {"Host": "localhost"} | {name.replace("_", "-"): value for name, value in headers.items()}
        if method == "POST":
            given["Content-Length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        self._socket.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        status = int(self._reader.readline().split()[1])
        lines = iter(self._reader.readline, b"\r\n")
        fields = dict(line.decode().rstrip().lower().split(": ", 1) for line in lines)
        return status, fields, self._reader.read(int(fields["content-length"]))

    def says(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        status, _, answer = self.ask(method, path, body, **headers)
        return status, json.loads(answer)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(dialect: MakeDialect = TensorFlowServing) -> Rig:
        rigs.append(Rig(tmp_path, dialect))
        return rigs[-1]

    yield make
    for one in rigs:
        one.stop()


@pytest.mark.parametrize("path", [PREDICT, "/tf/v1/models/:predict"])
def test_a_prediction_is_answered_by_the_protocol_itself_and_logged(
    rig: Callable[..., Rig], path: str
) -> None:
    one = rig()
    status, fields, body = one.ask("POST", path, ROW, Mainspring_Key="k")
    assert (status, json.loads(body)) == (200, {"predictions": [{"label": "yes", "score": 0.75}]})
    assert (fields["mainspring-version"], fields["content-type"]) == ("m@1", "application/json")
    assert one.app.quick_answers == 1
    (record,) = one.logged()
    assert (record.id, record.deployment, record.key) == (fields["mainspring-prediction-id"], "d", "k")


def test_more_rows_than_fit_the_event_loop_and_large_bodies_take_the_long_way(
    rig: Callable[..., Rig],
) -> None:
    one = rig()
    for rows, space in ((5, 0), (1, 300_000)):
        body = b'{"instances":[%b]%b}' % (b",".join([b'{"x0":1}'] * rows), b" " * space)
        status, fields, answer = one.ask("POST", PREDICT, body)
        assert (status, fields["mainspring-version"]) == (200, "m@1")
        assert len(json.loads(answer)["predictions"]) == rows
    assert one.app.quick_answers == 0
    assert [r.rows for r in one.logged()] == [5, 1]


def test_a_version_can_be_pinned(rig: Callable[..., Rig]) -> None:
    one = rig()
    status, fields, body = one.ask("POST", "/tf/v1/models/d/versions/2:predict", ROW)
    assert (status, fields["mainspring-version"]) == (200, "m@2")
    assert json.loads(body) == {"predictions": [{"label": "no", "score": 0.25}]}
    refused = {"error": "not_found: this version is not in service"}
    assert one.says("POST", "/tf/v1/models/d/versions/9:predict", ROW) == (404, refused)


def test_a_request_that_comes_again_counts_once_and_belongs_to_its_dialect(rig: Callable[..., Rig]) -> None:
    """Seen red with the dialect's name left out of the place of a repeat: another dialect got this one's answer."""
    one = rig()
    key = new_id()
    first = one.ask("POST", PREDICT, ROW, Idempotency_Key=key)
    again = one.ask("POST", PREDICT, ROW, Idempotency_Key=key)
    assert (first[0], first[1]["mainspring-prediction-id"]) == (200, key)
    assert (again[0], again[2]) == (200, first[2])
    assert [r.id for r in one.logged()] == [key]
    other = b'{"instances":[{"x0":2}]}'
    refused = {"error": "conflict: this idempotency key was used for another request"}
    assert one.says("POST", PREDICT, other, Idempotency_Key=key) == (409, refused)
    status, body = one.says("POST", "/v1/deployments/d/predict", ROW, Idempotency_Key=key)
    assert (status, body["error"]["code"]) == (409, "conflict")


@pytest.mark.parametrize("long", [False, True])
def test_errors_have_the_dialects_own_shape_and_status(rig: Callable[..., Rig], *, long: bool) -> None:
    """Refused at the gate, by type, in the body, by the model; on both ways. Seen red with the last dialect asked in ``_refusal``."""
    one = rig()
    for body, headers, status, said in (
        (ROW, {"Host": "evil.example"}, 403, "foreign_origin: this host name"),
        (ROW, {"Content_Type": "text/csv"}, 415, "unsupported_media: bodies of this media type"),
        (b"{", {}, 400, "malformed_json: not valid JSON"),
        (b'{"instances":[{"x9":1}]}', {}, 400, "invalid_input: the request does not fit the signature"),
        (b'{"instances":[{"x0":13}]}', {}, 500, "model_failed: the model failed"),
    ):
        key = {"Idempotency_Key": new_id()} if long else {}
        got, fields, answer = one.ask("POST", PREDICT, body, **headers, **key)
        error = json.loads(answer)
        assert (got, error.keys()) == (status, {"error"})
        assert error["error"].startswith(said)
        assert ("mainspring-prediction-id" in fields) == (status == 500)
    (failed,) = one.logged()
    assert failed.status == "model_failed"
    assert one.app.quick_answers == (2 if long else 5)


def test_questions_and_wrong_requests(rig: Callable[..., Rig]) -> None:
    one = rig()
    both = [{"version": v, "state": "AVAILABLE"} for v in ("2", "1")]
    assert one.says("GET", "/tf/v1/models/d") == (200, {"model_version_status": both})
    assert one.says("GET", "/tf/v1/models/d/versions/1") == (200, {"model_version_status": both[1:]})
    assert one.says("GET", PREDICT)[0] == 405
    assert one.says("POST", "/tf/v1/models/d")[0] == 405
    assert one.says("GET", "/tf/v1/models/e") == (404, {"error": "not_found: there is no such deployment"})
    assert one.says("GET", "/tf/v1/models/d/labels") == (404, {"error": "not_found: there is nothing here"})
    assert one.says("GET", "/tf/v1/models/d", Host="evil.example")[0] == 403


def test_the_dialects_beside_it_answer_as_before(rig: Callable[..., Rig]) -> None:
    one = rig()
    native = one.says("POST", "/v1/deployments/d/predict", b'{"rows":[{"x0":1}]}')
    assert (native[0], native[1]["predictions"]) == (200, [{"label": "yes", "score": 0.75}])
    tensor = {"name": "x0", "shape": [1], "datatype": "FP64", "data": [1]}
    tensors = one.says("POST", "/v2/models/d/infer", json.dumps({"id": "mine", "inputs": [tensor]}).encode())
    assert (tensors[0], tensors[1]["id"], tensors[1]["outputs"][1]["data"]) == (200, "mine", [0.75])
    assert one.app.quick_answers == 2
    assert one.says("GET", "/v1/nothing")[1]["error"]["next_step"] == "See GET /v1/status."
    assert one.says("GET", "/v2/nothing")[1]["error"].endswith("See GET /v2.")


def test_a_reply_may_have_another_media_type_on_both_ways(rig: Callable[..., Rig]) -> None:
    """Seen red with the fixed header lines of JSON written before every reply."""
    one = rig(Csv)
    short = one.ask("POST", PREDICT, ROW)
    long = one.ask("POST", PREDICT, ROW, Idempotency_Key=new_id())
    assert one.app.quick_answers == 1
    for status, fields, body in (short, long):
        assert (status, body) == (200, b"0.75\n")
        assert (fields["content-type"], fields["x-rows"], fields["mainspring-version"]) == (
            "text/csv",
            "1",
            "m@1",
        )
    assert short[1].keys() - {"date", "server"} == long[1].keys() - {"date", "server"}


def test_a_path_without_a_deployment_means_the_only_one(rig: Callable[..., Rig]) -> None:
    table = rig().core.table
    (live,) = table.deployments.values()
    assert find_deployment(table, None) is live
    two = LiveTable(number=1, deployments={"d": live, "e": live})
    with pytest.raises(InvalidInput, match="there are several"):
        find_deployment(two, None)
    with pytest.raises(Unavailable, match="does not load"):
        find_deployment(LiveTable(number=1, problems={"d": "it does not load"}), None)
    for number, kind in ((0, Unavailable), (1, NotFound)):
        with pytest.raises(kind):
            find_deployment(LiveTable(number=number), "d")
    with pytest.raises(Unavailable, match="no model is in service yet"):
        find_deployment(LiveTable(number=0), None)
