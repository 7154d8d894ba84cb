"""Deployments: which model versions answer and which shadow them, and the bundle that serving reads."""

from __future__ import annotations

from mainspring.deployments.operations import Deploy

__all__ = ["Deploy"]
