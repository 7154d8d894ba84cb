"""explain-origin: all that led to a model is read again, its code can be had back, forged edges and overrides are shown."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mainspring.errors import Conflict, NotFound, PermissionDenied
from mainspring.operations import Role, acting
from mainspring.pipelines.loading import forget_projects
from mainspring.records.loop import RuleResult
from mainspring.workspace import Workspace, open_workspace

pytestmark = pytest.mark.timeout(1800)

PIPELINE = """
from pathlib import Path
import numpy as np
import pyarrow as pa
import mainspring as ms
from helpers.scale import FACTOR
from mainspring.records.models import Column, Signature, Task

@ms.step(isolation="inline")
def fit(rows: pa.Table, notes: Path) -> int:
    from sklearn.linear_model import LinearRegression
    context = ms.current()
    workspace, rows = context.workspace(), rows.slice(1)
    data = workspace.data.commit("clean", rows, inputs=[context.run_ref])
    files = workspace.data.commit("notes", notes)
    context.used(f"dataset_version:{files.id}")
    x = np.array(rows["x"].to_pylist(), dtype=float).reshape(-1, 1)
    version = workspace.models.save_and_register(
        LinearRegression().fit(x, FACTOR * x[:, 0]), model="twice", run=context.run, dataset_version=data.id, holdout=data.id,
        signature=Signature(inputs=[Column(name="x", type="float64")], task=Task.REGRESSION),
        sample={"x": rows["x"].to_pylist()}, profile=workspace.data.get_profile_object("clean").digest,
    )
    return version.version

@ms.pipeline
def train():
    fit(ms.dataset("numbers"), Path("notes"))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project outside Git with two registered versions; copied for each test."""
    root = tmp_path_factory.mktemp("origin") / "project"
    for name, text in {
        "mainspring.toml": '[project]\nname = "numbers"\n',
        "pipelines/train.py": PIPELINE,
        "helpers/__init__.py": "",
        "helpers/scale.py": "FACTOR = 2\n",
        "helpers/unused.py": "X = 1\n",
        "notes/a.txt": "one",
        "notes/b.txt": "two",
        ".env": "TOKEN=hunter2\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    with open_workspace(root) as workspace:
        for rows in (20, 30):
            workspace.data.commit("numbers", pa.table({"x": list(range(rows))}))
            forget_projects(root)
            workspace.execution.run("pipelines/train.py:train")
    return root


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def workspace(root: Path) -> Iterator[Workspace]:
    with open_workspace(root) as opened:
        yield opened


def _cli(root: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "mainspring.cli", "-C", str(root), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _explained(workspace: Workspace, number: int = 2) -> Any:
    from mainspring.verification import verify

    return verify(workspace, workspace.lineage.get_origin(ref=f"model_version:twice@{number}"))


def test_everything_is_read_again(workspace: Workspace, root: Path) -> None:
    """Seen red on 0.1: of five kinds of bytes only the training table was."""
    found = _explained(workspace)
    assert found.ok
    outcomes = {(c.ref.partition(":")[0], c.outcome) for c in found.checked}
    kinds = {"dataset_version", "model_version", "code", "environment", "object"}
    assert outcomes == {(kind, "as recorded") for kind in kinds}
    files = next(c for c in found.checked if c.what == "notes version 1")
    assert files.detail == "3 objects", "two files and their list"
    code, said = _cli(root, "explain-origin", "model_version:twice@2")
    assert code == 0
    assert "numbers version 2: bytes read again, digest as recorded" in said
    assert "files=helpers/scale.py, pipelines/train.py" in said
    assert "edges: as the chain recorded them" in said


@pytest.mark.parametrize(
    "what", ["package", "profile", "code", "source file", "environment", "files", "table"]
)
def test_bytes_that_changed_are_found(workspace: Workspace, root: Path, what: str) -> None:
    """One object behind the registry's back. Seen red on 0.1 for all but ``table``: exit code 0, "as recorded"."""
    version = workspace.models.get_version(model="twice", selector="2")
    run = workspace.tracking.operations
    digest = {
        "package": lambda: workspace.base.objects.tree(version.package)["model.onnx"].digest,
        "profile": lambda: version.profile,
        "code": lambda: version.code,
        "source file": lambda: next(f.digest for f in run.get_code(run=str(version.run)).files if f.path == "pipelines/train.py"),
        "environment": lambda: version.environment,
        "files": lambda: workspace.data.list_files("notes")[1].digest,
        "table": lambda: workspace.data.list_files("clean")[0].digest,
    }[what]()  # fmt: skip
    entry = workspace.base.objects.locate(bytes.fromhex(str(digest)))
    workspace.close()
    _damage(root, entry)
    with open_workspace(root) as again:
        found = _explained(again)
    assert not found.ok
    assert any(c.outcome in {"DIFFERS", "gone"} for c in found.checked)


