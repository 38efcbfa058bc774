"""Notices attempts that make no progress. Liveness is the scheduler's affair, progress is the stream's.

Tokens never pass the dispatcher, so only the node that holds a stream can tell that none come. One look
over all streams now and then, instead of a timer for each token. A node that was itself paused looks at
nobody until it has listened again: silence that it did not hear is no silence.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from cluster.engine.streams import TokenStream
from cluster.scheduler.events import AttemptStalled

log = logging.getLogger(__name__)

LOOKS = 8
"""Looks in the shorter of the two times: how much later than it is due a stall may be seen."""
LONGEST_S = 1.0


class ProgressWatch:
    """Reports the attempts of a gateway's streams that stall."""

    def __init__(
        self,
        streams: Mapping[str, TokenStream],
        report: Callable[[AttemptStalled], None],
        *,
        first_token_s: float,
        next_token_s: float,
        paused_s: float,
    ) -> None:
        self._streams = streams
        self._report = report
        self._first_token_s = first_token_s
        self._next_token_s = next_token_s
        self._paused_s = paused_s
        self._every_s = min(LONGEST_S, min(first_token_s, next_token_s) / LOOKS)
        self._looked_at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look."""
        self._looked_at_s = time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._turn)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def look(self, now: float) -> None:
        """Report who has stalled by `now`, monotonic seconds."""
        paused = now - self._looked_at_s > self._every_s + self._paused_s
        self._looked_at_s = now
        for stream in list(self._streams.values()):
            if not stream.worker_id or stream.ended:
                continue
            fresh = stream.next_seq == stream.began_at_seq
            limit_s = self._first_token_s if fresh else self._next_token_s
            if paused:
                stream.progress_at_s = now
            elif now - stream.progress_at_s >= limit_s:
                stream.progress_at_s = now  # told once; the fence that follows closes the attempt
                self._report(AttemptStalled(stream.task.id, stream.attempt, "first_token" if fresh else "next_token"))

    def _turn(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._turn)
        try:
            self.look(time.monotonic())
        except Exception:
            # One stream's trouble must not leave all others unwatched.
            log.exception("a look for stalled attempts failed")
