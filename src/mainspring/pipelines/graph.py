"""From a pipeline's body to its graph: step calls are recorded, parameters are converted, the result is data."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mainspring.errors import InvalidInput, near
from mainspring.pipelines.step import Dataset, Pipeline, StepOptions, recording
from mainspring.records.base import check_name
from mainspring.records.pipelines import Argument, Graph, GraphStep

MAX_STEPS = 10_000


@dataclass(frozen=True)
class Built:
    """A graph with the functions that its steps call and the output names that they declare, both by step name."""

    graph: Graph
    functions: dict[str, Callable[..., Any]]
    outputs: dict[str, tuple[str, ...] | None]


@dataclass(frozen=True)
class Reference:
    """What a handle refers to: an output of a step, or everything that it returns (``output`` is None)."""

    step: str
    output: str | None


class Handle:
    """The future result of a step. Pass it to another step, index it, or unpack it if its outputs are declared."""

    # Attributes of a handle are outputs of its step, so its own data has a name that no output can have.
    __slots__ = ("__reference__", "_names")

    def __init__(self, step: str, output: str | None, names: tuple[str, ...] | None) -> None:
        self.__reference__ = Reference(step, output)
        self._names = names

    def __getitem__(self, key: str | int) -> Handle:
        if self.__reference__.output is not None or (
            self._names is not None and not isinstance(key, int) and key not in self._names
        ):
            raise self._cannot(
                f"has no output {key!r}", near(str(key), self._names or (), what="named output")
            )
        if isinstance(key, int) and self._names is not None:
            if not -len(self._names) <= key < len(self._names):
                raise IndexError(key)
            return Handle(self.__reference__.step, self._names[key], None)
        return Handle(self.__reference__.step, str(key), None)

    def __getattr__(self, name: str) -> Handle:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.__reference__.output is None and self._names and name in self._names:
            return Handle(self.__reference__.step, name, None)
        raise self._cannot(f"has no output {name!r}", near(name, self._names or (), what="named output"))

    def __iter__(self) -> Iterator[Handle]:
        if self._names is None or self.__reference__.output is not None:
            raise self._cannot(
                "cannot be unpacked or looped over",
                "Annotate the step with tuple[...] or a NamedTuple, or write @step(outputs=('a', 'b')); look into values only inside steps.",
            )
        return iter([Handle(self.__reference__.step, n, None) for n in self._names])

    def __bool__(self) -> bool:
        raise self._cannot("has no value yet", "Branch on parameters here; decide by results inside a step.")

    def __repr__(self) -> str:
        return (
            f"<output of {self.__reference__.step}>"
            if self.__reference__.output is None
            else f"<output {self.__reference__.output} of {self.__reference__.step}>"
        )

    def _cannot(self, what: str, next_step: str) -> InvalidInput:
        return InvalidInput(
            f"the result of step {self.__reference__.step!r} {what}",
            place="pipeline body",
            next_step=next_step,
        )


class Builder:
    """Records the step calls of one pipeline body."""

    def __init__(self, *, root: Path) -> None:
        self._root = root
        self._steps: dict[str, GraphStep] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        self._outputs: dict[str, tuple[str, ...] | None] = {}

    def call(
        self,
        function: Callable[..., Any],
        options: StepOptions,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Handle:
        name = self._unused_name(function.__name__)
        if len(self._steps) >= MAX_STEPS:
            raise InvalidInput(f"a pipeline has at most {MAX_STEPS} steps", place=name)
        try:
            bound = inspect.signature(function).bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidInput(
                f"step {function.__name__!r} cannot be called so: {error}", place="pipeline body"
            ) from None
        self._steps[name] = GraphStep(
            name=name,
            function=function_spec(function, self._root),
            arguments={k: self._make_argument(v, place=f"{name}({k})") for k, v in bound.arguments.items()},
            isolation=options.isolation,
            cache=options.cache,
            version=options.version,
            timeout_s=options.timeout_s,
            retries=options.retries,
            backoff_s=options.backoff_s,
            memory_bytes=options.memory_bytes,
            outputs=None if options.outputs is None else list(options.outputs),
            paths=self._check_paths(options, bound, name),
        )
        self._functions[name] = function
        self._outputs[name] = declared_outputs(function, options)
        return Handle(name, None, self._outputs[name])

    def _check_paths(
        self, options: StepOptions, bound: inspect.BoundArguments, place: str
    ) -> bool | list[str]:
        if isinstance(options.paths, bool):
            return options.paths
        for name in options.paths:
            if name not in bound.signature.parameters:
                raise InvalidInput(
                    "the step has no argument of this name",
                    value=name,
                    place=f"@step(paths=...) of {place}",
                    next_step=near(name, bound.signature.parameters, what="argument"),
                )
        return list(options.paths)

    def rename(self, handle: Handle, name: str) -> Handle:
        check_name(name, what="step")
        old_name = handle.__reference__.step
        used = any(old_name in _list_upstream(s) for s in self._steps.values())
        if name in self._steps or used or handle.__reference__.output is not None:
            raise InvalidInput(
                "a step must get its own name, before its result is used", value=name, place="pipeline body"
            )
        self._steps = {
            name if k == old_name else k: msgspec.structs.replace(s, name=name) if k == old_name else s
            for k, s in self._steps.items()
        }
        self._functions[name] = self._functions.pop(old_name)
        self._outputs[name] = self._outputs.pop(old_name)
        return Handle(name, None, self._outputs[name])

    def order(self, handle: Handle, earlier: Sequence[Handle]) -> Handle:
        names = list(self._steps)
        later = handle.__reference__.step
        step = self._steps[later]
        added = [e.__reference__.step for e in earlier]
        for other in added:
            if names.index(other) >= names.index(later):
                raise InvalidInput(
                    "a step can only wait for one that was called before it",
                    value=other,
                    place=f"after({later})",
                )
        self._steps[later] = msgspec.structs.replace(step, after=sorted({*step.after, *added}))
        return handle

    def finish(self, pipeline: str) -> Built:
        if not self._steps:
            raise InvalidInput(
                "the pipeline calls no step",
                value=pipeline,
                next_step="Decorate what it calls with @mainspring.step.",
            )
        return Built(
            Graph(pipeline=pipeline, steps=list(self._steps.values())), self._functions, self._outputs
        )

    def _unused_name(self, base: str) -> str:
        name, n = base, 1
        while name in self._steps:
            n += 1
            name = f"{base}_{n}"
        return name

    def _make_argument(self, value: object, *, place: str) -> Argument:
        if isinstance(value, Handle):
            if value.__reference__.step not in self._steps:
                raise InvalidInput(
                    "this result belongs to another pipeline, or its step was renamed",
                    value=repr(value),
                    place=place,
                )
            reference = value.__reference__
            return Argument(kind="output", step=reference.step, output=reference.output)
        if isinstance(value, Path):
            return Argument(kind="path", value=str(value))
        if isinstance(value, Dataset):
            return Argument(kind="dataset", value=value.name, output=value.version)
        if isinstance(value, (list, tuple)) and _has_reference(value):
            return Argument(kind="list", items=[self._make_argument(v, place=place) for v in value])
        if isinstance(value, dict) and _has_reference(value):
            keys = [str(k) for k in value]
            return Argument(
                kind="dict", keys=keys, items=[self._make_argument(v, place=place) for v in value.values()]
            )
        try:
            plain = msgspec.to_builtins(value, enc_hook=_encode_path)
            if not _all_finite(plain):
                raise InvalidInput(
                    "NaN and infinity cannot be literal arguments",
                    place=place,
                    next_step="Make them inside the step.",
                )
            return Argument(kind="value", value=plain)
        except (TypeError, ValueError, RecursionError):
            raise InvalidInput(
                f"a {type(value).__name__} cannot be a literal argument of a step",
                place=place,
                next_step="Pass numbers, text, lists, dicts, records or a pathlib.Path; make anything else inside a step.",
            ) from None


def named(result: Any, name: str) -> Any:
    """In a pipeline body: give the step that was just called its own name, e.g. ``named(fit(family="forest"), "forest")``.

    Outside a recording it returns ``result`` unchanged.
    """
    builder = recording.get()
    return (
        builder.rename(result, name)
        if isinstance(builder, Builder) and isinstance(result, Handle)
        else result
    )


def after(result: Any, *earlier: Any) -> Any:
    """In a pipeline body: the step of ``result`` waits for ``earlier`` steps although no data flows between them."""
    builder = recording.get()
    if isinstance(builder, Builder) and isinstance(result, Handle):
        return builder.order(result, [e for e in earlier if isinstance(e, Handle)])
    return result


def build(pipeline: Pipeline[..., Any], params: Mapping[str, Any], *, root: Path) -> Built:
    """Run the body with ``params`` (already converted) and return its graph. No step runs."""
    builder = Builder(root=root)
    token = recording.set(builder)
    try:
        pipeline.function(**params)
    finally:
        recording.reset(token)
    return builder.finish(pipeline.name)


def upstream(step: GraphStep) -> list[str]:
    """Names of the steps that must end before this one."""
    return sorted(_list_upstream(step))


def convert_params(pipeline: Pipeline[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Values for the pipeline's parameters: text is read as the annotated type, everything else must already fit.

    Raises :class:`InvalidInput` naming an unknown, missing or unfit parameter.
    """
    signature = inspect.signature(pipeline.function)
    hints = _type_hints(pipeline.function)
    for name in arguments:
        if name not in signature.parameters:
            raise InvalidInput(
                "unknown parameter",
                value=name,
                place=f"pipeline {pipeline.name}",
                next_step=near(name, signature.parameters, what="parameter"),
            )
    values: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if name in arguments:
            values[name] = _convert(
                arguments[name], hints.get(name, Any), place=f"parameter {name} of pipeline {pipeline.name}"
            )
        elif parameter.default is not inspect.Parameter.empty:
            values[name] = parameter.default
        else:
            raise InvalidInput(
                "missing parameter",
                value=name,
                place=f"pipeline {pipeline.name}",
                next_step=f"Type: --param {name}=...",
            )
    return values


