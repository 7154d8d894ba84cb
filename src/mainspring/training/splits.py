"""Splits into training, validation and hold-out rows. All functions return row numbers; nothing is shuffled without a seed.

The rule of label arrival: a row whose label had not arrived by the cut-off is used neither for training nor in the hold-out,
and no training label may have arrived after the hold-out begins (purging: Lopez de Prado 2018, chapter 7). Otherwise the model
is trained on information that it would not have had in operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mainspring.errors import InvalidInput

Rows = NDArray[np.int64]

DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Split:
    """Row numbers of the two parts, in time order, and how many rows are in neither, by reason."""

    train: Rows
    holdout: Rows
    dropped: dict[str, int]


def time_split(
    event_us: ArrayLike,
    label_us: ArrayLike,
    *,
    cutoff_us: int,
    holdout_us: int,
    embargo_us: int = 0,
    window_us: int | None = None,
) -> Split:
    """Train on the past, hold out the newest ``holdout_us`` of events whose labels had arrived by ``cutoff_us``.

    ``event_us`` and ``label_us`` are microseconds since the epoch; a label that never came is negative. The hold-out ends
    with the newest usable event, not at the cut-off, so a label delay does not shrink it. Training rows are older than
    the hold-out by at least ``embargo_us``, had their label by then, and are at most ``window_us`` older than its start.

    Raises :class:`InvalidInput` if either part would be empty.
    """
    events, labels = _check_times(event_us, label_us)
    unlabelled = labels < 0
    late = ~unlabelled & (labels > cutoff_us)
    usable = ~unlabelled & ~late
    if not usable.any():
        raise InvalidInput(
            "no row has a label that arrived by the cut-off",
            value=cutoff_us,
            next_step="Wait for labels, or check their arrival times.",
        )
    start = int(events[usable].max()) - holdout_us
    held = usable & (events > start)
    past = usable & ~held
    embargoed = past & ((events > start - embargo_us) | (labels > start - embargo_us))
    old = (
        past & ~embargoed & (events <= start - window_us)
        if window_us is not None
        else np.zeros(len(events), bool)
    )
    train = past & ~embargoed & ~old
    if not train.any():
        raise InvalidInput(
            "no row is left to train on",
            value=f"{int(usable.sum())} usable rows, {int(held.sum())} held out",
            next_step="Shorten the hold-out or the embargo, or widen the window.",
        )
    counts = {
        "unlabelled": unlabelled,
        "label_after_cutoff": late,
        "embargo": embargoed,
        "outside_window": old,
    }
    return Split(
        train=_rows_in_time_order(train, events),
        holdout=_rows_in_time_order(held, events),
        dropped={k: int(v.sum()) for k, v in counts.items()},
    )


def expanding_folds(
    event_us: ArrayLike,
    label_us: ArrayLike,
    *,
    folds: int,
    fold_us: int,
    embargo_us: int = 0,
    min_train: int = 1,
) -> list[tuple[Rows, Rows]]:
    """``(train, validation)`` pairs, oldest first: each validates on ``fold_us`` of time and trains on all that was known before it.

    The last fold ends at the newest event. Rows without a label are in none. Folds with fewer than ``min_train`` training
    rows or without validation rows are left out; if none remains, :class:`InvalidInput`.
    """
    events, labels = _check_times(event_us, label_us)
    usable = labels >= 0
    pairs: list[tuple[Rows, Rows]] = []
    newest = int(events[usable].max()) if usable.any() else 0
    for number in range(folds, 0, -1):
        start, end = newest - number * fold_us, newest - (number - 1) * fold_us
        validation = usable & (events > start) & (events <= end)
        train = usable & (events <= start - embargo_us) & (labels <= start - embargo_us)
        if validation.any() and int(train.sum()) >= max(min_train, 1):
            pairs.append((_rows_in_time_order(train, events), _rows_in_time_order(validation, events)))
    if not pairs:
        raise InvalidInput(
            "no fold has rows to train and to validate on",
            value=f"{folds} folds",
            next_step="Use fewer or shorter folds.",
        )
    return pairs


def group_folds(groups: ArrayLike, *, folds: int, seed: int = 0) -> list[tuple[Rows, Rows]]:
    """``(train, validation)`` pairs in which no group is on both sides; sizes are balanced greedily, largest group first.

    Keys are of any type that has equality; 1 and "1" are two groups. A row without a key (None, NaN, NaT) is refused with
    :class:`InvalidInput`: it may belong to any group, which would then be on both sides.
    """
    index, count = _encode_keys(groups, what="group")
    _check_folds(folds, count, what="groups")
    sizes = np.bincount(index, minlength=count)
    order = np.random.default_rng(seed).permutation(count)
    order = order[np.argsort(-sizes[order], kind="stable")]
    load = np.zeros(folds, dtype=np.int64)
    fold_of = np.zeros(count, dtype=np.int64)
    for group in order:
        lightest = int(load.argmin())
        fold_of[group] = lightest
        load[lightest] += sizes[group]
    return _fold_pairs(fold_of[index], folds)


def stratified_folds(y: ArrayLike, *, folds: int, seed: int = 0) -> list[tuple[Rows, Rows]]:
    """``(train, validation)`` pairs with the class shares of the whole in each (to within one row per class).

    A row without a class (None, NaN, NaT) is refused with :class:`InvalidInput`: it can be used neither for training nor for validation.
    """
    index, count = _encode_keys(y, what="class")
    _check_folds(folds, len(index), what="rows")
    rng = np.random.default_rng(seed)
    fold_of = np.zeros(len(index), dtype=np.int64)
    offset = 0
    for value in range(count):
        rows = rng.permutation(np.flatnonzero(index == value))
        fold_of[rows] = (np.arange(len(rows)) + offset) % folds
        offset += len(rows)  # the next class starts at the fold where this one ended, so fold sizes stay even
    return _fold_pairs(fold_of, folds)


def _encode_keys(keys: ArrayLike, *, what: str) -> tuple[Rows, int]:
    """Each row's key as a number from 0, in the order of the keys, and how many keys there are."""
    # A list is not converted to an array first: in a list with text NumPy would make text of numbers, None and NaN.
    values = keys if isinstance(keys, np.ndarray) else _to_list(keys)
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise InvalidInput(f"one {what} a row is needed", value=f"shape {values.shape}")
        if values.dtype.kind in "fcmM":
            _check_present(np.isnan(values) if values.dtype.kind in "fc" else np.isnat(values), what)
        if isinstance(values, np.ma.MaskedArray):
            _check_present(np.ma.getmaskarray(values), what)
        if values.dtype.kind != "O":
            unique, index = np.unique(np.asarray(values), return_inverse=True)
            return index.reshape(-1).astype(np.int64), len(unique)
        values = values.tolist()
    _check_present(np.array([_is_missing(v) for v in values], dtype=bool), what)
    distinct: dict[tuple[bool, object], None] = {(isinstance(v, str), v): None for v in values}
    try:
        order = sorted(distinct, key=lambda key: (key[0], key[1]))
    except TypeError:  # keys without an order stay in the order of the rows
        order = list(distinct)
    number = {key: i for i, key in enumerate(order)}
    return np.array([number[isinstance(v, str), v] for v in values], dtype=np.int64), len(order)


