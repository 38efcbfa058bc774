"""How much a key may use, and whether one more request fits: over all of its limits at once, exactly.

Pure: no clock, no I/O; `now` is monotonic seconds. Three rules:

1. A minute is any minute. What was spent at `t` counts until `t + 60`, so no window of a minute ever
   holds more than the limit. (A bucket that refills would admit twice the limit in one.)
2. A request is charged when it is admitted, for all that it may come to: its prompt and the most it may
   generate. What it did not use is given back when it has ended, and shrinks its own entry only.
3. `decide` looks at everything before anything is charged: a refused request costs nothing.

Read `decide` first. Where states are kept and shared is the business of `limiter`.
"""

from __future__ import annotations

import math
from collections import deque
from enum import StrEnum
from operator import itemgetter

import msgspec

MINUTE_S = 60.0
FINE_ENTRIES = 4_096
"""Entries of a log that are kept one by one; past that they are kept by grains of time."""
GRAIN_S = MINUTE_S / FINE_ENTRIES
SLOT_RETRY_S = 1.0
"""When to come again where nobody can know: a running request has to end first."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one key; 0 means none."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_requests: int = 0
    monthly_tokens: int = 0
    """Billed tokens, prompt and completion, in a calendar month (UTC)."""


UNLIMITED = Limits()


class Limit(StrEnum):
    """Which limit stands in the way."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"
    BUDGET = "budget"


class Standing(msgspec.Struct, frozen=True):
    """Where a key stands with its limits by the minute; 0 for a limit that there is not."""

    remaining_requests: int
    reset_requests_s: float
    """How long until nothing of it is used, if nothing comes."""
    remaining_tokens: int
    reset_tokens_s: float


class Refusal(msgspec.Struct, frozen=True):
    """Why a request does not fit."""

    limit: Limit
    allowed: int
    used: int
    asked: int
    retry_after_s: float | None
    """When the same request fits, if nobody else comes first; None: waiting does not help."""
    standing: Standing


class Entry(msgspec.Struct, eq=False):
    """What was spent at one time, or within one grain of it."""

    opened_at_s: float
    at_s: float
    """It counts until a minute after this."""
    amount: int
    counts: bool = True


class SlidingLog:
    """What was spent within the last minute, entry by entry."""

    __slots__ = ("_entries", "total")

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self.total = 0

    def spend(self, amount: int, now: float) -> Entry:
        """Note that `amount` is spent now; times must not go back."""
        self.total += amount
        entries = self._entries
        if len(entries) >= FINE_ENTRIES:
            last = entries[-1]
            # Dated by its latest part, so that none of it is forgotten too early.
            if now - last.opened_at_s < GRAIN_S:
                last.amount += amount
                last.at_s = now
                return last
        entry = Entry(now, now, amount)
        entries.append(entry)
        return entry

    def give_back(self, entry: Entry, amount: int) -> None:
        """Take back a part of what an entry holds; nothing if it counts no more."""
        if entry.counts:
            entry.amount -= amount
            self.total -= amount

    def trim(self, now: float) -> None:
        """Let go of what is a minute old."""
        entries = self._entries
        while entries and entries[0].at_s + MINUTE_S <= now:
            entry = entries.popleft()
            entry.counts = False
            self.total -= entry.amount

    def wait_s(self, amount: int, allowed: int, now: float) -> float:
        """Return how long it takes until `amount` more is within `allowed`; infinity: it never is."""
        excess = self.total + amount - allowed
        if excess <= 0:
            return 0.0
        if amount > allowed:
            return math.inf
        for entry in self._entries:
            excess -= entry.amount
            if excess <= 0:
                return entry.at_s + MINUTE_S - now
        raise AssertionError("the entries add up to less than their total")

    def reset_s(self, now: float) -> float:
        """Return how long it takes until nothing counts any more, if nothing is spent."""
        return self._entries[-1].at_s + MINUTE_S - now if self._entries else 0.0

    def __len__(self) -> int:
        return len(self._entries)


