"""The live route table: deployments with their loaded versions. Immutable; a switch replaces it as a whole by one assignment.

A request reads its target once and keeps it, so no answer mixes two versions. An old version is freed when the last request that holds
it ends, so it needs no draining.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mainspring.errors import Corrupt, InvalidInput
from mainspring.records.models import Signature
from mainspring.records.serving import Deployment, RouteTable, misfit_reason
from mainspring.serving.answers import AnswerEncoder
from mainspring.serving.codec import RowCodec
from mainspring.serving.hosting import Hosted, Nursery
from mainspring.serving.metrics import Metrics, Series
from mainspring.serving.options import ServeOptions
from mainspring.serving.routing import share_bounds
from mainspring.serving.versions import Version, open_version
from mainspring.serving.wire import JSON_LINES

logger = logging.getLogger("mainspring.serving")


@dataclass(frozen=True)
class LiveTarget:
    """A version in a role of one deployment. ``prefix``: the beginning of a body, the same for every answer."""

    model: str
    number: int
    role: str
    name: str
    version: Version
    series: Series
    encoder: AnswerEncoder
    prefix: bytes = b""
    header: bytes = b""
    lines: bytes = b""
    """The header lines that are the same for every answer, up to the value of the prediction id."""


@dataclass(frozen=True)
class LiveShadow:
    """A target that scores answered requests: all of them, or those that a canary answered."""

    target: LiveTarget
    canary_only: bool


@dataclass(frozen=True)
class LiveDeployment:
    """A deployment ready to answer. ``targets`` in routing order, the champion last; ``bounds`` their shares."""

    record: Deployment
    name: str
    signature: Signature
    codec: RowCodec
    targets: list[LiveTarget]
    bounds: list[float]
    champion: LiveTarget
    shadows: list[LiveShadow]
    inline_rows: int = 0
    """Every target predicts up to so many rows on the event loop."""

    def versions(self) -> list[Version]:
        """The versions of all targets and shadows."""
        return [t.version for t in (*self.targets, *(s.target for s in self.shadows))]

    def at_version(self, number: str) -> LiveTarget | None:
        """The target of that version number, or None."""
        return next((t for t in self.targets if str(t.number) == number), None)


@dataclass(frozen=True)
class LiveTable:
    """The deployments that are served now."""

    number: int
    deployments: dict[str, LiveDeployment] = field(default_factory=dict)
    routes: RouteTable | None = None
    problems: dict[str, str] = field(default_factory=dict)
    """Why a deployment's routes in ``routes`` are not in service, by name: its earlier routes answer, or none."""

    def record(self, name: str) -> Deployment | None:
        """The routes with which a deployment is served, or None."""
        deployment = self.deployments.get(name)
        return None if deployment is None else deployment.record

    def same_as(self, other: LiveTable) -> bool:
        """Whether a switch to ``other`` would change nothing. A deployment that stays unchanged is the same object in both."""
        mine, theirs = ({name: id(d) for name, d in t.deployments.items()} for t in (self, other))
        return (self.number, mine, self.problems) == (other.number, theirs, other.problems)

    def packages(self) -> dict[str, Version]:
        """Loaded versions by package digest, for the next table to use again."""
        return {v.package: v for d in self.deployments.values() for v in d.versions()}


def load_version(folder: Path, digest: str, *, nursery: Nursery, options: ServeOptions) -> Version:
    """Verify, load and warm up the package in ``folder``; raises what fails.

    It is loaded in a process of its own first. It is loaded here too only if its cost is bounded and the measurements there agree.
    """
    from mainspring.models import formats

    if not folder.is_dir():
        raise Corrupt(
            "a package named by the route table is not in the bundle", value=digest, place=str(folder)
        )
    package = formats.verify(folder)
    host = Hosted(nursery, folder, digest, package.format, options, width=max(1, package.signature.width))
    if host.loaded.why is None:
        host.close()
        version, why = open_version(folder, digest, inline_ms=options.inline_ms, max_rows=options.max_rows)
        if why is None:
            return version
        raise Corrupt("the package changed while it was loaded", value=digest, place=str(folder))
    logger.info("package %s answers in a process of its own: %s", digest[:12], host.loaded.why)
    version = Version(
        package=digest,
        signature=package.signature,
        predictor=None,
        inline_rows=0,
        single_us=host.loaded.single_us,
        host=host,
    )
    weakref.finalize(version, host.close)  # its processes end with the last request that holds it
    return version


