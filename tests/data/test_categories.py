"""Categories in bounded memory: what is dropped by name is still counted, whatever the order and the parts."""

from __future__ import annotations

import numpy as np
import pytest

from mainspring.data.categories import BUCKETS, MAX_COUNTS, SAMPLE, Tally, bucket_counts, hashes
from mainspring.data.profile import ProfileBuilder, merge
from mainspring.records.base import from_json, to_json
from mainspring.records.profile import ColumnProfile, Profile


def drawn(n: int, categories: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, categories + 1)
    return [f"k{i}" for i in rng.choice(categories, n, p=weights / weights.sum())]


def totals(column: ColumnProfile) -> list[float]:
    """Counts by hash: of the named and of the dropped together."""
    rest = np.array(column.rest) if column.rest else np.zeros(BUCKETS)
    return (bucket_counts(column.counts) + rest).tolist()


@pytest.mark.parametrize("parts", [1, 2, 7, 40])
def test_counts_by_hash_and_of_the_sample_are_exact_however_the_parts_were_merged(parts: int) -> None:
    """Seen red with the dropped categories of Tally.prune not added to their buckets, and with a sample begun at the first drop."""
    values = drawn(30_000, 20_000)
    true: dict[str, int] = {}
    for value in values:
        true[value] = true.get(value, 0) + 1
    whole: Profile | None = None
    for part in np.array_split(np.array(values), parts):
        one = ProfileBuilder()
        for batch in np.array_split(part, 3):
            one.add({"c": batch.tolist()})
        built = one.build()
        whole = built if whole is None else merge(whole, built)
    assert whole is not None
    column = whole.columns[0]
    assert len(column.counts) == MAX_COUNTS
    assert sum(column.rest) == column.other == 30_000 - sum(column.counts.values())
    assert totals(column) == bucket_counts(true).tolist()
    by_hash: dict[int, int] = {}
    for h, count in zip(hashes(true).tolist(), true.values(), strict=True):
        by_hash[h] = by_hash.get(h, 0) + count
    smallest = sorted(by_hash)[:SAMPLE]
    assert {int(h): n for h, n in column.sample.items()} == {h: by_hash[h] for h in smallest}
    assert column.below == sorted(by_hash)[SAMPLE]


def test_a_profile_that_dropped_nothing_is_written_as_before() -> None:
    column = ProfileBuilder().add({"c": ["a", "b", "a"]}).build().columns[0]
    assert (column.rest, column.sample, column.below, column.numbers) == ([], {}, None, None)


def test_building_does_not_change_what_is_built_on() -> None:
    values = drawn(3_000, 2_000)
    builder = ProfileBuilder().add({"c": values[:1_500]})
    builder.build()
    assert builder.add({"c": values[1_500:]}).build() == ProfileBuilder().add({"c": values}).build()


def test_a_profile_of_an_older_version_is_read_and_merged() -> None:
    """It says neither which categories it dropped nor their hashes: nor does what it is merged into."""
    old: ColumnProfile = from_json(
        b'{"name": "c", "type": "string", "rows": 1000, "counts": {"a": 400, "b": 200}, "other": 400}',
        ColumnProfile,
    )
    assert not Tally.of(old).known
    new = ProfileBuilder().add({"c": drawn(2_000, 2_000)}).build()
    both = merge(Profile(rows=1000, columns=[old]), new).columns[0]
    assert (both.rows, both.counts["a"], both.rest) == (3000, 400, [])
    assert sum(both.counts.values()) + both.other == 3000
    assert from_json(to_json(both), ColumnProfile) == both


def test_hashes_are_the_same_everywhere_and_spread() -> None:
    assert hashes(["", "a", "k1", "ü"]).tolist() == [0, 3320656311, 3587883535, 2901851523]
    counts = bucket_counts({f"k{i}": 1.0 for i in range(12_800)})
    assert counts.min() > 60
    assert counts.max() < 145
