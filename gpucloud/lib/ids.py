"""Makes ids: prefixed, sortable by time, unguessable."""

from __future__ import annotations

import os
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]


def make_id(prefix: str) -> str:
    """Return `prefix` and 26 characters of Crockford base 32: 48 bits of ms, 80 random bits.

    Ids made later sort later (to the millisecond), so an index over them grows at its end.
    """
    number = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10))
    pairs = _PAIRS
    return prefix + "".join([pairs[number >> shift & 1023] for shift in _SHIFTS])


_SHIFTS = tuple(range(120, -1, -10))
