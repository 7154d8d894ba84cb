"""Leases with fencing tokens: who may act, and a number by which a holder that has lost its lease is refused.

A lease can be lost without its holder noticing (a stopped process, a slow disk). So the token is checked again inside
the transaction that commits the effect: :meth:`Leases.check` there raises :class:`Fenced` for a stale one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from mainspring.errors import Conflict, Fenced
from mainspring.storage.sql import Store, Writer


@dataclass(frozen=True)
class Lease:
    """A lease as it was acquired; ``token`` grows with each holder, ``expires_us`` is microseconds since the epoch."""

    name: str
    holder: str
    token: int
    expires_us: int


class Leases:
    """Named leases in the metadata store. Expiry is wall time, in microseconds since the epoch."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def store(self) -> Store:
        """The metadata store that the leases live in."""
        return self._store

    def acquire(self, name: str, *, holder: str, ttl_s: float) -> Lease:
        """Take the lease if it is free or expired; raises :class:`Conflict` naming the holder otherwise."""
        now = time.time_ns() // 1000
        expires = now + int(ttl_s * 1e6)
        with self._store.write() as tx:
            # One statement, so that of two concurrent callers only one gets the lease on every engine; the token grows with each holder.
            rows = tx.all(
                "INSERT INTO leases (name, holder, token, expires_us) VALUES (?, ?, 1, ?) "
                "ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = leases.token + 1, expires_us = excluded.expires_us "
                "WHERE leases.expires_us <= ? RETURNING token",
                name, holder, expires, now,
            )  # fmt: skip
            if not rows:
                other = tx.first("SELECT holder FROM leases WHERE name = ?", name)
                raise Conflict(
                    f"{name} is in use by {other['holder'] if other else 'another process'}",
                    next_step=f"Wait for it, or at most {ttl_s:.0f} s after it died.",
                )
            return Lease(name=name, holder=holder, token=int(rows[0]["token"]), expires_us=expires)

    def renew(self, lease: Lease, *, ttl_s: float) -> Lease:
        """Extend the lease; raises :class:`Fenced` if another holder has taken it meanwhile."""
        expires = time.time_ns() // 1000 + int(ttl_s * 1e6)
        with self._store.write() as tx:
            if not tx.execute(
                "UPDATE leases SET expires_us = ? WHERE name = ? AND token = ?",
                expires,
                lease.name,
                lease.token,
            ):
                raise _fenced(lease)
        return Lease(name=lease.name, holder=lease.holder, token=lease.token, expires_us=expires)

    def release(self, lease: Lease) -> None:
        """Release the lease; does nothing for a lost one, which belongs to another holder now."""
        with self._store.write() as tx:
            tx.execute(
                "UPDATE leases SET expires_us = 0 WHERE name = ? AND token = ?", lease.name, lease.token
            )

    def check(self, tx: Writer, lease: Lease) -> None:
        """Inside the transaction that commits the effect: raises :class:`Fenced` unless the token is the newest."""
        # An update, not a select: on PostgreSQL it takes the row lock, so no new holder can slip in before the commit.
        if not tx.execute(
            "UPDATE leases SET token = token WHERE name = ? AND token = ?", lease.name, lease.token
        ):
            raise _fenced(lease)


def _fenced(lease: Lease) -> Fenced:
    return Fenced(
        f"the lease on {lease.name} was lost to another process",
        value=f"token {lease.token}",
        next_step="This process must stop; the other one goes on.",
    )