def _damage(root: Path, entry: Any) -> None:
    """Flip a bit in the middle of an object's stored bytes."""
    pack = next((root / ".mainspring" / "objects").rglob(f"*{entry.pack}*"))
    body = bytearray(pack.read_bytes())
    body[entry.offset + entry.length // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(bytes(body))


def test_source_files_are_kept_without_git_and_come_back(
    workspace: Workspace, root: Path, tmp_path: Path
) -> None:
    """Seen red on 0.1: the code record said "not a git repository", and the source was stored nowhere."""
    run = str(workspace.models.get_version(model="twice", selector="2").run)
    state = workspace.tracking.get_code(run=run)
    assert {f.path: f.skipped for f in state.files} == {"helpers/scale.py": None, "pipelines/train.py": None}
    assert any("not a git repository" in m for m in state.missing)
    (root / "pipelines" / "train.py").write_text("# edited since\n")
    kept = b"".join(workspace.tracking.download_code(run=run, path="pipelines/train.py").chunks)
    assert kept.decode() == PIPELINE
    with pytest.raises(NotFound, match="no such source file"):
        workspace.tracking.download_code(run=run, path=".env")
    code, said = _cli(root, "runs", "code", run, "--to", str(tmp_path / "back"))
    assert code == 0, said
    assert (tmp_path / "back" / "helpers" / "scale.py").read_text() == "FACTOR = 2\n"
    assert _cli(root, "runs", "code", run, "helpers/scale.py") == (0, "FACTOR = 2\n")
    assert not any(b"hunter2" in pack.read_bytes() for pack in (root / ".mainspring").rglob("*.pack"))


def test_a_forged_edge_is_exposed(workspace: Workspace, root: Path) -> None:
    """Seen red on 0.1: "as recorded", exit code 0."""
    clean, used = workspace.data.get_version("numbers", 1).id, workspace.data.get_version("numbers", 2).id
    run = str(workspace.models.get_version(model="twice", selector="2").run)
    with workspace.base.store.write() as tx:
        tx.execute("UPDATE edges SET source = ? WHERE source = ? AND target = ?", f"dataset_version:{clean}", f"dataset_version:{used}", f"run:{run}")  # fmt: skip
    code, said = _cli(root, "explain-origin", "model_version:twice@2")
    assert code == 1
    assert (
        f"edge dataset_version:{clean} → run:{run} (input): FORGED, no event of the chain recorded it" in said
    )
    assert f"edge dataset_version:{used} → run:{run} (input): MISSING, recorded, but taken away since" in said
    code, said = _cli(root, "audit", "verify")
    assert code == 1
    assert "missing in the table" in said


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("row_count", 7, "rows 30 where the row says 7"),
        ("created_by", "eve", "by 'local' where the row says 'eve'"),
        ("message", "checked by ada", "message '' where the row says 'checked by ada'"),
        ("number", 9, "number 2 where the row says 9"),
    ],
)
def test_a_version_whose_row_was_rewritten_is_exposed(
    workspace: Workspace, root: Path, column: str, value: object, said: str
) -> None:
    """Seen red: "digest as recorded (7 rows)", exit code 0."""
    used = workspace.data.get_version("numbers", 2).id
    with workspace.base.store.write() as tx:
        tx.execute(f"UPDATE dataset_versions SET {column} = ? WHERE id = ?", value, used)
    code, told = _cli(root, "explain-origin", "model_version:twice@2")
    assert code == 1
    assert f"the event of its commit says {said}" in told