def packages_of(deployment: Deployment) -> set[str]:
    """Digests of the packages that a deployment names."""
    return {t.package for t in deployment.targets} | {s.package for s in deployment.shadows}


def build(
    records: Sequence[Deployment],
    versions: Mapping[str, Version],
    current: Mapping[str, LiveDeployment],
    *,
    options: ServeOptions,
    metrics: Metrics,
) -> tuple[dict[str, LiveDeployment], dict[str, str]]:
    """``(deployments ready to answer, reasons why others are refused)``, both by name.

    ``versions`` are by package digest. A deployment of ``current`` in which nothing changes is reused.
    """
    live: dict[str, LiveDeployment] = {}
    refused: dict[str, str] = {}
    for record in records:
        before = current.get(record.name)
        if (
            before is not None
            and before.record == record
            and all(versions.get(v.package) is v for v in before.versions())
        ):
            live[record.name] = before
            continue
        try:
            live[record.name] = _build_deployment(record, versions, options, metrics)
        except InvalidInput as error:
            refused[record.name] = str(error)
        except Exception as error:  # one deployment that this server cannot answer for must not take the others out of service
            logger.exception("deployment %s cannot be made ready", record.name)
            refused[record.name] = f"it cannot be made ready: {type(error).__name__}: {error}"
    return live, refused


def _build_deployment(
    deployment: Deployment, versions: Mapping[str, Version], options: ServeOptions, metrics: Metrics
) -> LiveDeployment:
    champions = [t for t in deployment.targets if t.role == "champion"]
    if len(champions) != 1 or abs(sum(t.weight for t in deployment.targets) - 1) > 1e-6:
        raise InvalidInput(
            "a deployment has one champion, and weights that add up to 1",
            value=deployment.name,
            place="routes.json",
        )
    signature = deployment.signature
    ordered = sorted(deployment.targets, key=lambda t: t.role == "champion")
    targets = [
        _build_target(
            deployment.name,
            signature,
            versions[t.package],
            metrics,
            model=t.model,
            number=t.version,
            role=t.role,
            name=t.role,
        )
        for t in ordered
    ]
    shadows = [
        LiveShadow(
            _build_target(
                deployment.name,
                signature,
                versions[s.package],
                metrics,
                model=s.model,
                number=s.version,
                role="shadow",
                name=s.name,
            ),
            canary_only=s.on == "canary",
        )
        for s in deployment.shadows
    ]
    return LiveDeployment(
        record=deployment,
        name=deployment.name,
        signature=signature,
        codec=RowCodec(signature, max_rows=options.max_rows, max_text=options.max_text),
        targets=targets,
        bounds=share_bounds([t.weight for t in ordered]),
        champion=targets[-1],
        shadows=shadows,
        inline_rows=min(t.version.inline_rows for t in targets),
    )


def _build_target(
    deployment: str,
    signature: Signature,
    version: Version,
    metrics: Metrics,
    *,
    model: str,
    number: int,
    role: str,
    name: str,
) -> LiveTarget:
    if (why := misfit_reason(signature, version.signature)) is not None:
        raise InvalidInput(
            f"{model}@{number} cannot answer for this deployment: {why}",
            value=deployment,
            place="routes.json",
        )
    header = f"{model}@{number}".encode()
    head = {"deployment": deployment, "model": model, "version": number}
    return LiveTarget(
        model=model,
        number=number,
        role=role,
        name=name,
        version=version,
        series=metrics.series(deployment=deployment, model=model, version=number, role=role),
        encoder=AnswerEncoder(version.signature),
        prefix=msgspec.json.encode(head)[:-1] + b',"prediction_id":"',
        header=header,
        lines=b"%bmainspring-version: %b\r\nmainspring-prediction-id: " % (JSON_LINES, header),
    )
