"""The room on real journals and databases: ingestion, windows, findings, alerts, performance, questions."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
import pytest

from mainspring.clock import to_us
from mainspring.errors import NotFound
from mainspring.monitoring import Monitoring
from mainspring.monitoring import rows as prediction_rows
from mainspring.records.base import new_id, to_json
from mainspring.records.models import Task
from mainspring.records.monitoring import IngestReport, Verdict
from mainspring.records.serving import LOG_PREFIX, LoggedPrediction
from mainspring.storage import failpoints
from mainspring.storage.journal import JournalReader


def report_of(world: Any, day: int = 0) -> Any:
    return world.monitoring.list_windows(deployment="delay", newest_first=False)[day].report


def verdicts(report: Any) -> dict[str, str]:
    return {c.column: c.verdict.value for c in report.drift.columns}


def kinds(found: list[Any]) -> set[tuple[str, str, str]]:
    return {(f.kind, f.subject, f.code) for f in found}


# --- ingestion --------------------------------------------------------------------------------------------------------


def test_ingest_is_exactly_once(world: Any) -> None:
    world.send(0, 50)
    first = world.monitoring.ingest()
    assert (first.requests, first.rows, first.duplicates) == (50, 50, 0)
    assert world.monitoring.ingest().requests == 0
    world.send(0, 10)
    assert world.monitoring.ingest(limit=4).more
    assert world.monitoring.ingest().requests == 6
    assert world.monitoring.get_counts(deployment="delay").rows == 60


def test_m11_a_replayed_batch_changes_nothing(world: Any) -> None:
    """M11: the same log read again from its beginning. Seen red with the look-up of known requests removed
    (IntegrityError)."""
    world.send(0, 30)
    world.monitoring.ingest()
    before = world.monitoring.list_windows(deployment="delay")
    with world.base.store.write() as tx:
        tx.execute("UPDATE log_cursors SET cursor = '' WHERE project = ?", world.base.project)
    again = world.monitoring.ingest()
    assert (again.requests, again.duplicates) == (0, 30)
    assert world.monitoring.list_windows(deployment="delay") == before


def test_m11_a_record_sent_twice_counts_once(world: Any) -> None:
    record = LoggedPrediction(
        id=new_id(),
        deployment="delay",
        model="delay",
        version=1,
        role="champion",
        event_us=to_us(world.clock.now()),
        arrival_us=1,
        latency_us=1,
        scores=[0.5],
    )
    world.log(record)
    world.log(record)
    got = world.monitoring.ingest()
    assert (got.requests, got.duplicates) == (1, 1)


def test_m12_torn_and_undecodable_records_are_counted(world: Any) -> None:
    """M12: good records on both sides of damage are used. Seen red with the decode guard removed (ingest raised)."""
    world.send(0, 5)
    for payload in (b"p\xc1", b"p" + b"\x80", b"z whatever", b"", b"s\x00"):
        world.writer.append(payload)
    world.send(0, 3)
    world.writer.close()
    (segment,) = world.folder.glob(f"{LOG_PREFIX}-*.seg")
    os.truncate(segment, segment.stat().st_size - 7)
    got = world.monitoring.ingest()
    assert (got.requests, got.bad, got.torn) == (7, 5, 1)
    assert world.monitoring.get_counts().ingest["bad"] == 5


def test_m09_a_kill_during_ingest_or_evaluate_loses_and_repeats_nothing(world: Any, tmp_path: Any) -> None:
    """M09: SIGKILL at every failpoint of the room, then once more; the outcome is the one of an undisturbed run.

    Seen red with the rows stored in a second transaction, after the one with the cursor.
    """
    for day in range(2):
        world.send(day, 130, shift=40 * day)
    world.to_day(2)
    for point in (
        "monitoring.ingested",
        "monitoring.window.closed",
        "monitoring.evaluated",
        "sql.before_commit",
        "sql.after_commit",
    ):
        assert _killed(world, point) == -9
    assert _killed(world, "none") == 0
    assert world.monitoring.get_counts(deployment="delay").rows == 260
    assert [w.revision for w in world.monitoring.list_windows(deployment="delay")] == [1, 1]
    # The child knows no model registry, so what it judges is quality and errors; traffic is counted once.
    assert sum(w.requests for w in world.monitoring.list_windows(deployment="delay")) == 260


def _killed(world: Any, point: str) -> int:
    program = f"""