def _judged(workspace: Workspace, version: int, *, passed: bool) -> str:
    rule = RuleResult(
        rule={"metric": "auc", "min": 0.6}, passed=passed, value=0.51, reason="auc is 0.51, must be >= 0.6"
    )
    return workspace.loop.record_verdict(
        model="twice", version=version, champion=None, gate="0" * 64, rules=[rule]
    ).id


def test_verdicts_hang_on_the_chain(workspace: Workspace, root: Path) -> None:
    """Seen red on 0.1: a verdict rewritten together with its own digest, or invented, passed for true."""
    import blake3

    verdict = _judged(workspace, 2, passed=False)
    assert workspace.lineage.verify().ok
    with workspace.base.store.write() as tx:
        record = str(tx.scalar("SELECT record FROM verdicts WHERE id = ?", verdict)).replace("false", "true")
        digest = blake3.blake3(b"numbers\0" + record.encode()).hexdigest()
        tx.execute(
            "UPDATE verdicts SET record = ?, digest = ?, passed = 1 WHERE id = ?", record, digest, verdict
        )
    assert workspace.loop.get_verdict(verdict=verdict).passed, "the row by itself is consistent"
    report = workspace.lineage.verify()
    assert [p.partition(": ")[2] for p in report.problems] == [
        "its content differs from what its event records"
    ]
    with workspace.base.store.write() as tx:
        tx.execute("UPDATE verdicts SET id = ? WHERE id = ?", "0" * 36, verdict)
    said = sorted(p.partition(": ")[2] for p in workspace.lineage.verify().problems)
    assert said == ["an event records it, but its row is missing", "no event of the chain records it"]


def test_aliases_and_approvals_hang_on_the_chain(workspace: Workspace) -> None:
    """Seen red on 0.1, whose rows carry a digest that whoever writes SQL can compute."""
    from mainspring.models import rows
    from mainspring.records.models import AliasEvent, Approval

    ops = workspace.models
    moved = ops.set_alias(model="twice", alias="champion", version=1, reason="first")
    ops.approve(model="twice", version=1, reason="fine")
    assert workspace.lineage.verify().ok
    forged = AliasEvent(
        model="twice", alias="champion", version=2, previous=1, at=moved.at, actor="ann", reason="x", event=moved.event
    )  # fmt: skip
    said = Approval(
        model="twice", version=2, approved=True, at=moved.at, actor="ann", reason="x", event=moved.event
    )
    with workspace.base.store.write() as tx:
        rows.insert_alias_event(tx, workspace.base, forged, kind="set")
        rows.insert_approval(tx, workspace.base, said)
    problems = workspace.lineage.verify().problems
    assert [p.partition(": ")[0] for p in problems] == [
        "alias champion of model twice",
        "approval of twice@2 by ann",
    ]


# --- champion, against what speaks against it ---------------------------------------------------------------------------


def _promote(workspace: Workspace, version: int, **options: Any) -> Any:
    return workspace.models.set_alias(
        model="twice", alias="champion", version=version, reason="I know better", **options
    )


