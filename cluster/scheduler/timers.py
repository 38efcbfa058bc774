"""What is due when: one lazy heap of deadlines.

An entry says when to look at something, not what is to happen: whoever is looked at decides again,
and asks to be looked at later if it is too early. So a deadline that moves away costs nothing, and
only one that comes nearer needs a new entry. Entries of things that ended stay until they are
popped or until they are the majority, when the heap is swept.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

import msgspec

K = TypeVar("K", bound=Hashable)


class Timers(Generic[K]):
    """Deadlines by key; a key has at most one that counts."""

    __slots__ = ("_due", "_heap", "_ticket")

    def __init__(self) -> None:
        self._due: dict[K, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._ticket = 0

    def __len__(self) -> int:
        return len(self._due)

    def __iter__(self) -> Iterator[K]:
        """Iterate over what is being waited for."""
        return iter(self._due)

    @property
    def entries(self) -> int:
        """How long the heap is, with what no longer counts."""
        return len(self._heap)

    def arm(self, key: K, at_s: float) -> None:
        """Look at `key` at `at_s`, or earlier if that was asked for before."""
        armed = self._due.get(key)
        if armed is not None and armed[0] <= at_s:
            return
        if len(self._heap) > 2 * len(self._due) + 64:
            self._sweep()
        self._ticket += 1
        self._due[key] = (at_s, self._ticket)
        heapq.heappush(self._heap, (at_s, self._ticket, key))

    def drop(self, key: K) -> None:
        """Do not look at `key` any more."""
        if self._due.pop(key, None) is not None and len(self._heap) > 2 * len(self._due) + 64:
            self._sweep()

    def next_deadline(self) -> float | None:
        """Return when something is due next; None when nothing will be."""
        self._prune()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> K | None:
        """Return one key that is due, its deadline spent; None when there is no more."""
        self._prune()
        if not self._heap or self._heap[0][0] > now:
            return None
        key = heapq.heappop(self._heap)[2]
        del self._due[key]
        return key

    def _sweep(self) -> None:
        self._heap = [(at_s, ticket, key) for key, (at_s, ticket) in self._due.items()]
        heapq.heapify(self._heap)

    def _prune(self) -> None:
        while self._heap:
            at_s, ticket, key = self._heap[0]
            if self._due.get(key) == (at_s, ticket):
                return
            heapq.heappop(self._heap)


class TaskTimer(msgspec.Struct, frozen=True):
    """A task may have waited, or lived, too long."""

    task_id: str


class WorkerTimer(msgspec.Struct, frozen=True):
    """A worker may have been silent too long."""

    worker_id: str
    link: str


class ReleaseTimer(msgspec.Struct, frozen=True):
    """A cancel was not acknowledged."""

    worker_id: str
    link: str
    task_id: str
    attempt: int


class ModelTimer(msgspec.Struct, frozen=True):
    """A model without workers: its tasks have waited for one to come back."""

    model: str


Timer = TaskTimer | WorkerTimer | ReleaseTimer | ModelTimer
