"""A03, A04: one foreign argument among own ones, for every operation and every argument that names something.

Generated from the declarations: an argument that this file does not know fails the test, so a new one is thought about. What
names something of another project is answered exactly as what names nothing.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mainspring.config import load
from mainspring.errors import MainspringError, NotFound
from mainspring.lineage.consumers import Consumer, Consumers
from mainspring.operations import Download, Kind, Operation, operations_of
from mainspring.records.base import new_id, to_json
from mainspring.records.labels import Feedback
from mainspring.records.loop import RuleResult
from mainspring.records.models import Column, Signature, Task
from mainspring.records.objects import ObjectRef
from mainspring.records.pipelines import Artifact as StepOutput
from mainspring.records.pipelines import StepResult
from mainspring.records.serving import Shadow, Target
from mainspring.records.training import Evaluation
from mainspring.rooms import ROOMS, room_class
from mainspring.workspace import Workspace

POLICY = """
[project]
name = "one"
[model.{0}]
pipeline = "pipelines/train.py:train"
[deploy.{0}]
model = "{0}"
"""
CANARY = "canary-77aa"
SIGNATURE = Signature(inputs=[Column(name="x", type="float64")], task=Task.BINARY, classes=["no", "yes"])
OPERATIONS: list[Operation] = [o for r in ROOMS for o in operations_of(room_class(r)).values()]


@dataclass(frozen=True)
class Things:
    """What a project has, or with ids that nothing has: what it has not."""

    name: str
    dataset_version: str
    run: str
    verdict: str
    job: str
    evaluation: str
    package: ObjectRef
    profile: str
    upload: ObjectRef
    table: str
    """A dataset's file."""
    experiment: str
    """An experiment's id."""

    def named(self) -> dict[str, list[Any]]:
        """By argument, the values that would name these things."""
        name, data = self.name, f"dataset_version:{self.dataset_version}"
        refs = [f"{kind}:{ident}" for kind, ident in self.refs()]
        digests = [self.upload.digest, self.package.digest, self.profile, self.table]
        return {
            "dataset": [f"data-{name}"], "model": [name], "deployment": [name], "name": [name], "experiment": [f"tries-{name}"],
            "dataset_version": [self.dataset_version], "holdout": [self.dataset_version], "run": [self.run], "parent": [self.run],
            "verdict": [self.verdict], "job": [self.job], "digest": digests, "package": digests, "profile": digests,
            "id": [self.dataset_version, self.run, self.experiment, new_id()],
            "experiment_id": [self.experiment], "experiment_ids": [[self.experiment]], "ref": refs, "subject": refs, "inputs": [[r] for r in refs], "refs": [[r] for r in refs],
            "files": [{"f": ObjectRef(digest=d, size=self.upload.size)} for d in digests],
            "selector": [self.dataset_version], "before": [self.dataset_version], "after": [self.dataset_version],
            "alias": [f"alias-{name}"], "tag": [f"tag-{name}"], "experiments": [[f"tries-{name}"]], "pipeline": [f"{name}.py:t"],
            "prediction_id": [f"{self.run}/0"], "predictions": [[f"{self.run}/0"]], "window": [self.run], "batch_id": [self.run],
            "items": [[Feedback(prediction_id=f"{self.run}/0", value=True)]],
            "targets": [[Target(model=name, version=1, package=self.package.digest)], [Target(model="ours", version=1, package=self.package.digest)]],
            "shadows": [[Shadow(model=name, version=1, package=self.package.digest, name="s")], [Shadow(model="ours", version=1, package=self.package.digest, name="s")]],
            "evaluation": [
                Evaluation(task=Task.BINARY, rows=1, metrics={}, subject=refs[1], dataset_version=self.dataset_version),
                Evaluation(task=Task.BINARY, rows=1, metrics={}, subject=data, dataset_version="x"),
            ],
            "consumer": [f"told-{name}"], "execution": [self.run], "result": [
                StepResult(outputs=[StepOutput(name="value", kind="bytes", digest=d, size=self.upload.size)]) for d in digests
            ],
            "a": [f"{name}@1"], "b": [f"{name}@1"], "scorer": [f"{name}@1"], "gate": [self.upload.digest], "version": [1],
        }  # fmt: skip

    def refs(self) -> list[tuple[str, str]]:
        return [
            ("dataset_version", self.dataset_version), ("run", self.run), ("model_version", f"{self.name}@1"),
            ("model", self.name), ("deployment", self.name), ("verdict", self.verdict), ("object", self.upload.digest),
            ("evaluation", self.evaluation), ("job", self.job), ("dataset", f"data-{self.name}"), ("experiment", self.experiment),
        ]  # fmt: skip


