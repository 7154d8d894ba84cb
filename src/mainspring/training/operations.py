"""The training room: locked hold-outs with counted looks, and recorded evaluations."""

from __future__ import annotations

import msgspec

from mainspring.clock import from_us, to_us
from mainspring.errors import Conflict, InvalidInput, NotFound
from mainspring.lineage.foundation import Foundation
from mainspring.operations import Role, current, operation
from mainspring.records.base import from_json, new_id, to_json
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref, split_ref
from mainspring.records.training import Evaluation, EvaluationPage, Holdout, HoldoutUse
from mainspring.storage.sql.store import Row


class Training:
    """Hold-outs and evaluations of one project. The computations are pure functions in the other modules of this package."""

    room = "training"

    def __init__(self, base: Foundation) -> None:
        self._base = base

    @operation(role=Role.EDITOR, changes=True)
    def lock_holdout(self, dataset_version: str, *, max_uses: int | None = None) -> Holdout:
        """Keep a dataset version for judging models. After ``max_uses`` looks, further ones are refused.

        Locking it again changes nothing and returns the existing hold-out. Raises :class:`Conflict` if it was locked with another limit.
        """
        if max_uses is not None and max_uses < 1:
            raise InvalidInput("a hold-out must allow at least one use", value=max_uses)
        base = self._base
        with base.ledger.decision() as d:
            row = self._find_row(dataset_version)
            if row is not None:
                if max_uses is not None and row["max_uses"] != max_uses:
                    raise Conflict(
                        "this hold-out is locked with another limit",
                        value=max_uses,
                        place=dataset_version,
                        next_step="A limit is never changed: then the earlier looks would no longer count.",
                    )
                return d.done(_to_holdout(row))
            now = base.clock.now()
            d.tx.execute(
                "INSERT INTO holdouts (project, dataset_version, uses, max_uses, locked_us) VALUES (?, ?, 0, ?, ?)",
                base.project, dataset_version, max_uses, to_us(now),
            )  # fmt: skip
            d.event(EventKind.HOLDOUT_LOCKED, ref("dataset_version", dataset_version), {"max_uses": max_uses})
            return d.done(Holdout(dataset_version=dataset_version, uses=0, max_uses=max_uses, locked_at=now))

    @operation(role=Role.EDITOR, changes=True)
    def use_holdout(self, dataset_version: str, *, purpose: str, by: str | None = None) -> HoldoutUse:
        """Count one look at a hold-out, before its labels are read; an unlocked one is locked without limit first.

        ``by`` names what used it (a gate, a notebook); the default is the caller, whom the event names in any case. Raises
        :class:`Conflict` once the limit is reached; that refusal does not count as a look.
        """
        if not purpose.strip() or len(purpose) > 500:
            raise InvalidInput("say in 1 to 500 characters what the hold-out is used for", value=purpose)
        base = self._base
        with base.ledger.decision() as d:
            self.lock_holdout(dataset_version=dataset_version)
            # The limit is part of the update, which locks the row: two processes cannot both take the last look.
            rows = d.tx.all(
                "UPDATE holdouts SET uses = uses + 1 WHERE project = ? AND dataset_version = ? AND (max_uses IS NULL OR uses < max_uses) RETURNING uses",
                base.project, dataset_version,
            )  # fmt: skip
            if not rows:
                raise Conflict(
                    "the looks at this hold-out are used up",
                    value=dataset_version,
                    next_step="Make a new hold-out from newer data: models get fitted to a hold-out that is used too often.",
                )
            invocation, count = current(), int(rows[0]["uses"])
            actor = by or (invocation.actor if invocation else "local")
            use = HoldoutUse(
                id=new_id(),
                dataset_version=dataset_version,
                purpose=purpose,
                by=actor,
                at=base.clock.now(),
                count=count,
            )
            d.tx.execute(
                "INSERT INTO holdout_uses (project, id, dataset_version, purpose, actor, at_us, number) VALUES (?, ?, ?, ?, ?, ?, ?)",
                base.project, use.id, dataset_version, purpose, actor, to_us(use.at), count,
            )  # fmt: skip
            d.event(
                EventKind.HOLDOUT_USED,
                ref("dataset_version", dataset_version),
                {"purpose": purpose, "count": count},
            )
            return d.done(use)

    @operation(role=Role.VIEWER)
    def get_holdout(self, dataset_version: str) -> Holdout:
        """A hold-out and how often it was looked at. Raises :class:`NotFound`."""
        row = self._find_row(dataset_version)
        if row is None:
            raise NotFound("this dataset version is no locked hold-out", value=dataset_version)
        return _to_holdout(row)

    @operation(role=Role.VIEWER)
    def list_holdout_uses(
        self, dataset_version: str, *, after: int = 0, limit: int = 100
    ) -> list[HoldoutUse]:
        """The looks at a hold-out, first to last; ``after`` is the count of the last one already seen."""
        with self._base.store.read() as tx:
            rows = tx.all(
                "SELECT * FROM holdout_uses WHERE project = ? AND dataset_version = ? AND number > ? ORDER BY number LIMIT ?",
                self._base.project, dataset_version, after, _check_limit(limit),
            )  # fmt: skip
        return [
            HoldoutUse(
                id=r["id"],
                dataset_version=r["dataset_version"],
                purpose=r["purpose"],
                by=r["actor"],
                at=from_us(r["at_us"]),
                count=int(r["number"]),
            )
            for r in rows
        ]

    @operation(role=Role.EDITOR, changes=True, max_body=8 << 20)
    def record_evaluation(self, evaluation: Evaluation) -> Evaluation:
        """Record an evaluation; it needs ``subject`` (a reference) and ``dataset_version``. Returns it with id, time and actor."""
        subject, dataset_version = evaluation.subject, evaluation.dataset_version
        if not subject or not split_ref(subject)[1] or not dataset_version:
            raise InvalidInput(
                "an evaluation must say what was evaluated and on what",
                value=f"subject={subject!r}, dataset_version={dataset_version!r}",
                next_step="Set subject, e.g. 'model_version:delay@3', and dataset_version.",
            )
        base = self._base
        with base.ledger.decision() as d:
            call = current()
            recorded = msgspec.structs.replace(
                evaluation, id=new_id(), at=base.clock.now(), actor=call.actor if call else "local"
            )
            d.tx.execute(
                "INSERT INTO evaluations (project, id, subject, dataset_version, actor, at_us, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
                base.project, recorded.id, subject, dataset_version, recorded.actor, to_us(base.clock.now()), to_json(recorded).decode(),
            )  # fmt: skip
            d.edge(ref("dataset_version", dataset_version), f"evaluation:{recorded.id}", "evaluated_on")
            d.edge(subject, f"evaluation:{recorded.id}", "evaluated")
            d.event(
                EventKind.MODEL_EVALUATED,
                subject,
                {"evaluation": recorded.id, "dataset_version": dataset_version, "rows": recorded.rows},
            )
            return d.done(recorded)

    @operation(role=Role.VIEWER)
    def list_evaluations(
        self,
        *,
        subject: str | None = None,
        dataset_version: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> EvaluationPage:
        """Recorded evaluations, oldest first, of a subject and/or on a dataset version."""
        wanted = {"subject": subject, "dataset_version": dataset_version}
        filters = [f"{column} = ?" for column, value in wanted.items() if value is not None]
        where = " AND ".join(["project = ?", "id > ?", *filters])
        values = [v for v in wanted.values() if v is not None]
        size = _check_limit(limit)
        # Ids are UUIDv7: their order is the order of recording, so a page continues after an id.
        with self._base.store.read() as tx:
            rows = tx.all(
                f"SELECT id, body FROM evaluations WHERE {where} ORDER BY id LIMIT ?",
                self._base.project,
                after or "",
                *values,
                size + 1,
            )
        items: list[Evaluation] = [from_json(r["body"], Evaluation) for r in rows[:size]]
        return EvaluationPage(items=items, next=items[-1].id if len(rows) > size else None)

    def _find_row(self, dataset_version: str) -> Row | None:
        with self._base.store.read() as tx:
            return tx.first(
                "SELECT * FROM holdouts WHERE project = ? AND dataset_version = ?",
                self._base.project,
                dataset_version,
            )


def _to_holdout(row: Row) -> Holdout:
    limit = None if row["max_uses"] is None else int(row["max_uses"])
    return Holdout(
        dataset_version=row["dataset_version"],
        uses=int(row["uses"]),
        max_uses=limit,
        locked_at=from_us(row["locked_us"]),
    )


def _check_limit(limit: int) -> int:
    if not 1 <= limit <= 1000:
        raise InvalidInput("limit must lie between 1 and 1000", value=limit)
    return limit
