"""Finds the deployment and the version that a request names; an unknown name is an error that names similar ones."""

from __future__ import annotations

from mainspring.errors import InvalidInput, NotFound, Unavailable, near
from mainspring.serving.table import LiveDeployment, LiveTable, LiveTarget


def find_deployment(table: LiveTable, name: str | None) -> LiveDeployment:
    """The deployment ``name``; with None the only one. Raises :class:`NotFound`, :class:`InvalidInput` or :class:`Unavailable`."""
    if name is None:
        name = _only_name(table)
    deployment = table.deployments.get(name)
    if deployment is not None:
        return deployment
    if name in table.problems:
        raise Unavailable(
            f"this deployment is not in service: {table.problems[name]}",
            value=name,
            next_step="Deploy a version that loads, or publish this one again.",
        )
    if table.number == 0:
        raise _not_in_service()
    raise NotFound(
        "there is no such deployment", value=name, next_step=near(name, table.deployments, what="deployment")
    )


def find_version(deployment: LiveDeployment, version: str | None) -> LiveTarget | None:
    """The target of the version that a request asks for; None if it asks for none. Raises :class:`NotFound`."""
    if version is None:
        return None
    target = deployment.at_version(version)
    if target is None:
        raise NotFound(
            "this version is not in service",
            value=version,
            place=deployment.name,
            next_step=near(version, [str(t.number) for t in deployment.targets], what="version"),
        )
    return target


def _only_name(table: LiveTable) -> str:
    names = sorted({*table.deployments, *table.problems})
    if not names:
        raise _not_in_service()
    if len(names) > 1:
        raise InvalidInput(
            "this path names no deployment, and there are several",
            value=", ".join(names)[:200],
            next_step="Send the request to a path that names one.",
        )
    return names[0]


def _not_in_service() -> Unavailable:
    return Unavailable(
        "no model is in service yet", next_step="Deploy one; this server then loads it by itself."
    )