def _to_list(keys: Any) -> list[Any] | NDArray[Any]:
    """The keys as Python values, or as an array if they are a column of numbers."""
    if hasattr(keys, "to_pylist"):
        return list(keys.to_pylist())
    if hasattr(keys, "to_numpy") and str(getattr(keys, "dtype", "")).lower() in {"int64", "float64"}:
        array = np.asarray(keys.to_numpy())
        return array if array.dtype.kind in "if" else list(array.tolist())
    return list(keys.tolist()) if hasattr(keys, "tolist") else list(keys)


def _is_missing(value: object) -> bool:
    if value is None or type(value).__name__ in {"NAType", "NaTType"}:
        return True
    return isinstance(value, float | np.generic) and bool(value != value)  # noqa: PLR0124 - NaN and NaT are not themselves


def _check_present(missing: NDArray[np.bool_], what: str) -> None:
    count = int(missing.sum())
    if count:
        raise InvalidInput(
            f"{count} of {len(missing)} rows have no {what}",
            value=f"first at row {int(missing.argmax())}",
            next_step=f"Leave these rows out, or give each of them a {what}.",
        )


def _fold_pairs(fold_of: Rows, folds: int) -> list[tuple[Rows, Rows]]:
    return [(np.flatnonzero(fold_of != k), np.flatnonzero(fold_of == k)) for k in range(folds)]


def _check_folds(folds: int, available: int, *, what: str) -> None:
    if not 2 <= folds <= available:
        raise InvalidInput(
            f"cannot make folds out of {available} {what}",
            value=folds,
            next_step=f"Use 2 to {max(available, 2)} folds.",
        )


def _check_times(event_us: ArrayLike, label_us: ArrayLike) -> tuple[Rows, Rows]:
    events, labels = np.asarray(event_us), np.asarray(label_us)
    if (
        events.shape != labels.shape
        or events.ndim != 1
        or events.dtype.kind not in "iu"
        or labels.dtype.kind not in "iu"
    ):
        raise InvalidInput(
            "event and label times must be whole microseconds, one of each per row",
            value=f"{events.dtype}{events.shape}, {labels.dtype}{labels.shape}",
            next_step="Use -1 for a label that never came.",
        )
    for times in (events, labels):
        if times.dtype.kind == "u" and times.size and int(times.max()) > np.iinfo(np.int64).max:
            raise InvalidInput(
                "a time is beyond 64 bits of microseconds",
                value=int(times.max()),
                next_step="Use -1 for a label that never came.",
            )
    return events.astype(np.int64), labels.astype(np.int64)


def _rows_in_time_order(mask: NDArray[np.bool_], events: Rows) -> Rows:
    rows = np.flatnonzero(mask)
    return rows[np.argsort(events[rows], kind="stable")]


def draw_rows(rows: Rows, most: int, seed: int) -> Rows:
    """The rows, or ``most`` of them drawn evenly, in their order."""
    if len(rows) <= most:
        return rows
    drawn: Rows = rows[np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))]
    return drawn
