"""Models: packages that are data, a registry of versions and aliases, and cards.

Three interfaces, each imported only when it is used, because serving uses the first alone:
:mod:`mainspring.models.formats` (packages and predictors, no database), :class:`Models` (the registry's operations) and
:class:`ModelsClient` (what needs a disk or an estimator).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.models.client import ModelsClient
    from mainspring.models.operations import Models

__all__ = ["Models", "ModelsClient"]

_MODULES = {"Models": "mainspring.models.operations", "ModelsClient": "mainspring.models.client"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
