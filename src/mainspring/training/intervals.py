"""Confidence intervals are defined in :mod:`mainspring.metrics.intervals`; pipelines may import them from here."""

from mainspring.metrics.intervals import MIN_BLOCKS, interval

__all__ = ["MIN_BLOCKS", "interval"]
