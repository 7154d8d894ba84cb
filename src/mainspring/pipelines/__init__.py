"""Pipelines: plain functions as steps, composed into a graph that is data, cached by what they are made of.

``step`` declares; ``graph`` records the calls; ``closure`` and ``keys`` say when a result may be used again; ``runner`` and
``drive`` execute in child processes (``executor``, ``forkserver``, ``worker``) and commit (``state``); ``operations``
answers. Nothing is imported here before it is asked for: the decorators must load in a few milliseconds.
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
