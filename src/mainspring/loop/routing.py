"""Which version answers, and which only scores, in each stage of a rollout."""

from __future__ import annotations

from mainspring.loop.rooms import LoopRooms
from mainspring.records.loop import Rollout
from mainspring.records.serving import Shadow, Target

CANDIDATE_SHADOW = "candidate"
CHAMPION_SHADOW = "champion"


def stage_routes(rooms: LoopRooms, rollout: Rollout) -> tuple[list[Target], list[Shadow]]:
    """Targets and shadows of the rollout's current stage.

    Shadow: the champion answers, the candidate scores every request. Canary: the candidate answers its share, and the
    champion scores those same requests, so that both are compared on the same rows. Other shadows of
    the deployment stay.
    """
    stage = rollout.stages[rollout.stage]
    others = [
        s
        for s in _list_shadows(rooms, rollout.deployment)
        if s.name not in {CANDIDATE_SHADOW, CHAMPION_SHADOW}
    ]
    if rollout.champion is None or stage.full:
        return [_make_target(rooms, rollout.model, rollout.version, 1.0, "champion")], others
    if stage.shadow or stage.canary is None:
        shadow = _make_shadow(rooms, rollout.model, rollout.version, CANDIDATE_SHADOW, "all")
        return [_make_target(rooms, rollout.model, rollout.champion, 1.0, "champion")], [shadow, *others]
    share = stage.canary
    targets = [
        _make_target(rooms, rollout.model, rollout.champion, 1.0 - share, "champion"),
        _make_target(rooms, rollout.model, rollout.version, share, "canary"),
    ]
    return targets, [_make_shadow(rooms, rollout.model, rollout.champion, CHAMPION_SHADOW, "canary"), *others]


def _list_shadows(rooms: LoopRooms, deployment: str) -> list[Shadow]:
    current = next((d for d in rooms.deploy.list_deployments() if d.name == deployment), None)
    return list(current.shadows) if current else []


def _make_target(rooms: LoopRooms, model: str, version: int, weight: float, role: str) -> Target:
    registered = rooms.models.get_version(model=model, selector=str(version))
    return Target(model=model, version=version, package=registered.package, weight=weight, role=role)  # type: ignore[arg-type]


def _make_shadow(rooms: LoopRooms, model: str, version: int, name: str, on: str) -> Shadow:
    registered = rooms.models.get_version(model=model, selector=str(version))
    return Shadow(model=model, version=version, package=registered.package, name=name, on=on)  # type: ignore[arg-type]
