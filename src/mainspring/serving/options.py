"""Options of an inference server. Every bound has a default; nothing is unbounded."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from mainspring.errors import ConfigError
from mainspring.records.base import Record

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


class ServeOptions(Record, frozen=True, kw_only=True):
    """Options of one inference server. Sizes in bytes, times in seconds.

    ``auth``: ``key`` requires ``Authorization: Bearer <api_key>``, ``proxy`` trusts that a proxy in front authenticates, ``open`` is
    for loopback only, where Host and Origin are checked instead. ``log_mode``: if the prediction log cannot be written,
    ``best_effort`` goes on serving and counts the records that it drops, ``required`` answers 503.
    """

    bundle: str
    host: str = "127.0.0.1"
    port: int = 8710
    poll_s: float = 1.0
    auth: Literal["open", "key", "proxy"] = "open"
    api_key: str | None = None
    metrics_auth: bool = True
    """Whether ``/metrics`` requires the key too, if there is one."""
    hosts: list[str] = []
    """Further exact host names that it answers for."""
    log_mode: Literal["best_effort", "required"] = "best_effort"
    log_sync_s: float = 1.0
    max_body: int = 16 << 20
    max_inflight_bytes: int = 64 << 20
    """Bytes of all bodies that are being received; a request that exceeds it is answered 503."""
    max_rows: int = 10_000
    max_text: int = 65_536
    """Characters of one string value."""
    slots: int = 2
    """Requests that may be predicted in threads at once; cheap ones are answered on the event loop and need no slot."""
    queue: int = 64
    queue_deadline_s: float = 0.5
    deadline_s: float = 10.0
    head_deadline_s: float = 10.0
    """For a connection to send the whole head of a request, counted from its first byte or from connecting."""
    body_deadline_s: float = 30.0
    """For a body to arrive, and for a client to read an answer."""
    inline_ms: float = 1.0
    """Milliseconds. A prediction that is expected to take no longer is made on the event loop: handing it to a thread costs more."""
    shadow_queue: int = 1024
    load_deadline_s: float = 60.0
    hang_s: float = 30.0
    """A worker that sends no heartbeat for so long is killed and replaced."""
    drain_s: float = 10.0
    linger_s: float = 1.0
    """After SIGTERM, for clients with open connections to send requests that are on their way; each answer says ``connection: close``."""
    model_memory_mb: int = 1024
    """What a model in a process of its own may allocate, without its libraries: when it is loaded and while it predicts."""
    spare: bool = True
    """Keep a second worker loaded that replaces one that dies at once; it needs the memory of its models."""
    memory_mb: int | None = None
    """Limit of the worker's address space, if any."""
    sandbox: Literal["auto", "require", "off"] = "auto"


def is_loopback(host: str) -> bool:
    """Whether binding ``host`` keeps the server on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_options(options: ServeOptions) -> ServeOptions:
    """Return ``options``; raises :class:`ConfigError` for those that would be unsafe or impossible."""
    if not is_loopback(options.host) and options.auth == "open":
        raise ConfigError(
            "beyond loopback the inference server needs a key",
            value=options.host,
            next_step="Start it with 'mainspring serve --api-key-file FILE', or with --auth proxy if a proxy in front of it authenticates.",
        )
    if options.auth == "key" and len(options.api_key or "") < 16:
        raise ConfigError(
            "auth 'key' needs an API key of at least 16 characters",
            next_step="Start it with 'mainspring serve --api-key-file FILE'.",
        )
    if not Path(options.bundle).is_dir():
        raise ConfigError(
            "there is no such bundle directory",
            value=options.bundle,
            next_step="Deploy a model first: that writes the bundle.",
        )
    if not 0 <= options.port <= 65535:
        raise ConfigError("not a port", value=options.port)
    return options
