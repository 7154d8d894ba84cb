"""One attempt at a step, in its own process or inline: read inputs from files, call the function, write outputs and one result."""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import resource
import sys
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from mainspring.errors import InvalidInput, MainspringError
from mainspring.observation import observing
from mainspring.pipelines import artifacts, context
from mainspring.pipelines.effects import Collector
from mainspring.pipelines.graph import declared_outputs
from mainspring.pipelines.job import (
    Output,
    Place,
    Result,
    Task,
    input_key,
    read_task,
    source_key,
    write_result,
)
from mainspring.pipelines.loading import load_function
from mainspring.pipelines.preload import loaded_since
from mainspring.pipelines.step import StepOptions
from mainspring.records.pipelines import Argument, Artifact, StepError, StepJob, StepSource

_MAX_MESSAGE = 2000


def main(task_file: Path) -> int:
    """Run the task in this process, which runs nothing else; returns the exit code."""
    task = read_task(task_file)
    before = frozenset(sys.modules)
    os.chdir(task.place.root)
    if task.job.memory_bytes is not None:
        _limit_memory(task.job.memory_bytes)
    result = execute(task, alone=True)
    atexit._run_exitfuncs()  # noqa: SLF001 - a forked process ends by _exit: what the step registered must still run
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    result = msgspec.structs.replace(result, modules=loaded_since(before))
    write_result(Path(task.place.scratch), result)
    return 0 if result.error is None else 1


def execute(task: Task, function: Callable[..., Any] | None = None, *, alone: bool = False) -> Result:
    """Call the step and save its outputs. An error is part of the result; nothing is raised.

    ``alone``: nothing else runs in this process, so decisions of all its threads are effects of the step.
    """
    effects = Collector()
    with observing(effects, process=alone):
        return _execute(task.job, task.place, function, effects)


def _execute(job: StepJob, place: Place, function: Callable[..., Any] | None, effects: Collector) -> Result:
    here = context.StepContext(
        project=job.project,
        run=job.run,
        execution=job.execution,
        pipeline=job.pipeline,
        step=job.step,
        attempt=job.attempt,
        at=job.at,
        params=dict(job.params),
        inputs={
            n: [f"object:{o.digest}" for s in _list_sources(a, job) for o in s.outputs]
            for n, a in job.arguments.items()
        },
        workspace_opener=place.opener,
        workspace_options=dict(place.workspace),
        _scratch=Path(place.scratch) / "work",
    )
    token = context.active.set(here)
    phase: typing.Literal["input", "exception", "output"] = "input"
    try:
        if function is None:
            function = load_function(job.function, root=Path(place.root))
        bound = _bind_arguments(function, job, place)
        phase = "exception"
        value = function(*bound.args, **bound.kwargs)
        phase = "output"
        shape, outputs = _save_outputs(value, function, job, Path(place.scratch))
        here.close()
    except MemoryError as error:
        return Result(error=_describe_failure("memory", error))
    except BaseException as error:  # noqa: BLE001 - user code may raise anything, SystemExit included
        kind = phase if phase == "exception" or isinstance(error, MainspringError) else "exception"
        if isinstance(error, SystemExit):
            return Result(
                error=StepError(
                    kind="exit", type="SystemExit", message=f"the step called exit({error.code!r})"
                )
            )
        return Result(error=_describe_failure(kind, error), metrics=context.encode_metrics(here.metrics))
    finally:
        context.active.reset(token)
    return Result(
        outputs=outputs,
        shape=shape,
        metrics=context.encode_metrics(here.metrics),
        used=here.references_used,
        produced=here.references_produced,
        effects=effects.with_declared(here.references_produced),
    )


def _describe_failure(
    kind: typing.Literal["memory", "input", "exception", "output"], error: BaseException
) -> StepError:
    with contextlib.suppress(Exception):
        traceback.print_exception(error, file=sys.stderr)
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - even __str__ is user code
        message = "(its message cannot be shown)"
    return StepError(
        kind=kind,
        type=type(error).__name__,
        message=message[:_MAX_MESSAGE].encode("utf-8", "replace").decode(),
    )


def _bind_arguments(function: Callable[..., Any], job: StepJob, here: Place) -> inspect.BoundArguments:
    signature = inspect.signature(function)
    hints = _type_hints(function)
    bound = signature.bind_partial()
    for name, argument in job.arguments.items():
        value = _load_value(argument, job, here, hint=hints.get(name), place=f"{job.step}({name})")
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            value = tuple(value)
        bound.arguments[name] = value
    return bound