def test_the_gate_cannot_be_passed_by_without_a_word(workspace: Workspace, root: Path) -> None:
    """Seen red on 0.1: the alias moved, and nothing told that the gate had said no."""
    verdict = _judged(workspace, 2, passed=False)
    with pytest.raises(Conflict, match=f"the gate stopped it .verdict {verdict}.: auc is 0.51"):
        _promote(workspace, 2)
    with acting("olga", role=Role.OPERATOR), pytest.raises(PermissionDenied, match="only an admin"):
        _promote(workspace, 2, override=True)
    assert workspace.models.list_aliases(model="twice") == []
    _promote(workspace, 1)
    workspace.models.set_alias(model="twice", alias="challenger", version=2, reason="to look at")
    code, said = _cli(root, "models", "promote", "twice", "2", "--reason", "the hold-out was wrong")
    assert code != 0
    assert "--override" in said
    code, said = _cli(
        root, "models", "promote", "twice", "2", "--override", "--reason", "the hold-out was wrong"
    )
    assert code == 0
    assert "in spite of" in said

    # Everywhere: listing, history, card, timeline, explain-origin.
    moved = workspace.models.list_aliases(model="twice")
    assert [bool(e.overridden) for e in moved if e.alias == "champion"] == [True]
    assert "champion=2 (override)" in _cli(root, "models", "list")[1]
    assert "the gate stopped it" in _cli(root, "models", "history", "twice")[1]
    assert "OVERRIDE of: the gate stopped it" in workspace.models.get_card(model="twice", version=2).html
    code, said = _cli(root, "explain-origin", "model_version:twice@2")
    assert code == 0
    assert "OVERRIDE of: the gate stopped it" in said
    assert "gate stopped it" in said
    assert f"verdict {verdict}" in said
    from mainspring.server.pages.describe import describe_event

    event = workspace.lineage.list_events(kind="model.alias_set", limit=1).items[0]
    assert describe_event(event).tone == "warn"
    assert "in spite of: the gate stopped it" in describe_event(event).detail
    # Back is always possible.
    assert workspace.models.rollback(model="twice", alias="champion", reason="worse").version == 1


def test_a_later_verdict_or_approval_counts(workspace: Workspace) -> None:
    _judged(workspace, 2, passed=False)
    _judged(workspace, 2, passed=True)
    workspace.models.approve(model="twice", version=2, reason="no", approved=False)
    with pytest.raises(Conflict, match="local refused it: no"):
        _promote(workspace, 2)
    workspace.models.approve(model="twice", version=2, reason="yes")
    assert _promote(workspace, 2).overridden == []


def test_a_version_whose_data_was_deleted_needs_an_override(workspace: Workspace, root: Path) -> None:
    """Seen red on 0.1: champion in silence."""
    workspace.data.delete_version("clean", "latest", reason="a customer asked", force=True)
    with pytest.raises(Conflict, match=r"its training data .* was deleted; its hold-out .* was deleted"):
        _promote(workspace, 2)
    assert len(_promote(workspace, 2, override=True).overridden) == 2
    code, said = _cli(root, "explain-origin", "model_version:twice@2")
    assert "clean version 2: deleted" in said
    assert "a customer asked" in said
    assert "OVERRIDE of: its training data" in said


def test_a_version_whose_package_is_gone_needs_an_override(workspace: Workspace) -> None:
    version = workspace.models.get_version(model="twice", selector="2")
    with workspace.base.store.write() as tx:
        tx.execute("DELETE FROM object_refs WHERE owner = 'model_version:twice@2' OR owner LIKE 'upload:%'")
    with workspace.base.store.read() as tx:
        roots = [str(r["digest"]) for r in tx.all("SELECT digest FROM object_refs")]
    workspace.base.objects.gc(roots, grace_s=0)
    assert not workspace.base.objects.has(version.package)
    with pytest.raises(Conflict, match="its package is gone"):
        _promote(workspace, 2)


def test_the_json_says_it_all(root: Path) -> None:
    code, said = _cli(root, "explain-origin", "model_version:twice@1", "--json")
    assert code == 0
    found = json.loads(said)
    assert found["ok"]
    assert all(found["verified"].values())
    assert {"numbers version 1", "package of twice@1"} <= found["verified"].keys()
