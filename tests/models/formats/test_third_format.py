"""A third format, declared here and nowhere else: saved, checked, opened, registered, fetched and served with no other file touched.

It stores an additive model as JSON, in two files or more. The file is a program too: the worker process of an inference server that
has this format in its table.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mainspring.errors import InvalidInput, MissingExtra, UnsafeFormat
from mainspring.lineage import Foundation
from mainspring.models import Models, ModelsClient, formats
from mainspring.models.formats.columns import floats, pick, strings
from mainspring.models.formats.model_format import Cost, Form, ModelFormat, Payloads
from mainspring.models.formats.predictor import Columns, Predictor, Scores
from mainspring.models.formats.trust import TrustPolicy
from mainspring.records.base import to_json
from mainspring.records.models import Package, Signature
from mainspring.records.serving import ROUTES_FILE, Deployment, RouteTable, Target, with_digest
from mainspring.testing.formats import FormatContract, registered

pytestmark = pytest.mark.timeout(1800)  # a server is started: minutes on a busy machine


class Term(msgspec.Struct, forbid_unknown_fields=True):
    """What one column adds: a number's ``slope`` (``fill`` for a null), or a text's own value."""

    slope: float = 0.0
    fill: float = 0.0
    texts: dict[str, float] = {}


class Head(msgspec.Struct, forbid_unknown_fields=True):
    bias: float
    columns: list[str]


class Additive:
    """An estimator of nobody's library, given an array of objects."""

    classes_ = np.array(["fine", "late"])

    def __init__(self, bias: float, terms: dict[str, Term]) -> None:
        self.bias, self.terms = bias, terms

    def predict_proba(self, rows: Any) -> Any:
        sums = []
        for row in np.asarray(rows, dtype=object):
            total = self.bias
            for value, term in zip(row, self.terms.values(), strict=True):
                if isinstance(value, str) or value is None:
                    total += term.texts.get(value, 0.0)
                else:
                    total += term.slope * (term.fill if value != value else float(value))
            sums.append(total)
        late = _logistic(np.array(sums, dtype=np.float64))
        return np.column_stack([1 - late, late])

    def predict(self, rows: Any) -> Any:
        return self.classes_[np.argmax(self.predict_proba(rows), axis=1)]


class AdditivePredictor:
    def __init__(self, package: Package, head: Head, terms: dict[str, Term]) -> None:
        self.package, self.signature = package, package.signature
        self._bias, self._terms = head.bias, [terms[name] for name in head.columns]

    def compute_scores(self, columns: Columns) -> Scores:
        rows, values = pick(columns, self.signature.inputs)
        total = np.full(rows, self._bias)
        for column, term, given in zip(self.signature.inputs, self._terms, values, strict=True):
            if column.type == "string":
                total += [term.texts.get(v, 0.0) for v in strings(column.name, given, rows, null=None)]
            else:
                numbers = floats(column.name, given, rows)
                total += term.slope * np.where(np.isnan(numbers), term.fill, numbers)
        return _logistic(total)


def _logistic(total: Any) -> Any:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-total))


class Coefficients(ModelFormat):
    name = "coefficients"
    payloads = ("head.json", "term-*.json")
    libraries = ("msgspec",)
    extra = "ml"
    modules = ("numpy",)
    next_step = "Fit an additive model."

    def check(self, package: Package, payloads: Payloads, *, trust: TrustPolicy) -> None:
        _read(package, payloads)

    def open(self, package: Package, payloads: Payloads, *, trust: TrustPolicy) -> Predictor:
        return AdditivePredictor(package, *_read(package, payloads))

    def forms(self, estimator: Any, signature: Signature) -> list[Form]:
        return [Form("coefficients", lambda: _written(estimator))] if isinstance(estimator, Additive) else []

    def cost(self, package: Package, payloads: Payloads) -> Cost:
        return Cost()  # one product for each value


def _written(estimator: Additive) -> dict[str, bytes]:
    files = {f"term-{i}.json": msgspec.json.encode(term) for i, term in enumerate(estimator.terms.values())}
    return files | {"head.json": msgspec.json.encode(Head(estimator.bias, list(estimator.terms)))}


