"""The language of run search: what is read, and what is refused with its place."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.errors import InvalidInput
from mainspring.tracking.filters import ATTRIBUTES, Both, Compare, Either, Field, Negated, parse, parse_field


def _one(text: str) -> Compare:
    node = parse(text)
    assert isinstance(node, Compare)
    return node


@pytest.mark.parametrize(
    ("text", "kind", "name", "operator", "values"),
    [
        ("metrics.loss < 0.5", "metrics", "loss", "<", (0.5,)),
        ("metric.`a b` >= -1e-3", "metrics", "a b", ">=", (-0.001,)),
        ('metrics."val/loss" = .5', "metrics", "val/loss", "=", (0.5,)),
        ("metrics.val/loss == 5", "metrics", "val/loss", "=", (5.0,)),
        ("params.model = 'forest'", "params", "model", "=", ("forest",)),
        ("params.depth = 5", "params", "depth", "=", ("5",)),
        ("params.lr = 0.10", "params", "lr", "=", ("0.10",)),
        ('tags.`mlflow.user` <> "o\'neill"', "tags", "mlflow.user", "!=", ("o'neill",)),
        ("tag.x = 'it''s'", "tags", "x", "=", ("it's",)),
        ("params.x LIKE 'a%'", "params", "x", "like", ("a%",)),
        ("params.x ILIKE 'a%'", "params", "x", "ilike", ("a%",)),
        ("status IN ('finished', 'failed')", "attributes", "status", "in", ("finished", "failed")),
        ("attributes.run_id not in ('a')", "attributes", "id", "not in", ("a",)),
        ("params.x IS NULL", "params", "x", "null", ()),
        ("params.x is not null", "params", "x", "not null", ()),
        ("attributes.start_time > 1000", "attributes", "started_us", ">", (1_000_000,)),
        ("start_time >= '2013-01-01'", "attributes", "started_us", ">=", (1_356_998_400_000_000,)),
    ],
)
def test_conditions(text: str, kind: str, name: str, operator: str, values: tuple[object, ...]) -> None:
    node = _one(text)
    assert (node.field.kind, node.field.name, node.operator, node.values) == (kind, name, operator, values)


def test_and_binds_tighter_than_or_and_not_tightest() -> None:
    node = parse("not metrics.a > 1 and metrics.b > 2 or (metrics.c > 3 or metrics.d > 4)")
    assert isinstance(node, Either)
    assert isinstance(node.parts[0], Both)
    assert isinstance(node.parts[0].parts[0], Negated)
    assert isinstance(node.parts[1], Either)


def test_nothing_is_no_filter() -> None:
    assert parse("") is None
    assert parse("  \n ") is None


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("metrics.a >", 12),
        ("metrics.a > 'x'", 13),
        ("metrics.a > 1 metrics.b > 2", 15),
        ("params.a < 'x'", 10),
        ("params.a = 'x", 12),
        ("params.a = x", 12),
        ("colour.a = 'x'", 1),
        ("attributes.colour = 'x'", 1),
        ("(metrics.a > 1", 15),
        ("metrics.a > 1)", 14),
        ("metrics.a in 1", 14),
        ("metrics.a is 5", 14),
        ("and", 1),
        ("metrics.a > 1e999", 13),
        ("metrics.a LIKE 5", 16),
        ("start_time > 'yesterday'", 14),
        ("params.a = 'x'; DROP TABLE runs", 15),
        ("metrics.a > 1 -- comment", 15),
        ("params.a = 'a\x00b'", 12),
        ("params.a LIKE '%%%%%%%%%'", 15),
    ],
)
def test_a_bad_filter_is_refused_at_its_place(text: str, position: int) -> None:
    with pytest.raises(InvalidInput, match=f"position {position} of the filter"):
        parse(text)


def test_a_misspelt_attribute_gets_a_suggestion() -> None:
    with pytest.raises(InvalidInput, match="Did you mean 'status'"):
        parse("attributes.statsu = 'x'")


def test_filters_are_bounded() -> None:
    for text in (
        "(" * 100 + "metrics.a > 1" + ")" * 100,
        "not " * 100 + "metrics.a > 1",
        " and ".join(["metrics.a > 1"] * 101),
        "x" * 20_000,
    ):
        with pytest.raises(InvalidInput):
            parse(text)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        parse(text)


_FRAGMENTS = [
    "metrics.a",
    "params.`x y`",
    "tags.t",
    "status",
    "and",
    "or",
    "not",
    "(",
    ")",
    "=",
    "<",
    "like",
    "in",
    "is",
    "null",
    "'a'",
    "1",
    ",",
    "''",
    '"q"',
]


@given(st.lists(st.sampled_from(_FRAGMENTS), max_size=12))
def test_any_mix_of_words_is_read_or_refused(words: list[str]) -> None:
    with contextlib.suppress(InvalidInput):
        parse(" ".join(words))


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30),
    st.sampled_from(["'", '"']),
)
def test_any_storable_text_can_be_quoted(value: str, quote: str) -> None:
    assert _one(f"params.k = {quote}{value.replace(quote, quote * 2)}{quote}").values == (value,)


def test_order_fields() -> None:
    assert parse_field("metrics.`a b`", place="order_by") == Field("metrics", "a b", 0)
    assert parse_field("metrics.a b", place="order_by") == Field("metrics", "a b", 0)
    assert parse_field("start_time", place="order_by") == Field("attributes", "started_us", 0)
    with pytest.raises(InvalidInput):
        parse_field("nonsense", place="order_by")
    assert "status" in ATTRIBUTES
