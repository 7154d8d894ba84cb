"""A small world: real journal, real database, real objects; traffic is drawn from seeded distributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from mainspring.clock import ManualClock, to_us
from mainspring.data.profile import ProfileBuilder
from mainspring.errors import NotFound
from mainspring.labels import Labels
from mainspring.lineage import Foundation
from mainspring.monitoring import Monitoring
from mainspring.records.base import Selector, new_id, to_json
from mainspring.records.labels import Feedback
from mainspring.records.models import Column, ModelVersion, Signature, Task
from mainspring.records.monitoring import MonitorPolicy
from mainspring.records.serving import LOG_PREFIX, LoggedPrediction, LoggedShadow, encode_log
from mainspring.storage.journal import JournalWriter

START = datetime(2013, 1, 1, tzinfo=UTC)
NAMES = ["temperature", "distance", "hour", "carrier"]


class Registry:
    """Answers what monitoring asks of the models room."""

    def __init__(self) -> None:
        self.versions: dict[tuple[str, str], ModelVersion] = {}

    def get_version(self, model: str, selector: Selector = "latest") -> ModelVersion:
        try:
            return self.versions[model, selector]
        except KeyError:
            raise NotFound("no such version", value=selector) from None


class World:
    """One deployment ``delay`` with its inference log, its monitor and its labels."""

    def __init__(self, base: Foundation, clock: ManualClock, policy: MonitorPolicy, seed: int = 1) -> None:
        self.base, self.clock, self.policy = base, clock, policy
        self.registry = Registry()
        self.monitoring = Monitoring(base, policies={"delay": policy}, models=self.registry)
        self.labels = Labels(base, models=self.registry)
        self.rng = np.random.default_rng(seed)
        self.folder = base.home / "bundle" / "log"
        self.writer = JournalWriter(self.folder, prefix=LOG_PREFIX)

    def inputs(self, n: int, *, shift: float = 0.0, nulls: float = 0.0) -> dict[str, list[Any]]:
        temperature: list[Any] = (self.rng.normal(10 + shift, 5, n)).tolist()
        for i in np.flatnonzero(self.rng.random(n) < nulls):
            temperature[i] = None
        return {
            "temperature": temperature,
            "distance": self.rng.gamma(2, 400, n).tolist(),
            "hour": self.rng.integers(5, 24, n).tolist(),
            "carrier": self.rng.choice(["UA", "AA", "DL", "B6"], n, p=[0.4, 0.3, 0.2, 0.1]).tolist(),
        }

    def register(
        self,
        number: int = 1,
        *,
        metrics: dict[str, float] | None = None,
        task: Task = Task.BINARY,
        rows: int = 20_000,
    ) -> None:
        profile = ProfileBuilder().add(self.inputs(rows)).build()
        with self.base.objects.writing() as w:
            stored = w.put(to_json(profile))
        kinds = {"carrier": "string", "hour": "int64"}
        signature = Signature(
            inputs=[Column(name=n, type=kinds.get(n, "float64")) for n in NAMES],  # type: ignore[arg-type]
            task=task,
            classes={Task.BINARY: ["no", "yes"], Task.MULTICLASS: ["a", "b", "c"]}.get(task, []),
            class_type="bool" if task is Task.BINARY else "string",
            class_values=["False", "True"] if task is Task.BINARY else [],
        )
        self.registry.versions["delay", str(number)] = ModelVersion(
            model="delay", version=number, package="0" * 64, format="onnx", signature=signature,
            created_at=START, created_by="test", profile=stored.digest, metrics=metrics or {},
        )  # fmt: skip

    def send(
        self,
        day: float,
        n: int = 130,
        *,
        version: int = 1,
        role: str = "champion",
        scores: Sequence[Any] | None = None,
        shadows: dict[str, tuple[int, Sequence[Any]]] | None = None,
        columns: dict[str, list[Any]] | None = None,
        shift: float = 0.0,
        nulls: float = 0.0,
    ) -> list[str]:
        """One request per row, spread over a day; returns their ids."""
        columns = self.inputs(n, shift=shift, nulls=nulls) if columns is None else columns
        given = (
            self.rng.beta(2, 6, n).tolist()
            if scores is None
            else [v if isinstance(v, list) else float(v) for v in scores]
        )
        ids = []
        for i in range(n):
            at = START + timedelta(days=day, seconds=86_000 * i / max(1, n))
            ident = new_id()
            ids.append(ident)
            self.log(
                LoggedPrediction(
                    id=ident, deployment="delay", model="delay", version=version, role=role, event_us=to_us(at),
                    arrival_us=to_us(at), latency_us=int(self.rng.integers(200, 900)), rows=1,
                    columns={k: [v[i]] for k, v in columns.items()}, scores=[given[i]], routes=1,
                )
            )  # fmt: skip
            for name, (number, values) in (shadows or {}).items():
                self.log(
                    LoggedShadow(
                        id=ident,
                        deployment="delay",
                        model="delay",
                        version=number,
                        name=name,
                        event_us=to_us(at),
                        latency_us=100,
                        scores=[values[i]],
                    )
                )
        return ids

    def log(self, record: LoggedPrediction | LoggedShadow) -> None:
        self.writer.append(encode_log(record))

    def label(self, ids: Sequence[str], values: Sequence[Any]) -> None:
        """Label these predictions, read in first so that they are known."""
        self.monitoring.ingest()
        self.labels.record_feedback(
            items=[Feedback(prediction_id=i, value=v) for i, v in zip(ids, values, strict=True)]
        )

    def to_day(self, day: float) -> None:
        self.clock.set(START + timedelta(days=day))

    def turn(self, day: float) -> Any:
        """Move the clock to the start of ``day``, then ingest and evaluate."""
        self.to_day(day)
        self.monitoring.ingest()
        return self.monitoring.evaluate_windows()


@pytest.fixture
def make_world(foundation: Foundation, clock: ManualClock) -> Callable[..., World]:
    def make(base: Foundation | None = None, *, seed: int = 1, **policy: Any) -> World:
        return World(base or foundation, clock, MonitorPolicy(**policy), seed)

    return make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    made = make_world()
    made.register(metrics={"log_loss": 0.5})
    return made
