"""Runs: what was tried, with what, and what came out."""

from __future__ import annotations

import time
from typing import Any, Literal

import blake3

from mainspring.clock import to_us
from mainspring.errors import InvalidInput, NotFound, near
from mainspring.lineage import Foundation
from mainspring.operations import MIB, Download, Kind, Role, current, operation
from mainspring.records.base import Id, check_name, from_json, new_id, to_json
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref
from mainspring.records.tracking import (
    BatchResult,
    CaptureResult,
    CodeState,
    EnvironmentState,
    HistoryPage,
    Metric,
    Point,
    Run,
    RunPage,
)
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.sql import Reader
from mainspring.tracking import history
from mainspring.tracking.artifacts import Artifacts
from mainspring.tracking.experiments import (
    Experiments,
    View,
    experiment_condition,
    experiment_of_new_run,
    view_conditions,
)
from mainspring.tracking.filters import Both, Compare, Node, parse
from mainspring.tracking.order import Query, parse_order
from mainspring.tracking.rows import Tables, alive_until, blocks_of, check_texts, next_number
from mainspring.tracking.search import FEW, Compiler, names_in

declare("tracking.batch_marked", "tracking.batch_stored")

MAX_POINTS = 50_000
"""Points in one batch."""

_US_MIN, _US_MAX = -62_135_596_800_000_000, 253_402_300_799_999_999  # the years 1 to 9999

_ENDED: dict[Literal["finished", "failed", "killed"], EventKind] = {
    "finished": EventKind.RUN_FINISHED,
    "failed": EventKind.RUN_FAILED,
    "killed": EventKind.RUN_KILLED,
}