def _read(package: Package, payloads: Payloads) -> tuple[Head, dict[str, Term]]:
    try:
        head = msgspec.json.decode(payloads["head.json"], type=Head)
        terms = [msgspec.json.decode(payloads[f"term-{i}.json"], type=Term) for i in range(len(payloads) - 1)]
    except (msgspec.DecodeError, KeyError) as error:
        raise UnsafeFormat(f"not coefficients: {error}") from None
    if head.columns != [c.name for c in package.signature.inputs] or len(terms) != len(head.columns):
        raise UnsafeFormat("the coefficients are those of other columns")
    return head, dict(zip(head.columns, terms, strict=True))


@pytest.fixture(autouse=True)
def third() -> Iterator[None]:
    with registered(Coefficients()):
        yield


@pytest.fixture(scope="module")
def columns() -> dict[str, Any]:
    rng = np.random.default_rng(5)
    temperature = rng.normal(size=60).round(3)
    temperature[::11] = np.nan
    return {
        "temperature": temperature,
        "wind": rng.gamma(2.0, size=60).round(2),
        "carrier": rng.choice(["AA", "UA", "B6"], 60).astype(object),
    }


@pytest.fixture(scope="module")
def estimator() -> Additive:
    terms = {"temperature": Term(slope=0.5, fill=1.0), "wind": Term(slope=-0.25), "carrier": Term(texts={"AA": 1.0, "UA": -1.0})}  # fmt: skip
    return Additive(0.1, terms)


@pytest.fixture(scope="module")
def expected(estimator: Additive, columns: dict[str, Any]) -> Any:
    return estimator.predict_proba(np.column_stack([v.astype(object) for v in columns.values()]))[:, 1]


class TestCoefficients(FormatContract):
    form = "coefficients"


def _save(estimator: Any, folder: Path, columns: dict[str, Any], **more: Any) -> Package:
    signature = formats.infer_signature(columns, task="binary", classes=["fine", "late"])
    return formats.save(estimator, folder, signature=signature, sample=columns, **more)


def test_auto_finds_it_where_no_other_format_takes_the_estimator(
    estimator: Additive, columns: dict[str, Any], tmp_path: Path
) -> None:
    package = _save(estimator, tmp_path / "p", columns)
    assert package.format == "coefficients"
    assert [f.path for f in package.files] == ["head.json", "term-0.json", "term-1.json", "term-2.json"]
    assert list(package.libraries) == ["msgspec"]
    assert {"onnx (float64, exact)", "skops"} <= package.notes["refused"].keys()
    assert "onnx_form" not in package.notes


def test_an_estimator_of_another_kind_is_refused_by_name(columns: dict[str, Any], tmp_path: Path) -> None:
    """Seen red with `_refused` not asking whether there are refusals at all: IndexError."""
    from sklearn.linear_model import LogisticRegression

    wind = {"wind": columns["wind"]}
    other = LogisticRegression().fit(columns["wind"][:, None], np.resize(["fine", "late"], 60))
    with pytest.raises(InvalidInput, match="takes no estimator of this kind") as caught:
        _save(other, tmp_path / "p", wind, format="coefficients")
    assert caught.value.value == "LogisticRegression"


@pytest.mark.parametrize(
    "names",
    [
        ["head.json"],
        ["term-0.json"],
        ["head.json", "head.json", "term-0.json"],
        ["head.json", "term-.json"],
        ["head.json", "term-a/b.json"],
        ["head.json", "term-..json"],
        ["head.json", "term-0.json\n"],
        ["head.json", "term-0.json", "other.json"],
    ],
)
def test_p04_names_of_files_are_those_of_the_format_and_lead_nowhere(names: list[str]) -> None:
    """Seen red with ``*`` as any text, and with names counted once."""
    assert Coefficients().names_files(["term-0.json", "head.json", "term-x_1.json"])
    assert not Coefficients().names_files(names)