NOTHING = Things(
    name="nobody", dataset_version="9a" * 32, run="01900000-0000-7000-8000-000000000000", verdict="01900000-0000-7000-8000-000000000001",
    job="01900000-0000-7000-8000-000000000002", evaluation="01900000-0000-7000-8000-000000000003",
    package=ObjectRef(digest="8a" * 32, size=10), profile="7a" * 32, upload=ObjectRef(digest="6a" * 32, size=11), table="5a" * 32,
    experiment="01900000-0000-7000-8000-000000000004",
)  # fmt: skip
"""Of the same shapes, and nowhere."""

NAMES_NOTHING = {
    "body", "limit", "depth", "kind", "newest_first", "anchor", "older_than_s", "rules", "message", "tags", "checks", "reason", "force",
    "key", "path", "prefix", "params", "started_us", "alive_s", "source", "status", "ended_us", "size", "metrics", "thin_to", "code",
    "environment", "filter", "order_by", "view", "remove", "at", "approved", "expected", "label", "max_uses", "purpose", "by", "attempts",
    "state", "now", "since", "until", "severity", "min_rows", "metric", "attempt", "error", "champion", "same_as", "policy", "step",
    "override", "worker", "token", "seq",
}  # fmt: skip
"""Arguments that hold values, not names of things. ``version``, ``champion``, ``same_as`` and ``expected`` count within a model; ``step`` within a
run."""

DIGESTS = {"digest", "package", "profile", "files", "result"}
"""Arguments that name bytes: never taken from outside the project."""

CLAIMS_AN_ID = {("tracking.create_run", "id")}
"""The id of a run is its own in all projects: one that is taken cannot be taken again. It is a UUID that nobody can guess."""

HOLDS_CONTENT = {("tracking.record_capture", "files")}
"""An argument that elsewhere names bytes, and here brings them."""


@pytest.fixture
def projects(tmp_path: Path) -> Iterator[tuple[Workspace, Workspace, Things, Things]]:
    policy, settings = tmp_path / "mainspring.toml", []
    for name in ("theirs", "ours"):  # a policy each, one database and one object store
        policy.write_text(POLICY.format(name))
        settings.append(load(tmp_path))
    with Workspace(settings[0]) as one, Workspace(settings[1], project="two") as two:
        yield one, two, fill(one, "theirs"), fill(two, "ours")


def fill(workspace: Workspace, name: str) -> Things:
    """A thing of every kind in the project."""
    from sklearn.linear_model import LogisticRegression

    word = CANARY if name == "theirs" else "plain"
    x = np.linspace(-1, 1, 60).reshape(-1, 1)
    fitted = LogisticRegression(C=1.0 if name == "theirs" else 2.0).fit(x, (x[:, 0] > 0).astype(int))
    data = workspace.data.commit(
        f"data-{name}", pa.table({"size": [1, 2, len(name)]}), message=word, tags=[f"tag-{name}"]
    )
    profile = workspace.data.get_profile_object(f"data-{name}", 1).digest
    workspace.training.lock_holdout(dataset_version=data.id)
    run = workspace.tracking.create_run(experiment=f"tries-{name}", name=word)
    made = workspace.models.save_and_register(
        fitted,
        model=name,
        signature=SIGNATURE,
        sample={"x": x[:, 0].tolist()},
        profile=profile,
        tags={"owner": word},
    )
    workspace.models.set_alias(model=name, alias=f"alias-{name}", version=1, reason=word)
    workspace.models.set_alias(model=name, alias="champion", version=1, reason=word)
    rules = [RuleResult(rule={"metric": "auc"}, passed=True, value=0.7, reason=word)]
    verdict = workspace.loop.record_verdict(model=name, version=1, champion=None, gate="0" * 64, rules=rules)
    job = workspace.loop.request_retrain(deployment=name, reason=word)
    kept = workspace.training.record_evaluation(
        evaluation=Evaluation(
            task=Task.BINARY, rows=3, metrics={}, subject=f"run:{run.id}", dataset_version=data.id
        )
    )
    Consumers(workspace.base, [Consumer(name=f"told-{name}", handler=lambda _events: None)])
    upload = workspace.objects.put(body=iter([f"{word} bytes".encode()]))
    table = workspace.data.operations.list_files(dataset=f"data-{name}")[0].digest
    package = ObjectRef(digest=made.package, size=workspace.base.objects.size(made.package))
    workspace.deploy.set_routes(
        deployment=name, targets=[Target(model=name, version=1, package=made.package)], reason=word
    ) if name == "theirs" else None
    return Things(
        name=name, dataset_version=data.id, run=run.id, verdict=verdict.id, job=job.id, evaluation=str(kept.id), package=package,
        profile=profile, upload=upload, table=table, experiment=run.experiment_id,
    )  # fmt: skip


