"""Makes ids: prefixed, sortable by time, unguessable."""

from __future__ import annotations

import os
import time

POOL_BYTES = 4000
RANDOM_BYTES = 10


def make_id(prefix: str) -> str:
    """Return `prefix` and 32 hexadecimal digits: 48 bits of milliseconds, 80 random bits.

    Ids made later sort later (to the millisecond), so an index over them grows at its end.
    """
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{_draw().hex()}"


def _draw() -> bytes:
    """Return some bytes of the kernel's randomness, fetched for hundreds of ids at a time."""
    global _at
    if _at >= len(_pool):
        _pool[:] = os.urandom(POOL_BYTES)
        _at = 0
    _at += RANDOM_BYTES
    return bytes(_pool[_at - RANDOM_BYTES : _at])


_pool = bytearray()
_at = 0
# A forked child must not hand out its parent's ids.
os.register_at_fork(after_in_child=lambda: _pool.clear())
