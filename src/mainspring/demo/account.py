"""What the demo's own process counted, which is compared with the workspace at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Account:
    """The counts of this process, which are compared with the workspace at the end."""

    sent: int = 0
    failed: int = 0
    labels: int = 0
    errors: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    label_rates: list[dict[str, str]] = field(default_factory=list)
    refused: dict[str, Any] | None = None
    versions: list[str] = field(default_factory=list)
