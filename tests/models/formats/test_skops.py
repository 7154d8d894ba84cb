"""skops keeps the contract of model formats. Its hostile twins are in ``tests/abuse/``."""

from __future__ import annotations

from mainspring.testing.formats import FormatContract


class TestSkops(FormatContract):
    form = "skops"
