"""Watches a scheduler at the moment of each dispatch and complains about one out of order."""

from __future__ import annotations

from collections import defaultdict

from cluster.domain import Tier
from cluster.scheduler.core import Scheduler
from cluster.scheduler.order import Right
from cluster.scheduler.queue import ModelQueue
from cluster.scheduler.state import TaskRecord
from cluster.scheduler.workers import WorkerRecord


class OrderChecker:
    """Stands between a scheduler's matcher and the queues."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.dispatches: dict[str, list[bool]] = defaultdict(list)
        """By model: whether each dispatch was one for age."""
        self.rights: dict[Right, int] = defaultdict(int)
        self._serve = scheduler._matcher._serve
        self._count = scheduler._matcher._count
        scheduler._matcher._serve = self.serve  # type: ignore[method-assign]
        scheduler._matcher._count = self.count  # type: ignore[method-assign]

    def serve(self, record: TaskRecord, worker: WorkerRecord, now: float, right: Right) -> None:
        """Check what is about to happen, then let it."""
        queue = self.scheduler.queues[record.task.model]
        settings = self.scheduler.settings
        top = next(tier for tier in Tier if queue.tiers[tier].depth)
        self.rights[right] += 1
        assert right not in (Right.KEEP, Right.KEEP_FOR_AGE)
        assert worker.kept_for in (None, record), f"{worker.spec.id} is kept for another task"
        if right is Right.AGED:
            assert record.waited_s(now) > settings.aged_after_s, f"{record.task.id} is not aged"
            lower = [other for tier in Tier if tier > top for other in _everyone(queue, tier)]
            assert record is min(lower, key=lambda other: other.sequence), f"{record.task.id} is not the oldest"
        elif right is not Right.KEPT:
            self._check_turn(queue, record, worker)
        self._serve(record, worker, now, right)

    def count(self, queue: ModelQueue, record: TaskRecord, right: Right) -> None:
        """Check that dispatches for age are few enough."""
        dispatches = self.dispatches[record.task.model]
        dispatches.append(right is Right.AGED or queue.pace.promised is record)
        assert sum(dispatches[-self.scheduler.settings.aged_every :]) <= 1, "too many dispatches for age"
        self._count(queue, record, right)

    def _check_turn(self, queue: ModelQueue, record: TaskRecord, worker: WorkerRecord) -> None:
        """Nobody who is before the task in order could have this worker."""
        name, can_take = record.task.id, self.scheduler.placement.can_take
        for tier in Tier:
            for head in queue.tiers[tier].heads():
                if head is record:
                    return
                assert head.kept is not None or not can_take(head, worker), f"{name} goes before {head.task.id}"
        raise AssertionError(f"{name} goes, and is no head")


def _everyone(queue: ModelQueue, tier: Tier) -> list[TaskRecord]:
    queued = queue.tiers[tier]
    return [*queued.returned, *queued.arrivals.values()]
