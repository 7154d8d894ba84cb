"""What windows are compared with: the training profile and the recorded figures of the champion."""

from __future__ import annotations

from mainspring.errors import MainspringError
from mainspring.lineage import Foundation
from mainspring.monitoring.bins import Cells, Reference
from mainspring.records.base import from_json
from mainspring.records.models import ModelRegistry, ModelVersion, Task
from mainspring.records.monitoring import MonitorPolicy
from mainspring.records.profile import Profile
from mainspring.storage.sql import Reader

_CACHE = 64
_COUNTS = 4096


class References:
    """Looks up model versions and binned reference profiles, and caches them: both are immutable."""

    def __init__(self, base: Foundation, versions: ModelRegistry | None) -> None:
        self._base = base
        self._versions = versions
        self._registered: dict[tuple[str, int], ModelVersion] = {}
        self._binned: dict[tuple[object, ...], Reference] = {}
        self._counts: dict[tuple[object, ...], dict[str, Cells]] = {}

    def version(self, model: str, number: int) -> ModelVersion | None:
        """The registered version, or None if the registry does not know it: monitoring goes on without its reference."""
        key = (model, number)
        if key not in self._registered:
            try:
                if self._versions is None:
                    from mainspring.models import Models

                    self._versions = Models(self._base)
                registered = self._versions.get_version(model=model, selector=str(number))
            except MainspringError:
                return None
            _make_room(self._registered, _CACHE)[key] = registered
        return self._registered[key]

    def task(self, model: str, number: int) -> tuple[Task, list[str]] | None:
        """Task and classes of a registered version; None if it is not registered."""
        registered = self.version(model, number)
        return None if registered is None else (registered.signature.task, registered.signature.classes)

    def reference(self, model: str, number: int, policy: MonitorPolicy) -> Reference | str:
        """The binned training profile, or why there is none."""
        registered = self.version(model, number)
        if registered is None:
            return f"model version {model}@{number} is not registered"
        if registered.profile is None:
            return f"model version {model}@{number} has no training profile"
        key = (registered.profile, model, number, policy.bins, tuple(policy.ignore))
        if key not in self._binned:
            try:
                profile: Profile = from_json(self._base.objects.read(registered.profile), Profile)
            except MainspringError as error:
                return f"the training profile cannot be read: {error.message}"
            # A time moves on by itself: that it is not where it was in training says nothing.
            types = {c.name: str(c.type) for c in registered.signature.inputs if c.type != "datetime"}
            _make_room(self._binned, _CACHE)[key] = Reference(
                profile,
                name=f"{model}@{number}",
                bins=policy.bins,
                only=types,
                ignore=policy.ignore,
                types=types,
            )
        return self._binned[key]

    def counts(self, tx: Reader, window: str, rows: int, reference: Reference) -> dict[str, Cells]:
        """A window's counts in the reference's bins; cached for as long as the window has the same number of rows."""
        key = (window, rows, id(reference))
        if key not in self._counts:
            parts = tx.all(
                "SELECT profile FROM window_parts WHERE project = ? AND window_id = ?",
                self._base.project,
                window,
            )
            _make_room(self._counts, _COUNTS)[key] = reference.count(
                [from_json(p["profile"], Profile) for p in parts]
            )
        return self._counts[key]

    def reference_level(self, model: str, number: int, metric: str, policy: MonitorPolicy) -> float | None:
        """The reference level of a metric: the policy's, or what the version recorded when it was made."""
        if policy.reference is not None:
            return policy.reference
        registered = self.version(model, number)
        if registered is None:
            return None
        for name in (metric, f"holdout_{metric}", f"holdout.{metric}", f"test_{metric}", f"test.{metric}"):
            if name in registered.metrics:
                return registered.metrics[name]
        return None


def _make_room(cache: dict, limit: int) -> dict:  # type: ignore[type-arg]
    """Drop the oldest entries of a full cache, so that one more fits; returns the cache."""
    while len(cache) >= limit:
        del cache[next(iter(cache))]
    return cache
