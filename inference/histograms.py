"""Latency histograms with fixed logarithmic buckets, which add up over hours, keys and nodes.

Bucket 0 holds everything below 0.1 ms. Bucket i ≥ 1 holds [0.1 · 2^((i-1)/8), 0.1 · 2^(i/8)) ms,
up to bucket 240 (some 26 hours) which holds all that is longer. A percentile is reported as the
geometric middle of its bucket, so it is off by at most 2^(1/16) - 1 = 4.4 % of the true value.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, exp2, log2

import msgspec

FLOOR_MS = 0.1
PER_OCTAVE = 8
LAST = 240

METRICS = ("queue", "ttft", "total")

Histogram = dict[int, int]
"""Counts by bucket; empty ones are left out."""


class Bars(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The histograms of some completed requests, one for each metric."""

    queue: Histogram = {}
    ttft: Histogram = {}
    total: Histogram = {}

    def count(self, queue_ms: float, ttft_ms: float | None, total_ms: float) -> None:
        """Count one request; without a first token there is nothing to count under `ttft`."""
        for histogram, ms in ((self.queue, queue_ms), (self.ttft, ttft_ms), (self.total, total_ms)):
            if ms is not None:
                bucket = bucket_of(ms)
                histogram[bucket] = histogram.get(bucket, 0) + 1

    def add(self, other: Bars) -> None:
        """Count all requests that `other` has counted."""
        for metric in METRICS:
            merge(getattr(self, metric), getattr(other, metric))

    def encode(self) -> str:
        """Return the bars as JSON."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> Bars:
        """Return what `encode` has put down."""
        return _DECODER.decode(text)


def merge(histogram: Histogram, other: Histogram) -> None:
    """Count in `histogram` all that `other` has counted."""
    for bucket, count in other.items():
        histogram[bucket] = histogram.get(bucket, 0) + count


def decode_ttft(text: str) -> Histogram:
    """Return the one histogram of encoded bars that charts ask for, in a quarter of the time of all three."""
    return _TTFT_DECODER.decode(text).ttft


def bucket_of(ms: float) -> int:
    """Return the bucket that a duration falls into."""
    if ms < FLOOR_MS:
        return 0
    return min(int(log2(ms / FLOOR_MS) * PER_OCTAVE) + 1, LAST)


def middle_ms(bucket: int) -> float:
    """Return the duration that stands for a bucket; 0 for what is too short to measure."""
    if bucket == 0:
        return 0.0
    return FLOOR_MS * exp2((bucket - 0.5) / PER_OCTAVE)


def percentile(buckets: Mapping[int, int], q: float) -> float | None:
    """Return the duration that a share `q` (0..1) of the counted ones do not exceed, by nearest rank."""
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"q={q!r}: expected a share between 0 and 1.")
    total = sum(buckets.values())
    if total == 0:
        return None
    rank = max(1, ceil(q * total))
    seen = 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= rank:
            return middle_ms(bucket)
    raise AssertionError("the ranks of a histogram end at its total")


class _Ttft(msgspec.Struct):
    ttft: Histogram = {}


_TTFT_DECODER = msgspec.json.Decoder(_Ttft)
_DECODER = msgspec.json.Decoder(Bars)
