"""The card says what is recorded, and says what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mainspring.lineage import Foundation
from mainspring.models import ModelsClient


def test_a_card_tells_origin_metrics_parity_gate_and_aliases(
    foundation: Foundation, client_of: Callable[[Foundation], ModelsClient], saved_logistic: Path
) -> None:
    client = client_of(foundation)
    ops = client.operations
    made = client.register_folder(
        saved_logistic,
        model="delay",
        label="late",
        tags={"intended_use": "Warn travellers."},
        metrics={"auc_low": 0.75, "auc_high": 0.85},
    )
    with foundation.ledger.decision() as d:
        d.event("gate.stopped", "model_version:delay@1", {"failed": ["auc 0.55 below 0.60"]})
    ops.set_alias(model="delay", alias="champion", version=1, reason="only one we have", override=True)
    ops.approve(model="delay", version=1, reason="read the slices")
    card = ops.get_card(model="delay", version=1)
    for text in (card.markdown.replace("\\", ""), card.html):
        for said in [
            "Warn travellers.", "not recorded", "run-1", made.package, "0.75 to 0.85", "auc 0.55 below 0.60", "only one we have",
            "read the slices", "nothing → 1", "OVERRIDE of: the gate stopped it", "fine, late", "temp", "rows compared", "onnxruntime", "tolerance 1e-06",
            "made from the signature",
        ]:  # fmt: skip
            assert said in text, said
        assert "auc_low" not in text.replace("\\", "")
    assert "<script" not in card.html


def test_a_bare_version_says_what_nobody_recorded(
    foundation: Foundation, client_of: Callable[[Foundation], ModelsClient], saved_logistic: Path
) -> None:
    client = client_of(foundation)
    client.register_folder(saved_logistic, model="delay")
    card = client.operations.get_card(model="delay", version=1)
    assert "No verdict recorded." in card.markdown
    assert "No alias ever pointed here." in card.html
    assert card.markdown.count("not recorded") >= 8
