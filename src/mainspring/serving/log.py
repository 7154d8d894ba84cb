"""The prediction log: requests and their answers, in a journal inside the bundle.

Each request is written before it is answered, so a killed worker loses no answered request; a thread calls fsync every second, so a
power cut may lose the last second. If the log cannot be written, the operator's ``log_mode`` decides: go on and count each dropped
record, or answer 503.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from mainspring.clock import to_us
from mainspring.errors import MainspringError, Unavailable
from mainspring.records.labels import Feedback
from mainspring.records.serving import (
    FEEDBACK_PREFIX,
    LOG_PREFIX,
    LoggedFeedback,
    LoggedPrediction,
    LoggedShadow,
    encode_log,
)
from mainspring.serving.metrics import Metrics
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.journal import JournalWriter

declare("serving.log.append")

logger = logging.getLogger("mainspring.serving")


class PredictionLog:
    """Writes predictions, shadow scores and feedback. Appends come from the event loop, fsync from a thread."""

    def __init__(self, folder: Path, *, metrics: Metrics, required: bool, sync_s: float) -> None:
        self._predictions = JournalWriter(folder, prefix=LOG_PREFIX)
        self._feedback = JournalWriter(folder, prefix=FEEDBACK_PREFIX)
        self._metrics = metrics
        self._required = required
        self._sync_s = sync_s
        self._broken = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sync_forever, name="log-sync", daemon=True)
        self._thread.start()

    @property
    def position(self) -> tuple[str, int]:
        """Segment and bytes written to it, for the status page."""
        return self._predictions.position

    @property
    def broken(self) -> bool:
        """Whether the newest append failed."""
        return self._broken

    def append(self, record: LoggedPrediction | LoggedShadow) -> None:
        """Write one record; a failure is counted, and raised as :class:`Unavailable` in ``required`` mode."""
        try:
            failpoint("serving.log.append")
            self._predictions.append(encode_log(record))
        except (MainspringError, OSError) as error:
            self._metrics.counters["log_dropped"] += 1
            if not self._broken:
                logger.warning("the prediction log cannot be written: %s", error)
            self._broken = True
            if self._required and isinstance(record, LoggedPrediction):
                raise Unavailable(
                    "the prediction log cannot be written", next_step="Free space on the server."
                ) from error
        else:
            self._metrics.counters["log_records"] += 1
            self._broken = False

    def relay(self, items: list[Feedback], *, arrival_us: int) -> None:
        """Write feedback for the control plane; raises if it cannot be written, because the client must send a lost label again."""
        for item in items:
            at_us = None if item.at is None else to_us(item.at)
            self._feedback.append(
                encode_log(
                    LoggedFeedback(
                        prediction_id=item.prediction_id,
                        value=item.value,
                        arrival_us=arrival_us,
                        at_us=at_us,
                        source=item.source,
                    )
                )
            )
            self._metrics.counters["feedback"] += 1

    def close(self) -> None:
        """Sync and close both journals."""
        self._stop.set()
        self._thread.join(timeout=10)
        for writer in (self._predictions, self._feedback):
            try:
                writer.close()
            except MainspringError as error:
                logger.warning("the prediction log could not be closed: %s", error)

    def _sync_forever(self) -> None:
        while not self._stop.wait(self._sync_s):
            for writer in (self._predictions, self._feedback):
                try:
                    writer.sync()
                except MainspringError as error:
                    logger.warning("the prediction log could not be synced: %s", error)
