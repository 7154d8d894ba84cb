"""Operations on deployments. A change of routes is one decision; the bundle follows from it after the commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from mainspring.clock import from_us, to_us
from mainspring.deploy import bundle
from mainspring.errors import Conflict, InvalidInput, NotFound, near
from mainspring.lineage.foundation import Foundation
from mainspring.lineage.ledger import Decision
from mainspring.operations import Role, current, operation
from mainspring.records.base import check_name, from_json, to_json
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref
from mainspring.records.models import ModelRegistry, Signature
from mainspring.records.serving import (
    Deployment,
    Published,
    RouteChange,
    RouteTable,
    Shadow,
    Target,
    misfit_reason,
    with_digest,
)
from mainspring.storage.failpoints import declare, failpoint

declare("deploy.committed")

ROLLOUT_SHADOWS = frozenset({"candidate", "champion"})
"""Names of shadows that belong to a rollout: :meth:`Deploy.deploy` drops them, all others stay."""

_MAX_SHADOWS = 16
_MAX_TARGETS = 8


class Deploy:
    """Which versions answer under which name."""

    room = "deploy"

    def __init__(
        self, base: Foundation, models: ModelRegistry, *, trial: Callable[[Path], None] | None = None
    ) -> None:
        """``trial`` opens a package as a server would and raises if that fails; None: packages are not tried."""
        self._base = base
        self._models = models
        self._trial = trial
        self._tried: set[str] = set()

    @operation(role=Role.OPERATOR, changes=True, deadline_s=120.0)
    def deploy(
        self, deployment: str, *, model: str, version: int | str = "champion", reason: str
    ) -> Deployment:
        """Let one version answer all requests to ``deployment``, made if it is new.

        ``version`` is a number, an alias or ``latest``. Canaries and the shadows of a rollout end; other shadows stay as long
        as they can answer the same requests. Raises :class:`NotFound` for an unknown version, :class:`InvalidInput` for one that
        answers another question than the deployment did, and what loading its package raises: then nothing has changed.
        """
        found = self._models.get_version(model=model, selector=str(version))
        self._try([found.package])
        target = Target(model=model, version=found.version, package=found.package)
        with self._base.ledger.decision() as d:
            before = self._find(deployment)
            shadows = self._staying(before, found.signature)
            result = d.done(
                self._route(
                    d, deployment, [target], shadows, reason, signature=found.signature, before=before
                )
            )
        self._publish_after_commit()
        return result

    @operation(role=Role.OPERATOR, changes=True, deadline_s=120.0)
    def set_routes(
        self, deployment: str, *, targets: list[Target], shadows: list[Shadow] | None = None, reason: str
    ) -> Deployment:
        """Set all targets and shadows of a deployment at once.

        One target is the champion and the weights add up to 1; all take the same columns and answer the same question.
        Raises :class:`InvalidInput` for routes that cannot be right, :class:`NotFound` for an unknown version.
        """
        signature = self._check(targets, shadows or [])
        self._try([route.package for route in _all(targets, shadows or [])])
        with self._base.ledger.decision() as d:
            result = d.done(
                self._route(
                    d,
                    deployment,
                    targets,
                    shadows or [],
                    reason,
                    signature=signature,
                    before=self._find(deployment),
                )
            )
        self._publish_after_commit()
        return result

    @operation(role=Role.OPERATOR, changes=True)
    def remove_deployment(self, deployment: str, *, reason: str) -> Published:
        """Stop answering to a name. Its history stays."""
        with self._base.ledger.decision() as d:
            before = self.get_deployment(name=deployment)
            d.tx.execute(
                "DELETE FROM deployments WHERE project = ? AND name = ?", self._base.project, deployment
            )
            number = self._next_number(d)
            self._record(
                d, number, deployment, None, reason, kind=EventKind.DEPLOYMENT_REMOVED, before=before
            )
            self._decide_bundle(d, number)
            result = d.done(Published(number=number, written=False))
        self._publish_after_commit()
        return result

    @operation(role=Role.VIEWER)
    def list_deployments(self) -> list[Deployment]:
        """All deployments, by name."""
        with self._base.store.read() as tx:
            rows = tx.all(
                "SELECT routes FROM deployments WHERE project = ? ORDER BY name", self._base.project
            )
        return [from_json(row["routes"], Deployment) for row in rows]

    @operation(role=Role.VIEWER)
    def get_deployment(self, name: str) -> Deployment:
        """One deployment; raises :class:`NotFound` naming near ones."""
        found = self._find(name)
        if found is None:
            known = [d.name for d in self.list_deployments()]
            raise NotFound(
                "there is no such deployment", value=name, next_step=near(name, known, what="deployment")
            )
        return found

    @operation(role=Role.VIEWER)
    def list_changes(self, name: str, *, limit: int = 100) -> list[RouteChange]:
        """Changes of a deployment's routes, newest first."""
        if not 1 <= limit <= 1000:
            raise InvalidInput("limit must be 1 to 1000", value=limit)
        with self._base.store.read() as tx:
            rows = tx.all(
                "SELECT * FROM deployment_history WHERE project = ? AND name = ? ORDER BY number DESC LIMIT ?",
                self._base.project,
                name,
                limit,
            )
        return [
            RouteChange(
                deployment=name,
                number=int(row["number"]),
                routes=from_json(row["routes"], Deployment) if row["routes"] else None,
                reason=row["reason"],
                actor=row["actor"],
                at=from_us(row["at_us"]),
                event=row["event"],
            )
            for row in rows
        ]

    @operation(role=Role.OPERATOR, changes=True, deadline_s=120.0)
    def publish(self) -> Published:
        """Write the newest decided route table to the bundle, if it is not there yet, and mend packages that are damaged there.

        Idempotent: call it after a commit that set routes within a larger decision, and at start-up to repair what a crash left
        undone. Raises :class:`Conflict` inside an open decision, since what is not committed must not be served.
        """
        if self._base.store.in_transaction:
            raise Conflict(
                "routes are published after the commit",
                next_step="Call publish() when the decision has ended.",
            )
        folder = self._base.bundle
        with bundle.locked(folder, project=self._base.project):
            table = self._newest(folder)
            if table is None:
                return Published(number=0, written=False)
            written = bundle.write(folder, table, self._base.objects)
            with self._base.store.read() as tx:
                pending = tx.scalar(
                    "SELECT count(*) AS n FROM bundles WHERE project = ? AND published_us IS NULL",
                    self._base.project,
                )
            if pending:
                with self._base.store.write() as tx:
                    tx.execute(
                        "UPDATE bundles SET published_us = ? WHERE project = ? AND published_us IS NULL AND number <= ?",
                        time.time_ns() // 1000, self._base.project, table.number,
                    )  # fmt: skip
            bundle.prune(folder, bundle.packages_of(table))
        return Published(number=table.number, written=written)

    # --- pieces ----------------------------------------------------------------------------------------------------

    def _try(self, digests: list[str]) -> None:
        """Open each package once as the server will, before anything is decided.

        Not within a larger decision, which holds the writer's lock: there the server alone tells.
        """
        missing = sorted(set(digests) - self._tried)
        if self._trial is None or not missing or self._base.store.in_transaction:
            return
        folder = self._base.bundle
        for digest in missing:
            with bundle.locked(folder, project=self._base.project):
                bundle.materialise(folder, digest, self._base.objects)
            self._trial(folder / bundle.PACKAGES / digest)
            self._tried.add(digest)

    def _staying(self, before: Deployment | None, signature: Signature) -> list[Shadow]:
        """Shadows that outlive a change of the champion: those of no rollout that can answer the same requests."""
        if before is None:
            return []
        kept = [s for s in before.shadows if s.name not in ROLLOUT_SHADOWS and s.on == "all"]
        found = [self._models.get_version(model=s.model, selector=str(s.version)).signature for s in kept]
        return [s for s, own in zip(kept, found, strict=True) if misfit_reason(signature, own) is None]

    def _publish_after_commit(self) -> None:
        failpoint("deploy.committed")
        if not self._base.store.in_transaction:
            self.publish()

    def _find(self, name: str) -> Deployment | None:
        with self._base.store.read() as tx:
            row = tx.first(
                "SELECT routes FROM deployments WHERE project = ? AND name = ?", self._base.project, name
            )
        return from_json(row["routes"], Deployment) if row else None

    def _check(self, targets: Sequence[Target], shadows: Sequence[Shadow]) -> Signature:
        """The champion's signature, when everything else fits it."""
        if not 1 <= len(targets) <= _MAX_TARGETS or len(shadows) > _MAX_SHADOWS:
            raise InvalidInput(
                f"a deployment has 1 to {_MAX_TARGETS} targets and at most {_MAX_SHADOWS} shadows",
                value=(len(targets), len(shadows)),
            )
        champions = [t for t in targets if t.role == "champion"]
        if len(champions) != 1:
            raise InvalidInput("a deployment has exactly one champion", value=len(champions), place="targets")
        if any(not 0 <= t.weight <= 1 for t in targets) or abs(sum(t.weight for t in targets) - 1) > 1e-6:
            raise InvalidInput(
                "weights are 0 to 1 and add up to 1", value=[t.weight for t in targets], place="targets"
            )
        names = [s.name for s in shadows]
        if len(set(names)) != len(names):
            raise InvalidInput("two shadows have one name", value=names, place="shadows")
        if len({(t.model, t.version) for t in targets}) != len(targets):
            raise InvalidInput("a version is a target twice", place="targets")
        champion = self._models.get_version(model=champions[0].model, selector=str(champions[0].version))
        for route in _all(targets, shadows):
            found = self._models.get_version(model=route.model, selector=str(route.version))
            if found.package != route.package:
                raise InvalidInput(
                    "the package is not this version's",
                    value=route.package,
                    place=f"{route.model}@{route.version}",
                )
            _check_fits(
                champion.signature,
                found.signature,
                what=f"{route.model}@{route.version}",
                other="the champion",
                next_step="Deploy it under a name of its own.",
            )
        return champion.signature

    def _route(
        self,
        d: Decision,
        name: str,
        targets: list[Target],
        shadows: list[Shadow],
        reason: str,
        *,
        signature: Signature,
        before: Deployment | None,
    ) -> Deployment:
        check_name(name, what="deployment")
        _check_same_question(before, signature, name)
        for shadow in shadows:
            check_name(shadow.name, what="shadow")
        after = Deployment(name=name, signature=signature, targets=targets, shadows=shadows)
        if before == after:
            return after  # nothing changes: no new number, no event
        number = self._next_number(d)
        d.tx.execute(
            "INSERT INTO deployments (project, name, number, routes, updated_us) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (project, name) DO UPDATE SET number = excluded.number, routes = excluded.routes, updated_us = excluded.updated_us",
            self._base.project, name, number, to_json(after).decode(), to_us(self._base.clock.now()),
        )  # fmt: skip
        self._record(d, number, name, after, reason, kind=EventKind.DEPLOYMENT_ROUTED, before=before)
        for route in _all(targets, shadows):
            kind = "answers" if isinstance(route, Target) else "shadows"
            d.edge(ref("model_version", f"{route.model}@{route.version}"), ref("deployment", name), kind)
        owner = ref("deployment", name)
        d.unrefer(owner)
        for digest in sorted({r.package for r in _all(targets, shadows)}):
            d.refer(digest, owner, tree=True)
        self._decide_bundle(d, number)
        return after

    def _record(
        self,
        d: Decision,
        number: int,
        name: str,
        after: Deployment | None,
        reason: str,
        *,
        kind: EventKind,
        before: Deployment | None,
    ) -> None:
        data = {"number": number, "reason": reason, "from": _summary(before), "to": _summary(after)}
        event = d.event(kind, ref("deployment", name), data)
        call = current()
        d.tx.execute(
            "INSERT INTO deployment_history (project, name, number, routes, reason, actor, at_us, event) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            self._base.project, name, number, to_json(after).decode() if after else "", reason, call.actor if call else "local",
            to_us(self._base.clock.now()), event.id,
        )  # fmt: skip

    def _next_number(self, d: Decision) -> int:
        # An update of one row first: on PostgreSQL its lock makes numbering serial; SQLite has one writer anyway.
        d.tx.execute(
            "INSERT INTO settings (project, name, value) VALUES (?, 'routes_number', '0') ON CONFLICT (project, name) DO NOTHING",
            self._base.project,
        )
        row = d.tx.all(
            "UPDATE settings SET value = CAST(CAST(value AS BIGINT) + 1 AS TEXT) WHERE project = ? AND name = 'routes_number' RETURNING value",
            self._base.project,
        )[0]
        return int(row["value"])

    def _decide_bundle(self, d: Decision, number: int) -> None:
        rows = d.tx.all("SELECT routes FROM deployments WHERE project = ? ORDER BY name", self._base.project)
        table = with_digest(
            RouteTable(
                number=number,
                created_us=to_us(self._base.clock.now()),
                deployments=[from_json(r["routes"], Deployment) for r in rows],
            )
        )
        d.tx.execute(
            "INSERT INTO bundles (project, number, document, decided_us) VALUES (?, ?, ?, ?)",
            self._base.project, number, to_json(table).decode(), time.time_ns() // 1000,
        )  # fmt: skip

    def _newest(self, folder: Path) -> RouteTable | None:
        """The newest decided table; one that is older than what the bundle shows (a restored database) gets a new number."""
        with self._base.store.read() as tx:
            row = tx.first(
                "SELECT document FROM bundles WHERE project = ? ORDER BY number DESC LIMIT 1",
                self._base.project,
            )
        if row is None:
            return None
        table: RouteTable = from_json(row["document"], RouteTable)
        shown = bundle.served_number(folder)
        if shown <= table.number:
            return table
        with self._base.ledger.decision() as d:
            d.tx.execute(
                "UPDATE settings SET value = ? WHERE project = ? AND name = 'routes_number'",
                str(shown),
                self._base.project,
            )
            self._decide_bundle(d, self._next_number(d))
            document = d.tx.scalar(
                "SELECT document FROM bundles WHERE project = ? ORDER BY number DESC LIMIT 1",
                self._base.project,
            )
        renumbered: RouteTable = from_json(document, RouteTable)
        return renumbered