class Tracking(Experiments, Artifacts):
    """Experiments and runs of one project: their params, metrics, tags and artifacts."""

    room = "tracking"

    def __init__(self, base: Foundation) -> None:
        self._base = base
        self._tables = Tables(base.project)

    # --- writing -------------------------------------------------------------------------------------------------------

    @operation(role=Role.EDITOR, changes=True)
    def create_run(
        self,
        *,
        experiment: str | None = None,
        experiment_id: Id | None = None,
        name: str = "",
        id: Id | None = None,  # noqa: A002 - the parameter is called id on the wire
        parent: str | None = None,
        params: dict[str, str] = {},  # noqa: B006
        tags: dict[str, str] = {},  # noqa: B006
        started_us: int | None = None,
        alive_s: float | None = None,
        source: dict[str, Any] = {},  # noqa: B006
    ) -> Run:
        """Start a run. With ``id`` (a UUIDv7 of the caller) it happens once: a second call returns the run as it is.

        Its experiment is named by ``experiment`` (its name, "default" by default; made if there is none) or by ``experiment_id``.
        ``alive_s``: the caller will send :meth:`heartbeat` at least this often (seconds), else the run shows as crashed.
        ``parent`` is a run or pipeline run.
        """
        check_texts(params, "param")
        check_texts(tags, "tag")
        check_texts({"name": name}, "run")
        run, now = id or new_id(), to_us(self._base.clock.now())
        started = now if started_us is None else min(max(started_us, _US_MIN), _US_MAX)
        call = current()
        with self._base.ledger.decision() as d:
            if d.tx.first("SELECT id FROM runs WHERE id = ? AND project = ?", run, self._base.project):
                return d.done(self._tables.read_run(d.tx, run))
            group = experiment_of_new_run(
                d, self._base, name=experiment, ident=experiment_id, started_us=started
            )
            made = d.tx.execute(
                "INSERT INTO runs (id, project, num, experiment, name, status, started_us, created_us, alive_until_us, parent, created_by, source, batches)"
                " VALUES (?, ?, ?, ?, ?, 'running', ?, ?, ?, ?, ?, ?, 0) ON CONFLICT (id) DO NOTHING",
                run, self._base.project, next_number(d.tx, "run"), group["id"], name or run[-12:], started, now, alive_until(alive_s), parent,
                call.actor if call else "local", to_json(source).decode(),
            )  # fmt: skip
            if made:
                num = self._tables.num(d.tx, run)
                self._tables.store_texts(d.tx, "run_params", num, params)
                self._tables.store_texts(d.tx, "run_tags", num, tags)
                d.event(EventKind.RUN_STARTED, ref("run", run), {"experiment": group["name"], "name": name})
                if parent is not None:
                    d.edge(ref("run", parent), ref("run", run), "parent")
            return d.done(self._tables.read_run(d.tx, run))

    @operation(role=Role.EDITOR, changes=True, max_body=16 * MIB)
    def log_batch(
        self,
        run: Id,
        *,
        batch_id: str,
        metrics: list[Point] = [],  # noqa: B006
        params: dict[str, str] = {},  # noqa: B006
        tags: dict[str, str] = {},  # noqa: B006
        alive_s: float | None = None,
    ) -> BatchResult:
        """Store points, params and tags, all or none, once per ``batch_id``.

        Raises :class:`Conflict` if a param has another value already (a param says what was tried, so it never changes).
        """
        if not batch_id or len(batch_id) > 200:
            raise InvalidInput("a batch id has 1 to 200 characters", value=batch_id)
        if len(metrics) > MAX_POINTS:
            raise InvalidInput(
                f"a batch has at most {MAX_POINTS} points",
                value=len(metrics),
                next_step="Send several batches.",
            )
        check_texts(params, "param")
        check_texts(tags, "tag")
        with self._base.ledger.decision() as d:
            tx = d.tx
            num = self._tables.num(tx, run)
            # The batch id is inserted in the transaction that stores the data: a batch that is sent again finds it there.
            marked = tx.execute(
                "INSERT INTO run_batches (project, run, batch) VALUES (?, ?, ?) ON CONFLICT (run, batch) DO NOTHING",
                self._base.project,
                num,
                batch_id,
            )
            if not marked:
                return d.done(BatchResult(stored=False, points=0))
            failpoint("tracking.batch_marked")
            seq = int(
                tx.all("UPDATE runs SET batches = batches + 1 WHERE num = ? RETURNING batches", num)[0][
                    "batches"
                ]
            )
            if alive_s is not None:
                self._tables.extend_life(tx, num, alive_s)
            self._tables.store_texts(tx, "run_params", num, params)
            self._tables.store_texts(tx, "run_tags", num, tags)
            if metrics:
                self._tables.store_points(tx, num, seq, metrics)
            failpoint("tracking.batch_stored")
            return d.done(BatchResult(stored=True, points=len(metrics)))

    @operation(role=Role.EDITOR, changes=True)
    def heartbeat(self, run: Id, *, alive_s: float) -> None:
        """Report that the run's process is alive, and will report again within ``alive_s`` seconds."""
        with self._base.ledger.decision() as d:
            self._tables.extend_life(d.tx, self._tables.num(d.tx, run), alive_s)
            d.done(None)

    @operation(role=Role.EDITOR, changes=True)
    def finish_run(
        self,
        run: Id,
        *,
        status: Literal["finished", "failed", "killed"] = "finished",
        ended_us: int | None = None,
    ) -> Run:
        """End the run. Data that arrives later is stored all the same; ending it again with the same status changes nothing."""
        ended = to_us(self._base.clock.now()) if ended_us is None else min(max(ended_us, _US_MIN), _US_MAX)
        with self._base.ledger.decision() as d:
            num = self._tables.num(d.tx, run)
            changed = d.tx.execute(
                "UPDATE runs SET status = ?, ended_us = ?, alive_until_us = NULL WHERE num = ? AND (status <> ? OR ended_us IS NULL)",
                status,
                ended,
                num,
                status,
            )
            if changed:
                self._tables.compact(d.tx, num)
                d.event(_ENDED[status], ref("run", run))
            return d.done(self._tables.read_run(d.tx, run))

    @operation(role=Role.EDITOR, changes=True)
    def resume_run(self, run: Id, *, alive_s: float | None = None) -> Run:
        """Open an ended run again, to log more."""
        with self._base.ledger.decision() as d:
            num = self._tables.num(d.tx, run)
            d.tx.execute(
                "UPDATE runs SET status = 'running', ended_us = NULL, alive_until_us = ? WHERE num = ?",
                alive_until(alive_s),
                num,
            )
            d.event(EventKind.RUN_RESUMED, ref("run", run))
            return d.done(self._tables.read_run(d.tx, run))

    @operation(role=Role.EDITOR, changes=True)
    def set_tags(self, run: Id, *, tags: dict[str, str], remove: list[str] = []) -> Run:  # noqa: B006
        """Set and remove tags."""
        check_texts(tags, "tag")
        with self._base.ledger.decision() as d:
            num = self._tables.num(d.tx, run)
            self._tables.store_texts(d.tx, "run_tags", num, tags)
            for key in self._tables.keys(d.tx, remove).values():
                d.tx.execute("DELETE FROM run_tags WHERE run = ? AND key = ?", num, key)
            d.event(EventKind.RUN_TAGGED, ref("run", run), {"set": sorted(tags)[:50], "removed": remove[:50]})
            return d.done(self._tables.read_run(d.tx, run))

    @operation(role=Role.EDITOR, changes=True)
    def log_inputs(self, run: Id, *, inputs: list[str], kind: str = "input") -> None:
        """Record that the run used these things (references, e.g. ``dataset_version:<id>``): edges from each to the run."""
        check_name(kind, what="edge kind")
        for reference in inputs:
            if ":" not in reference or len(reference) > 500:
                raise InvalidInput(
                    "not a reference",
                    value=reference,
                    next_step="References look like 'dataset_version:<id>'.",
                )
        with self._base.ledger.decision() as d:
            self._tables.num(d.tx, run)
            for reference in inputs:
                d.edge(reference, ref("run", run), kind)
            d.event(EventKind.RUN_USED, ref("run", run), {"inputs": inputs[:100]})
            d.done(None)

    @operation(role=Role.EDITOR, changes=True, max_body=8 * MIB)
    def record_capture(
        self,
        run: Id,
        *,
        code: CodeState | None = None,
        environment: EnvironmentState | None = None,
        source: dict[str, Any] = {},  # noqa: B006
        files: dict[str, bytes] = {},  # noqa: B006
    ) -> CaptureResult:
        """Keep what code and environment the run had: as objects, with edges ``code:<digest>`` and ``environment:<digest>`` → run.

        ``files``: the bytes of source files that ``code.files`` names by their digests.
        """
        named = {f.path: f.digest for f in code.files} if code is not None else {}
        for path, data in files.items():
            if named.get(path) != blake3.blake3(data).hexdigest():
                raise InvalidInput("the code record does not name this file with this digest", value=path)
        for path in sorted(n for n, digest in named.items() if digest is not None and n not in files):
            raise InvalidInput("the code record names a file that was not sent", value=path)
        documents = {"code": code, "environment": environment}
        digests: dict[str, str | None] = {"code": None, "environment": None}
        with self._base.objects.writing() as writer:
            for kind, document in documents.items():
                if document is not None:
                    digests[kind] = writer.put(to_json(document)).digest
            kept = [writer.put(data).digest for data in files.values()]
            writer.flush()
            with self._base.ledger.decision() as d:
                num = self._tables.num(d.tx, run)
                for kind, digest in digests.items():
                    if digest is not None:
                        d.tx.execute(f"UPDATE runs SET {kind} = ? WHERE num = ?", digest, num)
                        d.refer(digest, ref("run", run))
                        d.edge(ref(kind, digest), ref("run", run), kind)
                for digest in kept:
                    d.refer(digest, ref("run", run))
                if source:
                    known: dict[str, Any] = from_json(
                        d.tx.all("SELECT source FROM runs WHERE num = ?", num)[0]["source"], dict[str, Any]
                    )
                    d.tx.execute(
                        "UPDATE runs SET source = ? WHERE num = ?", to_json(known | source).decode(), num
                    )
                d.event(EventKind.RUN_CAPTURED, ref("run", run), {k: v for k, v in digests.items() if v})
                return d.done(CaptureResult(code=digests["code"], environment=digests["environment"]))

    @operation(role=Role.VIEWER)
    def get_code(self, run: Id) -> CodeState:
        """What code the run had: the Git commit and what differed from it, and the source files that are kept with it."""
        with self._base.store.read() as tx:
            digest = self._tables.read_run(tx, run).code
        if digest is None:
            raise NotFound("no code was captured for this run", value=run)
        return from_json(self._base.objects.read(digest), CodeState)

    @operation(role=Role.VIEWER, kind=Kind.DOWNLOAD)
    def download_code(self, run: Id, path: str) -> Download:
        """The bytes of a source file that is kept with the run, verified as they are read."""
        files = {f.path: f for f in self.get_code(run=run).files}
        if path not in files:
            raise NotFound(
                "the run keeps no such source file",
                value=path,
                place=f"run {run}",
                next_step=near(path, files, what="file"),
            )
        file = files[path]
        if file.digest is None:
            raise NotFound(f"this source file was not kept: {file.skipped}", value=path, place=f"run {run}")
        return Download(
            chunks=self._base.objects.chunks(file.digest),
            media_type="text/x-python; charset=utf-8" if path.endswith(".py") else "application/octet-stream",
            name=path.rpartition("/")[2],
            size=file.size,
        )

    @operation(role=Role.EDITOR, changes=True)
    def delete_run(self, run: Id) -> Run:
        """Hide a run; nothing is lost, :meth:`restore_run` brings it back."""
        with self._base.store.freeing():
            return self._set_deleted_run(run, to_us(self._base.clock.now()), EventKind.RUN_DELETED)

    @operation(role=Role.EDITOR, changes=True)
    def restore_run(self, run: Id) -> Run:
        """Bring a deleted run back."""
        return self._set_deleted_run(run, None, EventKind.RUN_RESTORED)

    # --- reading -------------------------------------------------------------------------------------------------------

    @operation(role=Role.VIEWER)
    def get_run(self, run: Id) -> Run:
        """One run with its latest metrics, params and tags."""
        with self._base.store.read() as tx:
            return self._tables.read_run(tx, run)

    @operation(role=Role.VIEWER)
    def search_runs(
        self,
        *,
        filter: str = "",  # noqa: A002 - the word every user knows
        order_by: list[str] = [],  # noqa: B006
        experiments: list[str] = [],  # noqa: B006
        experiment_ids: list[str] = [],  # noqa: B006
        view: View = "active",
        metrics: list[str] | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> RunPage:
        """Find runs (the language: ``tracking/filters.py``), newest first unless ``order_by`` says otherwise.

        ``order_by`` names up to 8 keys, the first of them first: ``["metrics.loss", "-params.depth", "-started"]``. ``-`` or ``DESC`` reverses
        a key. Numbers sort as numbers, texts (params and tags always are) by the code points of their first 200 characters;
        runs without the value, or with NaN, come last both ways. ``experiments`` are names, ``experiment_ids`` ids: runs of any of them.
        Runs of a deleted experiment count as deleted.
        ``metrics`` names the metrics to return with each run (None: all). Pages are stable: a run is never shown twice or skipped because
        others were added meanwhile.
        """
        if not 1 <= limit <= 1000:
            raise InvalidInput("limit must be 1 to 1000", value=limit)
        node, order = parse(filter), parse_order(order_by)
        now, project = time.time_ns() // 1000, self._base.project
        with self._base.store.read() as tx:
            keys = self._tables.keys(tx, names_in(node) | order.names())
            compiler = Compiler(engine=self._base.store.engine.name, project=project, keys=keys, now_us=now)
            conditions = [compiler.compile(node)] if node is not None else []
            conditions += view_conditions(tx, project, view)
            if experiments or experiment_ids:
                conditions.append(experiment_condition(tx, project, experiments, experiment_ids))
            query = Query(project, order, tuple(conditions), _few_matching(tx, compiler, node))
            rows, following = query.run(tx, compiler, keys, after=after, limit=limit)
            return RunPage(
                items=self._tables.load_records(tx, rows, now=now, metrics=metrics), next=following
            )

    @operation(role=Role.VIEWER)
    def get_metric_history(
        self, run: Id, key: str, *, after: str | None = None, limit: int = 1000, thin_to: int | None = None
    ) -> HistoryPage:
        """Points of a metric by step, then time; all of them, page by page, or with ``thin_to`` about that many that keep the
        shape (lowest, highest and first NaN or infinity of each stretch)."""
        if not 1 <= limit <= 100_000 or (thin_to is not None and not 10 <= thin_to <= 100_000):
            raise InvalidInput(
                "limit must be 1 to 100,000, thin_to 10 to 100,000",
                value=limit if thin_to is None else thin_to,
            )
        with self._base.store.read() as tx:
            num = self._tables.num(tx, run)
            number = self._tables.keys(tx, [key]).get(key, -1)

            def load(seq: int) -> bytes:
                return bytes(
                    tx.scalar(
                        "SELECT data FROM run_points WHERE run = ? AND key = ? AND seq = ?", num, number, seq
                    )
                )

            blocks = blocks_of(tx, num, number)
            total = sum(b.points for b in blocks)
            if thin_to is not None:
                kept = history.thin_samples(history.merge_blocks(blocks, load), total=total, keep=thin_to)
                return HistoryPage(key=key, total=total, items=[history.metric_of(s) for s in kept])
            step, skip = _history_mark(after)
            ahead = [b for b in blocks if step is None or b.last_step >= step]
            items: list[Metric] = []
            seen_at_step = 0
            last_step: int | None = step
            skipped = 0
            for sample in history.merge_blocks(ahead, load, from_step=step):
                if sample.step == step and skipped < skip:
                    skipped += 1
                    continue
                if len(items) == limit:
                    before = skip if last_step == step else 0
                    return HistoryPage(
                        key=key, total=total, items=items, next=f"{last_step}:{before + seen_at_step}"
                    )
                seen_at_step = seen_at_step + 1 if sample.step == last_step else 1
                last_step = sample.step
                items.append(history.metric_of(sample))
        return HistoryPage(key=key, total=total, items=items)

    # --- helpers -------------------------------------------------------------------------------------------------------

    def _set_deleted_run(self, run: str, deleted_us: int | None, event: EventKind) -> Run:
        with self._base.ledger.decision() as d:
            num = self._tables.num(d.tx, run)
            missing = "IS NULL" if deleted_us is not None else "IS NOT NULL"
            if d.tx.execute(
                f"UPDATE runs SET deleted_us = ? WHERE num = ? AND deleted_us {missing}", deleted_us, num
            ):
                d.event(event, ref("run", run))
            return d.done(self._tables.read_run(d.tx, run))


def _few_matching(tx: Reader, compiler: Compiler, node: Node | None) -> tuple[int, ...] | None:
    """Numbers of the only runs that can match, if few runs meet one of the conditions that must all hold; else None."""
    clauses = node.parts if isinstance(node, Both) else (node,)
    few: set[int] | None = None
    for clause in clauses:
        sql = compiler.driver(clause) if isinstance(clause, Compare) else None
        if sql is not None:
            nums = [int(row["num"]) for row in tx.all(sql.text, *sql.values)]
            if len(nums) <= FEW:
                few = set(nums) if few is None else few & set(nums)
    return None if few is None else tuple(sorted(few))


def _history_mark(after: str | None) -> tuple[int | None, int]:
    if after is None:
        return None, 0
    step, _, skip = after.rpartition(":")
    try:
        return int(step), int(skip)
    except ValueError:
        raise InvalidInput(
            "not a page mark", value=after, place="after", next_step="Pass 'next' of the page before."
        ) from None
