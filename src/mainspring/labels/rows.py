"""The rows behind the labels: one batch is read, decided in memory and written with a handful of statements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

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
class Said:
    """One label as somebody said it. ``content`` tells repetitions from contradictions."""

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
        return self.request, self.row

    @classmethod
    def of(
        cls, request: str, row: int, value: LabelValue, *, at_us: int | None, arrived_us: int, source: str
    ) -> Said:
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

    def standing(self, requests: Iterable[str]) -> dict[Key, Row]:
        """The standing labels of all rows of these requests."""
        return {(r["request"], r["row_no"]): r for r in self._of("labels", requests)}

    def totals(self) -> dict[str, int]:
        row = self._tx.first(
            "SELECT parked, expired, rejected, revised FROM label_counters WHERE project = ?", self._project
        )
        return {name: int(row[name]) if row else 0 for name in ("parked", "expired", "rejected", "revised")}

    def cursor(self) -> str:
        return str(
            self._tx.scalar("SELECT cursor FROM label_counters WHERE project = ?", self._project) or ""
        )

    def joinable(self, limit: int) -> list[Said]:
        """Parked labels whose prediction is known by now, in the order of their arrival."""
        rows = self._tx.all(
            "SELECT q.* FROM parked_labels q JOIN known_predictions k ON k.project = q.project AND k.request = q.request AND k.row_no = q.row_no"
            " WHERE q.project = ? ORDER BY q.position LIMIT ?",
            self._project, limit,
        )  # fmt: skip
        return [_said(r) for r in rows]

    def waiting_for(self, said: list[Said]) -> list[Said]:
        """Parked labels of the predictions that ``said`` is about, in the order of their arrival."""
        rows = list(self._of("parked_labels", {s.request for s in said}))
        known = {
            (r["request"], r["row_no"]) for r in self._of("known_predictions", {r["request"] for r in rows})
        }
        return [
            _said(r)
            for r in sorted(rows, key=lambda r: int(r["position"]))
            if (r["request"], r["row_no"]) in known
        ]

    # --- writing -----------------------------------------------------------------------------------------------------

    def record(self, said: list[Said], *, expires_us: int, room: int, refuse: bool = False) -> dict[str, int]:
        """Write a batch; returns how many were accepted, duplicate, revised, parked or rejected.

        Rejected are labels about a row or a class that cannot be, and those for which there is no room; with ``refuse`` the
        first of the former raises :class:`InvalidInput` instead, and nothing is written.
        """
        # The counter's row lock comes first: two batches about one prediction take turns on every engine.
        seq = self._reserve(len(said))
        requests = {s.request for s in said}
        answered = self._answered(requests)
        known = {key for key in answered if key[1] >= 0}
        current = self.standing(requests)
        contents = {(r["request"], r["row_no"], r["content"]) for r in self._of("label_revisions", requests)}
        parked = (
            {(r["request"], r["row_no"], r["content"]) for r in self._of("parked_labels", requests)}
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
        fresh: list[Any] = []
        waiting: list[Any] = []
        for place, one in enumerate(said):
            seq += 1
            mark = (*one.key, one.content)
            wrong = self._wrong(one, answered, f"items[{place}]")
            if wrong is not None:
                if refuse:
                    raise wrong
                tally["rejected"] += 1
                continue
            if one.key not in known:
                outcome = "duplicate" if mark in parked else "parked" if len(waiting) < free else "rejected"
                if outcome == "parked":
                    parked.add(mark)
                    waiting.append(
                        (
                            self._project,
                            *mark,
                            seq,
                            one.value,
                            one.at_us,
                            one.arrived_us,
                            one.source,
                            expires_us,
                        )
                    )
                tally[outcome] += 1
                continue
            stands = current.get(one.key)
            if mark in contents or (
                stands is not None and not one.explicit and from_json(stands["value"]) == from_json(one.value)
            ):
                tally["duplicate"] += 1
                continue
            revision = int(stands["revision"]) + 1 if stands else 1
            current[one.key] = {"revision": revision, "value": one.value}
            contents.add(mark)
            fresh.append((one, revision, seq))
            tally["revised" if stands else "accepted"] += 1
        self._write(fresh, waiting)
        self.count(parked=tally["parked"], rejected=tally["rejected"], revised=tally["revised"])
        return {name: n for name, n in tally.items() if n}

    def unpark(self, said: list[Said]) -> None:
        self._writer.many(
            "DELETE FROM parked_labels WHERE project = ? AND request = ? AND row_no = ? AND content = ?",
            [(self._project, s.request, s.row, s.content) for s in said],
        )

    def expire(self, now_us: int) -> int:
        expired = self._writer.execute(
            "DELETE FROM parked_labels WHERE project = ? AND expires_us <= ?", self._project, now_us
        )
        if expired:
            self.count(expired=expired)
        return expired

    def count(self, *, parked: int = 0, expired: int = 0, rejected: int = 0, revised: int = 0) -> None:
        self._ensure()
        self._writer.execute(
            "UPDATE label_counters SET parked = parked + ?, expired = expired + ?, rejected = rejected + ?, revised = revised + ? WHERE project = ?",
            parked, expired, rejected, revised, self._project,
        )  # fmt: skip

    def move_cursor(self, cursor: str) -> None:
        self._ensure()
        self._writer.execute("UPDATE label_counters SET cursor = ? WHERE project = ?", cursor, self._project)

    def _answered(self, requests: Iterable[str]) -> dict[Key, tuple[str, int]]:
        """(model, version) of each answered row; and under row -1, that the request is known."""
        found: dict[Key, tuple[str, int]] = {}
        for r in self._of("predictions", requests, "request, row_no, model, version, status"):
            if r["status"] == "ok":
                found[r["request"], r["row_no"]] = found[r["request"], -1] = (r["model"], int(r["version"]))
        return found

    def _wrong(self, one: Said, answered: dict[Key, tuple[str, int]], place: str) -> InvalidInput | None:
        """Why a label cannot be true of its prediction, if that is known."""
        version = answered.get(one.key)
        if version is not None:
            reader = self._readers(*version) if self._readers is not None else None
            value: LabelValue = from_json(one.value)
            if reader is None or reader.read(value) is not None:
                return None
            return reader.refusal(value, place=place)
        if (one.request, -1) in answered:
            rows = sum(1 for request, row in answered if request == one.request and row >= 0)
            return InvalidInput(
                "the prediction has no such row",
                value=f"{one.request}/{one.row}",
                place=place,
                next_step=f"It has {rows} rows, counted from 0.",
            )
        if not is_issued_id(one.request):
            return InvalidInput(
                "no prediction can have this id",
                value=one.request,
                place=place,
                next_step="Use the prediction_id of the response.",
            )
        return None

    # --- inside ------------------------------------------------------------------------------------------------------

    @property
    def _writer(self) -> Writer:
        return cast("Writer", self._tx)

    def _ensure(self) -> None:
        self._writer.execute(
            "INSERT INTO label_counters (project, seq, parked, expired, rejected, revised, cursor) VALUES (?, 0, 0, 0, 0, 0, '') ON CONFLICT (project) DO NOTHING",
            self._project,
        )

    def _reserve(self, n: int) -> int:
        self._ensure()
        last = self._tx.all(
            "UPDATE label_counters SET seq = seq + ? WHERE project = ? RETURNING seq", n, self._project
        )[0]["seq"]
        return int(last) - n

    def _of(self, table: str, requests: Iterable[str], columns: str = "*") -> Iterator[Row]:
        todo = iter(sorted(requests))
        while chunk := list(islice(todo, _CHUNK)):
            marks = ",".join("?" * len(chunk))
            yield from self._tx.all(
                f"SELECT {columns} FROM {table} WHERE project = ? AND request IN ({marks})",
                self._project,
                *chunk,
            )

    def _write(self, fresh: list[tuple[Said, int, int]], waiting: list[Any]) -> None:
        # Of several revisions in one batch only the last one stands.
        last = {s.key: (s, revision, seq) for s, revision, seq in fresh}
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
                for s, revision, _ in fresh
            ],
        )
        self._writer.many(
            "INSERT INTO parked_labels (project, request, row_no, content, position, value, at_us, arrived_us, source, expires_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            waiting,
        )


def _said(row: Row) -> Said:
    """A parked label as it was said."""
    explicit = row["at_us"] != row["arrived_us"]
    return Said(
        row["request"],
        row["row_no"],
        row["value"],
        row["content"],
        explicit,
        row["at_us"],
        row["arrived_us"],
        row["source"],
    )
