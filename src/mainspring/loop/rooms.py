"""The rooms that the loop leans on, handed in by the workspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mainspring.deploy import Deploy
    from mainspring.labels import Labels
    from mainspring.models import Models
    from mainspring.monitoring import Monitoring


@dataclass(frozen=True)
class LoopRooms:
    models: Models
    deploy: Deploy
    monitoring: Monitoring
    labels: Labels
