"""The story: a project is made, its servers run, a year passes day by day, and things go wrong on purpose, twice.

Everything happens through the product's own doors: the project is what ``mainspring init --template flights`` writes, the
control plane and the inference server are ``mainspring up``, traffic and the comparison refits are processes that speak
HTTP. This module only moves the policy clock, delivers the feed, waits for what the loop started, and tells.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.demo.processes import Process, Scale
from mainspring.demo.tell import Teller
from mainspring.demo.world import FAULTS, OPERATOR, YEAR, Faults, World
from mainspring.errors import CheckFailed, Unavailable
from mainspring.records.base import to_json
from mainspring.records.data import LabelRateRule
from mainspring.records.serving import Shadow

if TYPE_CHECKING:
    from mainspring.config import Config
    from mainspring.remote import RemoteWorkspace

PROJECT, DEPLOYMENT, MODEL = "flights", "delay", "delay"
LABELLED_PER_DAY = 110
_JOB_S = 300.0
_FIRST = date(YEAR, 2, 1)
_LAST = date(YEAR, 12, 31)


@dataclass(frozen=True)
class Choices:
    """What the user asked for."""

    directory: Path
    seed: int = 0
    without: str | None = None
    once: bool = True
    until: date = _LAST
    port: int | None = None
    """Of the pages; 0 for any free one, None for 8700 if nobody has it."""


@dataclass
class Account:
    """What the story itself counted, to be held against the workspace at the end."""

    sent: int = 0
    failed: int = 0
    labels: int = 0
    errors: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    label_rates: list[dict[str, str]] = field(default_factory=list)
    refused: dict[str, Any] | None = None
    versions: list[str] = field(default_factory=list)


class Story:
    """One run of the demo."""

    def __init__(self, choices: Choices, teller: Teller) -> None:
        self._choices = choices
        self._tell = teller
        self.account = Account()
        faults = Faults() if choices.without == "faults" else FAULTS
        self._operator = (
            {} if choices.without == "faults" else {day: (params, reason) for day, params, reason in OPERATOR}
        )
        self._world = World.load(faults=faults, seed=choices.seed)
        self._feed = choices.directory / "feed"
        self._odd_days = 0

    def run(self) -> dict[str, Any]:
        """Tell the whole story; returns the figures of the last line."""
        from mainspring.demo.ending import figures

        started = time.monotonic()
        place = self._choices.directory
        make_project(place, without=self._choices.without)
        self._tell.chapter(f"A project in {place}")
        logs = place / "logs"
        logs.mkdir()
        with Scale() as scale, self._servers(logs) as up:
            ready = up.hear()
            token = place / ".mainspring" / "token"
            self._tell.say(f"pages      {ready['login']}")
            self._tell.say(f"inference  {ready['inference']}")
            common = [
                "--control",
                ready["url"],
                "--token-file",
                str(token),
                "--seed",
                str(self._choices.seed),
            ]
            with (
                self._remote(ready["url"], token) as workspace,
                Process(
                    "mainspring.demo.traffic",
                    ["--serving", ready["inference"], *common, "--labelled", str(LABELLED_PER_DAY)],
                    log=logs / "traffic.log",
                ) as traffic,
                Process(
                    "mainspring.demo.baseline", ["--project", str(place), *common], log=logs / "baseline.log"
                ) as baseline,
            ):
                self._year(workspace, traffic, baseline, ready["inference"])
                found = figures(
                    place,
                    ready["inference"],
                    self.account,
                    seed=self._choices.seed,
                    without=self._choices.without,
                )
            found |= {
                "workspace": str(place),
                "seconds": round(time.monotonic() - started, 1),
                "peak_pss_mb": round(scale.peak_mb, 1),
            }
            self._tell.ending(found)
            if not self._choices.once:
                self._tell.say(
                    f"\nThe pages stay up: {ready['login']}\nCtrl-C ends them; the workspace stays in {place}."
                )
                self._stay(up)
        return found

    # --- the year ----------------------------------------------------------------------------------------------------

    def _year(self, workspace: RemoteWorkspace, traffic: Process, baseline: Process, inference: str) -> None:
        self._january(workspace)
        self._corrupted(workspace)
        self._first_model(workspace, inference)
        self._tell.chapter("The year, on a policy clock")
        for day in days(_FIRST, self._choices.until):
            if day != _FIRST:
                self._world.deliver(day, self._feed)
            if day.day == 1 and day != _FIRST:
                self._commit(workspace, day)
                self._monthly(workspace, baseline, day, inference)
            asked = self._operator.get(day)
            if asked is not None:
                self._ask(workspace, day, *asked)
            self._send(traffic, day)
            self._move_clock(workspace, day + timedelta(days=1))
            self._turn(workspace, inference, day)
            self._tell.day(day, self.account.sent)
        last = self._choices.until + timedelta(days=1)
        self._world.deliver(last, self._feed)
        result = traffic.ask("report")
        self.account.labels += int(result["labels"])
        self._move_clock(workspace, last + timedelta(days=1))
        self._turn(workspace, inference, self._choices.until)
        self._commit(workspace, last)

    def _january(self, workspace: RemoteWorkspace) -> None:
        self._tell.chapter("Collect, check, commit")
        for day in days(date(YEAR, 1, 2), _FIRST):
            self._world.deliver(day, self._feed)
        self._move_clock(workspace, _FIRST)
        self._commit(workspace, _FIRST)

    def _commit(self, workspace: RemoteWorkspace, day: date) -> None:
        """All that the feed holds by now becomes the next version of ``flights``; unchanged rows are stored once."""
        version = workspace.data.commit(
            "flights", self._feed_rows(), message=f"feed of {day.isoformat()}", checks=self._checks()
        )
        self.account.versions.append(version.id)
        self._tell.event(day, "commit", f"flights version {version.number}: {version.rows:,} rows")
        self._label_rates(workspace, day, version.id)

    def _label_rates(self, workspace: RemoteWorkspace, day: date, version: str) -> None:
        """Days with an odd share of late flights are reported, not refused: told when there are more of them than before."""
        rates = [rule for rule in self._checks() if isinstance(rule, LabelRateRule)]
        for finding in workspace.data.check("flights", rates, version).findings:
            odd = 0 if finding.passed else int(finding.reason.split()[0])
            if odd > self._odd_days + 1:
                self.account.label_rates.append({"at": day.isoformat(), "reason": finding.reason})
                told = finding.reason.replace("groups", "days")
                self._tell.event(day, "label rate", f"late: {told} (reported, not refused)")
            self._odd_days = odd

    def _corrupted(self, workspace: RemoteWorkspace) -> None:
        """A batch in which a supplier mixed up columns: refused whole, nothing of it becomes visible."""
        before = len(workspace.data.list_versions("flights").items)
        try:
            workspace.data.commit(
                "flights", corrupted(self._world.of_day(_FIRST)), message="a delivery", checks=self._checks()
            )
        except CheckFailed as error:
            report = workspace.data.list_refusals("flights", limit=1)[0]
            broken = [f for f in report.findings if not f.passed and f.rule.refuse]
            self.account.refused = {
                "event": report.event,
                "rules": [_rule_name(f.rule) for f in broken],
                "failing_rows": sum(f.failing for f in broken),
            }
            self._tell.event(_FIRST, "refused", error.message.partition(":")[0])
            for finding in broken:
                self._tell.detail(_example(finding))
        if len(workspace.data.list_versions("flights").items) != before or self.account.refused is None:
            raise Unavailable(
                "a corrupted batch became a version", next_step="This must not happen; please report it."
            )

    def _first_model(self, workspace: RemoteWorkspace, inference: str) -> None:
        self._tell.chapter("Train, gate, register, deploy")
        job = workspace.loop.request_retrain(deployment=DEPLOYMENT, reason="first model")
        self._finish(workspace, job.id)
        self._turn(workspace, inference, _FIRST)
        found = workspace.models.get_version(model=MODEL, selector="champion")
        told = ", ".join(f"{k} {v:.3f}" for k, v in found.metrics.items() if "." not in k)
        self._tell.event(
            _FIRST,
            "champion",
            f"version {found.version} ({found.tags.get('family', found.format)}) as {found.format}; hold-out {told}",
        )
        self._shadow(workspace, "frozen", MODEL, found.version, found.package, inference)
        self._shadow(workspace, "monthly", MODEL, found.version, found.package, inference)

    def _monthly(self, workspace: RemoteWorkspace, baseline: Process, day: date, inference: str) -> None:
        number = baseline.ask(midnight(day).isoformat())["version"]
        found = workspace.models.get_version(model="delay-monthly", selector=str(number))
        self._shadow(workspace, "monthly", "delay-monthly", number, found.package, inference)

    def _shadow(
        self, workspace: RemoteWorkspace, name: str, model: str, version: int, package: str, inference: str
    ) -> None:
        """Let a model score every request without answering any; what else the deployment does stays."""
        now = workspace.deploy.get_deployment(name=DEPLOYMENT)
        kept = [s for s in now.shadows if s.name != name]
        shadow = Shadow(model=model, version=version, package=package, name=name)
        workspace.deploy.set_routes(
            deployment=DEPLOYMENT, targets=now.targets, shadows=[*kept, shadow], reason=f"comparison: {name}"
        )
        self._wait_for_routes(workspace, inference)

    def _ask(self, workspace: RemoteWorkspace, day: date, params: dict[str, Any], reason: str) -> None:
        """Somebody changes the pipeline's params and asks for a retraining by hand; gate and rollout follow as always."""
        if self._choices.without == "retrain":
            return
        if any(
            r.state.value == "running" for r in workspace.loop.list_rollouts(deployment=DEPLOYMENT, limit=1)
        ):
            self._operator[day + timedelta(days=1)] = (params, reason)  # not into a running rollout
            return
        job = workspace.loop.request_retrain(deployment=DEPLOYMENT, reason=reason, params=params)
        self._tell.event(day, "asked", reason)
        self._finish(workspace, job.id)

    def _send(self, traffic: Process, day: date) -> None:
        result = traffic.ask(day.isoformat())
        self.account.sent += int(result["sent"])
        self.account.failed += int(result["failed"])
        self.account.labels += int(result["labels"])
        self.account.errors += result["errors"]

    def _turn(self, workspace: RemoteWorkspace, inference: str, day: date) -> None:
        """Let the loop decide until nothing is due: a retraining takes no policy time."""
        changed = False
        while True:
            result = workspace.loop.tick()
            for decision in result.decisions:
                self._tell.event(day, decision.action, decision.reason)
            for problem in result.problems:
                self.account.problems.append(problem)
                self._tell.detail(f"a part of the round failed: {problem}")
            changed = changed or bool(result.decisions)
            for job in result.jobs:
                self._finish(workspace, job)
            if not result.jobs and not result.decisions:
                break
        if changed:
            self._wait_for_routes(workspace, inference)

    def _finish(self, workspace: RemoteWorkspace, ident: str) -> None:
        deadline = time.monotonic() + _JOB_S
        while time.monotonic() < deadline:
            job = workspace.loop.get_job(job=ident)
            if job.state.value in {"finished", "failed"}:
                if job.error is not None:
                    self._tell.detail(f"the retraining failed: {job.error}")
                return
            time.sleep(0.05)
        raise Unavailable(
            "a retraining did not end",
            value=ident,
            place=str(self._choices.directory / ".mainspring" / "workers" / "worker.log"),
        )

    def _wait_for_routes(self, workspace: RemoteWorkspace, inference: str) -> None:
        import httpx2

        number = workspace.deploy.publish().number
        deadline = time.monotonic() + 60
        with httpx2.Client(base_url=inference, trust_env=False) as client:
            while time.monotonic() < deadline:
                if client.get("/v1/status").json()["routes"] >= number:
                    return
                time.sleep(0.02)
        raise Unavailable("the inference server did not take the new routes", value=number)

    # --- pieces ------------------------------------------------------------------------------------------------------

    def _move_clock(self, workspace: RemoteWorkspace, day: date) -> None:
        workspace.loop.set_clock(now=midnight(day))

    def _feed_rows(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        # A corrected delivery repeats flights; the newest word about each stands.
        rows = pa.concat_tables([pq.read_table(p) for p in sorted(self._feed.glob("*.parquet"))])
        newest = (
            rows.group_by("flight_id")
            .aggregate([("label_arrived_at", "max")])
            .rename_columns(["flight_id", "label_arrived_at"])
        )
        joined = rows.join(newest, ["flight_id", "label_arrived_at"], join_type="left semi")
        return joined.sort_by([("event_time", "ascending"), ("flight_id", "ascending")])

    def _checks(self) -> Any:
        return policy(self._choices.directory).data["flights"].checks

    def _servers(self, logs: Path) -> Process:
        port = self._choices.port
        if port is None:
            port = 8700 if _free(8700) else 0
        arguments = [
            "-C",
            str(self._choices.directory),
            "up",
            "--json",
            "--port",
            str(port),
            "--serving-port",
            "0",
            "--tick",
            "0",
            "--poll",
            "0.05",
            "--end-with-stdin",  # ours closes even if we are killed
        ]
        return Process("mainspring.cli", arguments, log=logs / "servers.log")

    def _remote(self, url: str, token: Path) -> RemoteWorkspace:
        from mainspring.remote import RemoteWorkspace

        return RemoteWorkspace(url, token=token.read_text().strip(), project=PROJECT)

    def _stay(self, up: Process) -> None:
        try:
            up.wait()
        except KeyboardInterrupt:
            self._tell.say("")


def make_project(directory: Path, *, without: str | None) -> None:
    """What ``mainspring init --template flights`` writes, on a manual clock, with one part of the policy left out if asked."""
    from mainspring.projects import copy_template

    copy_template("flights", directory, name=PROJECT)
    (directory / "feed").mkdir(exist_ok=True)
    file = directory / "mainspring.toml"
    text = file.read_text().replace('clock = "system"', 'clock = "manual"')
    file.write_text(text)
    if without in {"gate", "canary", "retrain"}:
        leave_out(file, without)


def leave_out(file: Path, part: str) -> None:
    """Take the gate, the canary or retraining out of a policy file: the lists are replaced, the rest stays as it is."""
    import re

    text = file.read_text()
    replaced = {
        "gate": [(r"(?ms)^gate = \[.*?^\]", 'gate = [{ metric = "auc", min = 0.0 }]')],
        "canary": [
            (r"(?ms)^stages = \[.*?^\]", "stages = [{ full = true }]"),
            (r"(?ms)^rollback = \[.*?^\]", "rollback = []"),
        ],
        "retrain": [(r"(?m)^retrain_on = \[.*\]$", "retrain_on = []")],
    }[part]
    for pattern, replacement in replaced:
        text, count = re.subn(pattern, replacement, text)
        if count != 1:
            raise Unavailable("the template has no such part to leave out", value=part, place=str(file))
    file.write_text(text)


def policy(directory: Path) -> Config:
    from mainspring.config import load

    return load(directory).config


def corrupted(flights: Any) -> Any:
    """A day's flights as a supplier once delivered them: a shifted column, a unit mixed up, some rows twice."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def put(table: Any, name: str, values: Any) -> Any:
        return table.set_column(table.schema.get_field_index(name), name, values)

    part = flights.slice(0, 400)
    part = part.append_column(
        "label_arrived_at", pc.add(part["event_time"], pa.scalar(timedelta(days=1), pa.duration("us")))
    )
    part = part.append_column("late", pc.greater(part["arr_delay"], 15))
    bad = part.slice(0, 40)
    bad = put(bad, "distance", pc.multiply(bad["distance"], -1.609))
    bad = put(bad, "origin", bad["dest"])
    return pa.concat_tables([part.slice(40), bad, part.slice(100, 15)])


def days(first: date, last: date) -> Iterator[date]:
    """Both included."""
    for number in range((last - first).days + 1):
        yield first + timedelta(days=number)


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _rule_name(rule: Any) -> str:
    import msgspec

    plain = msgspec.to_builtins(rule)
    return f"{plain['check']} {plain.get('column') or ','.join(plain.get('columns', []))}".strip()


def _example(finding: Any) -> str:
    """A broken rule, how many rows break it, and one of them by what the rule looks at."""
    text = f"{_rule_name(finding.rule)}: {finding.failing} rows"
    if not finding.sample:
        return text
    row = finding.sample[0]
    looked_at = [getattr(finding.rule, "column", None) or "flight_id"]
    shown = ", ".join(f"{name} {row.values.get(name)!r}" for name in looked_at)
    return f"{text}, e.g. row {row.row} with {shown}"


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def as_line(found: dict[str, Any]) -> str:
    """The last line of ``--json``."""
    return to_json(found).decode()
