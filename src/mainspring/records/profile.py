"""A profile: a summary of a table or a window of traffic in mergeable sketches."""

from __future__ import annotations

from mainspring.records.base import Record


class ColumnProfile(Record, frozen=True):
    """One column. Numeric: ``kll`` (base64 of a KLL doubles sketch), ``low``/``high``/``mean``/``std`` over finite values.

    Categorical (string, bool): ``counts`` of the most frequent values (at most 256), ``other`` the rest.
    ``nulls`` counts missing values, ``invalid`` those of a wrong type or not finite. ``std`` is of the population (n).
    ``type`` is ``float64``, ``int64``, ``string``, ``bool``, ``timestamp`` (seconds since the epoch, UTC), ``null`` (no
    value seen yet) or the Arrow type of a column that has no sketch. ``k`` is the size parameter of the KLL sketch.

    Where ``other`` is not 0, three more things are kept of a categorical column (data/categories.py); profiles made
    before them have none. ``rest``: the values of ``other``, counted by the hash of their category (they add up to
    ``other``). ``sample``: exact counts of every category whose hash is below ``below``, by hash. ``numbers``: a KLL
    sketch of the values as numbers, if each of them reads as one.
    """

    name: str
    type: str
    rows: int
    nulls: int = 0
    invalid: int = 0
    kll: str | None = None
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = None
    counts: dict[str, int] = {}
    other: int = 0
    k: int | None = None
    rest: list[int] = []
    sample: dict[str, int] = {}
    below: int | None = None
    numbers: str | None = None


class Profile(Record, frozen=True):
    """Profiles of all columns of the same ``rows`` rows."""

    rows: int
    columns: list[ColumnProfile]
