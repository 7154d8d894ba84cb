"""A round of the loop when something in it does not work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mainspring.config import load
from mainspring.records.loop import Job, RuleResult
from mainspring.records.models import Column, Signature, Task
from mainspring.workspace import Workspace

POLICY = """
[project]
name = "shop"
[storage]
clock = "manual"
[model.buy]
pipeline = "pipelines/train.py:train"
[model.rent]
pipeline = "pipelines/train.py:train"
[deploy.buy]
model = "buy"
stages = [{ shadow = true, min_requests = 10 }, { full = true }]
[deploy.rent]
model = "rent"
stages = [{ shadow = true, min_requests = 10 }, { full = true }]
"""
SIGNATURE = Signature(inputs=[Column(name="x", type="float64")], task=Task.BINARY, classes=["no", "yes"])


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    root = tmp_path / "shop"
    root.mkdir()
    (root / "mainspring.toml").write_text(POLICY)
    with Workspace(load(root)) as opened:
        yield opened


def trained(workspace: Workspace, model: str, slope: float, *, version: int | None = None) -> Job:
    """A retraining that passed its gate, so that the next round starts its rollout."""
    from sklearn.linear_model import LogisticRegression

    if version is None:
        x = np.linspace(-1, 1, 60).reshape(-1, 1)
        fitted = LogisticRegression(C=abs(slope)).fit(x, (x[:, 0] * slope > 0).astype(int))
        rows = {"x": x[:, 0].tolist()}
        version = workspace.models.save_and_register(
            fitted, model=model, signature=SIGNATURE, sample=rows, training=rows
        ).version
    job = workspace.loop.request_retrain(deployment=model, reason="test")
    claimed = workspace.loop.claim_job(job=job.id)
    rules = [RuleResult(rule={"metric": "auc"}, passed=True, value=0.7, reason="auc is 0.7")]
    verdict = workspace.loop.record_verdict(
        model=model, version=version, champion=None, gate="0" * 64, rules=rules
    )
    return workspace.loop.finish_job(job=job.id, attempt=claimed.attempt, version=version, verdict=verdict.id)


def champion(workspace: Workspace, model: str) -> int:
    return workspace.models.get_version(model=model, selector="champion").version


def test_c12_one_deployment_in_trouble_does_not_stop_the_others(workspace: Workspace) -> None:
    """C12. Seen red without _noting around each deployment in Loop.tick: no champion of either."""
    trained(workspace, "buy", 1.0)
    trained(workspace, "rent", 1.0)
    with workspace.base.store.write() as tx:
        tx.execute("UPDATE verdicts SET record = '{}' WHERE model = 'buy'")
    done = workspace.loop.tick()
    assert champion(workspace, "rent") == 1
    assert len(done.problems) == 1
    assert done.problems[0].startswith("deployment buy: corrupt: ")


def test_facts_that_cannot_be_taken_in_do_not_stop_decisions(workspace: Workspace) -> None:
    """Seen red without _noting around what is taken in, in Loop.tick."""
    trained(workspace, "buy", 1.0)
    with workspace.base.store.write() as tx:
        tx.execute("DROP TABLE parked_labels")
    done = workspace.loop.tick()
    assert champion(workspace, "buy") == 1
    assert [p.split(":")[0] for p in done.problems] == ["labels"]


def test_c05_routes_that_were_decided_but_not_written_are_written_by_the_next_round(
    workspace: Workspace,
) -> None:
    """C05. Seen red with publish only after a round that decided something."""
    trained(workspace, "buy", 1.0)
    workspace.loop.tick()
    routes = workspace.settings.home / "bundle" / "routes.json"
    routes.unlink()  # as if the process had died between the commit and the writing
    assert workspace.loop.tick().decisions == []
    assert routes.is_file()


def test_a_champion_moved_by_hand_ends_the_rollout(workspace: Workspace) -> None:
    """Seen red without the comparison of champions in decide: the promotion was refused in every round, for ever."""
    trained(workspace, "buy", 1.0)
    workspace.loop.tick()
    trained(workspace, "buy", 2.0)
    assert [d.action for d in workspace.loop.tick().decisions] == ["gate_pass", "start"]
    trained_by_hand = workspace.models.list_versions(model="buy").items[0].version
    workspace.models.set_alias(model="buy", alias="champion", version=trained_by_hand, reason="I say so")
    done = workspace.loop.tick()
    assert [d.action for d in done.decisions] == ["abandon"]
    assert "changed to version" in done.decisions[0].reason
    assert [t.version for t in workspace.deploy.get_deployment(name="buy").targets] == [trained_by_hand]
    assert done.problems == []


def test_a_candidate_that_is_the_champion_is_not_rolled_out(workspace: Workspace) -> None:
    """Seen red without the comparison in decide: it was put beside itself, and would have waited for evidence."""
    trained(workspace, "buy", 1.0)
    workspace.loop.tick()
    trained(workspace, "buy", 1.0, version=1)
    done = workspace.loop.tick()
    assert [d.action for d in done.decisions] == ["gate_stop"]
    assert "champion already" in done.decisions[0].reason
