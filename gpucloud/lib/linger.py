"""Waits a while with what is nearly always over by then, at the price of an entry in a dict.

One timer for all: what has been here for a whole turn of it is acted on, what came meanwhile has one
more. So each stays between half the time and the whole, unless it is let go before. That is not only
tidy: what stays here stays in memory, and memory that is used again at once is still in the cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Linger(Generic[T]):
    """Items of one event loop that may stay for a while before `act` is called with each."""

    def __init__(self, act: Callable[[T], None], *, longest_s: float) -> None:
        self._act = act
        self._turn_s = longest_s / 2
        self._young: dict[T, None] = {}
        self._old: dict[T, None] = {}
        """Come since the last look, and before; in their order."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: T) -> None:
        """Let an item stay."""
        self._young[item] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._turn_s, self._look)

    def let_go(self, item: T) -> None:
        """Forget an item, if it is still here."""
        self._young.pop(item, None)
        self._old.pop(item, None)

    def act_on_all(self) -> None:
        """Act at once on all that are here; those not let go are acted on again in their time."""
        for item in (*self._old, *self._young):
            self._act(item)

    def _look(self) -> None:
        # The items may let go of themselves meanwhile.
        for item in list(self._old):
            self._act(item)
        self._old, self._young = self._young, {}
        self._timer = asyncio.get_running_loop().call_later(self._turn_s, self._look) if self._old else None
