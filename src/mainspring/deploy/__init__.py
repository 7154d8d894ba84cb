"""Deployments: which model versions answer and which shadow them, and the bundle that serving reads."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from mainspring.deploy.operations import Deploy

__all__ = ["Deploy"]


class _Callable(ModuleType):
    """Python names this package ``mainspring.deploy`` once it is loaded, and so it must be what ``ms.deploy(model)`` calls."""

    def __call__(self, *given: Any, **options: Any) -> Any:
        return importlib.import_module("mainspring.short").deploy(
            *given, **options
        )  # by name: it is above this room


sys.modules[__name__].__class__ = _Callable
