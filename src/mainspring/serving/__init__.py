"""The inference plane: answers from a verified bundle, without the database or the control plane.

``serve(bundle)`` runs a supervisor, which holds the socket and never loads a model, and confined workers.
From a shell: ``python -m mainspring.serving --bundle DIR --port 8710``. See docs/rooms/serving.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.serving.options import ServeOptions
    from mainspring.serving.supervisor import serve

__all__ = ["ServeOptions", "serve"]

_MODULES = {"ServeOptions": "mainspring.serving.options", "serve": "mainspring.serving.supervisor"}


def __getattr__(name: str) -> Any:
    # Imported late: ``python -m mainspring.serving`` must leave the working directory before anything else is imported.
    if name not in _MODULES:
        msg = f"module 'mainspring.serving' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_MODULES[name]), name)
