"""What is due when: one lazy heap of deadlines.

An entry says when to look at something, not what is to happen: whoever is looked at decides again,
and asks to be looked at later if it is too early. So a deadline that moves away costs nothing, and
only one that comes nearer needs a new entry. Entries of what has ended stay until they are popped,
or until they are the majority and the heap is swept: the heap is never much longer than what lives.
They are numbers only, so what has ended is not kept in memory by them.
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

SLACK = 64
"""Entries that are not worth a sweep."""


class Timers(Generic[K]):
    """Deadlines by key; a key has at most one that counts."""

    __slots__ = ("_due", "_heap", "_keys", "_ticket")

    def __init__(self) -> None:
        self._due: dict[K, tuple[float, int]] = {}
        """By key when to look at it, and the ticket of the entry that says so."""
        self._keys: dict[int, K] = {}
        """The same keys by ticket; an entry whose ticket is not here does not count."""
        self._heap: list[tuple[float, int]] = []
        self._ticket = 0

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, key: K) -> bool:
        return key in self._due

    @property
    def entries(self) -> int:
        """How long the heap is, with what no longer counts."""
        return len(self._heap)

    def arm(self, key: K, at_s: float) -> None:
        """Look at `key` at `at_s`, or earlier if that was asked for before."""
        armed = self._due.get(key)
        if armed is not None:
            if armed[0] <= at_s:
                return
            del self._keys[armed[1]]
        self._ticket += 1
        entry = self._due[key] = (at_s, self._ticket)
        self._keys[self._ticket] = key
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._due) + SLACK:
            self._sweep()

    def drop(self, key: K) -> None:
        """Do not look at `key` any more."""
        armed = self._due.pop(key, None)
        if armed is not None:
            del self._keys[armed[1]]
            if len(self._heap) > 2 * len(self._due) + SLACK:
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
        key = self._keys.pop(heappop(self._heap)[1])
        del self._due[key]
        self._sweep()
        return key

    def _sweep(self) -> None:
        self._heap = list(self._due.values())
        heapify(self._heap)

    def _prune(self) -> None:
        heap = self._heap
        while heap and heap[0][1] not in self._keys:
            heappop(heap)