import sys
from pathlib import Path
from datetime import datetime
from mainspring.clock import ManualClock
from mainspring.lineage import Foundation, Ledger
from mainspring.monitoring import Monitoring
from mainspring.storage.leases import Leases
from mainspring.storage.objects import open_objects
from mainspring.storage.sql import open_store
home = Path({str(world.base.home)!r})
store = open_store("sqlite", home=home)
clock = ManualClock(datetime.fromisoformat({world.clock.now().isoformat()!r}))
leases = Leases(store)
base = Foundation(project="default", home=home, store=store, objects=open_objects("local", home=home, leases=leases),
                  ledger=Ledger(store, project="default", clock=clock), leases=leases, clock=clock)
room = Monitoring(base)
room.ingest()
room.evaluate_windows()
"""
    environment = {**os.environ, "MAINSPRING_FAILPOINTS": f"{point}:kill"}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, check=False, timeout=60
    ).returncode


def test_m09_evaluating_again_gives_one_alert_and_the_same_report(world: Any) -> None:
    """M09: a failure just before the commit, then again. Seen red with the window left open after it was judged."""
    world.send(0, 300, shift=30)
    world.to_day(1)
    world.monitoring.ingest()
    failpoints.arm("monitoring.evaluated:raise")
    try:
        with pytest.raises(RuntimeError, match="failpoint"):
            world.monitoring.evaluate_windows()
    finally:
        failpoints.arm("")
    assert world.monitoring.list_alerts(deployment="delay") == []
    assert len(world.monitoring.evaluate_windows().opened) == 2
    first = report_of(world)
    assert world.monitoring.evaluate_windows().closed == []
    assert report_of(world) == first
    alerts = world.monitoring.list_alerts(deployment="delay")
    assert {(a.kind, a.subject) for a in alerts} == {("drift", "temperature"), ("quality", "temperature")}
    assert len(alerts) == 2


def test_m08_a_wrong_clock_cannot_open_windows_in_the_future(world: Any) -> None:
    """M08: a year ahead is taken as now and counted, the time as sent is kept. Seen red with the clamp removed."""
    world.send(365, 3)
    got = world.monitoring.ingest()
    assert got.clamped == 3
    (window,) = world.monitoring.list_windows(deployment="delay")
    assert window.start <= world.clock.now() < window.end
    with world.base.store.read() as tx:
        assert tx.scalar("SELECT max(event_us) AS m FROM predictions") > to_us(
            world.clock.now() + timedelta(days=364)
        )


def test_late_rows_revise_a_closed_window(world: Any) -> None:
    world.send(0, 120)
    assert len(world.turn(1).closed) == 1
    world.send(0, 30)
    assert len(world.turn(1.5).revised) == 1
    (window,) = world.monitoring.list_windows(deployment="delay")
    assert (window.rows, window.revision) == (150, 2)
    assert window.report.drift.rows == 150


def test_finished_segments_are_kept_as_objects_and_still_answer(world: Any) -> None:
    ids = world.send(0, 20)
    world.writer.rotate()
    world.monitoring.ingest()
    assert JournalReader(world.folder, LOG_PREFIX).segments() == []
    found = world.monitoring.get_prediction(id=ids[7])
    assert set(found.inputs) == {"temperature", "distance", "hour", "carrier"}
    live = world.send(0, 2)
    world.monitoring.ingest()
    assert world.monitoring.get_prediction(id=live[0]).inputs is not None
    with world.base.store.read() as tx:
        assert tx.scalar("SELECT count(*) AS n FROM object_refs WHERE owner LIKE 'log_segment:%'") == 1


# --- drift and quality: nothing raises on data ------------------------------------------------------------------------


def test_no_change_no_alert(world: Any) -> None:
    for day in range(10):
        world.send(day)
        assert world.turn(day + 1).opened == []
    assert set(verdicts(report_of(world, 9)).values()) == {"ok"}
    assert world.monitoring.list_findings(deployment="delay", severity="warning") == []


def test_a_shift_is_found_alerted_once_and_resolved(world: Any) -> None:
    for day in range(8):
        world.send(day, 200, shift=8 if 2 <= day < 5 else 0)
        world.turn(day + 1)
    (alert,) = world.monitoring.list_alerts(deployment="delay")
    assert (alert.kind, alert.subject, alert.hits) == ("drift", "temperature", 3)
    assert alert.resolved_at is not None
    assert alert.opened_at == world.monitoring.list_windows(deployment="delay", newest_first=False)[2].end
    drift = world.monitoring.list_drift(
        window=world.monitoring.list_windows(deployment="delay", newest_first=False)[3].id
    )
    assert drift.columns[0].column == "temperature"
    assert [v for c, v in verdicts(report_of(world, 3)).items() if c != "temperature"] == ["ok"] * 3
    with world.base.store.read() as tx:
        events = [r["kind"] for r in tx.all("SELECT kind FROM events ORDER BY seq")]
    assert [e for e in events if e.startswith("alert.")] == ["alert.opened", "alert.resolved"]


def _column(world: Any, n: int, change: Any) -> dict[str, list[Any]]:
    columns = world.inputs(n)
    change(columns)
    return columns


def _set(name: str, value: Any) -> Any:
    def change(columns: dict[str, list[Any]]) -> None:
        columns[name] = [value(i) if callable(value) else value for i in range(len(columns["hour"]))]

    return change


M05 = {
    "missing": (lambda c: c.pop("temperature"), ("quality", "temperature", "missing"), "temperature"),
    "renamed": (lambda c: c.update(temp=c.pop("temperature")), ("quality", "temp", "extra_column"), "temperature"),
    "all null": (_set("temperature", None), ("quality", "temperature", "missing"), "temperature"),
    "95 % null": (_set("temperature", lambda i: 10.0 if i % 20 == 0 else None), ("quality", "temperature", "nulls"), "temperature"),
    "type flip": (_set("temperature", lambda i: f"{i} C"), ("quality", "temperature", "type"), "temperature"),
    "text to number": (_set("carrier", lambda i: i), ("quality", "carrier", "type"), "carrier"),
    "constant": (_set("temperature", 10.0), ("quality", "temperature", "constant"), "temperature"),
    "new category": (_set("carrier", lambda i: "ZZ" if i % 3 == 0 else "UA"), ("quality", "carrier", "unseen"), "carrier"),
    "fahrenheit": (_set("temperature", lambda i: 50 + 9 * math.sin(i)), ("quality", "temperature", "outside"), "temperature"),
    "nan and inf": (_set("temperature", lambda i: [1e308, -1e308, 5e-324, math.nan, math.inf, 10.0][i % 6]), ("quality", "temperature", "invalid"), "temperature"),
}  # fmt: skip


@pytest.mark.parametrize("case", M05)
def test_m05_a_broken_column_is_found_and_the_others_are_reported(world: Any, case: str) -> None:
    """M05 and M07. Seen red with the null bin left out and with values of another type skipped (both: insufficient_data)."""
    change, finding, column = M05[case]
    world.send(0, 200, columns=_column(world, 200, change))
    world.turn(1)
    report = report_of(world)
    assert finding in kinds(world.monitoring.list_findings(deployment="delay")), case
    assert verdicts(report)[column] == "drift", case
    others = {c: v for c, v in verdicts(report).items() if c != column}
    assert set(others.values()) == {"ok"}
    assert len(others) == 3
    _finite(json.loads(to_json(report)))


def test_m05_ten_thousand_columns(make_world: Any) -> None:
    """M05: 10,000 columns in a one-off comparison; 20 that moved are found and no other."""
    from mainspring.data.profile import ProfileBuilder
    from mainspring.monitoring.drift import compare_profiles

    rng = np.random.default_rng(0)
    base = {f"c{i}": rng.normal(size=150) for i in range(10_000)}
    new = {name: rng.normal(size=150) + (3 if int(name[1:]) < 20 else 0) for name in base}
    report = compare_profiles(ProfileBuilder().add(new).build(), ProfileBuilder().add(base).build())
    assert {c.column for c in report.columns if c.verdict is Verdict.DRIFT} == {f"c{i}" for i in range(20)}


@pytest.mark.parametrize("rows", [0, 1, 2, 60])
def test_m06_too_little_is_a_verdict_and_no_alert(world: Any, rows: int) -> None:
    """M06. Seen red with the minimum evidence removed (60 rows far off were called drift)."""
    world.send(0, rows, shift=100, scores=[0.9] * rows)
    if rows == 0:
        world.log(
            LoggedPrediction(
                id=new_id(), deployment="delay", model="delay", version=1, role="champion", event_us=to_us(world.clock.now()),
                arrival_us=1, latency_us=1, status="invalid_input", rows=1,
            )
        )  # fmt: skip
    got = world.turn(1)
    assert got.opened == []
    (window,) = world.monitoring.list_windows(deployment="delay")
    assert window.report.drift.verdict is Verdict.INSUFFICIENT_DATA
    assert set(verdicts(window.report).values()) == {"insufficient_data"}
    assert all(c.reason for c in window.report.drift.columns)
    _finite(json.loads(to_json(window)))


def test_m06_single_class_has_no_auc_and_says_so(world: Any) -> None:
    ids = world.send(0, 150)
    world.label(ids, [False] * 150)
    world.turn(1)
    (performance,) = world.monitoring.list_windows(deployment="delay")[0].performance
    assert performance.metrics["auc"].value is None
    assert "negative" in performance.metrics["auc"].reason
    assert performance.metrics["log_loss"].value is not None
    _finite(json.loads(to_json(performance)))


def _finite(value: Any) -> None:
    if isinstance(value, dict):
        for one in value.values():
            _finite(one)
    elif isinstance(value, list):
        for one in value:
            _finite(one)
    elif isinstance(value, float):
        assert math.isfinite(value)


def test_no_reference_is_not_computable(make_world: Any) -> None:
    world = make_world()
    world.send(0, 150)
    world.turn(1)
    report = report_of(world)
    assert report.drift.verdict is Verdict.NOT_COMPUTABLE
    assert "not registered" in report.drift.reference


def test_failed_requests_open_an_alert(world: Any) -> None:
    world.send(0, 150)
    for _ in range(20):
        world.log(
            LoggedPrediction(
                id=new_id(), deployment="delay", model="delay", version=1, role="champion", event_us=to_us(world.clock.now()),
                arrival_us=1, latency_us=1, status="unavailable",
            )
        )  # fmt: skip
    world.turn(1)
    (alert,) = world.monitoring.list_alerts(deployment="delay", state="open")
    assert (alert.kind, alert.subject) == ("quality", "requests")
    assert world.monitoring.list_windows(deployment="delay")[0].errors == 20


def test_a_new_champion_ends_what_was_measured_against_the_old_one(world: Any) -> None:
    for day in range(3):
        world.send(day, 200, shift=8)
        world.turn(day + 1)
    assert len(world.monitoring.list_alerts(deployment="delay", state="open")) == 1
    old = world.inputs
    world.inputs = lambda n, **kw: old(n, shift=8)
    world.register(2)
    world.send(3, 200, version=2)
    world.turn(4)
    assert world.monitoring.list_alerts(deployment="delay", state="open") == []
    assert report_of(world, 3).champion == "delay@2"


def test_confirm_waits_for_a_second_window(make_world: Any) -> None:
    world = make_world(confirm=2)
    world.register()
    world.send(0, 200, shift=8)
    assert world.turn(1).opened == []
    world.send(1, 200, shift=8)
    assert len(world.turn(2).opened) == 1


def test_scores_are_compared_with_the_first_ones(world: Any) -> None:
    for day in range(9):
        world.send(day, 130, scores=world.rng.beta(2, 6, 130) if day < 7 else world.rng.beta(6, 2, 130))
        world.turn(day + 1)
    assert report_of(world, 0).prediction.verdict is Verdict.INSUFFICIENT_DATA
    assert report_of(world, 5).prediction.verdict is Verdict.OK
    assert report_of(world, 7).prediction.verdict is Verdict.DRIFT
    assert ("drift", "prediction") in {
        (a.kind, a.subject) for a in world.monitoring.list_alerts(deployment="delay")
    }


# --- performance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("late", "revised"),
    [
        (timedelta(hours=1), True),
        (timedelta(days=1), True),
        (timedelta(days=30), True),
        (timedelta(days=91), False),
    ],
)
def test_m01_late_labels_revise_their_window_up_to_the_horizon(
    world: Any, late: timedelta, revised: bool
) -> None:
    """M01. Seen red with the horizon removed (the label after 91 days revised) and with the label cursor not moved."""
    ids = world.send(0, 150)
    world.turn(1)
    world.clock.set(world.clock.now() + late)
    world.label(ids, [i % 4 == 0 for i in range(150)])
    got = world.monitoring.evaluate_windows()
    (window,) = world.monitoring.list_windows(deployment="delay")
    assert (len(got.revised) == 1) is revised
    assert window.revision == (2 if revised else 1)
    assert got.late_labels == (0 if revised else 150)
    assert [p.labelled for p in window.performance] == ([150] if revised else [])
    assert world.monitoring.evaluate_windows().revised == []


def test_a_corrected_label_gives_the_next_revision(world: Any) -> None:
    ids = world.send(0, 120)
    world.label(ids, [False] * 120)
    world.turn(1)
    before = world.monitoring.list_windows(deployment="delay")[0].performance[0]
    world.label(ids[:60], [True] * 60)
    world.monitoring.evaluate_windows()
    after = world.monitoring.list_windows(deployment="delay")[0].performance[0]
    assert (before.revision, after.revision) == (1, 2)
    assert after.metrics["positive_rate"].value == 0.5


def test_decay_against_the_recorded_level(make_world: Any) -> None:
    world = make_world(lookback="3d", tolerance=0.05)
    world.register(metrics={"log_loss": 0.5})
    for day in range(8):
        scores = world.rng.beta(2, 6, 200)
        truths = world.rng.random(200) < (scores if day < 5 else 1 - scores)
        ids = world.send(day, 200, scores=scores)
        world.to_day(day + 1)
        world.monitoring.ingest()
        world.label(ids, [bool(t) for t in truths])
        world.monitoring.evaluate_windows()
    assert report_of(world, 4).decay.verdict is Verdict.OK
    assert report_of(world, 7).decay.verdict is Verdict.DECAY
    (alert,) = world.monitoring.list_alerts(deployment="delay", kind="performance")
    assert alert.subject == "log_loss"
    assert world.monitoring.list_findings(deployment="delay", kind="performance")[0].limit == 0.55
    points = world.monitoring.get_series(deployment="delay", metric="log_loss")
    assert len(points) == 8
    assert points[0].value < points[-1].value


@pytest.mark.parametrize("task", [Task.MULTICLASS, Task.REGRESSION])
def test_other_tasks(make_world: Any, task: Task) -> None:
    world = make_world(metric=None)
    world.register(task=task, metrics={"log_loss": 1.0, "rmse": 1.0})
    scores: list[Any] = (
        [[0.6, 0.3, 0.1]] * 150 if task is Task.MULTICLASS else world.rng.normal(5, 1, 150).tolist()
    )
    labels: list[Any] = ["a"] * 150 if task is Task.MULTICLASS else [s + 0.5 for s in scores]
    ids = world.send(0, 150, scores=scores)
    world.label(ids, labels)
    world.turn(1)
    (performance,) = world.monitoring.list_windows(deployment="delay")[0].performance
    if task is Task.MULTICLASS:
        assert performance.metrics["log_loss"].value == pytest.approx(-math.log(0.6))
        assert performance.metrics["accuracy"].value == 1.0
    else:
        assert performance.metrics["rmse"].value == pytest.approx(0.5)
    assert report_of(world).decay.verdict is Verdict.OK


# --- questions --------------------------------------------------------------------------------------------------------


def test_paired_compares_on_the_same_rows(world: Any) -> None:
    scores = world.rng.beta(2, 6, 200)
    other = np.clip(scores + 0.4, 0, 1)
    ids = world.send(0, 200, scores=scores, shadows={"candidate": (2, other.tolist())})
    world.send(1, 50)  # rows the shadow did not see
    world.to_day(2)
    world.monitoring.ingest()
    world.label(ids[:120], [False] * 120)
    got = world.monitoring.compare_scorers(deployment="delay", a="shadow:candidate", b="1")
    assert (got.rows, got.labelled, got.loss) == (200, 120, "log_loss")
    assert got.loss_a[0] == pytest.approx(-math.log(1 - other[0]))
    assert got.loss_b[0] == pytest.approx(-math.log(1 - scores[0]))
    assert got.at_us == sorted(got.at_us)
    assert got.score_shift > 0.25
    same = world.monitoring.compare_scorers(deployment="delay", a="2", b="candidate")
    assert same.score_shift == 0.0
    assert same.loss_a == same.loss_b
    later = world.monitoring.compare_scorers(
        deployment="delay", a="candidate", b="1", since=world.clock.now() - timedelta(days=1)
    )
    assert (later.rows, later.score_shift) == (0, None)


def test_one_prediction_and_its_causes(world: Any) -> None:
    (ident,) = world.send(0, 1, scores=[0.25], shadows={"frozen": (1, [0.5])})
    world.monitoring.ingest()
    world.label([ident], [True])
    found = world.monitoring.get_prediction(id=ident)
    assert (found.score, found.label, found.shadows, found.version) == (0.25, True, {"frozen": 0.5}, 1)
    edges = {(e.source, e.kind) for e in prediction_rows.list_prediction_causes(world.base, f"{ident}/0")}
    assert edges == {("model_version:delay@1", "predicted"), ("deployment:delay", "routed as champion")}
    assert prediction_rows.read_prediction_facts(world.base, ident)["label"] is True
    assert prediction_rows.read_prediction_facts(world.base, new_id()) is None
    with pytest.raises(NotFound):
        world.monitoring.get_prediction(id=new_id())


def test_blast_radius_counts_all_and_shows_some(world: Any) -> None:
    ids = world.send(0, 60)
    world.monitoring.ingest()
    radius = world.monitoring.get_blast_radius(model="delay", version=1)
    assert (radius.predictions, len(radius.sample)) == (60, 20)
    assert list(prediction_rows.iterate_predictions(world.base, "delay", 1)) == [f"{i}/0" for i in ids]
    assert len(prediction_rows.list_prediction_effects(world.base, "delay@1")) == 20
    assert prediction_rows.list_prediction_effects(world.base, "nonsense") == []


def test_unknown_deployment_names_near_ones(world: Any) -> None:
    world.send(0, 1)
    world.monitoring.ingest()
    with pytest.raises(NotFound, match="'delay'"):
        world.monitoring.get_counts(deployment="delai")


def test_both_engines_tell_the_same(foundation_on_each_engine: Any, make_world: Any) -> None:
    world = make_world(foundation_on_each_engine)
    world.register(metrics={"log_loss": 0.1})
    ids = world.send(0, 150, shift=25, shadows={"s": (1, [0.5] * 150)})
    world.label(ids, [True] * 150)
    world.turn(1)
    world.labels.settle_parked()
    world.monitoring.evaluate_windows()
    assert {(a.kind, a.subject) for a in world.monitoring.list_alerts(deployment="delay", state="open")} >= {
        ("drift", "temperature"),
        ("performance", "log_loss"),
    }
    assert world.monitoring.compare_scorers(deployment="delay", a="s", b="1").labelled == 150
    assert world.monitoring.get_counts().labelled == 150
    assert world.monitoring.get_series(deployment="delay", metric="psi:temperature")[0].value > 0.2


def test_a_room_without_undeclared_operations() -> None:
    from mainspring.labels import Labels
    from mainspring.operations import operations_of

    assert {"ingest", "evaluate_windows", "list_windows", "compare_scorers", "get_prediction"} <= set(
        operations_of(Monitoring)
    )
    assert {"record_feedback", "ingest_relayed", "settle_parked"} <= set(operations_of(Labels))


def test_days_that_differ_by_themselves_raise_no_alarm(make_world: Any) -> None:
    """Each day has its own weather. With a lookback this is allowed for; judged day by day it alarms at once."""

    def alarms(**policy: Any) -> int:
        world = make_world(**policy)
        old = world.inputs
        world.inputs = lambda n, **kw: (
            {
                name: [
                    v for _ in range(n // 100) for v in old(100, shift=float(world.rng.normal(0, 5)))[name]
                ]
                for name in ("temperature",)
            }
            | {k: v for k, v in old(n).items() if k != "temperature"}
        )
        world.register(rows=6_000)
        world.inputs = old
        for day in range(20):
            world.send(day, 130, shift=float(world.rng.normal(0, 5)))
            world.turn(day + 1)
        return len(world.monitoring.list_alerts(deployment="delay", kind="drift"))

    assert alarms(lookback="14d") == 0


def test_day_by_day_the_same_weather_alarms(make_world: Any) -> None:
    """The twin of the test above: without a lookback the naive test is fooled, as the room's page says."""
    world = make_world()
    world.register()
    for day in range(10):
        world.send(day, 130, shift=float(world.rng.normal(0, 8)))
        world.turn(day + 1)
    assert world.monitoring.list_alerts(deployment="delay", kind="drift")


