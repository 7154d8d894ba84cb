"""Everything that led to a thing, read again: bytes against digests, edges against the chain, and who decided.

Calls operations only, so a workspace at the other end of a connection is verified by the bytes that arrive here.
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
    """Something whose bytes were read again. ``detail`` says how many of what, or what is wrong."""

    ref: str
    what: str
    outcome: Outcome
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome in {"as recorded", "deleted", "before version 2"}


class Decided(Record, frozen=True):
    """Somebody decided about a model version: a gate, an approver, whoever moved an alias."""

    ref: str
    what: str
    at: datetime
    by: str
    detail: str = ""


class Verification(Record, frozen=True):
    """What reading everything again came to."""

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
            # Version 1 named the code of a step by a digest of which it kept no bytes.
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
            decided += _decisions(workspace, ident)
    return Verification(checked=checked, decided=decided, edges=edges)


# --- bytes -------------------------------------------------------------------------------------------------------------


class _Bytes:
    """Objects read again, counted, with what is wrong with them."""

    def __init__(self, workspace: Namespaces) -> None:
        self._objects = workspace.objects
        self.count = 0
        self.wrong: list[str] = []

    def read(self, digest: str, name: str, *, keep: bool = False) -> bytes:
        """Hash an object's bytes as they arrive; with ``keep`` return them."""
        hasher, kept = blake3.blake3(), []
        self.count += 1
        try:
            for piece in self._objects.get(digest=digest).chunks:
                hasher.update(piece)
                if keep:
                    kept.append(piece)
        except (Corrupt, NotFound) as error:
            self.wrong.append(f"{name}: {error.message}")
            return b""
        if hasher.hexdigest() != digest:
            self.wrong.append(f"{name}: the bytes are not what the digest says")
            return b""
        return b"".join(kept)

    def tree(self, digest: str, name: str) -> None:
        """A tree object, and every file that it names."""
        listing = self.read(digest, name, keep=True)
        files: dict[str, ObjectRef] = from_json(listing, dict[str, ObjectRef]) if listing else {}
        for path, entry in sorted(files.items()):
            self.read(entry.digest, path)

    def told(self, ref: str, what: str, unit: str = "object") -> Checked:
        if self.wrong:
            return Checked(ref=ref, what=what, outcome="DIFFERS", detail="; ".join(self.wrong[:5]))
        return Checked(
            ref=ref,
            what=what,
            outcome="as recorded",
            detail=f"{self.count} {unit}{'' if self.count == 1 else 's'}",
        )


def _dataset(workspace: Namespaces, ident: str) -> Iterator[Checked]:
    ref = f"dataset_version:{ident}"
    try:
        version = workspace.data.get_version_by_id(ident)
    except NotFound:
        yield _deleted(workspace, ref)
        return
    what = f"{version.dataset} version {version.number}"
    otherwise = _said_otherwise(workspace, version)
    if otherwise:
        yield Checked(ref=ref, what=what, outcome="DIFFERS", detail=otherwise)
        return
    if version.kind != "table":
        read = _Bytes(workspace)
        read.tree(ident, "the list of files")
        yield read.told(ref, what)
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


def _said_otherwise(workspace: Namespaces, version: DatasetVersion) -> str:
    """What of a version's row no event of its commit says: rows of the table are not on the chain, events are."""
    row = {
        "dataset": version.dataset, "number": version.number, "kind": version.kind, "message": version.message,
        "rows": version.rows, "by": version.created_by,
    }  # fmt: skip
    differing: list[dict[str, object]] = []
    for event in workspace.lineage.list_events(
        subject=f"dataset_version:{version.id}", kind=EventKind.DATASET_COMMITTED, limit=100
    ).items:
        said = {**event.data, "by": event.actor}
        differing.append({k: said[k] for k, v in row.items() if k in said and said[k] != v})
        if not differing[-1]:
            return ""
    if not differing:
        return "no event says that it was committed"
    nearest = min(differing, key=len)
    return "the event of its commit says " + ", ".join(
        f"{k} {v!r} where the row says {row[k]!r}" for k, v in nearest.items()
    )


