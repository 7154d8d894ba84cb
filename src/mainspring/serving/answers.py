"""Turns scores into the predictions of an answer."""

from __future__ import annotations

from typing import Any

import msgspec

from mainspring.records.classes import class_labels
from mainspring.records.models import Signature, Task
from mainspring.records.scores import class_of, meaning_of

_encode = msgspec.json.Encoder().encode


class AnswerEncoder:
    """Writes the answers of one model version; made once for each version that is served."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._labels = class_labels(signature)
        self._names = [label if isinstance(label, str) else _encode(label).decode() for label in self._labels]
        self._threshold = meaning_of(signature).threshold
        # Binary: the JSON before the score of a row, with the first and with the second label.
        self._heads = [b'{"label":%b,"score":' % _encode(label) for label in self._labels]

    def encode_predictions(self, scores: list[Any]) -> bytes:
        """The JSON list of predictions.

        Binary: ``{"label", "score"}`` with P(positive) or a decision value, and the label by
        :func:`~mainspring.records.scores.class_of`. Multiclass: ``{"label", "score", "probabilities"}``, these by class, or ``"decisions"``
        of a model without probabilities. Regression: ``{"value"}``. Several values: ``{"values"}`` by name.
        """
        task = self._signature.task
        if task is Task.BINARY:
            (negative, positive), threshold = self._heads, self._threshold
            rows = [(positive if class_of(s, threshold) else negative) + _encode(s) for s in scores]
            return b"[" + b"},".join(rows) + b"}]"
        if task is Task.MULTICLASS:
            return _encode([self._describe_row(row) for row in scores])
        if task is Task.VALUES:
            names = self._signature.outputs
            return _encode([{"values": dict(zip(names, row, strict=True))} for row in scores])
        return _encode([{"value": s} for s in scores])

    def list_labels(self, scores: list[Any]) -> list[Any]:
        """The label of each row as it was given in training, in the order of ``scores``; of classifiers only."""
        return [self._labels[class_of(s, self._threshold)] for s in scores]

    def _describe_row(self, row: list[float]) -> dict[str, Any]:
        at = class_of(row)
        name = "probabilities" if self._signature.scores == "probability" else "decisions"
        return {"label": self._labels[at], "score": row[at], name: dict(zip(self._names, row, strict=True))}
