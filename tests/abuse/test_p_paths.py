"""P01: names and logical paths that mean to be something else, on every route that takes one."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from mainspring.operations import Kind, Operation

CANARY = b"canary-5b0f1c"

BAD = [
    "../canary", "..\\canary", "/etc/passwd", "%2e%2e%2fcanary", "%252e%252e%252fcanary", "..%2fcanary", "x;/../canary", "x#/../canary", "x?y",
    "x\x00y", ".", "..", "a//b", "a/./b", "a/../b", "s" * 300, "dot.", "space ", "C:\\x", "e\u0301", "", "\ud800", "a\nb",
]  # fmt: skip
"""As in the table of abuse cases; ``\\ud800`` cannot be sent as UTF-8 and goes out as a JSON escape."""


def _id(value: str) -> str:
    return repr(value)[:24]


def _writes(run: str, digest: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """What each write that takes a name or path needs; the marked argument is replaced."""
    ref = {"digest": digest, "size": 1}
    return {
        "tracking.create_experiment": ("name", {"name": ""}),
        "tracking.create_run": ("experiment", {"experiment": ""}),
        "tracking.log_artifact": ("path", {"run": run, "path": "", "digest": digest, "size": 1}),
        "objects.create_tree": ("files", {"files": {"": ref}}),
        "models.set_alias": ("alias", {"model": "m", "alias": "", "version": 1, "reason": "r"}),
        "data.tag_version": ("tag", {"dataset": "d", "selector": "latest", "tag": ""}),
        "deploy.deploy": ("deployment", {"deployment": "", "model": "m", "version": 1, "reason": "r"}),
    }


@pytest.fixture(scope="module")
def run(plane: Any) -> str:
    with plane.workspace.tracking.start_run(capture=False) as run:
        run.log_artifact(b"fine", "good.txt")
    plane.workspace.data.commit("d", __import__("pyarrow").table({"x": [1]}))
    return str(run.id)


@pytest.mark.parametrize("bad", BAD, ids=_id)
def test_p01_writes(plane: Any, run: str, outside: Path, bad: str) -> None:
    """P01. Seen red with check_path letting everything pass."""
    digest = plane.workspace.tracking.list_artifacts(run=run).items[0].digest
    before, around = plane.state(), sorted(p.name for p in outside.iterdir())
    for operation, (argument, body) in _writes(run, digest).items():
        sent = body | {argument: {bad: next(iter(body["files"].values()))} if argument == "files" else bad}
        if operation == "data.tag_version" and bad and all(c.isprintable() for c in bad):
            continue  # a tag is a label on a version, no place; what it may hold is the data room's test
        answer = plane.post(operation, sent)
        assert answer.status in {400, 404, 422}, (operation, answer.body)
        assert answer.code in {"invalid_input", "malformed_json", "not_found"}, (operation, answer.body)
        assert CANARY not in answer.body
    for target in (
        f"/api/v1/abuse/tracking/upload_artifact?run={run}&path={_quoted(bad)}",
        f"/api/v1/abuse/data/commit_stream?dataset={_quoted(bad)}&path=x",
        f"/api/v1/abuse/data/commit_table?dataset={_quoted(bad)}",
    ):
        answer = plane.send("POST", target, body=b"x", headers={"Content-Type": "application/octet-stream"})
        assert 400 <= answer.status < 500, (target, answer.body)
    assert plane.state() == before
    assert sorted(p.name for p in outside.iterdir()) == around


@pytest.mark.parametrize("bad", BAD, ids=_id)
def test_p01_every_text_of_every_read(plane: Any, run: str, operations: list[Operation], bad: str) -> None:
    """P01: no canary, no failure, nothing found."""
    for operation in operations:
        if operation.policy.changes or operation.policy.kind is Kind.UPLOAD:
            continue
        texts = [n for n, t in operation.types.items() if n in operation.parameters and _is_text(t)]
        for name in texts:
            query = {
                n: (run if n == "run" else "x" if _is_text(operation.types[n]) else "1")
                for n, p in operation.parameters.items()
                if p.default is p.empty
            }
            query[name] = bad
            target = f"/api/v1/abuse/{operation.room}/{operation.name}?" + "&".join(
                f"{k}={_quoted(v)}" for k, v in query.items()
            )
            answer = plane.send("GET", target)
            assert answer.status < 500, (target, answer.body)
            assert CANARY not in answer.body, target
            if name in {"path", "digest", "dataset", "model", "run"}:
                nothing = (
                    answer.body == b"[]" or answer.code is not None or not json.loads(answer.body)["items"]
                )
                assert nothing, (target, answer.body)


@pytest.mark.parametrize(
    "target",
    [
        "/../canary", "/static/../../canary", "/static/%2e%2e/%2e%2e/canary", "/static/..%2f..%2fcanary", "/static/%252e%252e/canary",
        "/static/..\\..\\canary", "/static//canary", "/static/x;/../canary", "/static/%00", "/models/..%2f..%2fcanary", "/models/../../canary",
        "/runs/%2e%2e%2fcanary", "/api/v1/../../canary", "/api/v1/%2e%2e/data/list_datasets", "/api/v1/abuse/../abuse/data/list_datasets", "/api/v1/abuse%2f/data/list_datasets",
        "/api/v1/abuse/data/..%2fdatasets", "/api/v1//data/list_datasets", "//abuse/data", "http://evil.example/api/v1/version/../x",
    ],
)  # fmt: skip
def test_p01_the_address_itself(plane: Any, target: str) -> None:
    """P01: nothing beside what is routed."""
    answer = plane.send("GET", target)
    assert answer.status in {400, 404}, (target, answer.status, answer.body[:200])
    assert CANARY not in answer.body


def test_p01_a_good_path_goes_all_the_way(plane: Any, run: str) -> None:
    answer = plane.send("GET", f"/api/v1/abuse/tracking/download_artifact?run={run}&path=good.txt")
    assert (answer.status, answer.body) == (200, b"fine")
    assert "attachment" in answer.headers["content-disposition"]


def _quoted(value: str) -> str:
    return quote(value.encode("utf-8", "surrogatepass"), safe="")


def _is_text(kind: Any) -> bool:
    """``str``, plain or with a constraint, possibly optional."""
    if typing.get_origin(kind) is typing.Annotated:
        return _is_text(typing.get_args(kind)[0])
    arguments = typing.get_args(kind)
    return kind is str or (
        bool(arguments)
        and typing.get_origin(kind) is not list
        and all(a is type(None) or a is str for a in arguments)
    )


def test_the_list_reaches_the_server_as_meant(plane: Any) -> None:
    """What is refused is the value and not the way it was sent."""
    for value in ("ok", "A-1_b.c"):
        answer = plane.post("tracking.create_experiment", {"name": value})
        assert answer.status == 200
        assert json.loads(answer.body)["name"] == value