def _load_value(argument: Argument, job: StepJob, here: Place, *, hint: Any, place: str) -> Any:
    if argument.kind == "value":
        return _convert_literal(argument.value, hint, place=place)
    if argument.kind == "list":
        return [_load_value(a, job, here, hint=_element_hint(hint), place=place) for a in argument.items]
    if argument.kind == "dict":
        return {
            k: _load_value(a, job, here, hint=_element_hint(hint), place=place)
            for k, a in zip(argument.keys, argument.items, strict=True)
        }
    source = job.sources[source_key(argument)]
    returned = _return_hint(source, here)
    if argument.kind == "output" and argument.output is None and source.shape != "single":
        values = {
            o.name: _load_artifact(o, here, (_part_hint(returned, o.name),), place) for o in source.outputs
        }
        return artifacts.join(source.shape, values, hint=returned)
    wanted = argument.output if argument.kind == "output" and argument.output is not None else "value"
    for output in source.outputs:
        if output.name == wanted:
            made = returned if source.shape == "single" else _part_hint(returned, wanted)
            return _load_artifact(output, here, (hint, made), place)
    if source.shape == "single":  # a single dict or list: take the wanted part of it
        output = source.outputs[0]
        return _pick_part(_load_artifact(output, here, (returned,), place), wanted, place=place)
    raise InvalidInput(
        f"the earlier step has no output {wanted!r}",
        value=[o.name for o in source.outputs],
        place=place,
        next_step="Name its outputs in @step(outputs=...).",
    )


def _pick_part(value: Any, wanted: str, *, place: str) -> Any:
    if isinstance(value, dict) and wanted in value:
        return value[wanted]
    if isinstance(value, list) and wanted.lstrip("-").isdigit() and -len(value) <= int(wanted) < len(value):
        return value[int(wanted)]
    raise InvalidInput(f"the earlier step returned nothing under {wanted!r}", place=place)


def _load_artifact(artifact: Artifact, here: Place, hints: tuple[Any, ...], place: str) -> Any:
    path, type_name = Path(here.inputs[input_key(artifact)]), artifact.type
    fitting = next((h for h in hints if isinstance(h, type) and h.__qualname__ == type_name), hints[0])
    return artifacts.load(artifact.kind, path, type_name=type_name, hint=fitting, place=place)


def _convert_literal(value: Any, hint: Any, *, place: str) -> Any:
    if hint is None or hint is Any:
        return value
    try:
        return msgspec.convert(value, hint, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"the argument does not fit its annotation: {error}", value=value, place=place
        ) from None
    except (TypeError, NotImplementedError):  # msgspec does not support the annotation
        return value


def _decode_path(kind: type, value: Any) -> Any:
    """Make a path from text: paths inside records are stored as text."""
    if issubclass(kind, Path) and isinstance(value, str):
        return kind(value)
    msg = f"{kind.__name__} cannot be made of data"
    raise NotImplementedError(msg)


def _save_outputs(
    value: object, function: Callable[..., Any], job: StepJob, folder: Path
) -> tuple[str, list[Output]]:
    hint = _type_hints(function).get("return")
    place = f"what step {job.step!r} returned"
    shape, values = artifacts.split(
        value,
        names=declared_outputs(
            function, StepOptions(outputs=None if job.outputs is None else tuple(job.outputs))
        ),
        place=place,
    )
    outputs = []
    for number, (name, returned) in enumerate(values.items()):
        part_hint = hint if shape == "single" else _part_hint(hint, name)
        keep = getattr(returned, "__mainspring_output__", None)
        part = returned if keep is None or isinstance(returned, type) else keep(context.current())
        outputs.append(
            artifacts.save(
                part,
                folder,
                name=name,
                number=number,
                hint=part_hint,
                place=f"{place}, output {name!r}" if shape != "single" else place,
            )
        )
    return shape, outputs


def _part_hint(hint: Any, name: str) -> Any:
    """The annotation of one output."""
    if typing.get_origin(hint) is tuple and name.isdigit():
        parts = typing.get_args(hint)
        return parts[int(name)] if int(name) < len(parts) else None
    if isinstance(hint, type) and (hasattr(hint, "_fields") or typing.is_typeddict(hint)):
        return typing.get_type_hints(hint).get(name)
    return None


def _element_hint(hint: Any) -> Any:
    parts = typing.get_args(hint)
    return parts[-1] if parts and typing.get_origin(hint) in (list, dict, tuple) else None


def _return_hint(source: StepSource, here: Place) -> Any:
    """The return annotation of the producing step, if its outputs need a class to be read: types come from code, never from data."""
    needs = source.shape == "named" or any(o.kind == "record" for o in source.outputs)
    if source.producer is None or not needs:
        return None
    return _type_hints(load_function(source.producer, root=Path(here.root))).get("return")


def _list_sources(argument: Argument, job: StepJob) -> list[StepSource]:
    if argument.kind in {"output", "path", "dataset"}:
        return [job.sources[source_key(argument)]]
    return [s for a in argument.items for s in _list_sources(a, job)]


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        return {}


def _limit_memory(extra: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
