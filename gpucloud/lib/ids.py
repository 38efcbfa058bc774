"""Makes ids: prefixed, sortable by time, unguessable."""

from __future__ import annotations

import os
import time


def make_id(prefix: str) -> str:
    """Return `prefix` and 32 hexadecimal digits: 48 bits of milliseconds, 80 random bits.

    Ids made later sort later (to the millisecond), so an index over them grows at its end.
    """
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"
