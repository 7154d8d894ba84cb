"""Points in time in inputs of models: how a date or time is read, wherever it comes in."""

from __future__ import annotations

from datetime import UTC, date, datetime

from mainspring.errors import InvalidInput

FIRST, LAST = 1700, 2200
"""Years: within them, microseconds since 1970 are exact in float64."""


def parse_instant(value: object, *, place: str | None = None) -> datetime:
    """A date, a time, or one in ISO 8601 text, as a time of UTC. Without a zone it is taken for UTC; a date is its first moment.

    Raises :class:`InvalidInput` for anything else, numbers too (seconds or microseconds?), and outside of the years 1700 to 2200.

    >>> parse_instant("2026-02-03").isoformat(), parse_instant("2026-02-03T01:30:00+01:00").isoformat()
    ('2026-02-03T00:00:00+00:00', '2026-02-03T00:30:00+00:00')
    """
    moment: datetime | None = None
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, date):
        moment = datetime(value.year, value.month, value.day, tzinfo=UTC)
    elif isinstance(value, str) and len(value) <= 40:
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            moment = None
    if moment is not None and FIRST <= moment.year <= LAST:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    raise InvalidInput(
        "a date or time is expected",
        value=value if isinstance(value, str | int | float) else type(value).__name__,
        place=place,
        next_step="Send ISO 8601, e.g. 2026-02-03 or 2026-02-03T15:30:00Z.",
    )
