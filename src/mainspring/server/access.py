"""The workspace's token: random, made at the first start, kept in a private file; the server keeps only its hash in memory."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
from pathlib import Path

from mainspring.errors import ConfigError
from mainspring.server.gate import Access

_FILE = "token"


def ensure_token(home: Path) -> str:
    """The workspace's token, made now if there is none (256 random bits, file mode 0600)."""
    path = home / _FILE
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    token = f"msp_{secrets.token_urlsafe(32)}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another process was first
        return _read(path)
    with os.fdopen(descriptor, "w") as file:
        file.write(token)
        file.flush()
        os.fsync(file.fileno())
    return token


def access_for(token: str, *, host: str, hosts: list[str], public_auth: str | None = None) -> Access:
    """What the gate checks. A bind beyond loopback must say how callers prove themselves, or nothing starts."""
    if not is_loopback(host) and public_auth is None:
        raise ConfigError(
            "this address is reachable from other machines",
            value=host,
            next_step="Bind to 127.0.0.1, or start with --auth token behind TLS.",
        )
    names = {"127.0.0.1", "::1", "localhost", *(h.lower() for h in hosts)}
    return Access(token_digest=hashlib.sha256(token.encode()).hexdigest(), hosts=frozenset(names))


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(path: Path) -> str:
    token = path.read_text().strip()
    if len(token) < 32:
        raise ConfigError(
            "the token file is damaged or too weak",
            place=str(path),
            next_step="Delete the file; the next start makes a new token.",
        )
    return token
