"""Operations on deployments. A change of routes is one decision; the bundle follows from it after the commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from mainspring.clock import to_us
from mainspring.deployments import bundle, rows
from mainspring.errors import Conflict, InvalidInput, NotFound, near
from mainspring.lineage.foundation import Foundation
from mainspring.lineage.ledger import Decision
from mainspring.operations import Role, current, operation
from mainspring.records.base import check_name
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
    """Decisions about which model versions answer under which name."""

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
        champion = self._models.get_version(model=model, selector=str(version))
        self._try_packages([champion.package])
        target = Target(model=model, version=champion.version, package=champion.package)
        with self._base.ledger.decision() as d:
            before = rows.read_deployment(d.tx, self._base, deployment)
            shadows = self._list_kept_shadows(before, champion.signature)
            result = d.done(
                self._set_routes(
                    d, deployment, [target], shadows, reason, signature=champion.signature, before=before
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
        shadows = shadows or []
        signature = self._check_routes(targets, shadows)
        self._try_packages([route.package for route in _list_routes(targets, shadows)])
        with self._base.ledger.decision() as d:
            before = rows.read_deployment(d.tx, self._base, deployment)
            result = d.done(
                self._set_routes(d, deployment, targets, shadows, reason, signature=signature, before=before)
            )
        self._publish_after_commit()
        return result

    @operation(role=Role.OPERATOR, deadline_s=120.0)
    def check_version(self, model: str, *, version: int | str) -> None:
        """Open the package of a version once as a server would; raises what that raises, before anything is decided."""
        self._try_packages([self._models.get_version(model=model, selector=str(version)).package])

    @operation(role=Role.OPERATOR, changes=True)
    def remove_deployment(self, deployment: str, *, reason: str) -> Published:
        """Stop answering to a name. Its history stays."""
        with self._base.ledger.decision() as d:
            before = self.get_deployment(name=deployment)
            rows.delete_deployment(d.tx, self._base, deployment)
            number = rows.next_number(d.tx, self._base)
            self._record_change(
                d, number, deployment, None, reason, kind=EventKind.DEPLOYMENT_REMOVED, before=before
            )
            self._decide_table(d, number)
            result = d.done(Published(number=number, written=False))
        self._publish_after_commit()
        return result

    @operation(role=Role.VIEWER)
    def list_deployments(self) -> list[Deployment]:
        """All deployments, by name."""
        with self._base.store.read() as tx:
            return rows.list_deployments(tx, self._base)

    @operation(role=Role.VIEWER)
    def get_deployment(self, name: str) -> Deployment:
        """One deployment; raises :class:`NotFound` naming near ones."""
        with self._base.store.read() as tx:
            deployment = rows.read_deployment(tx, self._base, name)
        if deployment is None:
            known = [d.name for d in self.list_deployments()]
            raise NotFound(
                "there is no such deployment", value=name, next_step=near(name, known, what="deployment")
            )
        return deployment

    @operation(role=Role.VIEWER)
    def list_changes(self, name: str, *, limit: int = 100) -> list[RouteChange]:
        """Changes of a deployment's routes, newest first."""
        if not 1 <= limit <= 1000:
            raise InvalidInput("limit must be 1 to 1000", value=limit)
        with self._base.store.read() as tx:
            return rows.list_changes(tx, self._base, name, limit=limit)

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
            table = self._read_table(folder)
            if table is None:
                return Published(number=0, written=False)
            written = bundle.write(folder, table, self._base.objects)
            with self._base.store.read() as tx:
                pending = rows.count_unpublished(tx, self._base)
            if pending:  # a read first: publishing again must not take the writer's lock for nothing
                with self._base.store.write() as tx:
                    rows.mark_published(tx, self._base, table.number)
            bundle.prune(folder, bundle.packages_of(table))
        return Published(number=table.number, written=written)

    # --- pieces ----------------------------------------------------------------------------------------------------

    def _try_packages(self, digests: list[str]) -> None:
        """Open each package once as the server will, before anything is decided.

        Not within a larger decision: loading takes seconds, and the decision holds the writer's lock. There only the server reports
        that a package does not load.
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

    def _list_kept_shadows(self, before: Deployment | None, signature: Signature) -> list[Shadow]:
        """Shadows that stay when the champion changes: those outside a rollout that can answer the same requests."""
        if before is None:
            return []
        shadows = [s for s in before.shadows if s.name not in ROLLOUT_SHADOWS and s.on == "all"]
        versions = [self._models.get_version(model=s.model, selector=str(s.version)) for s in shadows]
        return [
            s for s, v in zip(shadows, versions, strict=True) if misfit_reason(signature, v.signature) is None
        ]

    def _publish_after_commit(self) -> None:
        failpoint("deploy.committed")
        if not self._base.store.in_transaction:
            self.publish()

    def _check_routes(self, targets: Sequence[Target], shadows: Sequence[Shadow]) -> Signature:
        """Check routes as a whole; returns the champion's signature, which all others fit."""
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
        for route in _list_routes(targets, shadows):
            version = self._models.get_version(model=route.model, selector=str(route.version))
            if version.package != route.package:
                raise InvalidInput(
                    "the package is not this version's",
                    value=route.package,
                    place=f"{route.model}@{route.version}",
                )
            if (why := misfit_reason(champion.signature, version.signature)) is not None:
                raise InvalidInput(
                    f"{route.model}@{route.version} does not fit the champion: {why}",
                    value=f"{route.model}@{route.version}",
                    next_step="Deploy it under a name of its own.",
                )
        return champion.signature

    def _set_routes(
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
        number = rows.next_number(d.tx, self._base)
        rows.put_deployment(d.tx, self._base, after, number=number)
        self._record_change(d, number, name, after, reason, kind=EventKind.DEPLOYMENT_ROUTED, before=before)
        for route in _list_routes(targets, shadows):
            kind = "answers" if isinstance(route, Target) else "shadows"
            d.edge(ref("model_version", f"{route.model}@{route.version}"), ref("deployment", name), kind)
        owner = ref("deployment", name)
        d.unrefer(owner)
        for digest in sorted({r.package for r in _list_routes(targets, shadows)}):
            d.refer(digest, owner, tree=True)
        self._decide_table(d, number)
        return after

    def _record_change(
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
        change = RouteChange(
            deployment=name,
            number=number,
            routes=after,
            reason=reason,
            actor=call.actor if call else "local",
            at=self._base.clock.now(),
            event=event.id,
        )
        rows.insert_change(d.tx, self._base, change)

    def _decide_table(self, d: Decision, number: int) -> RouteTable:
        """Put the routes of all deployments into the outbox as route table ``number``."""
        table = with_digest(
            RouteTable(
                number=number,
                created_us=to_us(self._base.clock.now()),
                deployments=rows.list_deployments(d.tx, self._base),
            )
        )
        rows.insert_table(d.tx, self._base, table)
        return table

    def _read_table(self, folder: Path) -> RouteTable | None:
        """The newest decided table; one that is older than what the bundle shows (a restored database) gets a new number.

        Servers refuse another table whose number is not greater than that of the one they have.
        """
        with self._base.store.read() as tx:
            table = rows.read_newest_table(tx, self._base)
        if table is None:
            return None
        shown = bundle.served_number(folder)
        if shown <= table.number:
            return table
        with self._base.ledger.decision() as d:
            rows.set_number(d.tx, self._base, shown)
            return self._decide_table(d, rows.next_number(d.tx, self._base))


def _list_routes(targets: Sequence[Target], shadows: Sequence[Shadow]) -> list[Target | Shadow]:
    return [*targets, *shadows]


def _check_same_question(before: Deployment | None, signature: Signature, name: str) -> None:
    """Refuse a change of task or classes: callers read a deployment's answers in one way, a label with a score or a number."""
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
