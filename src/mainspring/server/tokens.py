"""Tokens for people and programs with limited roles: issued by whoever can write the workspace's folder, each with a role by
project (``*``: in every one).

Kept in a private file beside the administrator's token, as SHA-256 digests: reading the file does not reveal a token. A server reads
the file again when it changes, so revoking a token or changing its roles applies from the next request on, also for every session
that was opened with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from mainspring import durable
from mainspring.errors import Conflict, InvalidInput, NotFound, Unavailable, near
from mainspring.operations import EVERY_PROJECT, Principal, Role
from mainspring.records.base import Record, check_name, from_json, to_json

FILE = "tokens.json"
RESERVED = frozenset({"token", "local", "anonymous", "loop", "recovery"})
"""Names that events already use for other actors."""


class Issued(Record, frozen=True, kw_only=True):
    """One token: whose it is, what it may in which project, until when. The secret itself is shown once and kept nowhere."""

    name: str
    roles: dict[str, str]
    sha256: str
    created_us: int
    expires_us: int


class Tokens:
    """The issued tokens of one workspace."""

    def __init__(self, home: Path, *, now: Callable[[], float] = time.time) -> None:
        self._path = home / FILE
        self._now = now
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._known: list[Issued] = []

    def issue(self, name: str, roles: Mapping[str, Role], *, days: float) -> str:
        """A new token with these roles by project, to be shown once. Raises :class:`Conflict` for a name that has one,
        :class:`InvalidInput` for a bad one."""
        check_name(name, what="token")
        if name in RESERVED:
            raise InvalidInput(
                "this name belongs to a part of the product",
                value=name,
                next_step="Choose the name of the person or program that will use the token.",
            )
        if not 0 < days <= 3660:
            raise InvalidInput("a token lives for up to ten years", value=days, place="--days")
        named_roles = _check_roles(roles)
        secret, now = f"msp_{secrets.token_urlsafe(32)}", int(self._now() * 1e6)
        with self._edit_list() as known:
            if any(t.name == name for t in known):
                raise Conflict(
                    "this name has a token",
                    value=name,
                    next_step=f"Revoke it first: mainspring token revoke {name}",
                )
            known.append(
                Issued(
                    name=name,
                    roles=named_roles,
                    sha256=digest_of(secret),
                    created_us=now,
                    expires_us=now + int(days * 86_400e6),
                )
            )
        return secret

    def change(self, name: str, roles: Mapping[str, Role]) -> None:
        """Give a token these roles instead of those it has. Raises :class:`NotFound` if there is none of that name."""
        named_roles = _check_roles(roles)
        with self._edit_list() as known:
            index = _index_of(name, known)
            known[index] = msgspec.structs.replace(known[index], roles=named_roles)

    def revoke(self, name: str) -> None:
        """End a token. Raises :class:`NotFound` if there is none of that name."""
        with self._edit_list() as known:
            del known[_index_of(name, known)]

    def list_tokens(self) -> list[Issued]:
        """All issued tokens, expired ones too. Raises :class:`Unavailable` if the file exists and cannot be read."""
        with self._lock:
            try:
                status = self._path.stat()
                stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
                if stamp != self._stamp:
                    self._known = from_json(self._path.read_bytes(), list[Issued])
                    self._stamp = stamp
            except FileNotFoundError:
                self._stamp, self._known = None, []
            except (OSError, ValueError, InvalidInput) as error:
                raise Unavailable(
                    "the list of tokens cannot be read",
                    value=type(error).__name__,
                    place=str(self._path),
                    next_step="It belongs to the user who runs the server, and only 'mainspring token' writes it.",
                ) from error
            return list(self._known)

    def principals(self) -> Mapping[str, Principal]:
        """The holders of valid tokens, by SHA-256, with their roles. A role that this program does not know is ignored."""
        now = int(self._now() * 1e6)
        return {
            t.sha256: Principal(
                t.name,
                {p: Role[r.upper()] for p, r in t.roles.items() if r.upper() in Role.__members__},
            )
            for t in self.list_tokens()
            if now < t.expires_us
        }

    @contextlib.contextmanager
    def _edit_list(self) -> Iterator[list[Issued]]:
        """The list, to be changed in place and then written whole.

        The file lock spans reading and writing, so that two processes that change the list do not lose each other's change.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = self.list_tokens()
            yield known
            durable.replace(self._path, to_json(known))
        finally:
            os.close(lock)


def digest_of(secret: str) -> str:
    """The SHA-256 (hex) of a secret: what is stored instead of it."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _check_roles(roles: Mapping[str, Role]) -> dict[str, str]:
    if not roles:
        raise InvalidInput("a token needs a role", next_step="Give --role viewer, or --role PROJECT=viewer.")
    for project in roles:
        if project != EVERY_PROJECT:
            check_name(project, what="project")
    return {project: role.name.lower() for project, role in roles.items()}


def _index_of(name: str, known: list[Issued]) -> int:
    for number, token in enumerate(known):
        if token.name == name:
            return number
    raise NotFound(
        "no token has this name", value=name, next_step=near(name, [t.name for t in known], what="token")
    )
