"""Turns scores into the predictions of an answer."""

from __future__ import annotations

from typing import Any

import msgspec

from mainspring.records.models import Signature, Task
from mainspring.records.scores import class_of
from mainspring.serving.table import LiveDeployment

_encode = msgspec.json.Encoder().encode


def encode_predictions(deployment: LiveDeployment, scores: list[Any]) -> bytes:
    """The JSON list of predictions.

    Binary: ``{"label", "score"}`` with the score P(positive) and the label by
    :func:`~mainspring.records.scores.class_of`. Multiclass: ``{"label", "score",
    "probabilities"}``. Regression: ``{"value"}``.
    """
    task = deployment.signature.task
    if task is Task.BINARY:
        negative, positive = deployment.fragments
        rows = [(positive if class_of(s) else negative) + _encode(s) for s in scores]
        return b"[" + b"},".join(rows) + b"}]"
    if task is Task.MULTICLASS:
        return _encode([_describe_row(deployment.signature, row) for row in scores])
    return _encode([{"value": s} for s in scores])


def list_labels(deployment: LiveDeployment, scores: list[Any]) -> list[str]:
    """The label of each row, in the order of ``scores``; not for regression."""
    if deployment.signature.task is Task.BINARY:
        negative, positive = deployment.labels
        return [positive if class_of(s) else negative for s in scores]
    classes = deployment.signature.classes
    return [classes[class_of(row)] for row in scores]


def _describe_row(signature: Signature, row: list[float]) -> dict[str, Any]:
    at = class_of(row)
    return {"label": signature.classes[at], "score": row[at], "probabilities": row}
