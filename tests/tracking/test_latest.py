"""Which point of a metric is its latest: the highest step; of one step the youngest; of one moment the last that arrived."""

from __future__ import annotations

import pytest

from mainspring.records.tracking import Point
from mainspring.tracking import Tracking

T0 = 1_700_000_000_000_000


@pytest.mark.parametrize(
    ("points", "latest"),
    [
        ([(1.0, 1, 0), (2.0, 2, 0)], 2.0),
        ([(2.0, 2, 0), (1.0, 1, 9)], 2.0),
        ([(1.0, 5, 0), (2.0, 5, 1)], 2.0),
        ([(2.0, 5, 1), (1.0, 5, 0)], 2.0),
        ([(1.0, 5, 3), (2.0, 5, 3)], 2.0),
        ([(2.0, 5, 3), (1.0, 5, 3)], 1.0),
        ([(1.0, 0, 0), (2.0, -1, 9)], 1.0),
    ],
    ids=["step", "late step", "time", "late time", "arrival", "arrival, the lower", "negative step"],
)
@pytest.mark.parametrize("batches", ["one batch", "batches"])
def test_the_latest_point_does_not_depend_on_how_it_was_shipped(
    tracking: Tracking, points: list[tuple[float, int, int]], latest: float, batches: str
) -> None:
    """Seen red with ``>`` for ``>=`` between times, with the comparison of times left out, and with a sort by step alone reversed."""
    run = tracking.create_run().id
    made = [Point.of("x", value, step=step, time_us=T0 + time) for value, step, time in points]
    for number, part in enumerate([made] if batches == "one batch" else [[point] for point in made]):
        tracking.log_batch(run=run, batch_id=str(number), metrics=part)
    assert tracking.get_run(run=run).metrics["x"].number == latest
    tracking.finish_run(run=run)
    assert tracking.get_run(run=run).metrics["x"].number == latest