def own_arguments(o: Operation, own: Things) -> dict[str, Any]:
    """Arguments with which the operation would do its work."""
    values: dict[str, Any] = {k: v[0] for k, v in own.named().items()} | {
        "digest": own.upload.digest, "package": own.package.digest, "profile": own.profile, "size": own.upload.size, "path": "f",
        "reason": "r", "purpose": "p", "tags": {}, "alive_s": 1.0, "key": "loss", "rules": [], "champion": None, "same_as": None, "attempt": 1, "policy": {},
        "metric": "auc", "step": "s", "version": 1, "kind": "input", "selector": "latest", "before": "latest", "after": "latest",
        "now": None, "ref": f"run:{own.run}", "window": own.run, "worker": "w", "token": "t", "seq": 1, "id": own.dataset_version, "refs": [f"run:{own.run}"],
    }  # fmt: skip
    if o.id == "pipelines.get_run" or o.room == "monitoring":
        values["id"] = own.run
    if o.id.endswith("_experiment"):
        values["id"] = own.experiment
    found = {n: values[n] for n, p in o.parameters.items() if p.default is p.empty and n != "body"}
    if o.policy.kind is Kind.UPLOAD:
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pa.table({"a": [1]}), sink)
        found["body"] = iter([sink.getvalue()])
    return found


class _Undo(Exception):
    """Whatever the call did is rolled back."""


def outcome(room: Any, o: Operation, arguments: dict[str, Any]) -> tuple[str, str]:
    """The error's code or ``accepted``, and all that was told; what the call changed is undone."""
    told, code = "", "accepted"
    try:
        with room._base.store.write():
            try:
                result = getattr(room, o.name)(**arguments)
                told = (
                    b"".join(result.chunks).decode("latin-1")
                    if isinstance(result, Download)
                    else to_json(result).decode()
                )
            except MainspringError as error:
                told, code = str(error), error.code
            raise _Undo
    except _Undo:
        pass
    return code, told


def normal(told: str, things: Things) -> str:
    """What was told, without the names that were asked for."""
    words = [things.dataset_version, things.run, things.verdict, things.job, things.evaluation, things.upload.digest, things.package.digest,
             things.profile, things.table, things.name]  # fmt: skip
    for word in sorted(words, key=len, reverse=True):
        told = told.replace(word, "<it>")
    told = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "<id>", told)
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.+Z]+", "<time>", told)


