"""The dialects of the inference port, in the order in which they are tried for a path. The native one is last and takes the rest.

To add one: a module here, its line in :data:`DIALECTS`, its test (docs/design/dialects.md).
"""

from __future__ import annotations

from collections.abc import Callable

from mainspring.serving.dialects.dialect import AnyDialect, Dialect
from mainspring.serving.dialects.native import Native
from mainspring.serving.dialects.open_inference import OpenInference
from mainspring.serving.options import ServeOptions

__all__ = ["DIALECTS", "AnyDialect", "Dialect", "MakeDialect", "Native", "OpenInference"]

MakeDialect = Callable[[ServeOptions], AnyDialect]

DIALECTS: tuple[MakeDialect, ...] = (OpenInference, Native)
