"""Verifies what led to a thing: bytes against digests, edges against the chain; and lists who decided.

Calls operations only, so the workspace of a server is verified by the bytes that arrive here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import blake3

from mainspring.errors import Corrupt, InvalidInput, MainspringError, NotFound
from mainspring.records.base import Record, from_json
from mainspring.records.data import DatasetVersion
from mainspring.records.events import EventKind
from mainspring.records.lineage import EdgeReport, Event, Graph, split_ref
from mainspring.records.objects import ObjectRef
from mainspring.records.tracking import CodeState

if TYPE_CHECKING:
    from mainspring.rooms import Namespaces

Outcome = Literal["as recorded", "DIFFERS", "gone", "deleted", "before version 2"]


class Checked(Record, frozen=True):
    """A thing whose bytes were read again. ``detail`` is how many objects or rows, or what is wrong."""

    ref: str
    what: str
    outcome: Outcome
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome in {"as recorded", "deleted", "before version 2"}


class Decided(Record, frozen=True):
    """A decision about a model version: of a gate, of an approver, or of the person who moved an alias."""

    ref: str
    what: str
    at: datetime
    by: str
    detail: str = ""


class Verification(Record, frozen=True):
    """The result of :func:`verify`."""

    checked: list[Checked]
    decided: list[Decided]
    edges: EdgeReport

    @property
    def ok(self) -> bool:
        return (
            all(c.ok for c in self.checked)
            and not self.edges.forged
            and not self.edges.missing
            and not self.edges.problems
        )


def verify(workspace: Namespaces, graph: Graph) -> Verification:
    """Re-hash every dataset, package, code and environment record and object of ``graph``; check its edges; list decisions."""
    edges = workspace.lineage.verify_edges(refs=[n.ref for n in graph.nodes])
    old = {e.source for e in edges.before_version_2}
    checked: list[Checked] = []
    decided: list[Decided] = []
    for node in graph.nodes:
        kind, ident = split_ref(node.ref)
        check = _CHECKS.get(kind)
        try:
            checked += check(workspace, ident) if check is not None else ()
        except NotFound as error:
            # Version 1 named the code of a step by a digest and stored no bytes for it.
            known = kind == "code" and node.ref in old
            checked.append(
                Checked(
                    ref=node.ref,
                    what=f"{kind} {ident[:12]}",
                    outcome="before version 2" if known else "gone",
                    detail="version 1 kept no bytes of it" if known else error.message,
                )
            )
        if kind == "model_version":
            decided += _list_decisions(workspace, ident)
    return Verification(checked=checked, decided=decided, edges=edges)


# --- bytes -------------------------------------------------------------------------------------------------------------


class _ObjectCheck:
    """Reads objects and compares them with their digests; counts them and collects what is wrong."""

    def __init__(self, workspace: Namespaces) -> None:
        self._objects = workspace.objects
        self.count = 0
        self.wrong: list[str] = []

    def read(self, digest: str, name: str, *, keep: bool = False) -> bytes:
        """Hash an object's bytes as they arrive; with ``keep`` return them."""
        hasher, pieces = blake3.blake3(), []
        self.count += 1
        try:
            for piece in self._objects.get(digest=digest).chunks:
                hasher.update(piece)
                if keep:
                    pieces.append(piece)
        except (Corrupt, NotFound) as error:
            self.wrong.append(f"{name}: {error.message}")
            return b""
        if hasher.hexdigest() != digest:
            self.wrong.append(f"{name}: the bytes are not what the digest says")
            return b""
        return b"".join(pieces)

    def tree(self, digest: str, name: str) -> None:
        """A tree object, and every file that it names."""
        listing = self.read(digest, name, keep=True)
        files: dict[str, ObjectRef] = from_json(listing, dict[str, ObjectRef]) if listing else {}
        for path, entry in sorted(files.items()):
            self.read(entry.digest, path)

    def report(self, ref: str, what: str, unit: str = "object") -> Checked:
        """The result for ``ref`` after all its objects were read."""
        if self.wrong:
            return Checked(ref=ref, what=what, outcome="DIFFERS", detail="; ".join(self.wrong[:5]))
        return Checked(
            ref=ref,
            what=what,
            outcome="as recorded",
            detail=f"{self.count} {unit}{'' if self.count == 1 else 's'}",
        )


def _check_dataset(workspace: Namespaces, ident: str) -> Iterator[Checked]:
    ref = f"dataset_version:{ident}"
    try:
        version = workspace.data.get_version_by_id(ident)
    except NotFound:
        yield _check_deleted(workspace, ref)
        return
    what = f"{version.dataset} version {version.number}"
    difference = _compare_with_event(workspace, version)
    if difference:
        yield Checked(ref=ref, what=what, outcome="DIFFERS", detail=difference)
        return
    if version.kind != "table":
        reread = _ObjectCheck(workspace)
        reread.tree(ident, "the list of files")
        yield reread.report(ref, what)
        return
    from mainspring.data.tables import content_digest

    try:
        same = content_digest(workspace.data.read(version.dataset, version.id)) == version.id
    except (Corrupt, NotFound, InvalidInput) as error:
        yield Checked(ref=ref, what=what, outcome="DIFFERS", detail=error.message)
        return
    yield Checked(
        ref=ref, what=what, outcome="as recorded" if same else "DIFFERS", detail=f"{version.rows} rows"
    )