def test_a_log_longer_than_one_reading_says_that_more_is_left(make_world: Any) -> None:
    """One call reads about 8 MiB. Seen red against 0.1: it said "no more" with most of the log unread."""
    world = make_world()
    columns = {"note": ["x" * 1_000_000]}
    ids = [world.send(0, 1, columns=columns)[0] for _ in range(20)]
    first = world.monitoring.ingest()
    assert first.more
    assert 0 < first.requests < len(ids)
    total, calls, more = first.requests, 1, first.more
    while more:
        got = world.monitoring.ingest()
        total, calls, more = total + got.requests, calls + 1, got.more
    assert (total, world.monitoring.get_counts().requests) == (len(ids), len(ids))
    assert calls <= 4
    assert world.monitoring.ingest() == IngestReport()


def test_a_log_of_exactly_the_limit_is_no_more(make_world: Any) -> None:
    world = make_world()
    world.send(0, 10)
    assert not world.monitoring.ingest(limit=10).more
    world.send(0, 11)
    assert world.monitoring.ingest(limit=10).more
    assert not world.monitoring.ingest(limit=10).more


def test_windows_that_wait_for_their_grace_are_no_reason_to_be_called_again(make_world: Any) -> None:
    """Seen red against 0.1: 64 of them said "more" for ever, and a caller that loops never came back."""
    world = make_world(window="1h", grace="3d")
    for hour in range(70):
        world.send(hour / 24, 1)
    world.to_day(3)
    world.monitoring.ingest()
    report = world.monitoring.evaluate_windows()
    assert (report.closed, report.more) == ([], False)
    world.to_day(7)
    report = world.monitoring.evaluate_windows()
    assert (len(report.closed), report.more) == (64, True)
    report = world.monitoring.evaluate_windows()
    assert (len(report.closed), report.more) == (6, False)


