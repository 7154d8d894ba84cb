"""The rooms that the loop uses, as the workspace passes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mainspring.deployments import Deploy
    from mainspring.labels import Labels
    from mainspring.models import Models
    from mainspring.monitoring import Monitoring


@dataclass(frozen=True)
class LoopRooms:
    """Rooms of the same project as the loop's."""

    models: Models
    deploy: Deploy
    monitoring: Monitoring
    labels: Labels
