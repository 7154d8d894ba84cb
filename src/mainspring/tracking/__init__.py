"""Runs, params, metrics, artifacts; search; capture of code and environment."""

from mainspring.tracking.operations import Tracking

__all__ = ["Tracking"]
