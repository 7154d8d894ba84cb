"""``mainspring label``: ground truth for predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mainspring.cli.output import json_option, print_facts, print_json, print_note, with_workspace

if TYPE_CHECKING:
    from mainspring.records.labels import LabelValue
    from mainspring.rooms import Namespaces

_BATCH = 10_000

_COUNTS = ("accepted", "duplicate", "revised", "parked", "rejected")


@click.command()
@click.argument("prediction", required=False)
@click.argument("value", required=False)
@click.option(
    "--file",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON lines with prediction_id and value.",
)
@click.option(
    "--at",
    "at",
    metavar="TIME",
    help="When it became true, e.g. 2026-02-03T15:30:00Z (default: the time of the prediction). To go back to an earlier value, give another.",
)
@json_option
@with_workspace
def label(
    workspace: Namespaces,
    prediction: str | None,
    value: str | None,
    file: Path | None,
    at: str | None,
    as_json: bool,
) -> None:
    """Say that VALUE turned out to be true of PREDICTION; or many at once with --file."""
    import msgspec

    from mainspring.errors import InvalidInput
    from mainspring.records.instants import parse_instant
    from mainspring.records.labels import Feedback, FeedbackCounts

    if at is not None and file is not None:
        raise InvalidInput("--at is the time of one label", next_step='In a file, write "at" with each.')
    items: list[Feedback] = []
    if file is not None:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                items.append(msgspec.json.decode(line, type=Feedback))
            except msgspec.DecodeError as error:
                raise InvalidInput(
                    f"not a label: {error}",
                    place=f"{file}, line {number}",
                    next_step='Write one JSON object on each line: {"prediction_id": "...", "value": ...}.',
                ) from None
    elif prediction is not None and value is not None:
        moment = None if at is None else parse_instant(at, place="--at")
        items.append(Feedback(prediction_id=prediction, value=_value(value), at=moment))
    else:
        raise InvalidInput(
            "there is nothing to record", next_step="Give PREDICTION and VALUE, or --file labels.jsonl."
        )
    total = FeedbackCounts()
    for start in range(0, len(items), _BATCH):
        counts = workspace.labels.record_feedback(items=items[start : start + _BATCH])
        total = FeedbackCounts(**{k: getattr(total, k) + getattr(counts, k) for k in _COUNTS})
    if as_json:
        print_json(total)
        return
    print_facts((k, getattr(total, k)) for k in _COUNTS)
    if prediction is not None and total.duplicate:
        _note_newer_label(workspace, prediction, items[0].value)


def _note_newer_label(workspace: Namespaces, prediction: str, sent: LabelValue) -> None:
    """A label that was sent before and corrected since is a duplicate: it changes nothing, which must not go unnoticed."""
    for label in workspace.labels.get_labels(predictions=[prediction]):
        if label.value != sent:
            print_note(
                f"{sent!r} was recorded before, and {label.value!r} since: the newer one counts. To go back, add --at TIME."
            )


def _value(text: str) -> LabelValue:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float | str) else text
