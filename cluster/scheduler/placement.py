"""Where a task goes: the least-loaded worker of those that may have it.

Filter: serves the model, not draining, heard from lately, a free slot, room for the task's KV
tokens, and not one on which an earlier attempt of this task ended badly, unless there is no other.
Pick: the smallest load, which is the larger of the shares of slots and KV in use; ties at random.

Workers with the same set of models form a pool with one heap by load, so that a choice does not
look at every worker. Heaps are lazy: a change of load pushes a new entry and the worker's
`version` says which of its entries is true. Full, draining and stale workers have none.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator

from cluster.scheduler.state import TaskRecord, WorkerRecord

Entry = tuple[float, float, int, WorkerRecord]
"""Load, a random tie-break, the worker's version, the worker."""


class Pool:
    """Workers that serve the same models."""

    __slots__ = ("heap", "workers")

    def __init__(self) -> None:
        self.workers: dict[str, WorkerRecord] = {}
        self.heap: list[Entry] = []

    def prune(self) -> None:
        """Drop false entries once they are the majority."""
        if len(self.heap) > 2 * len(self.workers) + 16:
            self.heap = [entry for entry in self.heap if entry[2] == entry[3].version]
            heapq.heapify(self.heap)


class Placement:
    """All live workers, and the choice among them."""

    def __init__(self, rng: random.Random, *, stale_s: float) -> None:
        self.workers: dict[str, WorkerRecord] = {}
        self._rng = rng
        self._stale_s = stale_s
        self._version = 0
        self._pools: dict[frozenset[str], Pool] = {}
        self._by_model: dict[str, list[Pool]] = {}
        self._limits: dict[str, int] = {}

    def add(self, worker: WorkerRecord) -> None:
        """Let a worker take part."""
        self.workers[worker.spec.id] = worker
        pool = self._pools.get(worker.pool)
        if pool is None:
            pool = self._pools[worker.pool] = Pool()
            for model in worker.pool:
                self._by_model.setdefault(model, []).append(pool)
        pool.workers[worker.spec.id] = worker
        for model in worker.pool:
            self._limits[model] = max(self._limits.get(model, 0), worker.limit_tokens(model))
        self.touch(worker)

    def remove(self, worker: WorkerRecord) -> None:
        """Forget a worker."""
        del self.workers[worker.spec.id]
        worker.version = -1
        pool = self._pools[worker.pool]
        del pool.workers[worker.spec.id]
        if not pool.workers:
            del self._pools[worker.pool]
            for model in worker.pool:
                self._by_model[model].remove(pool)
                if not self._by_model[model]:
                    del self._by_model[model]
        self._update_limits(worker)

    def drain(self, worker: WorkerRecord) -> None:
        """Give a worker nothing new any more."""
        worker.draining = True
        self.touch(worker)
        self._update_limits(worker)

    def touch(self, worker: WorkerRecord) -> None:
        """Note that a worker's load or readiness has changed."""
        self._version += 1
        worker.version = self._version
        if worker.draining or worker.stale or worker.held >= worker.spec.capacity:
            return
        pool = self._pools[worker.pool]
        heapq.heappush(pool.heap, (worker.load, self._rng.random(), worker.version, worker))
        pool.prune()

    def serving(self, model: str) -> Iterator[WorkerRecord]:
        """Yield the workers that take new tasks of a model, free or not."""
        for pool in self._by_model.get(model, ()):
            for worker in pool.workers.values():
                if not worker.draining:
                    yield worker

    def is_served(self, model: str) -> bool:
        """Return whether any worker takes new tasks of a model."""
        return next(self.serving(model), None) is not None

    def is_present(self, model: str) -> bool:
        """Return whether there is any worker with a model, be it draining."""
        return model in self._by_model

    def limit_tokens(self, model: str) -> int:
        """Return the most tokens one task of a model can have on any worker that serves it."""
        return self._limits.get(model, 0)

    def choose(self, record: TaskRecord, now: float) -> WorkerRecord | None:
        """Return the worker to take the task now, or None."""
        excluded = self.excluded(record)
        best: Entry | None = None
        for pool in self._by_model.get(record.task.model, ()):
            entry = self._best(pool, record, excluded, now)
            if entry is not None and (best is None or entry < best):
                best = entry
        return best[3] if best is not None else None

    def excluded(self, record: TaskRecord) -> set[str]:
        """Return the workers that must not have the task: none, if there would be no other."""
        if not record.excluded:
            return record.excluded
        others = any(worker.spec.id not in record.excluded for worker in self.serving(record.task.model))
        return record.excluded if others else set()

    def _best(self, pool: Pool, record: TaskRecord, excluded: set[str], now: float) -> Entry | None:
        heap = pool.heap
        passed: list[Entry] = []
        found = None
        while heap:
            entry = heap[0]
            worker = entry[3]
            if entry[2] != worker.version:
                heapq.heappop(heap)
            elif now - worker.last_seen_at_s > self._stale_s:
                worker.stale = True
                heapq.heappop(heap)
            elif worker.spec.id in excluded or not worker.fits(record):
                passed.append(heapq.heappop(heap))
            else:
                found = entry
                break
        for entry in passed:
            heapq.heappush(heap, entry)
        return found

    def _update_limits(self, worker: WorkerRecord) -> None:
        """Note that a worker no longer counts. Stops at the first that offers as much as it did."""
        for model in worker.pool:
            limit = worker.limit_tokens(model)
            best = 0
            for other in self.serving(model):
                best = max(best, other.limit_tokens(model))
                if best >= limit:
                    break
            if limit >= self._limits.get(model, 0):
                self._limits[model] = best
