"""What is remembered of a model's queue: how fast its line moves, and who went before whom.

The first is what `Retry-After` and estimates of waits are computed from.

The rate is the count of departures, each fading with time, so it does not matter whether they come
evenly or in bursts. For how long to wait until there is *surely* a departure the rate alone will not
do: eight tasks that began together end together. So the longest recent pause counts too.
"""

from __future__ import annotations

from math import exp

from cluster.scheduler.state import TaskRecord

MEMORY_S = 20.0
"""How long a departure counts, about."""
FADE = 0.98
"""What a departure leaves of the longest pause before it."""


class Drain:
    """Departures from one model's line."""

    __slots__ = ("_begun_at_s", "_count", "_last_at_s", "_pause_s")

    def __init__(self) -> None:
        self._begun_at_s = 0.0
        self._last_at_s = 0.0
        self._count = 0.0
        self._pause_s = 0.0

    def begin(self, now: float) -> None:
        """Note that a line has formed: what was before says nothing about how fast it moves."""
        self._begun_at_s = self._last_at_s = now
        self._count = self._pause_s = 0.0

    def note(self, now: float) -> None:
        """Note a departure."""
        gap_s = now - self._last_at_s
        self._last_at_s = now
        self._count = self._count * exp(-gap_s / MEMORY_S) + 1.0
        self._pause_s = max(gap_s, self._pause_s * FADE)

    def per_s(self, now: float) -> float | None:
        """Return the departures a second of late; None before the first."""
        watched_s = now - self._begun_at_s
        if not self._count or watched_s <= 0:
            return None
        faded = self._count * exp((self._last_at_s - now) / MEMORY_S)
        return faded / (MEMORY_S * (1.0 - exp(-watched_s / MEMORY_S)))

    def wait_s(self, places: int, now: float) -> float | None:
        """Return after how long so many will have left; None when that is not known."""
        rate = self.per_s(now)
        if rate is None:
            return None
        return max(self._pause_s, now - self._last_at_s) + (places - 1) / rate


class Pace:
    """What is remembered of a model's queue when nobody waits: so "one in ten" means all its dispatches."""

    __slots__ = ("drain", "kept", "promised", "quiet", "since_aged")

    def __init__(self, aged_every: int) -> None:
        self.since_aged = aged_every
        """Dispatches since the last that went to an aged task of a lower tier."""
        self.quiet: tuple[int, float] = (-1, 0.0)
        """The first tier with any, and until when none below it can be aged."""
        self.kept: TaskRecord | None = None
        """The task that needs more room than there is and for which a worker is kept."""
        self.promised: TaskRecord | None = None
        """The aged task of a lower tier that the next dispatch for age was given to, when it can go."""
        self.drain = Drain()
