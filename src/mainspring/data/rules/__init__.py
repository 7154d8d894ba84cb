"""Check rules, one class each; see :mod:`mainspring.data.rules.base`. Every module of this package is imported, so no list needs an entry for a new rule.

Imports pyarrow and narwhals; import it lazily.
"""

from __future__ import annotations

import importlib
import pkgutil

from mainspring.data.rules.base import (
    Check,
    Counts,
    Derived,
    Plan,
    Scan,
    check_of,
    sum_of_counts,
    zero_or_one,
)

__all__ = ["Check", "Counts", "Derived", "Plan", "Scan", "check_of", "sum_of_counts", "zero_or_one"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