def with_offered(
    pipeline: Pipeline[..., Any], params: Mapping[str, Any], offered: Mapping[str, Any]
) -> dict[str, Any]:
    """``params``, and of ``offered`` what the pipeline declares: a caller may offer what not every pipeline takes."""
    known = inspect.signature(pipeline.function).parameters
    return {**params, **{name: value for name, value in offered.items() if name in known}}


def params_as_data(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain JSON data, for the record of a run."""
    return {k: msgspec.to_builtins(_dataset_as_text(v), enc_hook=_encode_path) for k, v in values.items()}


def _dataset_as_text(value: Any) -> Any:
    return f"{value.name}@{value.version}" if isinstance(value, Dataset) else value


def declared_outputs(function: Callable[..., Any], options: StepOptions) -> tuple[str, ...] | None:
    """Names of a step's outputs where its declaration gives them; None for a single value or an undeclared dict."""
    if options.outputs is not None:
        return options.outputs
    hint = _type_hints(function).get("return")
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        return None if Ellipsis in parts else tuple(str(i) for i in range(len(parts)))
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return tuple(hint._fields)
    if typing.is_typeddict(hint):
        return tuple(typing.get_type_hints(hint))
    return None


def function_spec(function: Callable[..., Any], root: Path) -> str:
    """``file:qualname``; the file is relative to the project if it is inside, else absolute."""
    file = Path(inspect.unwrap(function).__code__.co_filename)
    resolved = file.resolve()
    shown = (
        resolved.relative_to(root.resolve()).as_posix()
        if resolved.is_relative_to(root.resolve())
        else str(resolved)
    )
    return f"{shown}:{function.__qualname__}"


def _list_upstream(step: GraphStep) -> set[str]:
    names = set(step.after)
    waiting = list(step.arguments.values())
    while waiting:
        argument = waiting.pop()
        if argument.kind == "output":
            names.add(argument.step)
        waiting += argument.items
    return names


def _encode_path(value: Any) -> Any:
    """A path inside a record becomes text; the content of the file that it names counts as for any other text."""
    if isinstance(value, Path):
        return str(value)
    msg = f"{type(value).__name__} is not plain data"
    raise TypeError(msg)


def _has_reference(value: object) -> bool:
    if isinstance(value, (Handle, Path, Dataset)):
        return True
    if isinstance(value, (list, tuple)):
        return any(_has_reference(v) for v in value)
    return isinstance(value, dict) and any(_has_reference(v) for v in value.values())


def _all_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_all_finite(v) for v in value.values())
    return not isinstance(value, (list, tuple)) or all(_all_finite(v) for v in value)


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (
        NameError,
        TypeError,
        AttributeError,
    ):  # names that only a type checker knows: treated as no annotation
        return {}


def _convert(value: Any, hint: Any, *, place: str) -> Any:
    if hint is Any:
        return value
    if isinstance(value, (Path, Dataset)):
        return value
    if hint is Path or (isinstance(hint, type) and issubclass(hint, Path)):
        return Path(value)
    text = isinstance(value, str)
    try:
        if text and _is_container(hint):
            return msgspec.json.decode(value, type=hint)
        return msgspec.convert(value, hint, strict=not text)
    except (msgspec.ValidationError, msgspec.DecodeError, TypeError) as error:
        raise InvalidInput(
            f"the value does not fit its type: {error}",
            value=value,
            place=place,
            next_step=f"Give {_type_name(hint)}.",
        ) from None


def _is_container(hint: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    if origin in (typing.Union, types.UnionType):
        return any(_is_container(a) for a in typing.get_args(hint)) and str not in typing.get_args(hint)
    return isinstance(origin, type) and issubclass(origin, (list, dict, tuple, set, msgspec.Struct))


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)
