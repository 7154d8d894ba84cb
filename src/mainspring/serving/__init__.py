"""The inference plane: answers from a verified bundle, knows neither the database nor the control plane.

``serve(bundle)`` runs a supervisor (which holds the socket and never loads a model) and one sandboxed worker.
From a shell: ``python -m mainspring.serving --bundle DIR --port 8710``. See docs/rooms/serving.md.
"""

from __future__ import annotations

from mainspring.serving.options import ServeOptions
from mainspring.serving.supervisor import serve

__all__ = ["ServeOptions", "serve"]
