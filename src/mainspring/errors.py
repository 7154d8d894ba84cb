"""Every error a user can meet, one stable code each.

The same code appears in Python (``error.code``), in HTTP (``{"error": {"code": ...}}``) and in the shell
(``error[code]: ...``). A message names the offending *value*, the *place* it came from and the *next step*.

    MainspringError
    ├── InvalidInput            422  what the caller sent cannot be right
    │   ├── ConfigError         422  ... in mainspring.toml
    │   ├── UnsafeFormat        422  a payload that would run code when loaded
    │   ├── CheckFailed         422  data broke its declared rules
    │   ├── NothingPredicts     422  no model leads the dummy beyond noise
    │   ├── TooManyRows         422  more rows than one request may have
    │   ├── Malformed           400  a body that is not the JSON it should be
    │   ├── BadRequest          400  headers, host, framing
    │   ├── MethodNotAllowed    405
    │   ├── SlowRequest         408  the body did not arrive in time
    │   └── Misdirected         421  a host name that is not ours
    ├── Unauthenticated         401
    ├── PermissionDenied        403
    │   └── ForeignOrigin       403  a browser page of another site
    ├── NotFound                404
    ├── Conflict                409  somebody else was first, or the thing is immutable
    │   ├── KeyTaken            409  another call with this idempotency key was first
    │   ├── WorkspaceLocked     409  a second server on one workspace
    │   └── Fenced              409  a lease was lost; its holder must stop
    ├── TooLarge                413
    ├── UnsupportedMedia        415
    ├── Corrupt                 500  stored bytes are not what their digest says
    ├── StepFailed              500  user code in a step failed
    ├── ModelFailed             500  a model raised, or answered something that is not an answer
    ├── Unavailable             503  busy or unreachable: try again
    │   └── Overloaded          503  all slots and the whole queue are taken
    ├── DeadlineExceeded        504
    ├── StorageFull             507
    └── MissingExtra            501  an optional library is not installed

A code names one class: defining a second class with the same code raises. Rooms define further classes in the modules that
raise them; on a machine where such a class is not loaded, the error keeps its code and status.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar

_BY_CODE: dict[str, type[MainspringError]] = {}


class MainspringError(Exception):
    """Base of all our errors.

    ``value`` is the wrong value, ``place`` where it was (file, field, table), ``next_step`` what to do now.
    """

    code: str = "error"
    status: int = 500
    exit_code: ClassVar[int] = 1

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if "code" in vars(cls):
            other = _BY_CODE.setdefault(cls.code, cls)
            if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                msg = f"the error code {cls.code!r} is {other.__module__}.{other.__qualname__}'s; {cls.__qualname__} needs one of its own"
                raise TypeError(msg)
            _BY_CODE[cls.code] = cls  # the module was loaded a second time

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
        """The wire form: ``{"code", "status", "message"}`` plus ``value``, ``place`` and ``next_step`` where known."""
        extra = {"value": self.value, "place": self.place, "next_step": self.next_step}
        return {"code": self.code, "status": self.status, "message": self.message} | {
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


class NothingPredicts(InvalidInput):
    code = "nothing_predicts"
    leaderboard: Any = None
    """What was tried (``training.automl.board.Leaderboard``), where the search ran."""


class TooManyRows(InvalidInput):
    code = "too_many_rows"


class Malformed(InvalidInput):
    code = "malformed_json"
    status = 400


class BadRequest(InvalidInput):
    code = "bad_request"
    status = 400


class MethodNotAllowed(InvalidInput):
    code = "method_not_allowed"
    status = 405


class SlowRequest(InvalidInput):
    code = "slow_request"
    status = 408


class Misdirected(InvalidInput):
    code = "misdirected"
    status = 421


class Unauthenticated(MainspringError):
    code = "unauthenticated"
    status = 401


class PermissionDenied(MainspringError):
    code = "permission_denied"
    status = 403


class ForeignOrigin(PermissionDenied):
    code = "foreign_origin"


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


class ModelFailed(MainspringError):
    code = "model_failed"


class Unavailable(MainspringError):
    code = "unavailable"
    status = 503


class Overloaded(Unavailable):
    code = "overloaded"


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
        """The error for an import that failed; names the extra that installs the library."""
        return cls(
            f"{library} is not installed",
            value=library,
            next_step=f"Type: pip install 'mainspring[{extra}]'",
        )


def loaded_classes() -> list[type[MainspringError]]:
    """Every error class of the modules that are loaded, the base first."""
    return [MainspringError, *_BY_CODE.values()]


def from_dict(payload: dict[str, Any]) -> MainspringError:
    """Rebuild an error from its wire form, so that remote callers catch the same class as local ones."""
    code, status = payload.get("code"), payload.get("status")
    kind = _BY_CODE.get(str(code), MainspringError)
    error = kind(
        str(payload.get("message", "unknown error")),
        place=payload.get("place"),
        next_step=payload.get("next_step"),
    )
    # Its class is not loaded here, or is of a newer version
    if kind is MainspringError and isinstance(code, str):
        error.code = code
        error.status = status if type(status) is int and 400 <= status <= 599 else error.status
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