def rows_of(workspace: Workspace, project: str) -> dict[str, list[str]]:
    """Everything that a project has in the database."""
    found = {}
    with workspace.base.store.read() as tx:
        tables = tx.all("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        for table in [str(r["name"]) for r in tables]:
            columns = {c["name"] for c in tx.all(f"SELECT name FROM pragma_table_info('{table}')")}
            if "project" in columns:
                rows = tx.all(f"SELECT * FROM {table} WHERE project = ?", project)
                found[table] = sorted(repr(sorted(r.items())) for r in rows)
    return found


def test_a03_every_argument_is_known() -> None:
    """A03: a new argument is named here, as a thing or as none. Seen red with an argument added to an operation."""
    known = NAMES_NOTHING | set(NOTHING.named())
    assert not {f"{o.id}.{n}" for o in OPERATIONS for n in o.parameters if n not in known}


def test_a03_one_foreign_argument_is_as_one_that_names_nothing(
    projects: tuple[Workspace, Workspace, Things, Things],
) -> None:
    """A03, A04. Seen red on 0.1 for tracking.log_artifact (the digest of another project was taken, and its bytes then read)
    and without ``project = ?`` in the look-up of a run."""
    one, two, theirs, own = projects
    before = rows_of(one, "one")
    tried = 0
    for o in OPERATIONS:
        room = two.room(o.room)
        for parameter in o.parameters:
            if (
                parameter in NAMES_NOTHING
                or parameter == "version"
                or (o.id, parameter) in CLAIMS_AN_ID | HOLDS_CONTENT
            ):
                continue
            for foreign, absent in zip(theirs.named()[parameter], NOTHING.named()[parameter], strict=True):
                code, told = outcome(room, o, own_arguments(o, own) | {parameter: foreign})
                other, said = outcome(room, o, own_arguments(o, own) | {parameter: absent})
                place = f"{o.id}({parameter}={foreign!r})"
                assert CANARY not in told, place
                assert code == other, (place, told, said)
                assert normal(told, theirs) == normal(said, NOTHING) or code == "accepted", (
                    place,
                    told,
                    said,
                )
                if parameter in DIGESTS:
                    assert code == "not_found", (place, told)
                tried += 1
    assert tried > 240
    assert rows_of(one, "one") == before
    # What the own arguments do alone: else every look-up above might have failed for another reason.
    works = [o.id for o in OPERATIONS if outcome(two.room(o.room), o, own_arguments(o, own))[0] == "accepted"]
    assert len(works) > 60, works


def _tree_of(files: dict[str, ObjectRef]) -> bytes:
    from mainspring.storage.objects.trees import dump_tree

    return dump_tree(files)


def test_a04_bytes_that_look_like_a_tree_open_nothing(
    projects: tuple[Workspace, Workspace, Things, Things],
) -> None:
    """A04: whoever knows a digest can write a tree that lists it, byte for byte as we would. Seen red on 0.1: as a run's artifact, a
    committed file or a model's package it opened every object in it."""
    one, two, theirs, own = projects
    secret = theirs.upload
    forged = two.objects.put(body=iter([_tree_of({"f": secret})]))
    real = one.base.objects.tree(theirs.package.digest)
    package = two.objects.put(body=iter([_tree_of(dict(real))]))
    assert package.digest == theirs.package.digest, "the very package of the other project"

    run = own.run
    two.room("tracking").log_artifact(run=run, path="a", digest=forged.digest, size=forged.size)
    two.room("tracking").upload_artifact(run=run, path="b", body=iter([_tree_of({"f": secret})]))
    two.room("data").commit_files(dataset="d", files={"f": forged})
    for attempt in (
        lambda: two.room("models").register(model="stolen", package=package.digest),
        lambda: two.room("models").register(model="stolen", package=forged.digest),
        lambda: two.room("objects").create_tree(files={"f": secret}),
        lambda: two.room("data").commit_files(dataset="e", files={"f": secret}),
        lambda: two.room("tracking").log_artifact(run=run, path="c", digest=secret.digest, size=secret.size),
    ):
        with pytest.raises(NotFound, match="in this project"):
            attempt()
    for digest in (secret.digest, *(entry.digest for entry in real.values())):
        with pytest.raises(NotFound, match="in this project"):
            two.room("objects").get(digest=digest)
    # Its own things stay readable, through the trees that were made here.
    for entry in two.base.objects.tree(own.package.digest).values():
        assert b"".join(two.room("objects").get(digest=entry.digest).chunks)
    assert b"".join(two.room("objects").get(digest=own.table).chunks)


def test_a04_who_has_the_bytes_may_name_them(projects: tuple[Workspace, Workspace, Things, Things]) -> None:
    """A04, the other side: putting the bytes is the proof. Seen red with ownership by the first project only."""
    one, two, theirs, own = projects
    bytes_ = b"".join(one.room("objects").get(digest=theirs.upload.digest).chunks)
    mine = two.objects.put(body=iter([bytes_]))
    assert mine == theirs.upload
    made = two.room("tracking").log_artifact(run=own.run, path="a", digest=mine.digest, size=mine.size)
    assert made.digest == mine.digest
    with pytest.raises(MainspringError, match="another size"):
        two.room("tracking").log_artifact(run=own.run, path="a", digest=mine.digest, size=mine.size + 1)
    two.room("objects").expire_uploads(older_than_s=0)
    assert b"".join(two.room("objects").get(digest=mine.digest).chunks) == bytes_