class KeyUsage:
    """What one key has spent and holds: the state that `decide` judges by."""

    __slots__ = ("month", "month_held_tokens", "month_tokens", "requests", "running", "tokens")

    def __init__(self) -> None:
        self.requests = SlidingLog()
        self.tokens = SlidingLog()
        self.running = 0
        """Admitted requests that have not ended."""
        self.month = 0
        """Which month the next two are of: years times twelve and months."""
        self.month_tokens = 0
        """Billed to ended requests."""
        self.month_held_tokens = 0
        """Held for running ones."""

    def catch_up(self, now: float, month: int) -> None:
        """Let go of what counts no more."""
        self.requests.trim(now)
        self.tokens.trim(now)
        if month != self.month:
            self.month = month
            self.month_tokens = self.month_held_tokens = 0


class Reservation(msgspec.Struct, eq=False):
    """One admitted request's part of its key's usage, until it is settled."""

    usage: KeyUsage
    request: Entry | None
    tokens: Entry | None
    held_tokens: int
    month: int
    standing: Standing
    open: bool = True

    def settle(self, tokens: int, *, served: bool = True) -> None:
        """Note that the request has ended and what it came to; the first call decides, later ones do nothing.

        One that was not served, by no fault of its key, has not been a request at all.
        """
        if not self.open:
            return
        self.open = False
        usage = self.usage
        usage.running -= 1
        if self.request is not None and not served:
            usage.requests.give_back(self.request, 1)
        if self.tokens is not None:
            usage.tokens.give_back(self.tokens, self.held_tokens - tokens)
        if self.month == usage.month:
            usage.month_held_tokens -= self.held_tokens
            usage.month_tokens += tokens


def decide(usage: KeyUsage, limits: Limits, tokens: int, now: float, month: int) -> Refusal | None:
    """Return why a request that may come to `tokens` does not fit, None if it does; nothing is charged.

    Of several limits in its way the answer is the one that takes longest.
    """
    usage.catch_up(now, month)
    found: list[tuple[float, Limit, int, int, int]] = []
    if allowed := limits.monthly_tokens:
        spent, held = usage.month_tokens, usage.month_tokens + usage.month_held_tokens
        if spent + tokens > allowed:
            found.append((math.inf, Limit.BUDGET, allowed, spent, tokens))
        elif held + tokens > allowed:
            found.append((SLOT_RETRY_S, Limit.BUDGET, allowed, held, tokens))
    if (allowed := limits.concurrent_requests) and usage.running >= allowed:
        found.append((SLOT_RETRY_S, Limit.CONCURRENCY, allowed, usage.running, 1))
    if allowed := limits.requests_per_minute:
        wait_s = usage.requests.wait_s(1, allowed, now)
        if wait_s > 0:
            found.append((wait_s, Limit.REQUESTS, allowed, usage.requests.total, 1))
    if allowed := limits.tokens_per_minute:
        wait_s = usage.tokens.wait_s(tokens, allowed, now)
        if wait_s > 0:
            found.append((wait_s, Limit.TOKENS, allowed, usage.tokens.total, tokens))
    if not found:
        return None
    wait_s, limit, allowed, used, asked = max(found, key=itemgetter(0))
    retry_after_s = None if wait_s == math.inf else wait_s
    return Refusal(limit, allowed, used, asked, retry_after_s, _stand(usage, limits, now))


def reserve(usage: KeyUsage, limits: Limits, tokens: int, now: float) -> Reservation:
    """Charge a request that `decide` has just let pass."""
    usage.running += 1
    usage.month_held_tokens += tokens
    return Reservation(
        usage,
        usage.requests.spend(1, now) if limits.requests_per_minute else None,
        usage.tokens.spend(tokens, now) if limits.tokens_per_minute else None,
        tokens,
        usage.month,
        _stand(usage, limits, now),
    )


def _stand(usage: KeyUsage, limits: Limits, now: float) -> Standing:
    requests, tokens = usage.requests, usage.tokens
    return Standing(
        max(0, limits.requests_per_minute - requests.total),
        requests.reset_s(now),
        max(0, limits.tokens_per_minute - tokens.total),
        tokens.reset_s(now),
    )
