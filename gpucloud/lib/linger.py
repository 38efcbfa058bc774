"""Waits a while with what is nearly always over by then, at the price of an entry in a list.

One timer for all: what has been here for a whole turn of it is acted on, what came meanwhile has one
more. So each stays between half the time and the whole. Nothing is taken out early: whoever acts on an
item has to see for itself whether that is still wanted.
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
        self._young: list[T] = []
        self._old: list[T] = []
        """Come since the last look, and before."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: T) -> None:
        """Let an item stay."""
        self._young.append(item)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._turn_s, self._look)

    def act_on_all(self) -> None:
        """Act at once on all that are here; they are acted on again in their time."""
        for item in (*self._old, *self._young):
            self._act(item)

    def _look(self) -> None:
        for item in self._old:
            self._act(item)
        self._old, self._young = self._young, []
        self._timer = asyncio.get_running_loop().call_later(self._turn_s, self._look) if self._old else None
