"""Mainspring: the machine-learning lifecycle as one mechanism.

The public names are those in ``__all__``. Each loads at its first use, so that importing this package takes
milliseconds (``tests/test_imports.py``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.api import open as open  # noqa: A004 - the public name
    from mainspring.api import start_run
    from mainspring.errors import MainspringError
    from mainspring.models.formats.dates import DateParts
    from mainspring.pipelines.context import current
    from mainspring.pipelines.step import dataset, pipeline, step
    from mainspring.short import commit, deploy, log_model, train
    from mainspring.training.fitted import Fitted
    from mainspring.workspace import Workspace

__version__ = "0.1.0"

__all__ = [
    "DateParts", "Fitted", "MainspringError", "Workspace", "commit", "current", "dataset", "deploy", "log_model", "open", "pipeline", "start_run", "step", "train",
]  # fmt: skip

_WHERE = {
    "DateParts": "mainspring.models.formats.dates",
    "Fitted": "mainspring.training.fitted",
    "MainspringError": "mainspring.errors",
    "Workspace": "mainspring.workspace",
    "commit": "mainspring.short",
    "current": "mainspring.pipelines.context",
    "dataset": "mainspring.pipelines.step",
    "deploy": "mainspring.short",
    "log_model": "mainspring.short",
    "open": "mainspring.api",
    "pipeline": "mainspring.pipelines.step",
    "start_run": "mainspring.api",
    "step": "mainspring.pipelines.step",
    "train": "mainspring.short",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        msg = f"module 'mainspring' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
