"""Reads labels that clients send to the inference port, before they are passed on through the journal."""

from __future__ import annotations

import msgspec

from mainspring.errors import InvalidInput
from mainspring.records.classes import LabelReader
from mainspring.records.labels import Feedback, is_issued_id, refusal_reason
from mainspring.serving.codec import check_duplicates, malformed
from mainspring.serving.table import LiveTable

_MAX_FEEDBACK = 10_000


class _FeedbackBody(msgspec.Struct, forbid_unknown_fields=True):
    feedback: list[Feedback]


_decode_feedback = msgspec.json.Decoder(_FeedbackBody).decode
_decode_feedback_list = msgspec.json.Decoder(list[Feedback]).decode


def read_feedback(body: bytes, table: LiveTable) -> list[Feedback]:
    """The items of a body. Raises :class:`InvalidInput` or ``Malformed`` unless each of them could be the label of a prediction."""
    try:
        items = _decode_feedback_list(body) if body.lstrip()[:1] == b"[" else _decode_feedback(body).feedback
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"not feedback: {str(error)[:300]}", next_step='Send [{"prediction_id": "...", "value": ...}].'
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(error) from None
    if not 1 <= len(items) <= _MAX_FEEDBACK:
        raise InvalidInput(f"1 to {_MAX_FEEDBACK} feedback items at once", value=len(items))
    check_duplicates(body)
    _refuse_impossible(items, table)
    return items


def _refuse_impossible(items: list[Feedback], table: LiveTable) -> None:
    """Refuse feedback whose id no server issues, or whose value is not a label of any model that is served here.

    Only the control plane knows which model predicted: it compares each label with the classes of its prediction's model.
    """
    readers = [LabelReader.of(d.signature) for d in table.deployments.values()]
    for number, item in enumerate(items):
        if (why := refusal_reason(item)) is not None:
            raise InvalidInput(why, place=f"feedback[{number}]")
        if not is_issued_id(item.prediction_id.partition("/")[0]):
            raise InvalidInput(
                "no prediction can have this id",
                value=item.prediction_id,
                place=f"feedback[{number}]",
                next_step="Use the prediction_id of the response.",
            )
        if readers and all(r.read(item.value) is None for r in readers):
            refusals = [r.refusal(item.value, place=f"feedback[{number}]") for r in readers]
            raise (
                refusals[0]
                if len(refusals) == 1
                else InvalidInput(
                    "the label is one of no model that is served here: "
                    + "; ".join(
                        f"{name}: {r.named()}" for name, r in zip(table.deployments, readers, strict=True)
                    ),
                    value=refusals[0].value,
                    place=f"feedback[{number}]",
                    next_step="Send a class by its value, or a number for regression.",
                )
            )
