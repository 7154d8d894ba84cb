"""The names that a graph and its predictor share."""

from __future__ import annotations

NUMERIC, TEXT = "numeric", "text"
"""The two inputs: numbers ``[n, k]`` and strings ``[n, m]``, columns in the order of the signature."""
NULL_TEXT = "\ufdd0null"
"""What a null text is in a graph, which has no nulls: U+FDD0 is a noncharacter, reserved for use inside a program."""
