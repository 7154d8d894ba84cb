"""The decorators. Standard library only: this module is part of ``import mainspring``.

A step stays a plain function: called outside a pipeline it just runs. Called inside the body of a pipeline that is
being recorded it returns a :class:`~mainspring.pipelines.graph.Handle` and nothing runs yet.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

from mainspring.errors import InvalidInput

P = ParamSpec("P")
R = TypeVar("R")

Isolation = Literal["process", "inline"]


@dataclass(frozen=True)
class StepOptions:
    """How a step is executed. Of these only ``version`` is part of the cache key."""

    isolation: Isolation = "process"
    cache: bool = True
    version: str = ""
    timeout_s: float | None = None
    retries: int = 0
    backoff_s: float = 1.0
    memory_bytes: int | None = None
    outputs: tuple[str, ...] | None = None
    paths: bool | tuple[str, ...] = True


_READER = "mainspring.api:read_dataset"
"""What reads a dataset from the nearest workspace, outside of a run."""


@dataclass(frozen=True)
class Dataset:
    """A version of a dataset, to be read by a step: see :func:`dataset`."""

    name: str
    version: str = "latest"

    def read(self) -> Any:
        """The version's table (or, of a version of files, their folder), from the nearest workspace."""
        from mainspring.pipelines.context import current, import_named

        if current().execution:
            raise InvalidInput(
                "a step can read a dataset only as an argument: otherwise the cache would not see which version it read",
                value=self.name,
                place=current().step,
                next_step="Write dataset(...) in the pipeline's body, as an argument of the step.",
            )
        return import_named(_READER)(self.name, self.version)


def dataset(name: str, version: str | int = "latest") -> Any:
    """In a pipeline body: a version of a dataset as an argument of a step.

    ``version`` is ``latest``, a number, a tag, an id or its unique beginning; it is resolved when a run is planned, and the
    run reads that version to its end. The step gets the table (a :class:`pyarrow.Table`), or a folder of its own with the
    version's files. The version is part of the cache key and an input of the run in lineage. Outside a run, a step that is
    called with it reads the same from the nearest workspace.
    """
    if not name or not isinstance(name, str):
        raise InvalidInput(
            "a dataset is given by its name",
            value=name,
            place="dataset(...)",
            next_step='Write dataset("rents").',
        )
    return Dataset(name, str(version))


