"""Runs, params, metrics, artifacts; search; the spool; capture of code and environment."""

from mainspring.tracking.client import Run, TrackingClient
from mainspring.tracking.operations import Tracking
from mainspring.tracking.spool import ingest_spool

__all__ = ["Run", "Tracking", "TrackingClient", "ingest_spool"]
