"""A canary that fails is stood in for by the champion: its failures must still count against it."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from mainspring.loop.decide import breached
from mainspring.loop.facts import gather_evidence
from mainspring.records.loop import RollbackRule, Rollout, RolloutState, Stage
from mainspring.records.serving import LoggedShadow


def canary_failed(world: Any, ident: str, at: Any, name: str = "canary") -> None:
    world.log(
        LoggedShadow(
            id=ident, deployment="delay", model="delay", version=2, name=name,
            event_us=int(at.timestamp() * 1e6), latency_us=100, status="model_failed",
        )
    )  # fmt: skip


def stage_evidence(world: Any, stage: Stage, began: Any) -> Any:
    rollout = Rollout(
        id="r", deployment="delay", model="delay", version=2, champion=1, state=RolloutState.RUNNING, stage=0,
        stages=[stage], started_at=began, stage_started_at=began,
    )  # fmt: skip
    return gather_evidence(SimpleNamespace(monitoring=world.monitoring), rollout, world.clock.now())  # type: ignore[arg-type]


def test_a_canary_that_always_raises_breaks_the_error_rule(world: Any) -> None:
    """Seen red with errors counted only on rows that the other scorer has too: no such row exists here."""
    began = world.clock.now()
    for ident in world.send(0, 150):  # what the champion answered in its stead, and what it was asked anyway
        canary_failed(world, ident, began)
    world.to_day(1)
    world.monitoring.ingest()
    paired = world.monitoring.compare_scorers(deployment="delay", a="2", b="shadow:champion")
    assert (paired.rows, paired.errors_a, paired.errors_b) == (0, 150, 0)
    found = stage_evidence(world, Stage(canary=0.1), began)
    assert (found.requests, found.errors) == (150, 150)
    assert breached(RollbackRule(metric="error_rate", max=0.01), found) is not None


def test_a_canary_that_answers_most_is_judged_by_its_share_of_errors(world: Any) -> None:
    began = world.clock.now()
    scores = world.rng.beta(2, 6, 200).tolist()
    world.send(0, 200, version=2, role="canary", scores=scores, shadows={"champion": (1, scores)})
    for ident in world.send(0, 2):
        canary_failed(world, ident, began)
    world.to_day(1)
    world.monitoring.ingest()
    found = stage_evidence(world, Stage(canary=0.5), began)
    assert (found.requests, found.errors) == (202, 2)
    assert breached(RollbackRule(metric="error_rate", max=0.01), found) is None
    assert breached(RollbackRule(metric="error_rate", max=0.005), found) is not None


def test_a_shadow_that_fails_counts_its_errors(world: Any) -> None:
    began = world.clock.now()
    for ident in world.send(0, 120):
        canary_failed(world, ident, began, name="candidate")
    world.to_day(1)
    world.monitoring.ingest()
    found = stage_evidence(world, Stage(shadow=True), began)
    assert (found.requests, found.errors) == (120, 120)
    assert timedelta(0) < world.clock.now() - began
