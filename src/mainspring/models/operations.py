"""The registry: versions, aliases as events, approvals, verified rollback, cards."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from mainspring.clock import from_us, to_us
from mainspring.errors import Conflict, InvalidInput, NotFound, PermissionDenied, near
from mainspring.lineage import Decision, Foundation
from mainspring.lineage.uploads import owned_size, owned_tree
from mainspring.models import rows
from mainspring.models.formats.package import check_package
from mainspring.models.objections import find_objections
from mainspring.operations import Role, acts, operation
from mainspring.records.base import Digest, Selector, check_name
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref
from mainspring.records.models import (
    AliasEvent,
    Approval,
    Card,
    ModelInfo,
    ModelVersion,
    ModelVersionPage,
    Package,
)
from mainspring.storage.failpoints import declare, failpoint

if TYPE_CHECKING:
    from mainspring.storage.sql import Reader

declare("models.registered", "models.alias_moved")

LATEST = "latest"
CHAMPION = "champion"
"""The alias whose version the policy deploys. It is moved only to a version that nothing speaks against, or by an admin's override."""

_MAX_TAGS, _MAX_TEXT = 200, 20_000


class Models:
    """Registered models of one project. Versions are immutable; an alias points where its newest event put it."""

    room = "models"

    def __init__(self, base: Foundation) -> None:
        self._base = base

    # --- versions ------------------------------------------------------------------------------------------------------

    @operation(role=Role.EDITOR, changes=True)
    def register(
        self,
        model: str,
        *,
        package: Digest,
        run: str | None = None,
        dataset_version: str | None = None,
        holdout: str | None = None,
        label: str | None = None,
        profile: Digest | None = None,
        metrics: dict[str, float] = {},  # noqa: B006 - never changed
        tags: dict[str, str] = {},  # noqa: B006
    ) -> ModelVersion:
        """Make the next version of ``model`` from a package's tree object; returns it.

        The package is verified first: every byte against its manifest, and the structure of its payload. Signature, format, code and
        environment come from its manifest, and so do the run, the dataset version and the metrics that are not given here. Code and
        environment that the manifest does not name are those that the run was captured with. Registering the same package for the
        same run again returns the version it already is. Raises NotFound, Corrupt, UnsafeFormat, InvalidInput.
        """
        check_name(model, what="model")
        _check_tags(tags)
        manifest = self._verify_package(package)
        if profile is not None:
            owned_size(self._base, profile)
        draft = rows.Draft(
            model=model,
            package=package,
            manifest=manifest,
            run=run or manifest.run,
            dataset_version=dataset_version or manifest.dataset_version,
            holdout=holdout,
            label=label,
            profile=profile,
            metrics={**manifest.metrics, **metrics},
            tags=tags,
        )
        with self._base.ledger.decision() as d:
            number = rows.lock_model(d.tx, self._base, model) + 1
            existing = rows.find_registered(d.tx, self._base, model, package, draft.run)
            if existing is not None:
                return d.done(existing)
            draft.captured.update(rows.read_captured(d.tx, self._base, draft.run))
            version = draft.version(number, at=self._base.clock.now(), actor=acts().name)
            rows.insert_version(d.tx, self._base, version)
            self._record_version(d, version)
            failpoint("models.registered")
            return d.done(version)

    @operation(role=Role.VIEWER)
    def list_models(self) -> builtins.list[ModelInfo]:
        """All models by name, with how many versions each has and where its aliases point."""
        with self._base.store.read() as tx:
            return [
                ModelInfo(
                    name=row["name"],
                    created_at=from_us(row["created_us"]),
                    versions=row["versions"],
                    aliases={e.alias: e.version for e in aliases if e.version is not None},
                    overridden={e.alias: e.overridden for e in aliases if e.overridden},
                )
                for row in rows.list_models(tx, self._base)
                for aliases in [rows.list_aliases(tx, self._base, row["name"])]
            ]

    @operation(role=Role.VIEWER)
    def list_versions(self, model: str, *, limit: int = 100, after: str | None = None) -> ModelVersionPage:
        """Versions of a model, newest first; pass ``next`` of a page as ``after``."""
        if not 1 <= limit <= 1000:
            raise InvalidInput("limit must be 1 to 1000", value=limit)
        before = _parse_number(after) if after is not None else None
        with self._base.store.read() as tx:
            rows.check_exists(tx, self._base, model)
            items = rows.list_versions(tx, self._base, model, before=before, limit=limit + 1)
        more = len(items) > limit
        return ModelVersionPage(items=items[:limit], next=str(items[limit - 1].version) if more else None)

    @operation(role=Role.VIEWER)
    def get_version(self, model: str, selector: Selector = LATEST) -> ModelVersion:
        """One version by number, alias or ``latest``; raises NotFound, naming similar aliases."""
        with self._base.store.read() as tx:
            return self._select_version(tx, model, selector)

    @operation(role=Role.EDITOR, changes=True)
    def set_tags(self, model: str, version: int, *, tags: dict[str, str]) -> ModelVersion:
        """Set tags of a version (an empty value removes one); ``intended_use``, ``caveats`` and ``owner`` show on its card."""
        _check_tags(tags)
        with self._base.ledger.decision() as d:
            self._select_version(d.tx, model, str(version))
            rows.set_tags(d.tx, self._base, model, version, tags)
            d.event(EventKind.MODEL_TAGGED, _version_ref(model, version), {"tags": tags})
            return d.done(self._select_version(d.tx, model, str(version)))

    @operation(role=Role.OPERATOR, changes=True)
    def approve(self, model: str, version: int, *, reason: str, approved: bool = True) -> Approval:
        """Record that the caller approves a version, or with ``approved=False`` that they refuse it."""
        _check_reason(reason)
        with self._base.ledger.decision() as d:
            rows.lock_model(d.tx, self._base, model, create=False)
            self._select_version(d.tx, model, str(version))
            event = d.event(
                EventKind.MODEL_APPROVED if approved else EventKind.MODEL_REFUSED,
                _version_ref(model, version),
                {"reason": reason},
            )
            approval = Approval(
                model=model,
                version=version,
                approved=approved,
                at=event.at,
                actor=event.actor,
                reason=reason,
                event=event.id,
            )
            rows.insert_approval(d.tx, self._base, approval)
            return d.done(approval)

    @operation(role=Role.VIEWER)
    def list_approvals(self, model: str, version: int) -> builtins.list[Approval]:
        """Who approved or refused a version, oldest first."""
        with self._base.store.read() as tx:
            self._select_version(tx, model, str(version))
            return rows.list_approvals(tx, self._base, model, version)

    # --- aliases -------------------------------------------------------------------------------------------------------

    @operation(role=Role.OPERATOR, changes=True)
    def set_alias(
        self,
        model: str,
        alias: str,
        *,
        version: int,
        reason: str,
        expected: int | None = None,
        override: bool = False,
    ) -> AliasEvent:
        """Point ``alias`` at ``version``. With ``expected`` only if it points there now (0: at nothing), else Conflict.

        Pointing it where it already points changes nothing and returns the event that did it. ``champion`` is refused to a
        version that a gate or a person refused last, or whose package or data is gone (Conflict, naming which), unless an
        admin says ``override``: then the move records what it overrode.
        """
        _check_alias(alias)
        _check_reason(reason)
        if override and (acts().role_in(self._base.project) or 0) < Role.ADMIN:
            raise PermissionDenied(
                "only an admin may override what speaks against a version",
                value=acts().name,
                place=f"alias {alias!r} of model {model!r}",
                next_step="Ask an admin, or choose another version.",
            )
        with self._base.ledger.decision() as d:
            rows.lock_model(d.tx, self._base, model, create=False)
            chosen = self._select_version(d.tx, model, str(version))
            now = rows.read_alias(d.tx, self._base, model, alias)
            held = now.version if now else None
            if expected is not None and (held or 0) != expected:
                raise _moved_meanwhile(model, alias, held, expected)
            if now is not None and held == version:
                return d.done(now)
            against = find_objections(d.tx, self._base, chosen) if alias == CHAMPION else []
            if against and not override:
                raise Conflict(
                    f"this version may not be {CHAMPION}: {'; '.join(against)}",
                    value=f"{model}@{version}",
                    place=f"alias {alias!r} of model {model!r}",
                    next_step=f"Choose another version; an admin may insist: mainspring models promote {model} {version} --override --reason ...",
                )
            return d.done(
                self._move_alias(d, model, alias, version, held, reason, kind="set", overridden=against)
            )

    @operation(role=Role.VIEWER)
    def list_objections(self, model: str, version: int) -> builtins.list[str]:
        """What speaks against making the version champion: a refusal by gate or person, a package or data that is gone."""
        with self._base.store.read() as tx:
            return find_objections(tx, self._base, self._select_version(tx, model, str(version)))

    @operation(role=Role.OPERATOR, changes=True)
    def remove_alias(self, model: str, alias: str, *, reason: str) -> AliasEvent:
        """Take an alias away; its history stays. Raises NotFound if it points nowhere."""
        _check_reason(reason)
        with self._base.ledger.decision() as d:
            rows.lock_model(d.tx, self._base, model, create=False)
            now = rows.read_alias(d.tx, self._base, model, alias)
            if now is None or now.version is None:
                raise NotFound("the alias points nowhere", value=alias, place=f"model {model!r}")
            return d.done(self._move_alias(d, model, alias, None, now.version, reason, kind="removed"))

    @operation(role=Role.VIEWER)
    def list_aliases(self, model: str, *, at: datetime | None = None) -> builtins.list[AliasEvent]:
        """Where the model's aliases point, or pointed at the moment ``at`` (policy time): the event that put each there."""
        with self._base.store.read() as tx:
            rows.check_exists(tx, self._base, model)
            events = rows.list_aliases(tx, self._base, model, at_us=None if at is None else to_us(at))
        return [event for event in events if event.version is not None]

    @operation(role=Role.VIEWER)
    def list_alias_moves(self, model: str, alias: str | None = None) -> builtins.list[AliasEvent]:
        """Every move of the model's aliases (or of one), oldest first. Raises Corrupt if an entry is missing."""
        with self._base.store.read() as tx:
            rows.check_exists(tx, self._base, model)
            moves = [move for move, _ in rows.list_alias_moves(tx, self._base, model)]
        return [move for move in moves if alias is None or move.alias == alias]

    @operation(role=Role.OPERATOR, changes=True)
    def rollback(self, model: str, alias: str, *, reason: str) -> AliasEvent:
        """Point ``alias`` back at the version that held it before, after that version's package was verified.

        Two rollbacks go two versions back, never forward again. Raises NotFound if no version held it before, Corrupt or
        UnsafeFormat (and nothing moves) if the package fails verification, Conflict if somebody moves the alias meanwhile.
        """
        _check_reason(reason)
        with self._base.store.read() as tx:
            rows.check_exists(tx, self._base, model)
            held, before = rows.read_alias_versions(tx, self._base, model, alias)
            if before is None:
                raise NotFound(
                    "no earlier version held this alias",
                    value=alias,
                    place=f"model {model!r}",
                    next_step="There is nothing to go back to; promote another version instead.",
                )
            target = self._select_version(tx, model, str(before))
        self._verify_package(target.package)  # reads every byte, so before the lock is taken
        # What was read before the lock may be out of date under it: read again and compared.
        with self._base.ledger.decision() as d:
            rows.lock_model(d.tx, self._base, model, create=False)
            if rows.read_alias_versions(d.tx, self._base, model, alias) != (held, before):
                raise Conflict(
                    "the alias was moved meanwhile",
                    value=alias,
                    place=f"model {model!r}",
                    next_step="Look again, then retry.",
                )
            return d.done(self._move_alias(d, model, alias, before, held, reason, kind="rollback"))

    @operation(role=Role.VIEWER)
    def get_card(self, model: str, version: int) -> Card:
        """The model card of a version, as Markdown and HTML, made from what is recorded and nothing else."""
        from mainspring.models.card import make_card

        with self._base.store.read() as tx:
            record = self._select_version(tx, model, str(version))
        return make_card(
            self._base,
            record,
            package=self._verify_package(record.package, parse=False),
            aliases=self.list_alias_moves(model=model),
            approvals=self.list_approvals(model=model, version=version),
        )

    # --- inside --------------------------------------------------------------------------------------------------------

    def _verify_package(self, digest: str, *, parse: bool = True) -> Package:
        """The manifest of a package in the object store, after its bytes (and with ``parse`` its structure) were checked."""
        tree = owned_tree(self._base, digest, place="package")
        package, payloads = check_package(
            {path: entry.size for path, entry in tree.items()},
            lambda path, _: self._base.objects.read(tree[path].digest),
            place=f"package {digest}",
        )
        if parse:
            from mainspring.models.formats import check_payload

            check_payload(package, payloads)
        return package

    def _record_version(self, d: Decision, version: ModelVersion) -> None:
        """Record the references that keep the version's bytes, the edges from everything that led to it, and the event."""
        here = _version_ref(version.model, version.version)
        d.refer(version.package, here, tree=True)
        if version.profile is not None:
            d.refer(version.profile, here)
        causes = {
            "trained": ("run", version.run),
            "training_data": ("dataset_version", version.dataset_version),
            "holdout": ("dataset_version", version.holdout),
            "code": ("code", version.code),
            "environment": ("environment", version.environment),
        }
        for kind, (cause, ident) in causes.items():
            if ident is not None:
                d.edge(ref(cause, ident), here, kind)
        d.edge(here, ref("model", version.model), "version")
        d.event(
            EventKind.MODEL_REGISTERED,
            here,
            {"package": version.package, "run": version.run, "format": version.format},
        )

    def _move_alias(
        self,
        d: Decision,
        model: str,
        alias: str,
        version: int | None,
        previous: int | None,
        reason: str,
        *,
        kind: str,
        overridden: Sequence[str] = (),
    ) -> AliasEvent:
        event_kind = EventKind.MODEL_ALIAS_REMOVED if version is None else EventKind.MODEL_ALIAS_SET
        data = {
            "alias": alias,
            "version": version,
            "previous": previous,
            "reason": reason,
            "rollback": kind == "rollback",
            **({"override": True, "overridden": builtins.list(overridden)} if overridden else {}),
        }
        event = d.event(event_kind, ref("model", model), data)
        move = AliasEvent(
            model=model,
            alias=alias,
            version=version,
            previous=previous,
            at=event.at,
            actor=event.actor,
            reason=reason,
            event=event.id,
            overridden=builtins.list(overridden),
        )
        rows.insert_alias_event(d.tx, self._base, move, kind=kind)
        failpoint("models.alias_moved")
        return move

    def _select_version(self, tx: Reader, model: str, selector: Selector) -> ModelVersion:
        selector = str(selector)
        rows.check_exists(tx, self._base, model)
        if selector == LATEST or selector.isdecimal():
            version = rows.read_version(
                tx, self._base, model, None if selector == LATEST else _parse_number(selector)
            )
            if version is None:
                raise NotFound(
                    "no such version",
                    value=selector,
                    place=f"model {model!r}",
                    next_step="List them: mainspring models show " + model,
                )
            return version
        event = rows.read_alias(tx, self._base, model, selector)
        if event is None or event.version is None:
            names = [e.alias for e in rows.list_aliases(tx, self._base, model) if e.version is not None]
            raise NotFound(
                "no such alias",
                value=selector,
                place=f"model {model!r}",
                next_step=near(selector, [*names, LATEST], what="alias"),
            )
        version = rows.read_version(tx, self._base, model, event.version)
        if version is None:
            raise NotFound(
                "the alias points at a version that is not there",
                value=event.version,
                place=f"model {model!r}",
            )
        return version


