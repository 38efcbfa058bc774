"""Workers with equal offers, and the best of them without looking at each.

A pool keeps its free workers in two heaps: by score, to choose from, and by free KV, to know at once
that a task fits on none. The heaps are lazy: the next choice pushes new entries of all that changed, and
the worker's `version` says which of its entries are true. Workers that may not be given just anything
have none. A pool of a few is simply looked through.
"""

from __future__ import annotations

import random
from heapq import heapify, heappop, heappush

from cluster.domain import ModelOffer
from cluster.scheduler.state import TaskRecord
from cluster.scheduler.workers import WorkerRecord

ByScore = tuple[float, int, float, int, WorkerRecord]
"""Load, slowness, a random tie-break, the worker's version, the worker."""
ByRoom = tuple[int, int, WorkerRecord]
"""Free KV bytes, negative for the largest to come first, the worker's version, the worker."""
FEW = 8
"""Workers of a pool that are looked at one by one."""


class Pool:
    """Live workers with equal offers, all simulated or none."""

    __slots__ = ("_by_room", "_by_score", "_offers", "_rng", "_stale_s", "changed", "ready", "simulated", "workers")

    def __init__(self, offers: tuple[ModelOffer, ...], rng: random.Random, *, simulated: bool, stale_s: float) -> None:
        self.workers: dict[str, WorkerRecord] = {}
        self.simulated = simulated
        self.ready = 0
        """How many have entries."""
        self._rng = rng
        self._stale_s = stale_s
        self._offers = {offer.id: offer for offer in offers}
        self._by_score: list[ByScore] = []
        self._by_room: list[ByRoom] = []
        self.changed: dict[str, WorkerRecord] = {}
        """Workers whose entries are not true any more, until somebody wants to know."""

    def forget(self, worker: WorkerRecord) -> None:
        """Let go of a worker."""
        self._retract(worker)
        del self.workers[worker.spec.id]
        self.changed.pop(worker.spec.id, None)

    def best(self, record: TaskRecord, excluded: frozenset[str], now: float, *, idle: bool) -> ByScore | None:
        """Return the entry of the worker to choose for the task, if any can take it now."""
        if len(self.workers) <= FEW:
            return self._best_of_few(record, excluded, now, idle=idle)
        self._push_changed()
        heap = self._by_score
        passed: list[ByScore] = []
        found = None
        while heap:
            entry = heap[0]
            worker = entry[4]
            if entry[3] != worker.version:
                heappop(heap)
            elif worker.stale or now - worker.last_seen_at_s > self._stale_s:
                self.turned_stale(worker)
                heappop(heap)
            elif idle and worker.held:
                break  # as are all after it
            elif _may_take(worker, record, excluded):
                found = entry
                break
            elif not passed and not self._has_room(record):
                break
            else:
                passed.append(heappop(heap))
        for entry in passed:
            heappush(heap, entry)
        return found

    def _best_of_few(self, record: TaskRecord, excluded: frozenset[str], now: float, *, idle: bool) -> ByScore | None:
        """Return the same by looking at every worker, which costs less than to keep a few in order."""
        best: ByScore | None = None
        for worker in self.workers.values():
            if not worker.ready or (idle and worker.held):
                continue
            if now - worker.last_seen_at_s > self._stale_s:
                self.turned_stale(worker)
                continue
            if not _may_take(worker, record, excluded):
                continue
            entry = (worker.load, worker.slowness, self._rng.random(), worker.version, worker)
            if best is None or entry < best:
                best = entry
        return best

    def _push_changed(self) -> None:
        """Add the true entries of all workers that changed since the last choice."""
        for worker in self.changed.values():
            if worker.ready:
                self._push(worker, self._rng.random())
        self.changed.clear()

    def _push(self, worker: WorkerRecord, tie: float) -> None:
        heappush(self._by_score, (worker.load, worker.slowness, tie, worker.version, worker))
        if worker.spec.kv_bytes:
            heappush(self._by_room, (worker.kv_used_bytes - worker.spec.kv_bytes, worker.version, worker))
        if len(self._by_score) > 2 * len(self.workers) + 16:
            # Mostly false entries by now.
            self._by_score = [entry for entry in self._by_score if entry[3] == entry[4].version]
            heapify(self._by_score)
        if len(self._by_room) > 2 * len(self.workers) + 16:
            self._by_room = [entry for entry in self._by_room if entry[1] == entry[2].version]
            heapify(self._by_room)

    def turned_stale(self, worker: WorkerRecord) -> None:
        """Note that a worker has been silent for too long: its entries are not true any more."""
        worker.stale = True
        self._retract(worker)

    def _retract(self, worker: WorkerRecord) -> None:
        if worker.ready:
            worker.ready = False
            self.ready -= 1

    def _has_room(self, record: TaskRecord) -> bool:
        """Return whether some free worker may have the KV cache for the task."""
        heap = self._by_room
        while heap and heap[0][1] != heap[0][2].version:
            heappop(heap)
        # A pool may hold workers that do not account KV: they have no entry and any task fits.
        return not heap or -heap[0][0] >= record.kv_tokens * self._offers[record.task.model].kv_bytes_per_token


def _may_take(worker: WorkerRecord, record: TaskRecord, excluded: frozenset[str]) -> bool:
    """Return whether a free worker has room for the task and is one for it; a first attempt may go anywhere."""
    if not worker.fits(record):
        return False
    return record.past is None or (worker.spec.id not in excluded and worker.suits(record))
