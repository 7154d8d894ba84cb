"""Which deployment and version of a live table a request means; what it means nothing by is an error that names what there is."""

from __future__ import annotations

from mainspring.errors import InvalidInput, NotFound, Unavailable, near
from mainspring.serving.table import LiveDeployment, LiveTable, LiveTarget


def find_deployment(table: LiveTable, name: str | None) -> LiveDeployment:
    """The deployment ``name``; None: the only one there is."""
    if name is None:
        name = _only(table)
    found = table.deployments.get(name)
    if found is not None:
        return found
    if name in table.problems:
        raise Unavailable(
            f"this deployment is not in service: {table.problems[name]}",
            value=name,
            next_step="Deploy a version that loads, or publish this one again.",
        )
    if table.number == 0:
        raise _nothing_yet()
    raise NotFound(
        "there is no such deployment", value=name, next_step=near(name, table.deployments, what="deployment")
    )


def find_version(deployment: LiveDeployment, version: str | None) -> LiveTarget | None:
    """The target of the version that a request pins; None if it pins none."""
    if version is None:
        return None
    found = deployment.at_version(version)
    if found is None:
        raise NotFound(
            "this version is not in service",
            value=version,
            place=deployment.name,
            next_step=near(version, [str(t.number) for t in deployment.targets], what="version"),
        )
    return found


def _only(table: LiveTable) -> str:
    names = sorted({*table.deployments, *table.problems})
    if not names:
        raise _nothing_yet()
    if len(names) > 1:
        raise InvalidInput(
            "this path names no deployment, and there are several",
            value=", ".join(names)[:200],
            next_step="Send the request to a path that names one.",
        )
    return names[0]


def _nothing_yet() -> Unavailable:
    return Unavailable(
        "no model is in service yet", next_step="Deploy one; this server takes it up by itself."
    )
