"""Pipelines: plain functions as steps, composed into a graph that is data; results are cached by code and inputs.

``step`` has the decorators; ``graph`` records the calls of a pipeline; ``closure``, ``keys`` and ``planning`` decide when a result may
be used again; ``runner`` and ``drive`` execute steps in child processes (``executor``, ``forkserver``, ``execute``) or at workers
(``offers``, ``worker``) and commit their results (``attempts``, ``rows``); ``operations`` is the interface. Modules are imported on
first use: the decorators must load in a few milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.pipelines.operations import Pipelines
    from mainspring.pipelines.runner import Runner

__all__ = ["Pipelines", "Runner"]


def __getattr__(name: str) -> Any:
    if name == "Pipelines":
        from mainspring.pipelines.operations import Pipelines

        return Pipelines
    if name == "Runner":
        from mainspring.pipelines.runner import Runner

        return Runner
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
