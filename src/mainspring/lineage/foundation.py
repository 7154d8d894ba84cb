"""What every room is built on, bound to one project."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mainspring.clock import Clock
from mainspring.lineage.ledger import Ledger
from mainspring.storage.leases import Leases
from mainspring.storage.sql import Store

if TYPE_CHECKING:
    from mainspring.storage.objects import Objects


@dataclass(frozen=True)
class Foundation:
    """The parts that every room gets. ``home`` is the private directory of the workspace on this machine (mode 0700).

    The project that the workspace was made for keeps its files in ``home`` itself; every other project has a folder of its own there
    (``apart``).
    """

    project: str
    home: Path
    store: Store
    objects: Objects
    ledger: Ledger
    leases: Leases
    clock: Clock
    apart: bool = False

    @property
    def bundle(self) -> Path:
        """What inference servers of this project take their routes from, and where they write their journal."""
        return (self.home / "projects" / self.project if self.apart else self.home) / "bundle"