def test_a_library_that_is_missing_is_named_with_its_extra(
    estimator: Additive, columns: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen red without `extra_needed` around `open` (a bare ImportError), and with every ImportError taken for a missing library."""
    _save(estimator, tmp_path / "p", columns, format="coefficients")

    def needs_more(*_: Any, **__: Any) -> Predictor:
        import no_such_library.inner  # type: ignore[import-not-found]  # noqa: F401

        raise AssertionError

    monkeypatch.setattr(Coefficients, "open", needs_more)
    with pytest.raises(MissingExtra, match="no_such_library is not installed") as caught:
        formats.load(tmp_path / "p")
    assert caught.value.next_step == "Type: pip install 'mainspring[ml]'"

    def wrong(*_: Any, **__: Any) -> Predictor:
        import mainspring.no_such_module  # type: ignore[import-not-found]  # noqa: F401

        raise AssertionError

    monkeypatch.setattr(Coefficients, "open", wrong)
    with pytest.raises(ImportError, match="no_such_module"):  # a mistake of ours is no missing library
        formats.load(tmp_path / "p")


def test_it_is_registered_and_fetched(
    foundation: Foundation, estimator: Additive, columns: dict[str, Any], expected: Any, tmp_path: Path
) -> None:
    from mainspring.lineage.uploads import Uploads

    client = ModelsClient(Models(foundation), Uploads(foundation))
    signature = formats.infer_signature(columns, task="binary", classes=["fine", "late"])
    client.save_and_register(estimator, model="delay", signature=signature, sample=columns)
    client.download_package("delay", "latest", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "head.json", "model.json", "term-0.json", "term-1.json", "term-2.json",
    ]  # fmt: skip
    np.testing.assert_allclose(client.load("delay").compute_scores(columns), expected, atol=1e-12)


def test_an_inference_server_predicts_with_it(
    estimator: Additive, columns: dict[str, Any], expected: Any, tmp_path: Path
) -> None:
    """A real worker with its nursery and its keeper, which open the package in processes of their own first.

    Seen red with the format not in the worker's table (503: not a format that is loaded here), and without its ``cost`` (the model
    answered from a process of its own).
    """
    digest = "c0" * 32
    package = _save(estimator, tmp_path / "packages" / digest, columns)
    deployment = Deployment(
        name="d", signature=package.signature, targets=[Target(model="m", version=1, package=digest)]
    )
    routes = with_digest(RouteTable(number=1, created_us=0, deployments=[deployment]))
    (tmp_path / ROUTES_FILE).write_bytes(to_json(routes))
    rows = [{n: None if v[i] != v[i] else v[i] for n, v in columns.items()} for i in range(3)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        status, answer = _ask_worker(tmp_path, listener, json.dumps({"rows": rows}))
    assert status == 200, answer
    scores = [p["score"] for p in json.loads(answer)["predictions"]]
    np.testing.assert_allclose(scores, expected[:3], atol=1e-12)


def _ask_worker(bundle: Path, listener: socket.socket, body: str) -> tuple[int, bytes]:
    """Start a worker as the supervisor does, with this file for a program; ask it once and stop it."""
    from mainspring.serving.options import ServeOptions

    reading, writing = os.pipe()
    command = [sys.executable, __file__, str(os.getpid()), str(listener.fileno()), str(writing), "auto", str(bundle)]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, pass_fds=(listener.fileno(), writing)
    ) as process, os.fdopen(reading) as told:  # fmt: skip
        os.close(writing)
        assert process.stdin is not None
        try:
            options = ServeOptions(bundle=str(bundle), load_deadline_s=900, deadline_s=300, sandbox="auto")
            process.stdin.write(to_json(options) + b"\n")
            process.stdin.flush()
            _until(told, "loaded")
            process.stdin.write(b"go\n")
            process.stdin.flush()
            _until(told, "ready")
            asking = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=600)
            asking.request("POST", "/v1/deployments/d/predict", body, {"Content-Type": "application/json"})
            answer = asking.getresponse()
            found = answer.status, answer.read()
            asking.request("GET", "/v1/status")
            (deployment,) = json.loads(asking.getresponse().read())["deployments"]
            assert not deployment["versions"][0]["own_process"], "its cost is bounded"
            asking.close()
            process.stdin.write(b"stop\n")
            process.stdin.flush()
            assert process.wait(600) == 0
            return found
        finally:
            process.kill()


def _until(told: Any, event: str) -> None:
    for line in told:
        if json.loads(line)["event"] == event:
            return
    raise AssertionError(f"the worker ended before it was {event}")


if __name__ == "__main__":
    from mainspring.serving.worker import main

    with registered(Coefficients()):
        sys.exit(main(sys.argv[1:]))
