"""The rows of labels: a batch is read, decided in memory and written with a few statements, whatever its size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import cast

import blake3

from mainspring.errors import InvalidInput
from mainspring.records.base import from_json, to_json
from mainspring.records.classes import LabelReader
from mainspring.records.labels import LabelValue, is_issued_id
from mainspring.storage.sql import Reader, Row, Writer

Key = tuple[str, int]
Readers = Callable[[str, int], LabelReader | None]
"""How labels of a model version are read; None for a version that the registry does not know."""
_CHUNK = 400


def parse_id(prediction_id: str) -> Key:
    """``(request, row)`` of a prediction id; a bare request id is its row 0."""
    request, slash, row = prediction_id.partition("/")
    plain = request.replace("-", "").replace("_", "").replace(".", "")
    if not (1 <= len(request) <= 64 and plain.isascii() and plain.isalnum()) or (
        slash and not (row.isdecimal() and row.isascii() and len(row) <= 9)
    ):
        raise InvalidInput(
            "not a prediction id",
            value=prediction_id,
            next_step="Use the id from the response, or id/row for a row of a batch.",
        )
    return request, int(row or 0)


@dataclass(frozen=True)
class SentLabel:
    """One label as it was sent. ``content`` is equal for a repetition and differs for a contradiction; ``explicit``: with a time.

    Times are in microseconds: the one that the sender gave, else that of arrival (``at_us``), and that of arrival (``arrived_us``).
    """

    request: str
    row: int
    value: str
    content: str
    explicit: bool
    at_us: int
    arrived_us: int
    source: str

    @property
    def key(self) -> Key:
        """The predicted row: request and row number."""
        return self.request, self.row

    @classmethod
    def of(
        cls, request: str, row: int, value: LabelValue, *, at_us: int | None, arrived_us: int, source: str
    ) -> SentLabel:
        """A label as it was sent, with the digest of what it says (times in microseconds since the epoch)."""
        content = blake3.blake3(to_json([value, at_us, source])).hexdigest(16)
        return cls(
            request,
            row,
            to_json(value).decode(),
            content,
            at_us is not None,
            arrived_us if at_us is None else at_us,
            arrived_us,
            source,
        )


class LabelRows:
    """Reads and writes labels in one transaction of a project."""

    def __init__(self, tx: Reader, project: str, readers: Readers | None = None) -> None:
        self._tx = tx
        self._project = project
        self._readers = readers

    # --- reading -----------------------------------------------------------------------------------------------------

    def current_labels(self, requests: Iterable[str]) -> dict[Key, Row]:
        """The current labels of all rows of these requests, by row."""
        return {(r["request"], r["row_no"]): r for r in self._select("labels", requests)}

    def read_totals(self) -> dict[str, int]:
        """How many labels were ever parked, expired, rejected and revised."""
        row = self._tx.first(
            "SELECT parked, expired, rejected, revised FROM label_counters WHERE project = ?", self._project
        )
        return {name: int(row[name]) if row else 0 for name in ("parked", "expired", "rejected", "revised")}

    def read_cursor(self) -> str:
        """How far the journal of relayed feedback was read."""
        return str(
            self._tx.scalar("SELECT cursor FROM label_counters WHERE project = ?", self._project) or ""
        )

    def list_joinable(self, limit: int) -> list[SentLabel]:
        """Parked labels whose prediction is known by now, in the order of their arrival."""
        rows = self._tx.all(
            "SELECT q.* FROM parked_labels q JOIN known_predictions k ON k.project = q.project AND k.request = q.request AND k.row_no = q.row_no"
            " WHERE q.project = ? ORDER BY q.position LIMIT ?",
            self._project, limit,
        )  # fmt: skip
        return [_parked_label(r) for r in rows]

    def list_parked_for(self, sent: list[SentLabel]) -> list[SentLabel]:
        """Parked labels of the predictions that ``sent`` is about, where these are known by now, in the order of their arrival."""
        rows = list(self._select("parked_labels", {s.request for s in sent}))
        known = {
            (r["request"], r["row_no"])
            for r in self._select("known_predictions", {r["request"] for r in rows})
        }
        return [
            _parked_label(r)
            for r in sorted(rows, key=lambda r: int(r["position"]))
            if (r["request"], r["row_no"]) in known
        ]

    # --- writing -----------------------------------------------------------------------------------------------------

    def record(
        self, sent: list[SentLabel], *, expires_us: int, room: int, refuse: bool = False
    ) -> dict[str, int]:
        """Write a batch; returns how many were accepted, duplicate, revised, parked or rejected.

        Rejected are labels about a row or a class that cannot exist, and those to park for which there is no ``room``; with ``refuse``
        the first of the former raises :class:`InvalidInput` instead, and nothing is written.
        """
        # First the row of the counters is updated, which locks it until the commit: of two batches the second reads what the first
        # has written, on PostgreSQL too.
        seq = self._reserve_numbers(len(sent))
        requests = {s.request for s in sent}
        answered = self._list_answered(requests)
        known = {key for key in answered if key[1] >= 0}
        current = self.current_labels(requests)
        contents = {
            (r["request"], r["row_no"], r["content"]) for r in self._select("label_revisions", requests)
        }
        parked = (
            {(r["request"], r["row_no"], r["content"]) for r in self._select("parked_labels", requests)}
            if room
            else set()
        )
        free = (
            room
            - int(self._tx.scalar("SELECT count(*) AS n FROM parked_labels WHERE project = ?", self._project))
            if room
            else 0
        )
        tally: Counter[str] = Counter()
        new: list[tuple[SentLabel, int, int]] = []
        waiting: list[tuple[SentLabel, int]] = []
        for index, label in enumerate(sent):
            seq += 1
            identity = (*label.key, label.content)
            problem = self._find_problem(label, answered, f"items[{index}]")
            if problem is not None:
                if refuse:
                    raise problem
                tally["rejected"] += 1
                continue
            if label.key not in known:
                outcome = (
                    "duplicate" if identity in parked else "parked" if len(waiting) < free else "rejected"
                )
                if outcome == "parked":
                    parked.add(identity)
                    waiting.append((label, seq))
                tally[outcome] += 1
                continue
            before = current.get(label.key)
            if identity in contents or (
                before is not None
                and not label.explicit
                and from_json(before["value"]) == from_json(label.value)
            ):
                tally["duplicate"] += 1
                continue
            revision = int(before["revision"]) + 1 if before else 1
            current[label.key] = {"revision": revision, "value": label.value}
            contents.add(identity)
            new.append((label, revision, seq))
            tally["revised" if before else "accepted"] += 1
        self._write_labels(new)
        self._park(waiting, expires_us)
        self.add_counts(parked=tally["parked"], rejected=tally["rejected"], revised=tally["revised"])
        return {name: n for name, n in tally.items() if n}

    def delete_parked(self, sent: list[SentLabel]) -> None:
        """Delete these labels from those that wait for their prediction."""
        self._writer.many(
            "DELETE FROM parked_labels WHERE project = ? AND request = ? AND row_no = ? AND content = ?",
            [(self._project, s.request, s.row, s.content) for s in sent],
        )

    def expire_parked(self, now_us: int) -> int:
        """Delete and count the parked labels that waited too long; returns how many."""
        expired = self._writer.execute(
            "DELETE FROM parked_labels WHERE project = ? AND expires_us <= ?", self._project, now_us
        )
        if expired:
            self.add_counts(expired=expired)
        return expired

    def add_counts(self, *, parked: int = 0, expired: int = 0, rejected: int = 0, revised: int = 0) -> None:
        """Add to the project's counters, in this transaction."""
        self._ensure_counters()
        self._writer.execute(
            "UPDATE label_counters SET parked = parked + ?, expired = expired + ?, rejected = rejected + ?, revised = revised + ? WHERE project = ?",
            parked, expired, rejected, revised, self._project,
        )  # fmt: skip

    def move_cursor(self, cursor: str) -> None:
        """Remember how far the journal of relayed feedback has been read, in this transaction."""
        self._ensure_counters()
        self._writer.execute("UPDATE label_counters SET cursor = ? WHERE project = ?", cursor, self._project)

    def _list_answered(self, requests: Iterable[str]) -> dict[Key, tuple[str, int]]:
        """(model, version) of each answered row; and under row -1, that the request is known."""
        versions: dict[Key, tuple[str, int]] = {}
        for r in self._select("predictions", requests, "request, row_no, model, version, status"):
            if r["status"] == "ok":
                versions[r["request"], r["row_no"]] = versions[r["request"], -1] = (
                    r["model"],
                    int(r["version"]),
                )
        return versions

    def _find_problem(
        self, label: SentLabel, answered: dict[Key, tuple[str, int]], place: str
    ) -> InvalidInput | None:
        """Why a label cannot be true of its prediction, if that is known."""
        version = answered.get(label.key)
        if version is not None:
            reader = self._readers(*version) if self._readers is not None else None
            value: LabelValue = from_json(label.value)
            if reader is None or reader.read(value) is not None:
                return None
            return reader.refusal(value, place=place)
        if (label.request, -1) in answered:
            rows = sum(1 for request, row in answered if request == label.request and row >= 0)
            return InvalidInput(
                "the prediction has no such row",
                value=f"{label.request}/{label.row}",
                place=place,
                next_step=f"It has {rows} rows, counted from 0.",
            )
        if not is_issued_id(label.request):
            return InvalidInput(
                "no prediction can have this id",
                value=label.request,
                place=place,
                next_step="Use the prediction_id of the response.",
            )
        return None

    # --- helpers -----------------------------------------------------------------------------------------------------

    @property
    def _writer(self) -> Writer:
        return cast("Writer", self._tx)

    def _ensure_counters(self) -> None:
        self._writer.execute(
            "INSERT INTO label_counters (project, seq, parked, expired, rejected, revised, cursor) VALUES (?, 0, 0, 0, 0, 0, '') ON CONFLICT (project) DO NOTHING",
            self._project,
        )

    def _reserve_numbers(self, n: int) -> int:
        self._ensure_counters()
        last = self._tx.all(
            "UPDATE label_counters SET seq = seq + ? WHERE project = ? RETURNING seq", n, self._project
        )[0]["seq"]
        return int(last) - n

    def _select(self, table: str, requests: Iterable[str], columns: str = "*") -> Iterator[Row]:
        todo = iter(sorted(requests))
        while chunk := list(islice(todo, _CHUNK)):  # engines limit how many values one statement binds
            marks = ",".join("?" * len(chunk))
            yield from self._tx.all(
                f"SELECT {columns} FROM {table} WHERE project = ? AND request IN ({marks})",
                self._project,
                *chunk,
            )

    def _write_labels(self, new: list[tuple[SentLabel, int, int]]) -> None:
        """Write labels with their revisions and sequence numbers."""
        # Of several revisions in one batch only the last one is current; all of them go into the history.
        last = {s.key: (s, revision, seq) for s, revision, seq in new}
        self._writer.many(
            "INSERT INTO labels (project, request, row_no, revision, seq, value, at_us, arrived_us, source) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (project, request, row_no) DO UPDATE SET revision = excluded.revision, seq = excluded.seq, value = excluded.value,"
            " at_us = excluded.at_us, arrived_us = excluded.arrived_us, source = excluded.source",
            [
                (self._project, s.request, s.row, revision, seq, s.value, s.at_us, s.arrived_us, s.source)
                for s, revision, seq in last.values()
            ],
        )
        self._writer.many(
            "INSERT INTO label_revisions (project, request, row_no, content, revision, value, at_us, arrived_us, source) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    self._project,
                    s.request,
                    s.row,
                    s.content,
                    revision,
                    s.value,
                    s.at_us,
                    s.arrived_us,
                    s.source,
                )
                for s, revision, _ in new
            ],
        )

    def _park(self, waiting: list[tuple[SentLabel, int]], expires_us: int) -> None:
        """Keep labels whose prediction is not known yet, in the order of their sequence numbers."""
        self._writer.many(
            "INSERT INTO parked_labels (project, request, row_no, content, position, value, at_us, arrived_us, source, expires_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    self._project,
                    s.request,
                    s.row,
                    s.content,
                    seq,
                    s.value,
                    s.at_us,
                    s.arrived_us,
                    s.source,
                    expires_us,
                )
                for s, seq in waiting
            ],
        )


def _parked_label(row: Row) -> SentLabel:
    """A parked label as it was sent."""
    explicit = row["at_us"] != row["arrived_us"]
    return SentLabel(
        row["request"],
        row["row_no"],
        row["value"],
        row["content"],
        explicit,
        row["at_us"],
        row["arrived_us"],
        row["source"],
    )
