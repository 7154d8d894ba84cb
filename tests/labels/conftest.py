"""Labels need predictions to belong to: written the way the inference server writes them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from mainspring.clock import ManualClock, to_us
from mainspring.labels import Labels
from mainspring.lineage import Foundation
from mainspring.monitoring import Monitoring
from mainspring.records.base import new_id
from mainspring.records.serving import (
    FEEDBACK_PREFIX,
    LOG_PREFIX,
    LoggedFeedback,
    LoggedPrediction,
    encode_log,
)
from mainspring.storage.journal import JournalWriter

START = datetime(2013, 1, 1, tzinfo=UTC)


class Bench:
    """A labels room beside a prediction log."""

    def __init__(self, base: Foundation, clock: ManualClock) -> None:
        self.base, self.clock = base, clock
        self.labels = Labels(base)
        self.monitoring = Monitoring(base)
        self.folder = base.home / "bundle" / "log"

    def predict(self, *idents: str, rows: int = 1, ingest: bool = True) -> list[str]:
        """Log requests with these ids (or one with a new id) and read them in."""
        ids = list(idents) or [new_id()]
        with JournalWriter(self.folder, prefix=LOG_PREFIX) as journal:
            for ident in ids:
                journal.append(
                    encode_log(
                        LoggedPrediction(
                            id=ident, deployment="delay", model="delay", version=1, role="champion", event_us=to_us(START),
                            arrival_us=to_us(START), latency_us=300, rows=rows, columns={"x": [1.0] * rows}, scores=[0.5] * rows,
                        )
                    )
                )  # fmt: skip
        if ingest:
            self.monitoring.ingest()
        return ids

    def relay(self, prediction_id: str, value: bool | float | str) -> None:
        with JournalWriter(self.folder, prefix=FEEDBACK_PREFIX) as journal:
            journal.append(encode_log(LoggedFeedback(prediction_id=prediction_id, value=value, arrival_us=0)))

    def advance(self, **by: float) -> None:
        self.clock.advance(timedelta(**by))


@pytest.fixture
def bench(foundation_on_each_engine: Foundation, clock: ManualClock) -> Bench:
    return Bench(foundation_on_each_engine, clock)


@pytest.fixture
def make_bench(foundation: Foundation, clock: ManualClock) -> Callable[[], Bench]:
    return lambda: Bench(foundation, clock)