def _compare_with_event(workspace: Namespaces, version: DatasetVersion) -> str:
    """How a version's row differs from the event of its commit; empty if it does not.

    Rows of the table are not protected by the chain, events are.
    """
    row = {
        "dataset": version.dataset, "number": version.number, "kind": version.kind, "message": version.message,
        "rows": version.rows, "by": version.created_by,
    }  # fmt: skip
    differing: list[dict[str, object]] = []
    for event in workspace.lineage.list_events(
        subject=f"dataset_version:{version.id}", kind=EventKind.DATASET_COMMITTED, limit=100
    ).items:
        recorded = {**event.data, "by": event.actor}
        differing.append({k: recorded[k] for k, v in row.items() if k in recorded and recorded[k] != v})
        if not differing[-1]:
            return ""
    if not differing:
        return "no event says that it was committed"
    nearest = min(differing, key=len)
    return "the event of its commit says " + ", ".join(
        f"{k} {v!r} where the row says {row[k]!r}" for k, v in nearest.items()
    )


def _check_deleted(workspace: Namespaces, ref: str) -> Checked:
    events = workspace.lineage.list_events(subject=ref, kind=EventKind.DATASET_DELETED, limit=1).items
    what = f"dataset version {ref.partition(':')[2][:12]}"
    if not events:
        return Checked(ref=ref, what=what, outcome="gone", detail="and no event says that it was deleted")
    event = events[0]
    return Checked(
        ref=ref,
        what=f"{event.data.get('dataset')} version {event.data.get('number')}",
        outcome="deleted",
        detail=f"{event.at:%Y-%m-%d} by {event.actor}: {event.data.get('reason')}",
    )


def _check_model(workspace: Namespaces, ident: str) -> Iterator[Checked]:
    model, _, number = ident.rpartition("@")
    version = workspace.models.get_version(model=model, selector=number)
    reread = _ObjectCheck(workspace)
    reread.tree(version.package, "the list of files")
    yield reread.report(f"model_version:{ident}", f"package of {ident}")
    if version.profile is not None:
        reread = _ObjectCheck(workspace)
        reread.read(version.profile, "profile")
        yield reread.report(f"object:{version.profile}", f"training profile of {ident}")


def _check_code(workspace: Namespaces, ident: str) -> Iterator[Checked]:
    workspace.objects.get(digest=ident)  # raises NotFound if the record itself was never stored
    reread = _ObjectCheck(workspace)
    record = reread.read(ident, "the record", keep=True)
    try:
        state = from_json(record, CodeState) if record else CodeState()
    except InvalidInput:  # the definitions of a step: text and digests, no files
        yield reread.report(f"code:{ident}", f"definitions {ident[:12]}")
        return
    for file in state.files:
        if file.digest is not None:
            reread.read(file.digest, file.path)
    yield reread.report(f"code:{ident}", f"code {ident[:12]}, record and source files")


def _check_object(kind: str, workspace: Namespaces, ident: str) -> Iterator[Checked]:
    reread = _ObjectCheck(workspace)
    reread.read(ident, kind)
    yield reread.report(f"{kind}:{ident}", f"{kind} {ident[:12]}")


_CHECKS: dict[str, Callable[[Namespaces, str], Iterator[Checked]]] = {
    "dataset_version": _check_dataset,
    "model_version": _check_model,
    "code": _check_code,
    "environment": lambda w, i: _check_object("environment", w, i),
    "object": lambda w, i: _check_object("object", w, i),
}


# --- who decided -------------------------------------------------------------------------------------------------------


def _list_decisions(workspace: Namespaces, ident: str) -> list[Decided]:
    """Verdicts, approvals and moves of aliases to the version, oldest first."""
    model, _, text = ident.rpartition("@")
    ref, number = f"model_version:{ident}", int(text)
    decisions: list[Decided] = []
    for event in _list_gate_events(workspace, ref):
        verdict = event.data.get("verdict")
        stopped = event.kind == EventKind.GATE_STOPPED
        why = "; ".join(map(str, event.data.get("failed") or [])) if stopped else ""
        try:
            workspace.loop.get_verdict(verdict=str(verdict))
        except MainspringError as error:
            why = f"BUT the verdict cannot be trusted: {error.message}"
        what = "gate stopped it" if stopped else "gate passed"
        decisions.append(
            Decided(
                ref=ref, what=what, at=event.at, by=event.actor, detail=f"verdict {verdict} {why}".strip()
            )
        )
    try:
        for approval in workspace.models.list_approvals(model=model, version=number):
            what = "approved" if approval.approved else "refused"
            decisions.append(
                Decided(ref=ref, what=what, at=approval.at, by=approval.actor, detail=approval.reason)
            )
        for move in workspace.models.list_alias_moves(model=model):
            if move.version == number:
                against = f" (OVERRIDE of: {'; '.join(move.overridden)})" if move.overridden else ""
                decisions.append(
                    Decided(ref=ref, what=move.alias, at=move.at, by=move.actor, detail=move.reason + against)
                )
    except Corrupt as error:
        now = datetime.now().astimezone()
        decisions.append(Decided(ref=ref, what="CORRUPT", at=now, by="", detail=error.message))
    except NotFound:  # the graph names a version that is not registered
        pass
    return sorted(decisions, key=lambda d: d.at)


def _list_gate_events(workspace: Namespaces, ref: str) -> list[Event]:
    return workspace.lineage.list_events(subject=ref, kind="gate.", limit=100, newest_first=False).items
