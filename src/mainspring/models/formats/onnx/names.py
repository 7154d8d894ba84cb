"""Names that both the conversion to a graph and its predictor use."""

from __future__ import annotations

NUMERIC, TEXT = "numeric", "text"
"""The two inputs: numbers ``[n, k]`` and strings ``[n, m]``, columns in the order of the signature."""
NULL_TEXT = "\ufdd0null"
"""A null text in a graph, which has no nulls. U+FDD0 is a Unicode noncharacter, reserved for use inside a program."""
