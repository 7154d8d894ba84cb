"""Deployments: which model versions answer, listen and shadow; and the bundle that serving takes it from."""

from __future__ import annotations

from mainspring.deploy.operations import Deploy

__all__ = ["Deploy"]
