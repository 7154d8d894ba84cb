"""Records the facts of every decision, and decides on recorded facts again.

A tick is written if it decided something, or if its facts differ from the last written ones of that deployment in
anything but the time, so quiet periods cost no storage.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mainspring.clock import to_us
from mainspring.lineage import Foundation
from mainspring.loop.decide import decide
from mainspring.records.base import Record, from_json, to_json
from mainspring.records.loop import DeployPolicy, Facts, LoopDecision, ReplayReport, RetrainPolicy
from mainspring.storage.sql import Reader, Row, Writer

_MAX_DIFFERENCES = 100


class Policies(Record, frozen=True):
    """The policy in force at a tick."""

    deploy: DeployPolicy
    retrain: RetrainPolicy


def record_tick(
    tx: Writer,
    project: str,
    facts: Facts,
    deploy: DeployPolicy,
    retrain: RetrainPolicy,
    decisions: list[LoopDecision],
) -> None:
    """Write the tick in the transaction of its decisions."""
    last = tx.first(
        "SELECT facts FROM loop_ticks WHERE project = ? AND deployment = ? ORDER BY seq DESC LIMIT 1",
        project,
        facts.deployment,
    )
    if not decisions and last is not None:
        before: Facts = from_json(last["facts"], Facts)
        if msgspec.structs.replace(before, now=facts.now) == facts:
            return
    seq = int(tx.scalar("SELECT coalesce(max(seq), 0) + 1 AS n FROM loop_ticks WHERE project = ?", project))
    tx.execute(
        "INSERT INTO loop_ticks (project, seq, deployment, at_us, facts, policy, decisions) VALUES (?, ?, ?, ?, ?, ?, ?)",
        project, seq, facts.deployment, to_us(facts.now), to_json(facts).decode(), to_json(Policies(deploy=deploy, retrain=retrain)).decode(), to_json(decisions).decode(),
    )  # fmt: skip


def replay(
    base: Foundation, *, deployment: str | None = None, retrain: RetrainPolicy | None = None
) -> ReplayReport:
    """Decide the recorded ticks again; with ``retrain``, under that policy instead of the recorded one."""
    ticks = decided = 0
    differences: list[dict[str, Any]] = []
    with base.store.read() as tx:
        for row in _iterate_ticks(tx, base.project, deployment):
            policies: Policies = from_json(row["policy"], Policies)
            decisions = decide(from_json(row["facts"], Facts), policies.deploy, retrain or policies.retrain)
            ticks += 1
            decided += len(decisions)
            recorded: list[LoopDecision] = from_json(row["decisions"], list[LoopDecision])
            if _without_words(decisions) != _without_words(recorded) and len(differences) < _MAX_DIFFERENCES:
                differences.append(
                    {
                        "tick": row["seq"],
                        "recorded": _summarise(recorded),
                        "replayed": _summarise(decisions),
                    }
                )
    return ReplayReport(ticks=ticks, decisions=decided, same=not differences, differences=differences)


def _without_words(decisions: list[LoopDecision]) -> bytes:
    """What was decided; the reason is for people, and a later version may word it in another way."""
    return to_json([msgspec.structs.replace(d, reason="") for d in decisions])


def _summarise(decisions: list[LoopDecision]) -> list[str]:
    return [f"{d.action}: {d.reason}" for d in decisions]


def _iterate_ticks(tx: Reader, project: str, deployment: str | None, batch: int = 500) -> Any:
    last = 0
    extra, values = ("AND deployment = ?", [deployment]) if deployment is not None else ("", [])
    while rows := tx.all(
        f"SELECT * FROM loop_ticks WHERE project = ? AND seq > ? {extra} ORDER BY seq LIMIT ?",
        project,
        last,
        *values,
        batch,
    ):
        yield from rows
        row: Row = rows[-1]
        last = row["seq"]