def test_classes_that_are_numbers_are_matched_by_value(make_world: Any) -> None:
    """Seen red against 0.1: labels 1.0 to 3.0 of the classes 1 to 3 were taken for positions; accuracy 0, 44 invalid."""
    world = make_world()
    world.register(task=Task.MULTICLASS)
    known = world.registry.versions["delay", "1"]
    signature = msgspec.structs.replace(known.signature, classes=["1", "2", "3"], class_type="int64")
    world.registry.versions["delay", "1"] = msgspec.structs.replace(known, signature=signature)
    truth = world.rng.integers(0, 3, 150)
    ids = world.send(0, 150, scores=[[0.8 if k == t else 0.1 for k in range(3)] for t in truth])
    world.label(ids, [float(t + 1) for t in truth])
    world.turn(1)
    (performance,) = world.monitoring.list_windows(deployment="delay")[0].performance
    assert (performance.labelled, performance.invalid) == (150, 0)
    assert performance.metrics["accuracy"].value == 1.0
    assert performance.metrics["log_loss"].value == pytest.approx(-math.log(0.8))


@pytest.mark.parametrize("metric", ["auc", "f1", "accuracy"])
def test_decay_of_any_metric_is_found(make_world: Any, metric: str) -> None:
    world = make_world(lookback="7d", metric=metric, reference=0.75, tolerance=0.05, min_labels=50)
    world.register()
    for day in range(8):
        scores = world.rng.random(120)
        good = world.rng.random(120) < np.where(scores > 0.5, 0.9, 0.1)
        ids = world.send(day, 120, scores=scores)
        world.to_day(day + 1)
        world.monitoring.ingest()
        world.label(ids, [bool(t) for t in ~good])
        world.monitoring.evaluate_windows()
    verdicts = [report_of(world, day).decay.verdict for day in range(8)]
    assert verdicts[:2] == [Verdict.INSUFFICIENT_DATA] * 2, "two windows of a lookback of seven tell nothing"
    assert verdicts[-1] is Verdict.DECAY


def test_scores_that_are_no_probabilities_are_said_to_be(make_world: Any) -> None:
    world = make_world()
    world.register()
    ids = world.send(0, 150, scores=world.rng.normal(3, 1, 150))
    world.label(ids, [i % 2 == 0 for i in range(150)])
    world.turn(1)
    (performance,) = world.monitoring.list_windows(deployment="delay")[0].performance
    assert performance.metrics["log_loss"].value is None
    assert "no probabilities" in performance.metrics["log_loss"].reason
    assert performance.metrics["auc"].value is not None
