"""The language of run search: parses a text into a tree. SQL is made from the tree elsewhere, with every value bound.

::

    metrics.loss < 0.5 and params.model = 'forest' and tags.`my tag` LIKE 'x%'
    attributes.status IN ('failed', 'crashed') or not (params.seed IS NULL)

What MLflow's search understands is understood here and means the same (a comparison holds only for runs that have the key;
``LIKE`` minds case, ``ILIKE`` does not); ``or``, ``not`` and parentheses are additions.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NoReturn

from mainspring.errors import InvalidInput, near

MAX_LENGTH = 16_384
MAX_CLAUSES = 100
MAX_DEPTH = 32
MAX_WILDCARDS = 8

ATTRIBUTES = {
    "status": "status", "name": "name", "run_name": "name", "id": "id", "run_id": "id", "experiment": "experiment",
    "experiment_name": "experiment", "experiment_id": "experiment_id",
    "parent": "parent", "created_by": "created_by", "user_id": "created_by", "code": "code", "environment": "environment",
    "start_time": "started_us", "started_at": "started_us", "end_time": "ended_us", "ended_at": "ended_us", "created": "started_us",
    "started": "started_us", "ended": "ended_us",
}  # fmt: skip
"""Attribute names and their columns. Times compare with milliseconds since the epoch or an ISO 8601 text."""

_KINDS = {
    "metrics": "metrics", "metric": "metrics", "params": "params", "param": "params", "parameters": "params", "parameter": "params",
    "tags": "tags", "tag": "tags", "attributes": "attributes", "attribute": "attributes", "attr": "attributes", "run": "attributes",
}  # fmt: skip

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
    | (?P<op><=|>=|!=|<>|==|=|<|>)
    | (?P<punct>[(),])
    | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | (?P<key>[A-Za-z]+\.(?:`[^`]+`|"[^"]+"|[\w./\-]+))
    | (?P<word>[A-Za-z_]+)
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Field:
    """``kind`` is metrics, params, tags or attributes; ``name`` the key (attributes: the column)."""

    kind: str
    name: str
    at: int


@dataclass(frozen=True)
class Compare:
    """``operator`` is one of ``= != < <= > >= like ilike in "not in" null "not null"``; ``values`` what it compares with."""

    field: Field
    operator: str
    values: tuple[str | float, ...] = ()


@dataclass(frozen=True)
class Both:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Either:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Negated:
    part: Node


Node = Compare | Both | Either | Negated


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text.lower() in words


def parse(text: str) -> Node | None:
    """The tree of a filter, None for an empty one. Raises :class:`InvalidInput` with the position in the text."""
    if len(text) > MAX_LENGTH:
        raise InvalidInput(f"a filter may have {MAX_LENGTH} characters", value=len(text), place="filter")
    tokens = _tokenise(text)
    if not tokens[:-1]:
        return None
    return _Parser(text, tokens).parse_whole()


def parse_field(text: str, *, place: str) -> Field:
    """A single field such as ``metrics.loss``: what ``order_by`` names. A bare attribute name is allowed."""
    stripped = text.strip()
    match = re.fullmatch(r"[A-Za-z]+\.(?:`[^`]+`|\"[^\"]+\"|[^`\"]+)", stripped)
    try:
        return _field(stripped if match else f"attributes.{stripped}", 0, stripped)
    except InvalidInput as error:
        raise InvalidInput(
            "unknown field",
            value=stripped[:200],
            place=place,
            next_step=f"{error.next_step} A metric is metrics.NAME, a parameter params.NAME.",
        ) from None


def _tokenise(text: str) -> list[_Token]:
    tokens, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            _fail("this cannot be read", text, at + len(text[at:]) - len(text[at:].lstrip()))
        kind = str(match.lastgroup)
        tokens.append(_Token(kind, match[kind], match.start(kind)))
        at = match.end()
    return [*tokens, _Token("end", "", len(text))]


def _fail(message: str, text: str, at: int, hint: str | None = None) -> NoReturn:
    raise InvalidInput(
        f"{message} at position {at + 1} of the filter",
        value=text[at : at + 40] or "the end",
        place=f"filter: {text[:at][-30:]}>>>{text[at : at + 30]}",
        next_step=hint or "Write e.g.: metrics.loss < 0.5 and params.model = 'forest'.",
    )


def _field(text: str, at: int, source: str) -> Field:
    prefix, _, name = text.partition(".")
    kind = _KINDS.get(prefix.lower())
    if kind is None:
        _fail("unknown kind of field", source, at, near(prefix, ["metrics", "params", "tags", "attributes"]))
    if name[:1] in {"`", '"'}:
        name = name[1:-1]
    if kind == "attributes":
        if name.lower() not in ATTRIBUTES:
            _fail("unknown attribute", source, at, near(name, ATTRIBUTES))
        name = ATTRIBUTES[name.lower()]
    return Field(kind, name, at)


class _Parser:
    """Recursive descent, by binding strength: or < and < not < comparison."""

    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self._text = text
        self._tokens = tokens
        self._index = 0
        self._clauses = 0

    def parse_whole(self) -> Node:
        node = self._either(0)
        if self._now.kind != "end":
            _fail("'and' or 'or' is missing", self._text, self._now.at)
        return node

    @property
    def _now(self) -> _Token:
        return self._tokens[self._index]

    def _take(self) -> _Token:
        token = self._now
        self._index += 1
        return token

    def _either(self, depth: int) -> Node:
        parts = [self._both(depth)]
        while self._now.is_word("or"):
            self._take()
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _both(self, depth: int) -> Node:
        parts = [self._negation(depth)]
        while self._now.is_word("and"):
            self._take()
            parts.append(self._negation(depth))
        return parts[0] if len(parts) == 1 else Both(tuple(parts))

    def _negation(self, depth: int) -> Node:
        token = self._now
        if depth > MAX_DEPTH:
            _fail("nested too deep", self._text, token.at)
        if token.is_word("not"):
            self._take()
            return Negated(self._negation(depth + 1))
        if token.kind == "punct" and token.text == "(":
            self._take()
            node = self._either(depth + 1)
            self._expect(")")
            return node
        return self._comparison()

    def _comparison(self) -> Compare:
        self._clauses += 1
        token = self._take()
        if self._clauses > MAX_CLAUSES:
            _fail(f"more than {MAX_CLAUSES} conditions", self._text, token.at)
        if token.kind == "key":
            field = _field(token.text, token.at, self._text)
        elif token.kind == "word" and not token.is_word("and", "or", "in", "is", "like", "ilike", "null"):
            field = _field(f"attributes.{token.text}", token.at, self._text)
        else:
            _fail("a field is expected", self._text, token.at)
        return self._operator(field)

    def _operator(self, field: Field) -> Compare:
        token = self._take()
        if token.kind == "op":
            operator = {"==": "=", "<>": "!="}.get(token.text, token.text)
            value = self._value(field)
            if isinstance(value, str) and field.kind != "attributes" and operator not in {"=", "!="}:
                _fail("params and tags are texts: compare them with = != LIKE ILIKE IN", self._text, token.at)
            return Compare(field, operator, (value,))
        if token.is_word("is"):
            negated = self._now.is_word("not")
            if negated:
                self._take()
            if not self._take().is_word("null"):
                _fail("NULL is expected", self._text, self._tokens[self._index - 1].at)
            return Compare(field, "not null" if negated else "null")
        negated = token.is_word("not")
        word = self._take() if negated else token
        if word.is_word("in"):
            return Compare(field, "not in" if negated else "in", self._list(field))
        if word.is_word("like", "ilike") and not negated:
            return Compare(field, word.text.lower(), (self._pattern(field),))
        _fail("a comparison is expected (= != < <= > >= LIKE ILIKE IN IS NULL)", self._text, word.at)

    def _pattern(self, field: Field) -> str:
        token = self._now
        value = self._value(field)
        if not isinstance(value, str):
            _fail("only texts have patterns", self._text, token.at)
        if value.count("%") > MAX_WILDCARDS:
            _fail(f"a pattern may have {MAX_WILDCARDS} '%'", self._text, token.at)
        return value

    def _list(self, field: Field) -> tuple[str | float, ...]:
        self._expect("(")
        values = [self._value(field)]
        while self._now.kind == "punct" and self._now.text == ",":
            self._take()
            values.append(self._value(field))
        self._expect(")")
        return tuple(values)

    def _expect(self, punctuation: str) -> None:
        token = self._take() if self._now.kind != "end" else self._now
        if token.kind != "punct" or token.text != punctuation:
            _fail(f"'{punctuation}' is expected", self._text, token.at)

    def _value(self, field: Field) -> str | float:
        token = self._now
        if token.kind != "end":
            self._take()
        if token.kind == "text":
            quote = token.text[0]
            value: str | float = token.text[1:-1].replace(quote * 2, quote)
        elif token.kind == "number":
            value = float(token.text)
        else:
            _fail("a number or a quoted text is expected", self._text, token.at)
        return self._convert_value(field, value, token)

    def _convert_value(self, field: Field, value: str | float, token: _Token) -> str | float:
        if field.kind == "metrics":
            if isinstance(value, str):
                _fail("metrics compare with numbers, without quotes", self._text, token.at)
            if not math.isfinite(value):
                _fail("this number is too large", self._text, token.at)
            return value
        if field.kind == "attributes" and field.name in {"started_us", "ended_us"}:
            return self._parse_time(value, token)
        if not isinstance(value, str):
            return token.text  # params.x = 5 means the text '5'
        if "\x00" in value or any(0xD800 <= ord(c) <= 0xDFFF for c in value):
            _fail("this text cannot be stored, so nothing can equal it", self._text, token.at)
        return value

    def _parse_time(self, value: str | float, token: _Token) -> float:
        if not isinstance(value, str):
            if not abs(value) < 9e15:
                _fail("this time is out of range", self._text, token.at)
            return int(value * 1000)
        from datetime import UTC, datetime

        from mainspring.clock import to_us

        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            _fail("a time is milliseconds since the epoch or an ISO 8601 text", self._text, token.at)
        return to_us(time if time.tzinfo else time.replace(tzinfo=UTC))
