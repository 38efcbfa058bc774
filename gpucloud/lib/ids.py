"""Makes ids: prefixed, sortable by time, unguessable."""

from __future__ import annotations

import os
import time

RANDOM_DIGITS = 20
POOLED = 256
"""Ids whose randomness is fetched from the kernel at once."""


def make_id(prefix: str) -> str:
    """Return `prefix` and 32 hexadecimal digits: 48 bits of milliseconds, 80 random bits.

    Ids made later sort later (to the millisecond), so an index over them grows at its end. For one
    thread only.
    """
    global _pool, _at
    if _at >= len(_pool):
        _pool, _at = os.urandom(POOLED * RANDOM_DIGITS // 2).hex(), 0
    _at += RANDOM_DIGITS
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{_pool[_at - RANDOM_DIGITS : _at]}"


def _drain_pool() -> None:
    """Draw nothing more from what is there: a forked child must not make its parent's ids."""
    global _pool
    _pool = ""


_pool = ""
_at = 0
os.register_at_fork(after_in_child=_drain_pool)
