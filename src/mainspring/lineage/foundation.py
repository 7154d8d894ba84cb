"""What every room stands on, bound to one project."""

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
    """The parts a room is given. ``home`` is the private directory of the workspace on this machine (mode 0700)."""

    project: str
    home: Path
    store: Store
    objects: Objects
    ledger: Ledger
    leases: Leases
    clock: Clock
