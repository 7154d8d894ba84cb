"""Every error a user can meet, one stable code each.

The same code appears in Python (``error.code``), in HTTP (``{"error": {"code": ...}}``) and in the shell
(``error[code]: ...``). A message names the offending *value*, the *place* it came from and the *next step*.

    MainspringError
    ├── InvalidInput            422  what the caller sent cannot be right
    │   ├── ConfigError         422  ... in mainspring.toml
    │   ├── UnsafeFormat        422  a payload that would run code when loaded
    │   └── CheckFailed         422  data broke its declared rules
    ├── Unauthenticated         401
    ├── PermissionDenied        403
    ├── NotFound                404
    ├── Conflict                409  somebody else was first, or the thing is immutable
    │   ├── KeyTaken            409  another call with this idempotency key was first
    │   ├── WorkspaceLocked     409  a second server on one workspace
    │   └── Fenced              409  a lease was lost; its holder must stop
    ├── TooLarge                413
    ├── UnsupportedMedia        415
    ├── Corrupt                 500  stored bytes are not what their digest says
    ├── StepFailed              500  user code in a step failed
    ├── Unavailable             503  busy or unreachable: try again
    ├── DeadlineExceeded        504
    ├── StorageFull             507
    └── MissingExtra            501  an optional library is not installed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class MainspringError(Exception):
    """Base of all our errors.

    ``value`` is what was wrong, ``place`` where it stood (file, field, table), ``next_step`` what to do now.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, value: object = None, place: str | None = None, next_step: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.value = None if value is None else _shorten(value)
        self.place = place
        self.next_step = next_step

    def __str__(self) -> str:
        parts = [self.message]
        if self.value is not None:
            parts.append(f"got {self.value}")
        if self.place:
            parts.append(f"in {self.place}")
        text = "; ".join(parts)
        return f"{text}. {self.next_step}" if self.next_step else text

    def to_dict(self) -> dict[str, Any]:
        """The wire form: ``{"code", "message"}`` plus ``value``, ``place`` and ``next_step`` where known."""
        extra = {"value": self.value, "place": self.place, "next_step": self.next_step}
        return {"code": self.code, "message": self.message} | {
            k: v for k, v in extra.items() if v is not None
        }


class InvalidInput(MainspringError):
    code = "invalid_input"
    status = 422
    exit_code = 2


class ConfigError(InvalidInput):
    code = "invalid_config"


class UnsafeFormat(InvalidInput):
    code = "unsafe_format"


class CheckFailed(InvalidInput):
    code = "check_failed"


class Unauthenticated(MainspringError):
    code = "unauthenticated"
    status = 401


class PermissionDenied(MainspringError):
    code = "permission_denied"
    status = 403


class NotFound(MainspringError):
    code = "not_found"
    status = 404
    exit_code = 3


class Conflict(MainspringError):
    code = "conflict"
    status = 409


class KeyTaken(Conflict):
    code = "key_taken"


class WorkspaceLocked(Conflict):
    code = "workspace_locked"


class Fenced(Conflict):
    code = "fenced"


class TooLarge(MainspringError):
    code = "too_large"
    status = 413


class UnsupportedMedia(MainspringError):
    code = "unsupported_media"
    status = 415


class Corrupt(MainspringError):
    code = "corrupt"


class StepFailed(MainspringError):
    code = "step_failed"


class Unavailable(MainspringError):
    code = "unavailable"
    status = 503


class DeadlineExceeded(MainspringError):
    code = "deadline_exceeded"
    status = 504


class StorageFull(MainspringError):
    code = "storage_full"
    status = 507


class MissingExtra(MainspringError):
    code = "missing_extra"
    status = 501

    @classmethod
    def for_library(cls, library: str, *, extra: str) -> MissingExtra:
        """The error for an import that failed: says which extra brings it."""
        return cls(
            f"{library} is not installed",
            value=library,
            next_step=f"Type: pip install 'mainspring[{extra}]'",
        )


def _all(base: type[MainspringError]) -> Iterable[type[MainspringError]]:
    yield base
    for child in base.__subclasses__():
        yield from _all(child)


def from_dict(payload: dict[str, Any]) -> MainspringError:
    """Rebuild an error from its wire form, so that remote callers catch the same class as local ones."""
    kinds = {kind.code: kind for kind in _all(MainspringError)}
    kind = kinds.get(str(payload.get("code")), MainspringError)
    error = kind(
        str(payload.get("message", "unknown error")),
        place=payload.get("place"),
        next_step=payload.get("next_step"),
    )
    error.value = payload.get("value")
    return error


def near(name: str, candidates: Iterable[str], *, what: str = "one") -> str:
    """A next step for a misspelt name: the nearest known ones, or all of them when there are few.

    >>> near("delai", ["delay", "price"])
    "Did you mean 'delay'?"
    >>> near("x", [], what="model")
    'There is no model yet.'
    """
    known = sorted(set(candidates))
    if not known:
        return f"There is no {what} yet."
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(repr(c) for c in close)}?"
    shown = ", ".join(repr(k) for k in known[:8])
    return f"Known: {shown}{', ...' if len(known) > 8 else ''}."


def _shorten(value: object, limit: int = 200) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
