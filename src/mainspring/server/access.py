"""What the gate checks against: the workspace's own token, the hosts that the server answers for, the authenticators.

The token is random, made at the first start and kept in a private file; the server knows only its SHA-256.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from mainspring.errors import ConfigError
from mainspring.operations import EVERY_PROJECT, Principal, Role
from mainspring.server.authentication import FixedTokens, IssuedTokens
from mainspring.server.tokens import Tokens, digest_of

_FILE = "token"


@dataclass(frozen=True)
class Access:
    """What the gate checks against. ``hosts`` are exact names or addresses, without port. ``tokens`` are asked in order who holds
    a token; the first that knows it decides. ``max_body`` is in bytes."""

    tokens: tuple[FixedTokens | IssuedTokens, ...] = ()
    hosts: frozenset[str] = frozenset({"127.0.0.1", "::1", "localhost"})
    origins: frozenset[str] = frozenset()
    max_body: int = 8 * (1 << 30)


def ensure_token(home: Path) -> str:
    """The workspace's token, made now if there is none (256 random bits, file mode 0600)."""
    path = home / _FILE
    try:
        return _read_token(path)
    except FileNotFoundError:
        pass
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    token = f"msp_{secrets.token_urlsafe(32)}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another process was first
        return _read_token(path)
    with os.fdopen(descriptor, "w") as file:
        file.write(token)
        file.flush()
        os.fsync(file.fileno())
    return token


def access_for(
    token: str, *, host: str, hosts: list[str], public_auth: str | None = None, issued: Tokens | None = None
) -> Access:
    """What the gate checks for a server that listens on ``host``.

    The holder of the workspace's token is an administrator of every project; ``issued`` tokens carry their own roles. Raises
    :class:`ConfigError` for an address beyond loopback without ``public_auth``, so that no open server starts by accident.
    """
    if not is_loopback(host) and public_auth is None:
        raise ConfigError(
            "this address is reachable from other machines",
            value=host,
            next_step="Bind to 127.0.0.1, or start 'mainspring up' with --auth token behind TLS.",
        )
    names = {"127.0.0.1", "::1", "localhost", *(h.lower() for h in hosts)}
    own = FixedTokens({digest_of(token): Principal("token", {EVERY_PROJECT: Role.ADMIN})})
    return Access(tokens=(own, IssuedTokens(issued)) if issued else (own,), hosts=frozenset(names))


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_token(path: Path) -> str:
    token = path.read_text().strip()
    if len(token) < 32:
        raise ConfigError(
            "the token file is damaged or too weak",
            place=str(path),
            next_step="Delete the file; the next start makes a new token.",
        )
    return token