class Recorder(Protocol):
    """Records the step calls of a pipeline body (``graph.Builder``)."""

    def call(
        self,
        function: Callable[..., Any],
        options: StepOptions,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any: ...


recording: ContextVar[Recorder | None] = ContextVar("mainspring_recording", default=None)


@overload
def step(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def step(
    *,
    isolation: Isolation = "process",
    cache: bool = True,
    version: str = "",
    timeout: float | None = None,
    retries: int = 0,
    backoff: float = 1.0,
    memory_mb: int | None = None,
    outputs: tuple[str, ...] | None = None,
    paths: bool | tuple[str, ...] = True,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def step(
    function: Callable[..., Any] | None = None,
    /,
    *,
    isolation: Isolation = "process",
    cache: bool = True,
    version: str = "",
    timeout: float | None = None,
    retries: int = 0,
    backoff: float = 1.0,
    memory_mb: int | None = None,
    outputs: tuple[str, ...] | None = None,
    paths: bool | tuple[str, ...] = True,
) -> Any:
    """Declare a function as a pipeline step.

    ``timeout`` and ``backoff`` are in seconds (the pause doubles with every retry, up to a minute), ``memory_mb`` is what
    the step may allocate beyond what it starts with, in MiB. ``version`` is any text: it is part of the cache key, for
    changes that the code closure cannot see. ``outputs`` names the parts of a returned tuple or dict; a ``NamedTuple``, ``TypedDict`` or
    fixed ``tuple[...]`` annotation does so by itself. Text among the arguments that names an existing file or folder of the
    project counts by its content; ``paths=False`` takes it as plain text, ``paths=("source",)`` looks for files in these
    arguments only (use it for the name of a folder that the step writes to). ``isolation="inline"`` runs the step inside the runner: faster, and
    without deadline, limit or protection from a crash. Raises :class:`InvalidInput` for an invalid option.

    >>> @step
    ... def double(x: int) -> int:
    ...     return 2 * x
    >>> double(21)
    42
    """
    options = StepOptions(
        isolation=isolation,
        cache=cache,
        version=version,
        timeout_s=timeout,
        retries=retries,
        backoff_s=backoff,
        memory_bytes=None if memory_mb is None else memory_mb << 20,
        outputs=outputs,
        paths=paths,
    )
    _check_options(options)

    def declare(target: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(target)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            recorder = recording.get()
            if recorder is None:
                values = [_read_dataset(target, i, a) for i, a in enumerate(args)]
                return target(*values, **{k: _read_dataset(target, k, v) for k, v in kwargs.items()})
            handle: R = recorder.call(target, options, args, kwargs)
            return handle

        call.__mainspring_step__ = options  # type: ignore[attr-defined]
        return call

    return declare if function is None else declare(function)


def _check_options(options: StepOptions) -> None:
    if options.isolation not in {"process", "inline"}:
        raise InvalidInput(
            "unknown isolation",
            value=options.isolation,
            place="@step",
            next_step="Use 'process' or 'inline'.",
        )
    if options.isolation == "inline" and (options.timeout_s is not None or options.memory_bytes is not None):
        raise InvalidInput(
            "an inline step can have neither timeout nor memory limit",
            place="@step",
            next_step="Remove isolation='inline', or the limit.",
        )
    if (
        (options.timeout_s is not None and options.timeout_s <= 0)
        or options.retries < 0
        or options.backoff_s < 0
        or (options.memory_bytes is not None and options.memory_bytes <= 0)
    ):
        raise InvalidInput(
            "timeout and memory_mb must be positive, retries and backoff not negative", place="@step"
        )
    outputs, paths = options.outputs, options.paths
    if outputs is not None and (
        not isinstance(outputs, tuple) or not outputs or len(set(outputs)) != len(outputs)
    ):
        raise InvalidInput("outputs must be different names in a tuple", value=outputs, place="@step")
    if not isinstance(paths, bool) and not (
        isinstance(paths, tuple) and all(isinstance(name, str) for name in paths)
    ):
        raise InvalidInput(
            "paths is True, False or a tuple of the names of arguments", value=paths, place="@step"
        )


def _read_dataset(target: Callable[..., Any], parameter: str | int, value: Any) -> Any:
    """The content of a dataset, for a plain call, as the annotation of its parameter wants it, as in a run; any other value unchanged."""
    if isinstance(value, Dataset):
        from mainspring.pipelines.frames import from_table

        try:
            hints = typing.get_type_hints(target)
        except (NameError, TypeError, AttributeError):
            hints = {}
        if isinstance(parameter, int):
            parameter = ([*inspect.signature(target).parameters, *[""] * parameter])[parameter]
        return from_table(value.read(), made="", hint=hints.get(parameter))
    if type(value) in {list, tuple} and any(isinstance(v, Dataset) for v in value):
        return type(value)(v.read() if isinstance(v, Dataset) else v for v in value)
    return value


class Pipeline(Generic[P, R]):
    """A composition of steps. Calling it runs its steps as plain functions; a runner records it first."""

    def __init__(self, function: Callable[P, R], *, name: str) -> None:
        self.function = function
        self.name = name
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<pipeline {self.name}>"


@overload
def pipeline(function: Callable[P, R], /) -> Pipeline[P, R]: ...
@overload
def pipeline(*, name: str) -> Callable[[Callable[P, R]], Pipeline[P, R]]: ...
def pipeline(function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """Declare a function that composes steps. Its typed parameters are the pipeline's parameters.

    The body runs once per run, to record the calls: it sees the parameters' values but only handles of step results,
    so it may branch on parameters and loop, but not look into results. Another pipeline called in it becomes part of it.
    """

    def declare(target: Callable[P, R]) -> Pipeline[P, R]:
        return Pipeline(target, name=name or target.__name__)

    return declare if function is None else declare(function)


def options_of(function: object) -> StepOptions | None:
    """The options of a step, or None for anything else."""
    options = getattr(function, "__mainspring_step__", None)
    return options if isinstance(options, StepOptions) else None
