"""Where a task goes: the least-loaded worker of those that may have it.

Filter: serves the model, takes new tasks (is not draining, cordoned, suspect or quarantined), heard
from lately, not kept for another task, a free slot, room for the task's KV tokens, allowed for this
task, able to go on where its answer stopped, and not one on which an earlier attempt of it ended
badly, unless no other could ever hold it.
Score: load, the larger of the shares of slots and KV in use; then how soon it gives a first token, by
the speed its heartbeats report. Pick: the smallest load, of equals the fastest, ties at random.

Workers with equal offers form a pool (`pools`), so that a choice does not look at every worker.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from cluster.domain import Choice, ModelOffer
from cluster.scheduler.pools import ByScore, Pool
from cluster.scheduler.state import Demand, TaskRecord
from cluster.scheduler.workers import WorkerRecord

NOBODY: frozenset[str] = frozenset()


class Placement:
    """All live workers, and the choice among them."""

    def __init__(self, rng: random.Random, *, stale_s: float) -> None:
        self.workers: dict[str, WorkerRecord] = {}
        self.absent_since_s: dict[Demand, float] = {}
        """When the last worker left, or was closed to new tasks, that took those of a model."""
        self._rng = rng
        self._stale_s = stale_s
        self._version = 0
        self._fastest = 0.0
        self._pools: dict[tuple[tuple[ModelOffer, ...], bool, bool], Pool] = {}
        self._by_model: dict[str, list[Pool]] = {}
        self._limits: dict[Demand, int] = {}
        """The most tokens a task can have, over the workers that take new ones."""

    def add(self, worker: WorkerRecord) -> None:
        """Let a worker take part."""
        self.workers[worker.spec.id] = worker
        pool = self._pools.get(_key(worker))
        if pool is None:
            pool = self._pools[_key(worker)] = Pool(
                worker.spec.models, self._rng, simulated=worker.spec.simulated, stale_s=self._stale_s
            )
            for model in worker.offers:
                self._by_model.setdefault(model, []).append(pool)
        pool.workers[worker.spec.id] = worker
        worker.pool = pool
        worker.judge()
        if worker.open:
            self._count_in(worker)
        self.touch(worker)

    def remove(self, worker: WorkerRecord, now: float) -> None:
        """Forget a worker."""
        del self.workers[worker.spec.id]
        worker.version = -1
        pool = worker.pool
        pool.forget(worker)
        if not pool.workers:
            del self._pools[_key(worker)]
            for model in worker.offers:
                self._by_model[model].remove(pool)
                if not self._by_model[model]:
                    del self._by_model[model]
        if worker.speed == self._fastest:
            self._fastest = max((other.speed for other in self.workers.values()), default=0.0)
        if worker.open:
            self._count_out(worker, now)

    def judge(self, worker: WorkerRecord, now: float) -> bool:
        """Open or close a worker to new tasks, as its state now says; return whether that changed."""
        if not worker.judge():
            return False
        if worker.open:
            self._count_in(worker)
        else:
            self._count_out(worker, now)
        self.touch(worker)
        return True

    def touch(self, worker: WorkerRecord) -> None:
        """Note that a worker's load, speed or readiness has changed."""
        self._version += 1
        worker.version = self._version
        ready = worker.open and not worker.stale and worker.kept_for is None and worker.has_slot
        pool = worker.pool
        if ready is not worker.ready:
            worker.ready = ready
            pool.ready += 1 if ready else -1
        if ready:
            pool.changed[worker.spec.id] = worker

    def is_ready(self, worker: WorkerRecord, now: float) -> bool:
        """Return whether a worker may be given something now; notes if it has become stale."""
        if now - worker.last_seen_at_s > self._stale_s:
            worker.pool.turned_stale(worker)
        return worker.open and not worker.stale and worker.has_slot

    def measure(self, worker: WorkerRecord, tokens_per_s: float) -> None:
        """Note the speed that a worker reports."""
        slowness = worker.slowness
        worker.measure(tokens_per_s)
        self._fastest = max(self._fastest, worker.speed)
        if worker.slowness != slowness:
            self.touch(worker)

    def explain(self, record: TaskRecord, worker: WorkerRecord) -> Choice:
        """Return why a task that is about to be given to a worker goes there."""
        ready = 0
        for pool in self._by_model[record.task.model]:
            ready += pool.ready
        wait = min(1.0, worker.speed / self._fastest) if worker.speed else 1.0
        return Choice(ready or 1, 1.0 - worker.load, wait)

    def serving(self, demand: Demand) -> Iterator[WorkerRecord]:
        """Yield the workers that take new tasks of a kind, free or not."""
        model, simulated_only = demand
        for pool in self._by_model.get(model, ()):
            if pool.simulated or not simulated_only:
                for worker in pool.workers.values():
                    if worker.open:
                        yield worker

    def equals(self, record: TaskRecord) -> Iterator[WorkerRecord]:
        """Yield the workers that could hold the task if nothing else ran, be it where it failed."""
        model = record.task.model
        for worker in self.serving(record.demand):
            if record.kv_tokens <= worker.limit_tokens(model) and worker.suits(record):
                yield worker

    def has_equal(self, record: TaskRecord) -> bool:
        """Return whether there is any such worker."""
        return any(True for _ in self.equals(record))

    def is_served(self, demand: Demand) -> bool:
        """Return whether any worker takes new tasks of a kind."""
        return demand in self._limits

    def is_present(self, model: str) -> bool:
        """Return whether there is any worker with a model, be it closed to new tasks."""
        return model in self._by_model

    def all_draining(self, model: str) -> bool:
        """Return whether there are workers with a model, and all of them are on their way out."""
        pools = self._by_model.get(model, ())
        return bool(pools) and all(worker.draining for pool in pools for worker in pool.workers.values())

    def has_ready(self, demand: Demand) -> bool:
        """Return whether some worker that takes tasks of a kind has a free slot to give."""
        model, simulated_only = demand
        pools = self._by_model.get(model, ())
        return sum([pool.ready for pool in pools if pool.simulated or not simulated_only]) > 0

    def limit_tokens(self, demand: Demand) -> int:
        """Return the most tokens one task of a kind can have on any worker that takes new ones."""
        return self._limits.get(demand, 0)

    def choose(self, record: TaskRecord, now: float) -> WorkerRecord | None:
        """Return the worker to take the task now, or None."""
        task = record.task
        excluded, idle = NOBODY, False
        if record.past is not None:
            excluded, idle = self.excluded(record), self.goes_alone(record)
        best: ByScore | None = None
        for pool in self._by_model.get(task.model, ()):
            if pool.simulated or not task.simulated_only:
                entry = pool.best(record, excluded, now, idle=idle)
                if entry is not None and (best is None or entry < best):
                    best = entry
        return best[4] if best is not None else None

    def could_take(self, record: TaskRecord, worker: WorkerRecord) -> bool:
        """Return whether a worker is one for this task, leaving aside what it has room for now."""
        return (
            worker.suits(record)
            and record.kv_tokens <= worker.limit_tokens(record.task.model)
            and worker.spec.id not in self.excluded(record)
        )

    def can_take(self, record: TaskRecord, worker: WorkerRecord) -> bool:
        """Return whether a worker that is ready is one for this task and has room for it now."""
        if not worker.fits(record) or not worker.suits(record):
            return False
        if record.past is None:
            return True
        return worker.spec.id not in self.excluded(record) and not (worker.held and self.goes_alone(record))

    def excluded(self, record: TaskRecord) -> frozenset[str]:
        """Return the workers that must not have the task: none, if no other could ever hold it."""
        if record.past is None or not record.past.excluded:
            return NOBODY
        for worker in self.equals(record):
            if worker.spec.id not in record.past.excluded:
                return record.past.excluded
        return NOBODY

    def goes_alone(self, record: TaskRecord) -> bool:
        """Return whether a task must have its worker to itself.

        A worker has died with it, and nothing of it has been seen: it may be what killed the worker.
        Where only one other is left it cannot be kept apart without stopping everybody else.
        """
        past = record.past
        if past is None or not past.losses or not past.patient or past.resume_from or not past.deaths:
            return False
        excluded = self.excluded(record)
        others = (1 for worker in self.equals(record) if worker.spec.id not in excluded)
        return sum(islice(others, 2)) == 2

    def leaves_others(self, record: TaskRecord, worker: WorkerRecord) -> bool:
        """Return whether a worker can be kept for the task and another is still there for everybody."""
        return any(
            other is not worker and other.kept_for is None and not other.alone and not other.stale
            for other in self.equals(record)
        )

    def _count_in(self, worker: WorkerRecord) -> None:
        """Note that tasks can have a worker."""
        for demand in worker.demands:
            self._limits[demand] = max(self._limits.get(demand, 0), worker.limit_tokens(demand[0]))
            self.absent_since_s.pop(demand, None)

    def _count_out(self, worker: WorkerRecord, now: float) -> None:
        """Note that tasks can have a worker no more."""
        for demand in worker.demands:
            most = worker.limit_tokens(demand[0])
            if self._limits.get(demand) == most:
                limit = None
                for other in self.serving(demand):
                    limit = max(limit or 0, other.limit_tokens(demand[0]))
                    if limit == most:
                        break  # nearly always the first: no need to look at a thousand equals
                if limit is not None:
                    self._limits[demand] = limit
                else:
                    del self._limits[demand]
                    self.absent_since_s[demand] = now


def _key(worker: WorkerRecord) -> tuple[tuple[ModelOffer, ...], bool, bool]:
    return worker.spec.models, bool(worker.spec.kv_bytes), worker.spec.simulated
