"""The decorators. Standard library only: this module is part of ``import mainspring``.

A step stays a plain function: called outside a pipeline it just runs. Called inside the body of a pipeline that is
being recorded it returns a :class:`~mainspring.pipelines.graph.Handle` and nothing runs yet.
"""

from __future__ import annotations

import functools
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
    """How a step is executed; none of it but ``version`` is part of the cache key."""

    isolation: Isolation = "process"
    cache: bool = True
    version: str = ""
    timeout_s: float | None = None
    retries: int = 0
    backoff_s: float = 1.0
    memory_bytes: int | None = None
    outputs: tuple[str, ...] | None = None


class Recorder(Protocol):
    """What notes the step calls of a pipeline body (``graph.Builder``)."""

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
) -> Any:
    """Declare a function as a pipeline step.

    ``timeout`` and ``backoff`` are in seconds (the pause doubles with every retry, up to a minute), ``memory_mb`` is what
    the step may allocate beyond what it starts with, in MiB. ``version`` is a word of yours in the cache key, for what the
    code closure cannot see. ``outputs`` names the parts of a returned tuple or dict; a ``NamedTuple``, ``TypedDict`` or
    fixed ``tuple[...]`` annotation does so by itself. ``isolation="inline"`` runs the step inside the runner: faster, and
    without deadline, limit or protection from a crash. Raises :class:`InvalidInput` for an option that cannot be right.

    >>> @step
    ... def double(x: int) -> int:
    ...     return 2 * x
    >>> double(21)
    42
    """
    if isolation not in {"process", "inline"}:
        raise InvalidInput(
            "unknown isolation", value=isolation, place="@step", next_step="Use 'process' or 'inline'."
        )
    if isolation == "inline" and (timeout is not None or memory_mb is not None):
        raise InvalidInput(
            "an inline step can have neither timeout nor memory limit",
            place="@step",
            next_step="Remove isolation='inline', or the limit.",
        )
    if (
        (timeout is not None and timeout <= 0)
        or retries < 0
        or backoff < 0
        or (memory_mb is not None and memory_mb <= 0)
    ):
        raise InvalidInput(
            "timeout and memory_mb must be positive, retries and backoff not negative", place="@step"
        )
    if outputs is not None and (
        not isinstance(outputs, tuple) or not outputs or len(set(outputs)) != len(outputs)
    ):
        raise InvalidInput("outputs must be different names in a tuple", value=outputs, place="@step")
    options = StepOptions(
        isolation=isolation,
        cache=cache,
        version=version,
        timeout_s=timeout,
        retries=retries,
        backoff_s=backoff,
        memory_bytes=None if memory_mb is None else memory_mb << 20,
        outputs=outputs,
    )

    def declare(target: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(target)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            recorder = recording.get()
            if recorder is None:
                return target(*args, **kwargs)
            noted: R = recorder.call(target, options, args, kwargs)
            return noted

        call.__mainspring_step__ = options  # type: ignore[attr-defined]
        return call

    return declare if function is None else declare(function)


class Pipeline(Generic[P, R]):
    """A composition of steps. Calling it runs its steps as the plain functions they are; a runner records it first."""

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
