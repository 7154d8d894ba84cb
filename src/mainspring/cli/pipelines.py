"""``mainspring run | plan | why | resume``."""

from __future__ import annotations

import sys
import threading
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from mainspring.cli.output import (
    describe_metrics,
    json_option,
    print_facts,
    print_json,
    print_note,
    print_table,
    with_local_workspace,
    with_workspace,
)

if TYPE_CHECKING:
    from mainspring.execution import OnEvent
    from mainspring.records.loop import Promotion, Verdict
    from mainspring.records.models import ModelVersion
    from mainspring.records.pipelines import PipelineEvent, PipelineRun, Why
    from mainspring.rooms import Namespaces
    from mainspring.workspace import Workspace

_params = click.option(
    "--param", "-p", "params", multiple=True, metavar="NAME=VALUE", help="A parameter; repeat for more."
)


@click.command()
@click.argument("pipeline")
@_params
@json_option
@with_local_workspace
def run(workspace: Workspace, pipeline: str, params: tuple[str, ...], as_json: bool) -> None:
    """Run PIPELINE: a model's name from mainspring.toml, or file.py:function.

    The first version of a model that the policy deploys is judged by the gate, and answers if it passes.
    """
    source, arguments = _resolve(workspace, pipeline, params)
    ended = workspace.execution.run(source, arguments, on_event=_progress_printer(), check=True)
    if pipeline in workspace.settings.config.model:
        _show_registered(workspace, pipeline, ended, as_json)
    else:
        _show(ended, as_json)


@click.command()
@click.argument("pipeline")
@_params
@json_option
@with_local_workspace
def plan(workspace: Workspace, pipeline: str, params: tuple[str, ...], as_json: bool) -> None:
    """Show what a run of PIPELINE would take from the cache and what it would do. Nothing runs."""
    source, arguments = _resolve(workspace, pipeline, params)
    _note_problems(workspace, pipeline)
    decisions = workspace.execution.plan(source, arguments)
    if as_json:
        print_json(decisions)
        return
    print_table(("step", "cached", "why"), [(w.step, _format_hit(w), w.reason) for w in decisions])


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("step")
@json_option
@with_workspace
def why(workspace: Namespaces, run_id: str, step: str, as_json: bool) -> None:
    """Explain why STEP of RUN was cached or ran."""
    explanation = workspace.pipelines.explain_step(run=run_id, step=step)
    if as_json:
        print_json(explanation)
        return
    print_facts(
        [
            ("step", explanation.step),
            ("cached", _format_hit(explanation)),
            ("why", explanation.reason),
            ("compared to", explanation.compared_to),
        ]
    )
    if explanation.changes:
        print_table(
            ("what", "name", "before", "after"),
            [(c.what, c.name, c.before, c.after) for c in explanation.changes],
        )


@click.command()
@click.argument("run_id", metavar="RUN")
@json_option
@with_local_workspace
def resume(workspace: Workspace, run_id: str, as_json: bool) -> None:
    """Go on with RUN, which was interrupted or failed. Finished steps are not run again."""
    _show(workspace.execution.resume(run_id, on_event=_progress_printer()), as_json)


