"""Labels: the ground truth of a prediction. It arrives later, and may arrive several times or never."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Annotated

import msgspec

from mainspring.records.base import Record

PredictionId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}(/[0-9]{1,9})?$")]
"""``<request id>/<row>``; a bare request id means its row 0."""

LabelValue = bool | int | float | str

_ISSUED = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def is_issued_id(request: str) -> bool:
    """Whether our servers could have issued this request id: all of theirs are UUIDv7 in canonical form."""
    return _ISSUED.fullmatch(request) is not None


class Feedback(Record, frozen=True):
    """What turned out to be true of one predicted row.

    ``value``: a class, matched by its value (records.classes: 1.0 is the class 1), or a number for regression. ``at`` is when it became true in
    the world (default: when it arrives here). Two items with equal prediction, value, ``at`` and source are one.
    """

    prediction_id: PredictionId
    value: LabelValue
    at: datetime | None = None
    source: str = ""


MAX_TEXT = 256


def refusal_reason(item: Feedback) -> str | None:
    """Why an item cannot be kept, whatever prediction it is about; None if it can.

    Every entry point checks all items of a batch before it stores any, so that no batch is stored in part.
    """
    value = item.value
    if isinstance(value, float) and not math.isfinite(value):
        return "a label's value must be finite"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a label's value must fit 64 bits"
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"a label's value has at most {MAX_TEXT} characters"
    if len(item.source) > MAX_TEXT or "\0" in item.source or (isinstance(value, str) and "\0" in value):
        return "a label's value and source are short plain text"
    if item.at is not None and item.at.tzinfo is None:
        return "a label's time needs a zone"
    return None


class FeedbackCounts(Record, frozen=True):
    """The result of a batch: every item is counted in exactly one of these.

    ``accepted``: the first label of its prediction; ``duplicate``: known already, ignored; ``revised``: differs from the current
    label, which is kept in the history; ``parked``: the prediction is not known yet, so the label is kept until it appears or the
    label expires; ``rejected``: malformed, about a row or a class that does not exist (relayed items only: a direct call is
    refused as a whole), or there is no space to park it. ``more``: the relay holds further items for the next call.
    """

    accepted: int = 0
    duplicate: int = 0
    revised: int = 0
    parked: int = 0
    rejected: int = 0
    more: bool = False


class Label(Record, frozen=True):
    """A label as recorded. ``at`` is its event time, ``arrived_at`` the policy time at which it arrived.

    Training uses no row whose label arrived after the cut-off: compare ``arrived_at``.
    """

    prediction_id: str
    value: LabelValue
    revision: int
    at: datetime
    arrived_at: datetime
    source: str = ""


class SettleReport(Record, frozen=True):
    """Parked labels that were checked again: ``joined`` found their prediction, ``expired`` waited too long, ``waiting`` remain.

    ``rejected``: joined ones that name no class of their model. ``more``: some that can be joined are left for the next call.
    """

    joined: int = 0
    expired: int = 0
    waiting: int = 0
    rejected: int = 0
    more: bool = False


class LabelStats(Record, frozen=True):
    """How much is labelled. ``delay_p50_s``/``delay_p90_s``: seconds from a prediction's event to its label's arrival.

    ``expired`` and ``rejected`` are totals of the whole project: the deployment of an unknown id is unknown.
    """

    deployment: str | None
    predictions: int
    labelled: int
    revised: int
    parked: int
    expired: int
    rejected: int
    delay_p50_s: float | None = None
    delay_p90_s: float | None = None