def _version_ref(model: str, version: int) -> str:
    return ref("model_version", f"{model}@{version}")


def _parse_number(text: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise InvalidInput("not a version number", value=text)
    return int(text)


def _check_alias(alias: str) -> None:
    check_name(alias, what="alias")
    if alias == LATEST or alias.isdecimal():
        raise InvalidInput(
            "this name cannot be an alias",
            value=alias,
            next_step="Numbers and 'latest' select versions by themselves.",
        )


def _check_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > _MAX_TEXT:
        raise InvalidInput("a reason has 1 to 20,000 characters", value=reason, place="reason")


def _check_tags(tags: dict[str, str]) -> None:
    if len(tags) > _MAX_TAGS:
        raise InvalidInput("too many tags", value=len(tags))
    for key, value in tags.items():
        check_name(key, what="tag")
        if len(value) > _MAX_TEXT:
            raise InvalidInput("a tag holds at most 20,000 characters", value=value, place=f"tag {key!r}")


def _moved_meanwhile(model: str, alias: str, held: int | None, expected: int) -> Conflict:
    return Conflict(
        f"alias {alias!r} points at {'nothing' if held is None else held}, not at {expected or 'nothing'}",
        value=expected,
        place=f"model {model!r}",
        next_step="Somebody else moved it: look again, then retry.",
    )
