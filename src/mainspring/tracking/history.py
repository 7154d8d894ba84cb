"""The history of a metric, in packed blocks.

A block holds the points of one key in one batch, sorted by step and time: ``n`` steps (int64), ``n`` times in microseconds
(int64) and ``n`` values (IEEE 754 doubles, so NaN payloads, infinities and -0 are the same bits afterwards), little-endian, in this
order. A point takes 24 bytes, and a hundred thousand points a second are a few rows. Blocks of one key may overlap when steps
arrive out of order; reading merges them.
"""

from __future__ import annotations

import heapq
import math
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from mainspring.errors import Corrupt
from mainspring.records.tracking import Metric, split_number


class Sample(NamedTuple):
    """Step, time in microseconds, number."""

    step: int
    time_us: int
    number: float


class BlockInfo(NamedTuple):
    """What is known of a block before its bytes are read."""

    first_step: int
    last_step: int
    seq: int
    points: int


def pack(samples: list[Sample]) -> bytes:
    """The bytes of a block; ``samples`` must be sorted by (step, time)."""
    columns = (
        array("q", [s[0] for s in samples]),
        array("q", [s[1] for s in samples]),
        array("d", [s[2] for s in samples]),
    )
    if sys.byteorder == "big":
        for column in columns:
            column.byteswap()
    return b"".join(column.tobytes() for column in columns)


def unpack(data: bytes) -> list[Sample]:
    """The inverse of :func:`pack`, bit for bit."""
    count, rest = divmod(len(data), 24)
    if rest:
        raise Corrupt("a block of metric points has a wrong length", value=len(data), place="run_points")
    steps, times, values = array("q"), array("q"), array("d")
    steps.frombytes(data[: 8 * count])
    times.frombytes(data[8 * count : 16 * count])
    values.frombytes(data[16 * count :])
    if sys.byteorder == "big":
        for column in (steps, times, values):
            column.byteswap()
    return [Sample(*point) for point in zip(steps, times, values, strict=True)]


def merge_blocks(
    blocks: Iterable[BlockInfo], load: Callable[[int], bytes], *, from_step: int | None = None
) -> Iterator[Sample]:
    """All samples of ``blocks`` (sorted by first step), by step, then time, then order of arrival.

    ``load`` gives the bytes of a block by its ``seq``; blocks are loaded only when the walk reaches them, so memory
    holds the blocks that overlap, not the history.
    """
    heap: list[tuple[int, int, int, int, list[Sample]]] = []

    def drain(before: int | None) -> Iterator[Sample]:
        while heap and (before is None or heap[0][0] < before):
            _, _, seq, index, samples = heap[0]
            yield samples[index]
            following = index + 1
            if following < len(samples):
                heapq.heapreplace(
                    heap, (samples[following].step, samples[following].time_us, seq, following, samples)
                )
            else:
                heapq.heappop(heap)

    for block in blocks:
        yield from drain(block.first_step)
        samples = unpack(load(block.seq))
        start = 0
        if from_step is not None:
            start = next((i for i, s in enumerate(samples) if s.step >= from_step), len(samples))
        if start < len(samples):
            heapq.heappush(heap, (samples[start].step, samples[start].time_us, block.seq, start, samples))
    yield from drain(None)


def thin_samples(samples: Iterable[Sample], *, total: int, keep: int) -> list[Sample]:
    """At most about ``keep`` of ``total`` samples that keep the shape: the lowest and highest of each bucket, the first
    and last of all, and the first NaN or infinity of each bucket, so that a spike or a divergence never disappears."""
    if total <= keep:
        return list(samples)
    size = math.ceil(total / max(1, keep // 3))
    out: list[Sample] = []
    bucket: list[Sample] = []
    for number, sample in enumerate(samples):
        bucket.append(sample)
        if len(bucket) == size or number == total - 1:
            out += _extremes(bucket, first=not out, last=number == total - 1)
            bucket = []
    return out + (_extremes(bucket, first=not out, last=True) if bucket else [])


def _extremes(bucket: list[Sample], *, first: bool, last: bool) -> list[Sample]:
    finite = [i for i, s in enumerate(bucket) if math.isfinite(s.number)]
    chosen: set[int] = set()
    if finite:
        chosen = {min(finite, key=lambda i: bucket[i].number), max(finite, key=lambda i: bucket[i].number)}
    if len(finite) < len(bucket):
        chosen.add(next(i for i, s in enumerate(bucket) if not math.isfinite(s.number)))
    if first:
        chosen.add(0)
    if last:
        chosen.add(len(bucket) - 1)
    return [bucket[i] for i in sorted(chosen)]


def metric_of(sample: Sample) -> Metric:
    value, special = split_number(sample.number)
    return Metric(value=value, special=special, step=sample.step, time_us=sample.time_us)
