"""The rows of the tracking room: keys, texts, packed points, latest values. Every function runs inside the caller's transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Literal

import blake3

from mainspring.clock import from_us
from mainspring.errors import Conflict, InvalidInput, NotFound
from mainspring.records.base import from_json
from mainspring.records.tracking import Metric, Point, Run, RunStatus
from mainspring.storage.sql import Reader, Row, Writer
from mainspring.storage.sql.numbers import decode_float, encode_float
from mainspring.tracking import history

HEAD = 200
"""Characters of a param or tag that its index holds."""


class Tables:
    """Reads and writes the tables of one project's runs."""

    def __init__(self, project: str) -> None:
        self._project = project

    def num(self, tx: Reader, run: str) -> int:
        """The number of a run, by which the other tables name it. Raises :class:`NotFound`."""
        row = tx.first("SELECT num FROM runs WHERE id = ? AND project = ?", run, self._project)
        if row is None:
            raise NotFound(
                "this run does not exist", value=run, next_step="'mainspring runs list' shows those that do."
            )
        return int(row["num"])

    def extend_life(self, tx: Writer, num: int, alive_s: float) -> None:
        """Move the time until which a running run counts as alive to ``alive_s`` seconds from now, never back."""
        until = alive_until(alive_s)
        tx.execute(
            "UPDATE runs SET alive_until_us = ? WHERE num = ? AND status = 'running' AND (alive_until_us IS NULL OR alive_until_us < ?)",
            until,
            num,
            until,
        )

    def keys(self, tx: Reader, names: Iterable[str]) -> dict[str, int]:
        """Numbers of those keys that exist, by name."""
        digests = {_key_digest(name): name for name in names}
        numbers: dict[str, int] = {}
        for part in chunks(list(digests), 500):
            marks = ", ".join("?" * len(part))
            for row in tx.all(
                f"SELECT digest, id FROM tracking_keys WHERE project = ? AND digest IN ({marks})",
                self._project,
                *part,
            ):
                numbers[digests[row["digest"]]] = int(row["id"])
        return numbers

    def ensure_keys(self, tx: Writer, names: Iterable[str]) -> dict[str, int]:
        """Numbers of all these keys, by name; new ones are inserted."""
        # Every writer locks in the same order: two batches cannot deadlock on PostgreSQL.
        names = sorted(set(names))
        numbers = self.keys(tx, names)
        missing = [n for n in names if n not in numbers]
        for name in missing:
            tx.execute(
                "INSERT INTO tracking_keys (id, project, digest, name) VALUES (?, ?, ?, ?) ON CONFLICT (project, digest) DO NOTHING",
                next_number(tx, "key"), self._project, _key_digest(name), name,
            )  # fmt: skip
        return numbers | self.keys(tx, missing)

    def store_texts(
        self, tx: Writer, table: Literal["run_params", "run_tags"], num: int, texts: dict[str, str]
    ) -> None:
        if not texts:
            return
        keys = self.ensure_keys(tx, texts)
        if table == "run_tags":
            sql = "INSERT INTO run_tags (project, run, key, head, value) VALUES (?, ?, ?, ?, ?) ON CONFLICT (run, key) DO UPDATE SET head = excluded.head, value = excluded.value"
            tx.many(sql, [(self._project, num, keys[k], v[:HEAD], v) for k, v in texts.items()])
            return
        # DO NOTHING, then a comparison: a param that is there keeps its value, and the same value again is no error.
        sql = "INSERT INTO run_params (project, run, key, head, value) VALUES (?, ?, ?, ?, ?) ON CONFLICT (run, key) DO NOTHING"
        tx.many(sql, [(self._project, num, keys[k], v[:HEAD], v) for k, v in texts.items()])
        for part in chunks(list(texts), 500):
            marks = ", ".join("?" * len(part))
            rows = tx.all(
                f"SELECT key, value FROM run_params WHERE run = ? AND key IN ({marks})",
                num,
                *[keys[k] for k in part],
            )
            stored = {int(row["key"]): row["value"] for row in rows}
            for name in part:
                if stored[keys[name]] != texts[name]:
                    raise Conflict(
                        f"param {name!r} is {stored[keys[name]][:100]!r} already",
                        value=texts[name],
                        next_step="A param keeps its first value: log a tag, or start another run.",
                    )

    def store_points(self, tx: Writer, num: int, seq: int, metrics: list[Point]) -> None:
        """Store the points of one batch: a packed block for each key, and the latest value where a point is newer."""
        series: dict[str, list[history.Sample]] = {}
        for point in metrics:
            number = point.number
            series.setdefault(point.key, []).append(history.Sample(point.step, point.time_us, number))
        check_texts(dict.fromkeys(series, ""), "metric")
        keys = self.ensure_keys(tx, series)
        blocks, latest = [], []
        now = time.time_ns() // 1000
        for name, samples in series.items():
            samples.sort(key=lambda s: (s.step, s.time_us))
            blocks.append(
                (
                    self._project,
                    num,
                    keys[name],
                    seq,
                    samples[0].step,
                    samples[-1].step,
                    len(samples),
                    now,
                    history.pack(samples),
                )
            )
            value, special = encode_float(samples[-1].number)
            latest.append(
                (num, keys[name], samples[-1].step, samples[-1].time_us, value, special, self._project)
            )
        tx.many(
            "INSERT INTO run_points (project, run, key, seq, first_step, last_step, points, arrived_us, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            blocks,
        )
        # The latest value by step, then time; of two points with both equal the one that arrived later.
        tx.many(
            "INSERT INTO run_metrics (run, key, step, time_us, value, special, project) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (run, key) DO UPDATE SET step = excluded.step, time_us = excluded.time_us, value = excluded.value, special = excluded.special"
            " WHERE excluded.step > run_metrics.step OR (excluded.step = run_metrics.step AND excluded.time_us >= run_metrics.time_us)",
            latest,
        )

    def compact(self, tx: Writer, num: int, *, block: int = 4096, most: int = 500_000) -> None:
        """Merge many small blocks of a key into few of ``block`` points; a long run that logged one point at a time has thousands.

        A key with more than ``most`` points is left as it is, since its points are merged in memory.
        """
        rows = tx.all(
            "SELECT key FROM run_points WHERE run = ? GROUP BY key HAVING count(*) > 8 AND sum(points) <= ?",
            num,
            most,
        )
        for key in (int(row["key"]) for row in rows):
            old = blocks_of(tx, num, key)
            if len(old) <= 2 * sum(b.points for b in old) // block:
                continue
            stored = tx.all(
                "SELECT seq, data, arrived_us FROM run_points WHERE run = ? AND key = ?", num, key
            )
            data = {int(r["seq"]): bytes(r["data"]) for r in stored}
            samples = list(history.merge_blocks(old, data.__getitem__))
            tx.execute("DELETE FROM run_points WHERE run = ? AND key = ?", num, key)
            arrived = max(int(r["arrived_us"]) for r in stored)
            rebuilt = []
            for seq, part in zip(sorted(data), chunks(samples, block), strict=False):
                rebuilt.append(
                    (
                        self._project,
                        num,
                        key,
                        seq,
                        part[0].step,
                        part[-1].step,
                        len(part),
                        arrived,
                        history.pack(part),
                    )
                )
            tx.many(
                "INSERT INTO run_points (project, run, key, seq, first_step, last_step, points, arrived_us, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rebuilt,
            )

    def read_run(self, tx: Reader, run: str) -> Run:
        row = tx.first("SELECT * FROM runs WHERE id = ? AND project = ?", run, self._project)
        if row is None:
            raise NotFound(
                "this run does not exist", value=run, next_step="'mainspring runs list' shows those that do."
            )
        return self.load_records(tx, [row], now=time.time_ns() // 1000, metrics=None)[0]

    def load_records(self, tx: Reader, rows: list[Row], *, now: int, metrics: list[str] | None) -> list[Run]:
        """Run records with what they logged, with the same few queries for a page of any length."""
        nums = [int(row["num"]) for row in rows]
        marks = ", ".join("?" * len(nums)) or "NULL"
        only, values = "", []
        if metrics is not None:
            wanted = list(self.keys(tx, metrics).values())
            only, values = f" AND m.key IN ({', '.join('?' * len(wanted)) or 'NULL'})", wanted
        metric_rows = tx.all(f"SELECT m.* FROM run_metrics m WHERE m.run IN ({marks}){only}", *nums, *values)
        texts = {
            table: tx.all(f"SELECT m.* FROM {table} m WHERE m.run IN ({marks})", *nums)
            for table in ("run_params", "run_tags")
        }
        names = self.read_names(
            tx, {int(r["key"]) for r in [*metric_rows, *texts["run_params"], *texts["run_tags"]]}
        )
        latest: dict[int, dict[str, Metric]] = {n: {} for n in nums}
        for row in metric_rows:
            sample = history.Sample(
                int(row["step"]), int(row["time_us"]), decode_float(row["value"], row["special"])
            )
            latest[int(row["run"])][names[int(row["key"])]] = history.metric_of(sample)
        texts_of: dict[str, dict[int, dict[str, str]]] = {}
        for table, text_rows in texts.items():
            texts_of[table] = {n: {} for n in nums}
            for row in text_rows:
                texts_of[table][int(row["run"])][names[int(row["key"])]] = row["value"]
        experiments = self.read_experiments(tx, {row["experiment"] for row in rows})
        return [
            _run_of(
                row,
                now=now,
                experiment=experiments[row["experiment"]],
                metrics=latest[n],
                params=texts_of["run_params"][n],
                tags=texts_of["run_tags"][n],
            )
            for row, n in zip(rows, nums, strict=True)
        ]

    def read_experiments(self, tx: Reader, idents: set[str]) -> dict[str, Row]:
        """Name and time of deletion of experiments, by id."""
        rows: dict[str, Row] = {}
        for part in chunks(sorted(idents), 500):
            marks = ", ".join("?" * len(part))
            for row in tx.all(f"SELECT id, name, deleted_us FROM experiments WHERE id IN ({marks})", *part):
                rows[row["id"]] = row
        return rows

    def read_names(self, tx: Reader, keys: set[int]) -> dict[int, str]:
        names: dict[int, str] = {}
        for part in chunks(sorted(keys), 500):
            for row in tx.all(
                f"SELECT id, name FROM tracking_keys WHERE id IN ({', '.join('?' * len(part))})", *part
            ):
                names[int(row["id"])] = row["name"]
        return names


def blocks_of(tx: Reader, num: int, key: int) -> list[history.BlockInfo]:
    rows = tx.all(
        "SELECT first_step, last_step, seq, points FROM run_points WHERE run = ? AND key = ? ORDER BY first_step, seq",
        num,
        key,
    )
    return [
        history.BlockInfo(int(r["first_step"]), int(r["last_step"]), int(r["seq"]), int(r["points"]))
        for r in rows
    ]


def next_number(tx: Writer, counter: str) -> int:
    """The next number of a counter. The counter's row stays locked until the commit on PostgreSQL."""
    rows = tx.all(
        "INSERT INTO tracking_counters (name, value) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = tracking_counters.value + 1 RETURNING value",
        counter,
    )
    return int(rows[0]["value"])


def _key_digest(name: str) -> str:
    return blake3.blake3(name.encode("utf-8", "surrogatepass")).hexdigest()


def chunks(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def alive_until(alive_s: float | None) -> int | None:
    """``alive_s`` seconds from now, in microseconds of machine time. Raises :class:`InvalidInput` outside (0, 86400]."""
    if alive_s is None:
        return None
    if not 0 < alive_s <= 86_400:
        raise InvalidInput("alive_s must be above 0 and at most 86,400 seconds", value=alive_s)
    return time.time_ns() // 1000 + int(alive_s * 1e6)


def check_texts(texts: dict[str, str], what: str) -> None:
    """Check keys and values: any text that both engines can store, so no NUL and no lone surrogates. Raises :class:`InvalidInput`."""
    for key, value in texts.items():
        if not key:
            raise InvalidInput(f"a {what} has an empty name", value=value)
        for text in (key, value):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise InvalidInput(f"a {what} holds a lone surrogate", value=key) from None
            if "\x00" in text:
                raise InvalidInput(f"a {what} holds a NUL character", value=key)


def _run_of(
    row: Row,
    *,
    now: int,
    experiment: Row,
    metrics: dict[str, Metric],
    params: dict[str, str],
    tags: dict[str, str],
) -> Run:
    crashed = row["status"] == "running" and row["alive_until_us"] is not None and row["alive_until_us"] < now
    return Run(
        id=row["id"],
        experiment=experiment["name"],
        experiment_id=row["experiment"],
        name=row["name"],
        status=RunStatus.CRASHED if crashed else RunStatus(row["status"]),
        started_at=from_us(row["started_us"]),
        ended_at=None if row["ended_us"] is None else from_us(row["ended_us"]),
        created_at=from_us(row["created_us"]),
        created_by=row["created_by"],
        parent=row["parent"],
        code=row["code"],
        environment=row["environment"],
        source=from_json(row["source"], dict[str, Any]),
        deleted=row["deleted_us"] is not None or experiment["deleted_us"] is not None,
        metrics=dict(sorted(metrics.items())),
        params=dict(sorted(params.items())),
        tags=dict(sorted(tags.items())),
    )
