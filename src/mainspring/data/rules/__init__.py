"""Check rules, one class each; see :mod:`mainspring.data.rules.base`. Every module here is loaded, so a new rule needs no list.

Imports pyarrow and narwhals; import it lazily.
"""

from __future__ import annotations

import importlib
import pkgutil

from mainspring.data.rules.base import Check, Counts, Derived, Plan, Scan, check_of, fails, total

__all__ = ["Check", "Counts", "Derived", "Plan", "Scan", "check_of", "fails", "total"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
