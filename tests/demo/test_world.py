from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mainspring.demo.world import INPUTS, Faults, World, read_flights


@pytest.fixture(scope="module")
def flights() -> pa.Table:
    return read_flights()


def test_the_year_is_whole(flights: pa.Table) -> None:
    assert flights.num_rows == 336_776
    assert flights["arr_delay"].null_count == 9_430
    moments = flights["event_time"].to_numpy()
    assert (moments[1:] >= moments[:-1]).all()


def test_every_day_has_its_flights_and_no_other(flights: pa.Table) -> None:
    world = World(flights)
    days = [date(2013, 1, 1) + timedelta(days=n) for n in range(365)]
    assert sum(world.of_day(d).num_rows for d in days) == 336_776
    assert {t.date() for t in world.of_day(date(2013, 7, 4))["event_time"].to_pylist()} == {date(2013, 7, 4)}


def test_requests_are_enough_in_time_order_and_hold_every_flight_that_never_arrived(
    flights: pa.Table,
) -> None:
    world = World(flights, seed=3)
    never = 0
    for n in range(365):
        day = date(2013, 1, 1) + timedelta(days=n)
        sent = world.requests(day, labelled=110)
        assert sum(r.late is not None for r in sent) == 110
        assert [r.event_time for r in sent] == sorted(r.event_time for r in sent)
        never += sum(r.late is None for r in sent)
    assert never == 9_430
    assert set(sent[0].inputs) == set(INPUTS)
    assert sent == world.requests(day, labelled=110)
    assert sent != World(flights, seed=4).requests(day, labelled=110)


def test_labels_arrive_a_day_later(flights: pa.Table, tmp_path: Path) -> None:
    (path,) = World(flights).deliver(date(2013, 1, 2), tmp_path)
    rows = pq.read_table(path)
    assert {t.date() for t in rows["event_time"].to_pylist()} == {date(2013, 1, 1)}
    gaps = {
        a - e
        for a, e in zip(rows["label_arrived_at"].to_pylist(), rows["event_time"].to_pylist(), strict=True)
    }
    assert gaps == {timedelta(days=1)}


def test_flipped_days_are_wrong_until_they_are_corrected(flights: pa.Table, tmp_path: Path) -> None:
    faults = Faults(flipped=(date(2013, 9, 2), date(2013, 9, 3)), corrected=date(2013, 9, 10))
    wrong, right = World(flights, faults=faults), World(flights)
    for day in (date(2013, 9, 2), date(2013, 9, 3), date(2013, 9, 4), date(2013, 9, 5)):
        wrong.deliver(day, tmp_path / "wrong")
        right.deliver(day, tmp_path / "right")

    def late(folder: str, name: str) -> list[bool | None]:
        return pq.read_table(tmp_path / folder / f"{name}.parquet")["late"].to_pylist()

    assert late("wrong", "2013-09-01") == late("right", "2013-09-01")
    assert late("wrong", "2013-09-04") == late("right", "2013-09-04")
    flipped = [
        (a, b)
        for a, b in zip(late("wrong", "2013-09-02"), late("right", "2013-09-02"), strict=True)
        if b is not None
    ]
    assert all(a is not b for a, b in flipped)
    _, corrected = wrong.deliver(date(2013, 9, 10), tmp_path / "wrong")
    rows = pq.read_table(corrected)
    assert rows["late"].to_pylist() == late("right", "2013-09-02") + late("right", "2013-09-03")
    assert set(rows["label_arrived_at"].to_pylist()) == {datetime(2013, 9, 10, tzinfo=UTC)}


def test_for_a_while_the_feed_speaks_celsius_and_requests_do_not(flights: pa.Table, tmp_path: Path) -> None:
    faults = Faults(celsius=(date(2013, 4, 20), date(2013, 4, 22)))
    world = World(flights, faults=faults)

    def temperatures() -> dict[str, float]:
        return {p.stem: pq.read_table(p)["temp"].to_pylist()[0] for p in sorted(tmp_path.glob("*.parquet"))}

    truth = {}
    for n in range(18, 25):
        day = date(2013, 4, n)
        world.deliver(day, tmp_path)
        before = day - timedelta(days=1)
        truth[before.isoformat()] = world.of_day(before)["temp"].to_pylist()[0]
        restated = {k: (v - 32) / 1.8 for k, v in truth.items()} if 20 <= n <= 22 else truth
        assert temperatures() == pytest.approx(restated)
        assert world.requests(day, labelled=10)[0].inputs["temp"] in world.of_day(day)["temp"].to_pylist()
