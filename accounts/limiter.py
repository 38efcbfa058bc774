"""Keeps what every key has used, and admits or refuses: the shell around `limits`.

`LimitStore` is the boundary: one node keeps states in its memory (`MemoryLimitStore`); nodes that
share keys will share a store. Whatever the store, `reserve` decides and charges in one step.
All methods belong to one event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from accounts.limits import MINUTE_S, KeyUsage, Limits, Refusal, Reservation, decide, reserve

__all__ = ["LimitStore", "MemoryLimitStore", "Refusal", "Reservation", "Spent"]


class Spent(msgspec.Struct, frozen=True):
    """One request of the last minute, as a ledger remembers it."""

    key_id: int
    at_s: float
    """Wall clock, seconds since the epoch."""
    tokens: int


class LimitStore(Protocol):
    """Who may use how much, shared by all that must agree on it."""

    async def reserve(self, key_id: int, limits: Limits, tokens: int) -> Reservation | Refusal:
        """Admit a request that may come to `tokens` and charge it, or say why not and charge nothing.

        Every `Reservation` must be settled once; it may be settled twice.
        """

    def reserve_at_once(self, key_id: int, limits: Limits, tokens: int) -> Reservation | Refusal | None:
        """Do the same if nobody else has to be asked; None, and nothing is charged, if that takes a wait."""


class MemoryLimitStore:
    """The store of one node."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._usages: dict[int, KeyUsage] = {}
        self._month = 0
        self._month_ends_at_s = 0.0

    def restore(self, *, month_tokens: Iterable[tuple[int, int]], spent: Iterable[Spent]) -> None:
        """Take over what is on record: tokens of this month by key, and the requests of the last minute.

        To be called before the first request: a restart is no way around a limit.
        """
        now, wall_now = self._clock(), self._wall_clock()
        month = self._month_at(wall_now)
        for key_id, tokens in month_tokens:
            usage = self._usage_of(key_id)
            usage.month, usage.month_tokens = month, tokens
        for request in sorted(spent, key=lambda request: request.at_s):
            age_s = max(0.0, wall_now - request.at_s)
            if age_s < MINUTE_S:
                usage = self._usage_of(request.key_id)
                usage.requests.spend(1, now - age_s)
                usage.tokens.spend(request.tokens, now - age_s)

    async def reserve(self, key_id: int, limits: Limits, tokens: int) -> Reservation | Refusal:
        """Admit and charge, or refuse. Nothing is awaited, so two requests cannot come in between."""
        return self.reserve_at_once(key_id, limits, tokens)

    def reserve_at_once(self, key_id: int, limits: Limits, tokens: int) -> Reservation | Refusal:
        """Admit and charge, or refuse."""
        now = self._clock()
        usage = self._usage_of(key_id)
        refusal = decide(usage, limits, tokens, now, self._month_at(self._wall_clock()))
        return reserve(usage, limits, tokens, now) if refusal is None else refusal

    def count_running(self, key_id: int) -> int:
        """Return how many admitted requests of a key have not ended."""
        usage = self._usages.get(key_id)
        return 0 if usage is None else usage.running

    def _usage_of(self, key_id: int) -> KeyUsage:
        usage = self._usages.get(key_id)
        if usage is None:
            usage = self._usages[key_id] = KeyUsage()
        return usage

    def _month_at(self, wall_s: float) -> int:
        if wall_s >= self._month_ends_at_s or not self._month:
            self._month, self._month_ends_at_s = find_month(wall_s)
        return self._month


def find_month(wall_s: float) -> tuple[int, float]:
    """Return the number of a moment's month (UTC), years times twelve and months, and when it ends."""
    at = datetime.fromtimestamp(wall_s, UTC)
    year, month = (at.year + 1, 1) if at.month == 12 else (at.year, at.month + 1)
    return at.year * 12 + at.month, datetime(year, month, 1, tzinfo=UTC).timestamp()
