"""Who calls: authenticators, which the gate tries in order.

An :class:`Authenticator` turns the credentials of a request into a principal (a name, and roles by project). It does not decide
what the principal may do. Another method, such as OpenID Connect, is one more class in the list that
:func:`mainspring.server.app.build_app` gives the gate.
"""

from __future__ import annotations

import abc
import base64
import binascii
import hmac
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from mainspring.operations import Principal
from mainspring.server.tokens import Tokens, digest_of
from mainspring.storage.sql import Store

if TYPE_CHECKING:
    from anyio import CapacityLimiter

IDLE_S = 12 * 3600.0
"""A session ends after this long without a request."""
LIFE_S = 7 * 86400.0
"""A session ends this long after its login, whatever happens."""
_TOUCH_S = 600.0
"""The time of the last request is stored at most this often, so that not every request is a write."""
_READERS = 8
"""Look-ups of sessions at once: they have threads of their own, so that busy operations do not lock people out."""


@dataclass(frozen=True)
class Credentials:
    """What a request carries to prove who sends it. The gate has refused headers that are sent twice."""

    authorization: str | None = field(default=None, repr=False)
    session: str | None = field(default=None, repr=False)
    """The value of the session's cookie."""

    def token(self) -> str | None:
        """The token in the Authorization header, if there is one."""
        scheme, _, rest = (self.authorization or "").partition(" ")
        if scheme.lower() == "bearer":
            return rest.strip() or None
        if scheme.lower() == "basic":  # stock clients put the token into the URL's password
            try:
                _, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                return None
            return password or None
        return None


class Authenticator(Protocol):
    """One method of authentication."""

    async def authenticate(self, credentials: Credentials) -> Principal | None:
        """Who has sent these credentials; None if this authenticator does not know them. Blocking work must run in a thread."""
        ...


class TokenHolders(Protocol):
    """Who holds which token now. Knows tokens by their SHA-256 (hex), so that sessions can be kept for them."""

    def holder(self, digest: str) -> Principal | None: ...


class _TokenAuthenticator(abc.ABC):
    """Authenticates whoever sends the token itself; a subclass knows who holds which token."""

    @abc.abstractmethod
    def holder(self, digest: str) -> Principal | None:
        """Who holds the token with this SHA-256 (hex) now; None for nobody."""

    async def authenticate(self, credentials: Credentials) -> Principal | None:
        token = credentials.token()
        return self.holder(digest_of(token)) if token else None


class FixedTokens(_TokenAuthenticator):
    """Tokens that do not change while the process runs: the workspace's own, whose holder is an administrator of every project."""

    def __init__(self, principals: Mapping[str, Principal]) -> None:
        self._principals = dict(principals)

    def holder(self, digest: str) -> Principal | None:
        return _find_holder(digest, self._principals)


class IssuedTokens(_TokenAuthenticator):
    """Tokens of ``mainspring token``: existence, expiry and roles are looked up at every request, so a revoked one ends at once."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def holder(self, digest: str) -> Principal | None:
        return _find_holder(digest, self._tokens.principals())


def _find_holder(digest: str, principals: Mapping[str, Principal]) -> Principal | None:
    """Compares with every digest in constant time, so that the duration reveals neither which one matches nor whether any does."""
    holder = None
    for known, principal in principals.items():
        if hmac.compare_digest(digest, known):
            holder = principal
    return holder


class Sessions:
    """Sessions of browsers: rows in the database, named by the SHA-256 of their cookie, for the holder of a token.

    Logging out, expiry, and the end of the token each end a session. The roles of its holder are looked up at the token, so a
    changed role applies at once. Every method but :meth:`authenticate` reads or writes the database: call them from a thread.
    """

    def __init__(
        self, store: Store, holders: Sequence[TokenHolders], *, now: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._holders = holders
        self._now = now
        self._readers: CapacityLimiter | None = None

    async def authenticate(self, credentials: Credentials) -> Principal | None:
        """The holder of the session. With an Authorization header the session is ignored: the header alone decides."""
        if credentials.session is None or credentials.authorization is not None:
            return None
        import anyio
        import anyio.to_thread

        self._readers = self._readers or anyio.CapacityLimiter(_READERS)
        return await anyio.to_thread.run_sync(self.find, credentials.session, limiter=self._readers)

    def open(self, token: str) -> str | None:
        """A new cookie value for whoever holds ``token``; None for nobody. Also deletes expired sessions."""
        holder = self._holder(digest_of(token))
        if holder is None:
            return None
        value, now = secrets.token_urlsafe(32), self._now_us()
        with self._store.write() as tx:
            # Expired sessions are deleted here and not at every request: logins are rare, so the table stays small at no cost.
            tx.execute("DELETE FROM sessions WHERE expires_us < ?", now)
            tx.execute(
                "INSERT INTO sessions (id, token, principal, created_us, seen_us, expires_us) VALUES (?, ?, ?, ?, ?, ?)",
                digest_of(value), digest_of(token), holder.name, now, now, now + int(LIFE_S * 1e6),
            )  # fmt: skip
        return value

    def find(self, value: str) -> Principal | None:
        """The holder of the session's token, with the roles that the holder has now; None if the session has ended."""
        ident, now = digest_of(value), self._now_us()
        with self._store.read() as tx:
            row = tx.first("SELECT * FROM sessions WHERE id = ? AND revoked_us IS NULL", ident)
        if row is None or now >= row["expires_us"] or now - row["seen_us"] >= IDLE_S * 1e6:
            return None
        if now - row["seen_us"] >= _TOUCH_S * 1e6:
            with self._store.write() as tx:
                tx.execute("UPDATE sessions SET seen_us = ? WHERE id = ?", now, ident)
        return self._holder(str(row["token"]))

    def revoke(self, value: str) -> None:
        """End the session, if there is one."""
        with self._store.write() as tx:
            tx.execute(
                "UPDATE sessions SET revoked_us = ? WHERE id = ? AND revoked_us IS NULL",
                self._now_us(),
                digest_of(value),
            )

    def _holder(self, digest: str) -> Principal | None:
        return next((p for h in self._holders if (p := h.holder(digest)) is not None), None)

    def _now_us(self) -> int:
        return int(self._now() * 1e6)
