"""A real control plane in a thread, on a free port of this machine."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mainspring.config import served
from mainspring.operations import Principal
from mainspring.server.access import access_for, ensure_token
from mainspring.server.app import build_app
from mainspring.server.authentication import FixedTokens
from mainspring.server.connections import ControlServer, Limits, control_config
from mainspring.server.hosted import Hosted
from mainspring.server.pages import page_routes
from mainspring.server.run import listen
from mainspring.server.tokens import Tokens, digest_of
from mainspring.workspace import Workspace


@dataclass(frozen=True)
class Running:
    """A server that answers, with the administrator's token; ``tokens`` are those of the other principals, by name."""

    url: str
    token: str
    tokens: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def running_server(
    workspace: Workspace, *, limits: Limits | None = None, principals: Sequence[Principal] = ()
) -> Iterator[Running]:
    """Serve ``workspace`` over HTTP until the block ends: the real application behind its gate, without the loop's ticks."""
    token = ensure_token(workspace.settings.home)
    tokens = {p.name: f"msp_{secrets.token_urlsafe(32)}" for p in principals}
    access = access_for(token, host="127.0.0.1", hosts=[], issued=Tokens(workspace.settings.home))
    more = FixedTokens({digest_of(tokens[p.name]): p for p in principals})
    access = replace(access, tokens=(*access.tokens, more))
    hosted = Hosted(workspace, served(workspace.settings))
    server = ControlServer(control_config(build_app(hosted, access, pages=page_routes), limits))
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield Running(url=f"http://127.0.0.1:{listener.getsockname()[1]}", token=token, tokens=tokens)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
