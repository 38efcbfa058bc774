"""Looks after streams that stand still: cuts off clients that do not read, and keeps proxies awake.

`send` waits while a client's socket is full, and nothing ends that wait: no time-out of the server's,
no disconnect. So one look over all streams now and then finds those that have waited too long, or for
whom too much is kept meanwhile, settles them and drops their connections. A stream that has nothing to
send for long, because its task waits for another worker, sends a comment.
"""

from __future__ import annotations

import asyncio
import time

from inference.completions import Completion
from inference.openai.http import Exchange

LOOKS = 30
"""Looks in the time that a writer may be stuck."""
QUIET_S = 15.0
"""After so long without a byte a stream that has begun says that it lives; proxies close it after 30 or 60."""
MAX_BYTES = 256 * 1024
"""What is kept for a client that does not read: past that it is cut off at the next look."""


class Writers:
    """The streams that are being written, on one event loop."""

    def __init__(self, *, stuck_s: float) -> None:
        self._stuck_s = stuck_s
        self._streams: dict[Exchange, Completion] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, exchange: Exchange, completion: Completion) -> None:
        """Look after a stream until it is removed."""
        self._streams[exchange] = completion
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._stuck_s / LOOKS, self._turn)

    def remove(self, exchange: Exchange) -> None:
        """Let go of a stream that has ended."""
        self._streams.pop(exchange, None)

    def look(self, now: float) -> None:
        """Cut off who is stuck at `now`, monotonic seconds."""
        for exchange, completion in list(self._streams.items()):
            if not exchange.writing_since_s:
                if exchange.started and now - exchange.written_at_s >= QUIET_S:
                    completion.stream.nudge()
                continue
            stuck_s = now - exchange.writing_since_s
            too_much = stuck_s >= self._stuck_s / LOOKS and completion.stream.waiting_bytes > MAX_BYTES
            if stuck_s >= self._stuck_s or too_much:
                completion.leave("client_too_slow")
                exchange.abort()

    def _turn(self) -> None:
        self._timer = None
        if self._streams:
            self._timer = asyncio.get_running_loop().call_later(self._stuck_s / LOOKS, self._turn)
            self.look(time.monotonic())