def _deleted(workspace: Namespaces, ref: str) -> Checked:
    found = workspace.lineage.list_events(subject=ref, kind=EventKind.DATASET_DELETED, limit=1).items
    what = f"dataset version {ref.partition(':')[2][:12]}"
    if not found:
        return Checked(ref=ref, what=what, outcome="gone", detail="and no event says that it was deleted")
    told = found[0]
    return Checked(
        ref=ref,
        what=f"{told.data.get('dataset')} version {told.data.get('number')}",
        outcome="deleted",
        detail=f"{told.at:%Y-%m-%d} by {told.actor}: {told.data.get('reason')}",
    )


def _model(workspace: Namespaces, ident: str) -> Iterator[Checked]:
    model, _, number = ident.rpartition("@")
    version = workspace.models.get_version(model=model, selector=number)
    read = _Bytes(workspace)
    read.tree(version.package, "the list of files")
    yield read.told(f"model_version:{ident}", f"package of {ident}")
    if version.profile is not None:
        read = _Bytes(workspace)
        read.read(version.profile, "profile")
        yield read.told(f"object:{version.profile}", f"training profile of {ident}")


def _code(workspace: Namespaces, ident: str) -> Iterator[Checked]:
    workspace.objects.get(digest=ident)  # NotFound here means that the record itself was never kept
    read = _Bytes(workspace)
    record = read.read(ident, "the record", keep=True)
    try:
        state = from_json(record, CodeState) if record else CodeState()
    except InvalidInput:  # the definitions that a step is made of: text and digests, nothing behind them
        yield read.told(f"code:{ident}", f"definitions {ident[:12]}")
        return
    for file in state.files:
        if file.digest is not None:
            read.read(file.digest, file.path)
    yield read.told(f"code:{ident}", f"code {ident[:12]}, record and source files")


def _plain(kind: str, workspace: Namespaces, ident: str) -> Iterator[Checked]:
    read = _Bytes(workspace)
    read.read(ident, kind)
    yield read.told(f"{kind}:{ident}", f"{kind} {ident[:12]}")


_CHECKS: dict[str, Callable[[Namespaces, str], Iterator[Checked]]] = {
    "dataset_version": _dataset,
    "model_version": _model,
    "code": _code,
    "environment": lambda w, i: _plain("environment", w, i),
    "object": lambda w, i: _plain("object", w, i),
}


# --- who decided -------------------------------------------------------------------------------------------------------


def _decisions(workspace: Namespaces, ident: str) -> list[Decided]:
    """Verdicts, approvals and moves of aliases to the version, oldest first."""
    model, _, text = ident.rpartition("@")
    ref, number = f"model_version:{ident}", int(text)
    found: list[Decided] = []
    for given in _events(workspace, ref):
        verdict = given.data.get("verdict")
        stopped = given.kind == EventKind.GATE_STOPPED
        why = "; ".join(map(str, given.data.get("failed") or [])) if stopped else ""
        try:
            workspace.loop.get_verdict(verdict=str(verdict))
        except MainspringError as error:
            why = f"BUT the verdict cannot be trusted: {error.message}"
        what = "gate stopped it" if stopped else "gate passed"
        found.append(
            Decided(
                ref=ref, what=what, at=given.at, by=given.actor, detail=f"verdict {verdict} {why}".strip()
            )
        )
    try:
        for said in workspace.models.list_approvals(model=model, version=number):
            what = "approved" if said.approved else "refused"
            found.append(Decided(ref=ref, what=what, at=said.at, by=said.actor, detail=said.reason))
        for move in workspace.models.list_alias_moves(model=model):
            if move.version == number:
                against = f" (OVERRIDE of: {'; '.join(move.overridden)})" if move.overridden else ""
                found.append(
                    Decided(ref=ref, what=move.alias, at=move.at, by=move.actor, detail=move.reason + against)
                )
    except Corrupt as error:
        now = datetime.now().astimezone()
        found.append(Decided(ref=ref, what="CORRUPT", at=now, by="", detail=error.message))
    except NotFound:  # the graph names a version that is not registered
        pass
    return sorted(found, key=lambda d: d.at)


def _events(workspace: Namespaces, ref: str) -> list[Event]:
    return workspace.lineage.list_events(subject=ref, kind="gate.", limit=100, newest_first=False).items
