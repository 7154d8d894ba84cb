"""``mainspring.open`` and ``mainspring.start_run``: the entry points of a user's code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring import config as configuration
from mainspring.errors import InvalidInput, Unauthenticated

if TYPE_CHECKING:
    from mainspring.remote import RemoteWorkspace
    from mainspring.workspace import Workspace


def open(  # noqa: A001 - mainspring.open(...) reads well and shadows nothing in user code
    where: str | Path | None = None, *, token: str | None = None, project: str | None = None
) -> Workspace | RemoteWorkspace:
    """Open a workspace: a project directory (default: the nearest one upwards), or a server's ``http(s)://`` address.

    Both offer the same namespaces (``data``, ``tracking``, ``models``, ...). For a server the token comes from ``token``
    or ``MAINSPRING_TOKEN``. Without ``where``, ``MAINSPRING_URL`` decides if it is set; of a server's projects ``MAINSPRING_PROJECT`` names one. Close it, or use ``with``.
    """
    text = str(where) if where is not None else None
    url = text if text is not None and text.startswith(("http://", "https://")) else None
    settings = configuration.load(None if url else where, url=url)
    if settings.url is not None and (url is not None or where is None):
        from mainspring.remote import RemoteWorkspace

        secret = token or settings.token
        if not secret:
            raise Unauthenticated(
                "a server needs a token",
                value=settings.url,
                next_step="Set MAINSPRING_TOKEN; 'mainspring env --token' prints it beside the server.",
            )
        named = project or settings.project or settings.config.project.name
        return RemoteWorkspace(settings.url, token=secret, project=named)
    own = settings.config.project.name
    if project is None and settings.project not in (None, own):  # a misspelt name would begin a project
        raise InvalidInput(
            f"this directory has the project {own!r}",
            value=settings.project,
            place="MAINSPRING_PROJECT",
            next_step="Unset it, or go to that project's directory; with MAINSPRING_URL it names a project of the server.",
        )
    from mainspring.workspace import Workspace

    return Workspace(settings, project=project)


def start_run(experiment: str = "default", **options: Any) -> Any:
    """Start a tracked run in the nearest workspace: ``with mainspring.start_run("tuning") as run: run.log_metric("loss", 0.1)``.

    Options are those of ``workspace.tracking.start_run``. The workspace stays open until the run ends.
    """
    return open().tracking.start_run(experiment=experiment, **options)


def read_dataset(name: str, version: str = "latest") -> Any:
    """The table of a dataset version from the nearest workspace; of a version of files, a temporary folder that holds them."""
    import tempfile

    with open() as workspace:
        record = workspace.data.get_version(name, version)
        if record.kind == "table":
            return workspace.data.read(name, record.id)
        folder = Path(tempfile.mkdtemp(prefix="mainspring-dataset-")) / name
        workspace.data.checkout(name, record.id, folder)
        return folder
