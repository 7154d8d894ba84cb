"""One strict JSON decoder for every endpoint of the control plane."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from mainspring.errors import InvalidInput, Malformed

MAX_INT = (1 << 63) - 1
_INVALID_TEXT = re.compile("[\\x00\\ud800-\\udfff]")
_MAX_DEPTH = 64
_MAX_KEYS = 100_000
_MAX_VALUES = 1_000_000
"""Values of all kinds in a body: each takes some sixty bytes once it is decoded, an empty list two before."""


def decode_object(body: bytes) -> dict[str, Any]:
    """A JSON object, or :class:`Malformed`.

    Refused beyond RFC 8259: NaN and infinities, numbers that overflow a double, integers beyond 64 bits signed, lone
    surrogates, NUL, a byte order mark, duplicate keys, nesting deeper than 64, more than 100,000 keys or 1,000,000 values in
    all.
    """
    try:
        # Cheap: refuses most malformed documents before any value is built
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        if _count_values(body) > _MAX_VALUES:
            raise Malformed("too many values", value=f"more than {_MAX_VALUES}")
        value = json.loads(body, object_pairs_hook=_build_object, parse_int=_parse_integer)
        _check_limits(value)
    except InvalidInput:
        raise
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Malformed(
            f"not valid JSON: {str(error)[:200]}", next_step="Send one JSON object, UTF-8."
        ) from None
    result: dict[str, Any] = value
    return result


def _count_values(body: bytes) -> int:
    """An upper bound of the number of values in the document.

    A value follows a comma or an opening bracket. Those inside strings are left out only if the simple count is too high.
    """
    count = _count_separators(body)
    if count > _MAX_VALUES:
        plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
        count = sum(_count_separators(outside) for outside in plain.split(b'"')[::2])
    return count


def _count_separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise Malformed("a key occurs twice in one object", value=twice)
    return members


def _parse_integer(text: str) -> int:
    if len(text) > 20 or not -MAX_INT - 1 <= int(text) <= MAX_INT:
        raise Malformed("an integer does not fit 64 bits", value=text[:40])
    return int(text)


def _check_limits(root: Any) -> None:
    """Checks depth, number of keys and every text; iterative, so that a deep document cannot exhaust the stack."""
    stack, keys = [(root, 1)], 0
    while stack:
        value, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise Malformed("nested too deeply", value=f"more than {_MAX_DEPTH} levels")
        if isinstance(value, dict):
            keys += len(value)
            if keys > _MAX_KEYS:
                raise Malformed("too many keys", value=f"more than {_MAX_KEYS}")
            stack += [(v, depth + 1) for v in value.values()]
            for key in value:
                _check_text(key)
        elif isinstance(value, list):
            stack += [(v, depth + 1) for v in value]
        elif isinstance(value, str):
            _check_text(value)
        elif isinstance(value, float) and value - value != 0:
            raise Malformed("a number does not fit a double")


def _check_text(text: str) -> None:
    if _INVALID_TEXT.search(text):
        raise Malformed("text holds NUL or a lone surrogate", value=text[:40])
