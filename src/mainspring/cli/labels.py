"""``mainspring label``: ground truth for predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mainspring.cli.output import json_option, print_facts, print_json, with_workspace

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
@json_option
@with_workspace
def label(
    workspace: Namespaces, prediction: str | None, value: str | None, file: Path | None, as_json: bool
) -> None:
    """Say that VALUE turned out to be true of PREDICTION; or many at once with --file."""
    import msgspec

    from mainspring.errors import InvalidInput
    from mainspring.records.labels import Feedback, FeedbackCounts

    items: list[Feedback] = []
    if file is not None:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                items.append(msgspec.json.decode(line, type=Feedback))
            except msgspec.DecodeError as error:
                raise InvalidInput(f"not a label: {error}", place=f"{file}, line {number}") from None
    elif prediction is not None and value is not None:
        items.append(Feedback(prediction_id=prediction, value=_value(value)))
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


def _value(text: str) -> LabelValue:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float | str) else text
