"""Comparisons are defined in :mod:`mainspring.metrics.compare`; pipelines may import them from here."""

from mainspring.metrics.compare import compare, paired_difference

__all__ = ["compare", "paired_difference"]