def _all(targets: Sequence[Target], shadows: Sequence[Shadow]) -> list[Target | Shadow]:
    return [*targets, *shadows]


def _check_fits(outer: Signature, inner: Signature, *, what: str, other: str, next_step: str) -> None:
    if (why := misfit_reason(outer, inner)) is not None:
        raise InvalidInput(f"{what} cannot stand beside {other}: {why}", value=what, next_step=next_step)


def _check_same_question(before: Deployment | None, signature: Signature, name: str) -> None:
    """Who calls a deployment reads its answers in one way: a label with a score, or a number."""
    if before is None:
        return
    was = msgspec.structs.replace(before.signature, inputs=signature.inputs)
    if (why := misfit_reason(was, signature)) is not None:
        raise InvalidInput(
            f"this version answers another question than deployment {name!r} did: {why}",
            value=name,
            next_step="Use another deployment name, or remove this deployment first.",
        )


def _summary(deployment: Deployment | None) -> dict[str, object] | None:
    if deployment is None:
        return None
    return {
        "targets": [
            {"model": t.model, "version": t.version, "role": t.role, "weight": t.weight}
            for t in deployment.targets
        ],
        "shadows": [
            {"name": s.name, "model": s.model, "version": s.version, "on": s.on} for s in deployment.shadows
        ],
    }
