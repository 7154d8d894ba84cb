"""The rooms of a workspace by name, and the namespaces a user types. Local and remote workspaces share this.

A *room* (``workspace.room("models")``) offers the declared operations. A *namespace* (``workspace.models``) is what a
person uses: the same operations, and methods whose arguments cannot be sent (frames, paths, context managers).
"""

from __future__ import annotations

import importlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mainspring.errors import NotFound, near

if TYPE_CHECKING:
    from mainspring.data import Data, DataClient
    from mainspring.deployments import Deploy
    from mainspring.labels import Labels
    from mainspring.lineage import Lineage
    from mainspring.lineage.projects import Projects
    from mainspring.lineage.uploads import Uploads
    from mainspring.loop import Loop
    from mainspring.models import Models, ModelsClient
    from mainspring.monitoring import Monitoring
    from mainspring.pipelines import Pipelines
    from mainspring.records.loop import Promotion
    from mainspring.tracking import Tracking, TrackingClient
    from mainspring.training import Training

ROOMS: dict[str, str] = {
    "projects": "mainspring.lineage.projects:Projects",
    "objects": "mainspring.lineage.uploads:Uploads",
    "lineage": "mainspring.lineage:Lineage",
    "data": "mainspring.data:Data",
    "tracking": "mainspring.tracking:Tracking",
    "models": "mainspring.models:Models",
    "training": "mainspring.training:Training",
    "pipelines": "mainspring.pipelines:Pipelines",
    "deploy": "mainspring.deployments:Deploy",
    "monitoring": "mainspring.monitoring:Monitoring",
    "labels": "mainspring.labels:Labels",
    "loop": "mainspring.loop:Loop",
}


def room_class(name: str) -> type:
    """The operations class of a room."""
    if name not in ROOMS:
        raise NotFound("no such room", value=name, next_step=near(name, ROOMS, what="room"))
    module, _, attribute = ROOMS[name].partition(":")
    return cast("type", getattr(importlib.import_module(module), attribute))


class Namespaces:
    """The namespaces of a workspace, whether its rooms are in this process or at the other end of a connection."""

    project: str
    spool: Path | None = None
    """Where runs are spooled on this machine; None: inside the local workspace."""

    def room(self, name: str) -> Any:
        """The room's operations."""
        raise NotFound("no such room", value=name)

    @cached_property
    def projects(self) -> Projects:
        return cast("Projects", self.room("projects"))

    @cached_property
    def objects(self) -> Uploads:
        return cast("Uploads", self.room("objects"))

    @cached_property
    def lineage(self) -> Lineage:
        return cast("Lineage", self.room("lineage"))

    @cached_property
    def data(self) -> DataClient:
        from mainspring.data import DataClient

        return DataClient(cast("Data", self.room("data")), self.objects)

    @cached_property
    def tracking(self) -> TrackingClient:
        from mainspring.tracking import TrackingClient

        return TrackingClient(cast("Tracking", self.room("tracking")), self.objects, spool=self.spool)

    @cached_property
    def models(self) -> ModelsClient:
        from mainspring.models import ModelsClient

        return ModelsClient(
            cast("Models", self.room("models")),
            self.objects,
            find_profile=self._find_profile,
            promote=self._promote,
        )

    # Functions of their own, so that registering alone loads neither the room data nor the loop.

    def _find_profile(self, rows: Any, version: str | None) -> str | None:
        return self.data.find_profile(rows, version)

    def _promote(self, **arguments: Any) -> Promotion:
        return self.loop.promote(**arguments)

    @cached_property
    def training(self) -> Training:
        return cast("Training", self.room("training"))

    @cached_property
    def pipelines(self) -> Pipelines:
        return cast("Pipelines", self.room("pipelines"))

    @cached_property
    def deploy(self) -> Deploy:
        return cast("Deploy", self.room("deploy"))

    @cached_property
    def monitoring(self) -> Monitoring:
        return cast("Monitoring", self.room("monitoring"))

    @cached_property
    def labels(self) -> Labels:
        return cast("Labels", self.room("labels"))

    @cached_property
    def loop(self) -> Loop:
        return cast("Loop", self.room("loop"))
