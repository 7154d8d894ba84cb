"""Counts of categories in bounded memory. Two profiles made of them can be compared without bias.

The most frequent categories are counted by name. The counts of dropped categories are added up by the hash of their name in
:data:`BUCKETS` buckets, so the counts by hash are exact however many categories there are and however the parts were merged.
In addition, every category whose hash is among the smallest is counted individually: a *coordinated sample* (E. Cohen,
H. Kaplan, *Summarizing data using bottom-k sketches*, PODC 2007), which selects the same categories in every profile.
Neither count depends on which categories happened to be frequent in one dataset; therefore tests on them are unbiased.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from mainspring.records.profile import ColumnProfile

MAX_COUNTS = 256
"""Categories that a finished profile counts by name."""
MAX_WORKING = 4096
"""Categories that a profile counts by name while it is being built."""
BUCKETS = 128
"""Buckets for the counts of dropped categories."""
SAMPLE = 1024
"""Categories in the coordinated sample."""
EVERY = 1 << 32
"""A bound that every hash is below."""

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint32]


def hashes(keys: Iterable[str]) -> Hashes:
    """A stable 32-bit hash of each name: CRC-32, mixed (the finaliser of MurmurHash3), since CRC alone is linear."""
    h = np.fromiter((zlib.crc32(k.encode("utf-8", "replace")) for k in keys), dtype=np.uint32)
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        h ^= h >> np.uint32(shift)
        h *= np.uint32(multiplier)
    h ^= h >> np.uint32(16)
    return h


def bucket_counts(counted: Mapping[str, float], buckets: int = BUCKETS) -> npt.NDArray[np.float64]:
    """Counts by the low bits of the hash; ``buckets`` is a power of two."""
    values = np.fromiter(counted.values(), dtype=np.float64, count=len(counted))
    where = (hashes(counted) & np.uint32(buckets - 1)).astype(np.int64)
    return np.asarray(np.bincount(where, weights=values, minlength=buckets), dtype=np.float64)


def most_frequent(counts: Mapping[str, int], limit: int) -> dict[str, int]:
    """The ``limit`` most frequent categories, ties by name, so that equal data gives an equal profile."""
    return dict(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))[:limit])


class Tally:
    """Counts of categories. ``rest`` and ``sample`` are None while nothing was dropped, and in profiles of older programs."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.other = 0
        self.rest: Ints | None = None
        self.sample: dict[int, int] | None = None
        self.below = EVERY

    @classmethod
    def of(cls, column: ColumnProfile) -> Tally:
        """The counts that a profile holds."""
        out = cls()
        out.counts, out.other = Counter(column.counts), column.other
        if column.rest:
            out.rest = np.asarray(column.rest, dtype=np.int64)
            out.sample = {int(h): n for h, n in column.sample.items()}
            out.below = column.below or EVERY
        return out

    @property
    def known(self) -> bool:
        """Whether the dropped part is known by hash (older profiles: not)."""
        return self.other == 0 or self.rest is not None

    def add(self, counted: Mapping[str, int]) -> None:
        """Add counts by name."""
        if self.sample is not None:
            self._add_to_sample(counted)
        for key, count in counted.items():
            if count:
                self.counts[key] += count

    def merge(self, more: Tally) -> None:
        """Add the counts of another tally. The part by hash is kept only if both know it."""
        known = self.known and more.known
        if known and (self.other or more.other):
            sample, more_sample = Counter(self.sampled()), more.sampled()
            sample.update(more_sample)
            self.below = min(self.below, more.below)
            self.sample = dict(sample)
            self._limit_sample()
            self.rest = self._rest_counts() + more._rest_counts()
        elif not known:
            self.rest = self.sample = None
        self.counts.update(more.counts)
        self.other += more.other

    def prune(self, limit: int, keep: int | None = None) -> None:
        """Drop all but the ``keep`` (default: ``limit``) most frequent if there are more than ``limit``."""
        if len(self.counts) <= limit:
            return
        if self.other == 0:
            self.sample = {}
            self._add_to_sample(self.counts)
        known = self.known
        kept = most_frequent(self.counts, keep or limit)
        dropped = {k: n for k, n in self.counts.items() if k not in kept}
        if known:
            self.rest = self._rest_counts() + bucket_counts(dropped).astype(np.int64)
        self.other += sum(dropped.values())
        self.counts = Counter(kept)

    def sampled(self) -> dict[int, int]:
        """Exact counts by hash of every category whose hash is below ``below``."""
        if self.sample is not None:
            return self.sample
        out: Counter[int] = Counter()
        for h, n in zip(hashes(self.counts).tolist(), self.counts.values(), strict=True):
            out[h] += n
        return dict(out)

    def _rest_counts(self) -> Ints:
        return self.rest if self.rest is not None else np.zeros(BUCKETS, dtype=np.int64)

    def _add_to_sample(self, counted: Mapping[str, int]) -> None:
        assert self.sample is not None  # noqa: S101 - the callers ensure it
        h = hashes(counted)
        values = np.fromiter(counted.values(), dtype=np.int64, count=len(counted))
        keep = np.flatnonzero(h.astype(np.int64) < self.below)
        for at, n in zip(h[keep].tolist(), values[keep].tolist(), strict=True):
            self.sample[at] = self.sample.get(at, 0) + n
        self._limit_sample()

    def _limit_sample(self) -> None:
        """Keep the smallest hashes: each of them was below the bound from the start, so its count is complete."""
        assert self.sample is not None  # noqa: S101 - the callers ensure it
        ordered = sorted(h for h in self.sample if h < self.below)
        if len(ordered) > SAMPLE:
            self.below = ordered[SAMPLE]
            ordered = ordered[:SAMPLE]
        self.sample = {h: self.sample[h] for h in ordered}
