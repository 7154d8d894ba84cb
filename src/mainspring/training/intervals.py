"""Confidence intervals live in :mod:`mainspring.metrics.intervals`; pipelines import them from here, too."""

from mainspring.metrics.intervals import MIN_BLOCKS, interval

__all__ = ["MIN_BLOCKS", "interval"]
