"""Metrics are defined in :mod:`mainspring.metrics`; pipelines may import them from here."""

from mainspring.metrics.metric import Floats, Metric, as_arrays
from mainspring.metrics.registry import METRICS, measure, metric

__all__ = ["METRICS", "Floats", "Metric", "as_arrays", "measure", "metric"]
