"""How callers prove who they are: the workspace's token, and the sessions that browsers get for one.

The token is random, made at the first start and kept in a private file; the server knows only its SHA-256. A session is a row
in the database, named by the SHA-256 of its cookie: logging out, an exchanged token and time each end it, and whoever reads the
database cannot use what is there.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mainspring.errors import ConfigError
from mainspring.operations import EVERY_PROJECT, Principal, Role
from mainspring.storage.sql import Store

_FILE = "token"

IDLE_S = 12 * 3600.0
"""A session ends after this long without a request."""
LIFE_S = 7 * 86400.0
"""A session ends this long after its login, whatever happens."""
_TOUCH_S = 600.0
"""How exactly the last request is remembered: not every request is a write."""


@dataclass(frozen=True)
class Access:
    """What the gate checks against: principals by the SHA-256 (hex) of their token, ``issued`` those that may change meanwhile.
    ``hosts`` are exact names or addresses, without port."""

    tokens: Mapping[str, Principal] = field(repr=False)
    issued: Callable[[], Mapping[str, Principal]] = field(default=dict, repr=False)
    hosts: frozenset[str] = frozenset({"127.0.0.1", "::1", "localhost"})
    origins: frozenset[str] = frozenset()
    max_body: int = 8 * (1 << 30)

    def principal(self, token: str) -> Principal | None:
        """Whose token this is."""
        return self.holder(digest_of(token))

    def holder(self, digest: str) -> Principal | None:
        """Whose token has this SHA-256."""
        found = None
        for known, principal in (dict(self.issued()) | dict(self.tokens)).items():
            if hmac.compare_digest(digest, known):
                found = principal
        return found


class Sessions:
    """Sessions of browsers. Every method reads or writes the database: call them from a thread."""

    def __init__(self, store: Store, access: Access, *, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._access = access
        self._now = now

    def open(self, token: str) -> str | None:
        """A new cookie value for whoever holds ``token``; None for nobody. What has expired is swept out."""
        holder = self._access.principal(token)
        if holder is None:
            return None
        value, now = secrets.token_urlsafe(32), self._us()
        with self._store.write() as tx:
            tx.execute("DELETE FROM sessions WHERE expires_us < ?", now)
            tx.execute(
                "INSERT INTO sessions (id, token, principal, created_us, seen_us, expires_us) VALUES (?, ?, ?, ?, ?, ?)",
                digest_of(value), digest_of(token), holder.name, now, now, now + int(LIFE_S * 1e6),
            )  # fmt: skip
        return value

    def find(self, value: str) -> Principal | None:
        """Whose session this is: of its token's holder, with the roles that the holder has now."""
        ident, now = digest_of(value), self._us()
        with self._store.read() as tx:
            row = tx.first("SELECT * FROM sessions WHERE id = ? AND revoked_us IS NULL", ident)
        if row is None or now >= row["expires_us"] or now - row["seen_us"] >= IDLE_S * 1e6:
            return None
        if now - row["seen_us"] >= _TOUCH_S * 1e6:
            with self._store.write() as tx:
                tx.execute("UPDATE sessions SET seen_us = ? WHERE id = ?", now, ident)
        return self._access.holder(str(row["token"]))

    def revoke(self, value: str) -> None:
        """End the session, if it is one."""
        with self._store.write() as tx:
            tx.execute(
                "UPDATE sessions SET revoked_us = ? WHERE id = ? AND revoked_us IS NULL",
                self._us(),
                digest_of(value),
            )

    def _us(self) -> int:
        return int(self._now() * 1e6)


def digest_of(secret: str) -> str:
    """What is kept of a secret: its SHA-256."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


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
    """What the gate checks: the workspace's token is the administrator's. A bind beyond loopback must say how callers prove
    themselves, or nothing starts."""
    if not is_loopback(host) and public_auth is None:
        raise ConfigError(
            "this address is reachable from other machines",
            value=host,
            next_step="Bind to 127.0.0.1, or start 'mainspring up' with --auth token behind TLS.",
        )
    names = {"127.0.0.1", "::1", "localhost", *(h.lower() for h in hosts)}
    administrator = Principal("token", {EVERY_PROJECT: Role.ADMIN})
    return Access(tokens={digest_of(token): administrator}, hosts=frozenset(names))


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
