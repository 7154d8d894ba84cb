"""Moves of the champion by hand: the alias and the routes in one decision, published after it."""

from __future__ import annotations

from collections.abc import Callable

from mainspring.config import Config
from mainspring.lineage import Foundation
from mainspring.loop.apply import CHAMPION
from mainspring.loop.rooms import LoopRooms
from mainspring.records.loop import Promotion
from mainspring.records.models import AliasEvent


def promote(
    base: Foundation,
    rooms: LoopRooms,
    config: Config,
    *,
    model: str,
    version: str,
    reason: str,
    override: bool,
) -> Promotion:
    """Make a version the champion and let it answer everywhere; nothing has changed if its package does not load."""
    number = rooms.models.get_version(model=model, selector=version).version
    rooms.deploy.check_version(model=model, version=number)
    return _move(
        base,
        rooms,
        config,
        reason,
        lambda: rooms.models.set_alias(
            model=model, alias=CHAMPION, version=number, reason=reason, override=override
        ),
    )


def restore(base: Foundation, rooms: LoopRooms, config: Config, *, model: str, reason: str) -> Promotion:
    """Give the champion's alias back to the version that held it before, and let that one answer everywhere."""
    return _move(
        base,
        rooms,
        config,
        reason,
        lambda: rooms.models.rollback(model=model, alias=CHAMPION, reason=reason),
    )


def _move(
    base: Foundation, rooms: LoopRooms, config: Config, reason: str, move: Callable[[], AliasEvent]
) -> Promotion:
    with base.ledger.decision() as d:
        moved = move()
        names = _list_deployments(rooms, config, moved.model) if moved.version is not None else []
        for name in names:
            assert moved.version is not None  # noqa: S101 - there are no names without it
            rooms.deploy.deploy(deployment=name, model=moved.model, version=moved.version, reason=reason)
        result = d.done(Promotion(alias=moved, deployments=names))
    rooms.deploy.publish()
    return result


def _list_deployments(rooms: LoopRooms, config: Config, model: str) -> list[str]:
    """Where the policy deploys the model, and where a version of it answers now."""
    names = {name for name, policy in config.deploy.items() if policy.model == model}
    names |= {d.name for d in rooms.deploy.list_deployments() if any(t.model == model for t in d.targets)}
    return sorted(names)
