"""Comparisons live in :mod:`mainspring.metrics.compare`; pipelines import them from here, too."""

from mainspring.metrics.compare import compare, paired_difference

__all__ = ["compare", "paired_difference"]
