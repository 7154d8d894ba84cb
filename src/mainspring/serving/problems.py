"""Errors that only a wire has. They extend the error tree, so their codes are stable like all others."""

from __future__ import annotations

from mainspring.errors import InvalidInput, MainspringError, PermissionDenied, Unavailable


class Malformed(InvalidInput):
    """The body is not the JSON that it should be (400)."""

    code = "malformed_json"
    status = 400


class BadRequest(InvalidInput):
    """The request itself is wrong: headers, host, framing (400)."""

    code = "bad_request"
    status = 400


class ForeignOrigin(PermissionDenied):
    """A browser page of another site, or a host name that is not ours (403)."""

    code = "foreign_origin"


class MethodNotAllowed(InvalidInput):
    code = "method_not_allowed"
    status = 405


class SlowRequest(InvalidInput):
    """The body did not arrive in time (408)."""

    code = "slow_request"
    status = 408


class Overloaded(Unavailable):
    """All slots and the whole queue are taken: try again (503 with Retry-After)."""

    code = "overloaded"


class ModelFailed(MainspringError):
    """The model raised, or answered something that is not an answer (500)."""

    code = "model_failed"
