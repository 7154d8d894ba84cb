"""A real control plane in a thread, on a free port of this machine."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from mainspring.server.access import access_for, ensure_token
from mainspring.server.app import build_app
from mainspring.server.pages import page_routes
from mainspring.server.run import listen
from mainspring.workspace import Workspace


@dataclass(frozen=True)
class Running:
    """A server that answers, with the token it takes."""

    url: str
    token: str


@contextlib.contextmanager
def running_server(workspace: Workspace) -> Iterator[Running]:
    """Serve ``workspace`` over HTTP until the block ends: the real application behind its gate, without the loop's ticks."""
    import uvicorn

    token = ensure_token(workspace.settings.home)
    access = access_for(token, host="127.0.0.1", hosts=[])
    config = uvicorn.Config(
        build_app(workspace, access, pages=page_routes),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
    )
    server = uvicorn.Server(config)
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield Running(url=f"http://127.0.0.1:{listener.getsockname()[1]}", token=token)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
