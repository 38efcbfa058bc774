"""Where a task goes: the least-loaded worker of those that may have it.

Filter: serves the model, not draining, heard from lately, a free slot, room for the task's KV
tokens, and not one on which an earlier attempt of this task ended badly, unless no other could ever
hold it. Pick: the smallest load, which is the larger of the shares of slots and KV in use; ties at
random.

Workers with equal offers form a pool, so that a choice does not look at every worker. A pool keeps
its free workers in two heaps: by load, to choose from, and by free KV, to know at once that a task
fits on none. The heaps are lazy: a change pushes new entries, and the worker's `version` says which
of its entries are true. Full, draining and stale workers have none.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from cluster.domain import ModelOffer
from cluster.scheduler.state import TaskRecord, WorkerRecord

ByLoad = tuple[float, float, int, WorkerRecord]
"""Load, a random tie-break, the worker's version, the worker."""
ByRoom = tuple[int, int, WorkerRecord]
"""Free KV bytes, negative for the largest to come first, the worker's version, the worker."""
NOBODY: frozenset[str] = frozenset()


class Pool:
    """Live workers with equal offers."""

    __slots__ = ("_by_load", "_by_room", "_offers", "workers")

    def __init__(self, offers: tuple[ModelOffer, ...]) -> None:
        self.workers: dict[str, WorkerRecord] = {}
        self._offers = {offer.id: offer for offer in offers}
        self._by_load: list[ByLoad] = []
        self._by_room: list[ByRoom] = []

    def push(self, worker: WorkerRecord, tie: float) -> None:
        """Add the worker's true entries."""
        heappush(self._by_load, (worker.load, tie, worker.version, worker))
        if worker.spec.kv_bytes:
            heappush(self._by_room, (worker.kv_used_bytes - worker.spec.kv_bytes, worker.version, worker))
        if len(self._by_load) > 2 * len(self.workers) + 16:
            # Mostly false entries by now.
            self._by_load = [entry for entry in self._by_load if entry[2] == entry[3].version]
            heapify(self._by_load)
        if len(self._by_room) > 2 * len(self.workers) + 16:
            self._by_room = [entry for entry in self._by_room if entry[1] == entry[2].version]
            heapify(self._by_room)

    def best(self, record: TaskRecord, excluded: frozenset[str], now: float, stale_s: float) -> ByLoad | None:
        """Return the entry of the worker to choose for the task, if any can take it now."""
        heap = self._by_load
        passed: list[ByLoad] = []
        found = None
        while heap:
            entry = heap[0]
            worker = entry[3]
            if entry[2] != worker.version:
                heappop(heap)
            elif now - worker.last_seen_at_s > stale_s:
                worker.stale = True
                heappop(heap)
            elif worker.spec.id not in excluded and worker.fits(record):
                found = entry
                break
            elif not passed and not self._has_room(record):
                break
            else:
                passed.append(heappop(heap))
        for entry in passed:
            heappush(heap, entry)
        return found

    def _has_room(self, record: TaskRecord) -> bool:
        """Return whether some free worker may have the KV cache for the task."""
        heap = self._by_room
        while heap and heap[0][1] != heap[0][2].version:
            heappop(heap)
        # A pool may hold workers that do not account KV: they have no entry and any task fits.
        return not heap or -heap[0][0] >= record.kv_tokens * self._offers[record.task.model].kv_bytes_per_token