def _resolve(workspace: Workspace, pipeline: str, params: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    from mainspring.errors import InvalidInput

    arguments: dict[str, Any] = {}
    for item in params:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise InvalidInput("a parameter is NAME=VALUE", value=item, place="--param")
        arguments[name] = value
    policy = workspace.settings.config.model.get(pipeline)
    if policy is not None:
        return policy.pipeline, {**policy.params, **arguments}
    if ":" not in pipeline:
        from mainspring.errors import near

        known = list(workspace.settings.config.model)
        raise InvalidInput(
            "neither a model with a pipeline nor file.py:function",
            value=pipeline,
            next_step=near(pipeline, known, what="[model.*]"),
        )
    return pipeline, arguments


def _note_problems(workspace: Workspace, model: str) -> None:
    """Say what a retrain of this model would stumble over, though a run by hand may not."""
    from msgspec.structs import replace

    from mainspring.loop.contract import find_problems

    config = workspace.settings.config
    if model not in config.model:
        return
    named = {d for d, p in config.deploy.items() if p.model == model}
    narrowed = replace(
        config,
        model={model: config.model[model]},
        retrain={d: r for d, r in config.retrain.items() if d in named},
    )
    for problem in find_problems(narrowed, workspace.settings.root, workspace.models):
        print_note(f"{click.style('retrains will fail:', fg='red')} {problem}")


def _progress_printer() -> OnEvent:
    return _Progress(watched=sys.stderr.isatty()).show


class _Progress:
    """A line for each step that has ended; where a person watches, also one that is written over, with those under way."""

    MARKS = MappingProxyType(
        {"cached": "=", "waiting": ".", "finished": "+", "failed": "x", "skipped": "-", "retry": "~"}
    )

    def __init__(self, *, watched: bool, every_s: float = 1.0) -> None:
        self._running: dict[str, float] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._every_s = every_s
        self._watched = watched

    def show(self, event: PipelineEvent) -> None:
        with self._lock:
            if event.kind == "started":
                self._note(f"run {event.run}")
                if self._watched:
                    threading.Thread(target=self._watch, daemon=True).start()
            elif event.kind == "ended":
                self._ended.set()
                self._note("")
            elif event.step and event.kind == "running":
                self._running[event.step] = time.monotonic()
            elif event.step and event.kind in self.MARKS:
                self._running.pop(event.step, None)
                took = f" {event.seconds:.1f} s" if event.seconds is not None else ""
                self._note(f"  {self.MARKS[event.kind]} {event.step}{took} {event.detail}".rstrip())

    def _note(self, text: str) -> None:
        if self._watched:
            sys.stderr.write("\r\x1b[K")
        if text:
            print_note(text)

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            with self._lock:
                now = time.monotonic()
                steps = ", ".join(f"{step} {now - began:.0f} s" for step, began in self._running.items())
                if steps and not self._ended.is_set():
                    sys.stderr.write(f"\r\x1b[K  > {steps}")
                    sys.stderr.flush()


def _show(ended: PipelineRun, as_json: bool) -> None:
    if as_json:
        print_json(ended)
        return
    _show_run(ended)
    print_note(f"next: mainspring runs steps {ended.id}")


def _show_run(ended: PipelineRun) -> None:
    took = (ended.ended - ended.started).total_seconds() if ended.ended else None
    print_facts([("run", ended.id), ("pipeline", ended.pipeline), ("state", ended.state), ("seconds", took)])


def _show_registered(workspace: Workspace, model: str, ended: PipelineRun, as_json: bool) -> None:
    """What a run of a declared model led to: the version, and of a first one the verdict and where it answers."""
    import msgspec

    from mainspring.errors import StepFailed
    from mainspring.loop.worker import deploy_first, registered_by

    try:
        version = registered_by(workspace, model, ended.id)
    except StepFailed as problem:  # the run itself did what it says
        _show(ended, as_json)
        print_note(f"{click.style('retrains will fail:', fg='red')} {problem}")
        return
    verdict, promotion = deploy_first(workspace, workspace.settings.config, version)
    if as_json:
        more = {"registered": version, "verdict": verdict, "promotion": promotion}
        print_json(msgspec.to_builtins(ended) | msgspec.to_builtins(more))
        return
    _show_run(ended)
    stopped = "; ".join(r.reason for r in verdict.rules if not r.passed) if verdict is not None else None
    print_facts(
        [
            ("model", f"{model} version {version.version}"),
            *((f"  {k}", v) for k, v in describe_metrics(version.metrics)),
            ("gate", None if verdict is None else "passed" if verdict.passed else f"stopped: {stopped}"),
            ("deployed to", ", ".join(promotion.deployments) if promotion is not None else None),
        ]
    )
    print_note(f"next: {_next_command(workspace, version, verdict, promotion)}")


def _next_command(
    workspace: Workspace, version: ModelVersion, verdict: Verdict | None, promotion: Promotion | None
) -> str:
    model, number = version.model, version.version
    if promotion is not None:
        return "mainspring up serves and watches it"
    if verdict is not None:
        return f"mainspring models card {model} {number} shows what it is; change the data, the pipeline or the gate"
    deployment = next((d for d, p in workspace.settings.config.deploy.items() if p.model == model), None)
    if deployment is None:
        return f"write [deploy.{model}] with model = {model!r} into mainspring.toml"
    promote = f"mainspring models promote {model} {number} --reason ..."
    return f"{promote}; or by gate and rollout: mainspring loop retrain {deployment} --reason ..."


def _format_hit(decision: Why) -> str:
    return {True: "yes", False: "no", None: "unknown yet"}[decision.hit]
