"""Monitoring: windows, quality, drift, performance. It records facts and decides nothing."""

from mainspring.monitoring.operations import Monitoring

__all__ = ["Monitoring"]
