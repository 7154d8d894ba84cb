"""The leaderboard: every candidate with its score, or with why it has none."""

from __future__ import annotations

from typing import Any, Literal

from mainspring.records.base import Record, to_json
from mainspring.records.models import ModelVersion, Task
from mainspring.records.training import Interval


class Entry(Record, frozen=True, kw_only=True):
    """A candidate. ``worse_by``: than the best, on the same rows, in the metric's unit.

    ``beats_dummy`` is the p-value of its lead over the dummy; ``reason`` says why it was left behind or what failed.
    """

    candidate: str
    family: str
    params: dict[str, Any]
    state: Literal["compared", "dropped", "failed", "skipped"]
    value: float | None = None
    worse_by: Interval | None = None
    beats_dummy: float | None = None
    rung: int = 0
    rows: int = 0
    seconds: float = 0.0
    reason: str = ""


class Leaderboard(Record, frozen=True, kw_only=True):
    """All candidates of a search, best first."""

    target: str
    task: Task
    metric: str
    dataset_version: str
    split: str
    seed: int
    entries: list[Entry]
    selected: str | None
    reason: str
    assumed: list[str] = []
    left_out: dict[str, str] = {}
    seconds: float = 0.0
    stopped_early: bool = False
    """Whether the budget ended before every candidate had its turn: the same seed may then give another leaderboard."""

    def as_json(self) -> bytes:
        return to_json(self)

    def as_markdown(self) -> str:
        """A table for people, with what was assumed."""
        lines = [
            f"# {self.target}: {self.task.value}, by {self.metric}",
            "",
            self.reason,
            "",
            f"| candidate | {self.metric} | worse than the best by | p against the dummy | state | params |",
            "| --- | ---: | ---: | ---: | --- | --- |",
            *(_format_line(entry, self.selected) for entry in self.entries),
            "",
            f"Split {self.split}. Seed {self.seed}, {self.seconds:.1f} s.",
            "",
            *(f"- {sentence}" for sentence in self.assumed),
            *(f"- {name!r} is left out: {why}" for name, why in self.left_out.items()),
        ]
        return "\n".join(lines) + "\n"


class TrainedVersion(ModelVersion, frozen=True, kw_only=True):
    """A registered model version, with the leaderboard that led to it."""

    leaderboard: Leaderboard


def _format_line(entry: Entry, selected: str | None) -> str:
    value = "" if entry.value is None else f"{entry.value:.5g}"
    params = ", ".join(f"{k}={v}" for k, v in entry.params.items())
    p = "" if entry.beats_dummy is None else f"{entry.beats_dummy:.2g}"
    state = f"{entry.state}: {entry.reason}" if entry.reason else entry.state
    name = f"**{entry.candidate}**" if entry.candidate == selected else entry.candidate
    cells = [name, value, _format_interval(entry.worse_by), p, state, params]
    return "| " + " | ".join(c.replace("|", "/").replace("\n", " ") for c in cells) + " |"


def _format_interval(interval: Interval | None) -> str:
    if interval is None or interval.value is None:
        return ""
    if interval.low is None or interval.high is None:
        return f"{interval.value:+.3g}"
    return f"{interval.value:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]"