class Placement:
    """All live workers, and the choice among them."""

    def __init__(self, rng: random.Random, *, stale_s: float) -> None:
        self.workers: dict[str, WorkerRecord] = {}
        self.absent_since_s: dict[str, float] = {}
        """When the last worker that took tasks of a model left, or began to drain."""
        self._rng = rng
        self._stale_s = stale_s
        self._version = 0
        self._pools: dict[tuple[tuple[ModelOffer, ...], bool], Pool] = {}
        self._by_model: dict[str, list[Pool]] = {}
        self._limits: dict[str, int] = {}
        """The most tokens a task of a model can have, over the workers that take new ones."""

    def add(self, worker: WorkerRecord) -> None:
        """Let a worker take part."""
        self.workers[worker.spec.id] = worker
        pool = self._pools.get(_key(worker))
        if pool is None:
            pool = self._pools[_key(worker)] = Pool(worker.spec.models)
            for model in worker.offers:
                self._by_model.setdefault(model, []).append(pool)
        pool.workers[worker.spec.id] = worker
        worker.pool = pool
        for model in worker.offers:
            self._limits[model] = max(self._limits.get(model, 0), worker.limit_tokens(model))
            self.absent_since_s.pop(model, None)
        self.touch(worker)

    def remove(self, worker: WorkerRecord, now: float) -> None:
        """Forget a worker."""
        del self.workers[worker.spec.id]
        worker.version = -1
        pool = worker.pool
        del pool.workers[worker.spec.id]
        if not pool.workers:
            del self._pools[_key(worker)]
            for model in worker.offers:
                self._by_model[model].remove(pool)
                if not self._by_model[model]:
                    del self._by_model[model]
        self._count_out(worker, now)

    def drain(self, worker: WorkerRecord, now: float) -> None:
        """Give a worker nothing new any more."""
        worker.draining = True
        self.touch(worker)
        self._count_out(worker, now)

    def touch(self, worker: WorkerRecord) -> None:
        """Note that a worker's load or readiness has changed."""
        self._version += 1
        worker.version = self._version
        if worker.has_slot and not worker.draining and not worker.stale:
            worker.pool.push(worker, self._rng.random())

    def is_ready(self, worker: WorkerRecord, now: float) -> bool:
        """Return whether a worker may be given anything now; notes if it has become stale."""
        if now - worker.last_seen_at_s > self._stale_s:
            worker.stale = True
        return worker.has_slot and not worker.draining and not worker.stale

    def serving(self, model: str) -> Iterator[WorkerRecord]:
        """Yield the workers that take new tasks of a model, free or not."""
        for pool in self._by_model.get(model, ()):
            for worker in pool.workers.values():
                if not worker.draining:
                    yield worker

    def is_served(self, model: str) -> bool:
        """Return whether any worker takes new tasks of a model."""
        return model in self._limits

    def is_present(self, model: str) -> bool:
        """Return whether there is any worker with a model, be it draining."""
        return model in self._by_model

    def limit_tokens(self, model: str) -> int:
        """Return the most tokens one task of a model can have on any worker that takes new ones."""
        return self._limits.get(model, 0)

    def choose(self, record: TaskRecord, now: float) -> WorkerRecord | None:
        """Return the worker to take the task now, or None."""
        excluded = self.excluded(record)
        best: ByLoad | None = None
        for pool in self._by_model.get(record.task.model, ()):
            entry = pool.best(record, excluded, now, self._stale_s)
            if entry is not None and (best is None or entry < best):
                best = entry
        return best[3] if best is not None else None

    def excluded(self, record: TaskRecord) -> frozenset[str]:
        """Return the workers that must not have the task: none, if no other could ever hold it."""
        if not record.excluded:
            return NOBODY
        model = record.task.model
        for worker in self.serving(model):
            if worker.spec.id not in record.excluded and record.kv_tokens <= worker.limit_tokens(model):
                return record.excluded
        return NOBODY

    def _count_out(self, worker: WorkerRecord, now: float) -> None:
        """Note that a worker's models can have new tasks on it no more."""
        for model in worker.offers:
            most = worker.limit_tokens(model)
            if self._limits.get(model) == most:
                limit = None
                for other in self.serving(model):
                    limit = max(limit or 0, other.limit_tokens(model))
                    if limit == most:
                        break  # nearly always the first: no need to look at a thousand equals
                if limit is not None:
                    self._limits[model] = limit
                else:
                    del self._limits[model]
                    self.absent_since_s[model] = now


def _key(worker: WorkerRecord) -> tuple[tuple[ModelOffer, ...], bool]:
    return worker.spec.models, bool(worker.spec.kv_bytes)
