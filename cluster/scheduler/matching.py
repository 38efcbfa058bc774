"""Who takes what: brings those who wait and the workers with room together.

Four things can bring a pair about, and each has its method: a task comes (`place`), a worker has room
(`fill`), a line moves up or a worker is let go (`follow`), a worker has left that others were
preferred to (`rematch`). They return the tasks that now have a worker, in order; to whom that must be
told is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.scheduler.order import Order, Right
from cluster.scheduler.placement import Placement
from cluster.scheduler.queue import ModelQueue, Queues
from cluster.scheduler.settings import Settings
from cluster.scheduler.state import State, TaskRecord, Trigger
from cluster.scheduler.workers import WorkerRecord


class Matcher:
    """Moves tasks from queues to workers."""

    def __init__(self, queues: Queues, placement: Placement, settings: Settings) -> None:
        self._queues = queues
        self._placement = placement
        self._order = Order(queues, placement, settings)
        self._let_go: list[WorkerRecord] = []
        """Workers that were kept for a task and may have something else now."""

    def place(self, record: TaskRecord, now: float) -> bool:
        """Give a task that is not in line to a worker, if it need not wait behind its own tenant's."""
        task = record.task
        if record.past is None and self._queues and self._queues.head_of(task) is not None:
            return False
        worker = self._placement.choose(record, now)
        if worker is None:
            return False
        if queue := self._queues.get(task.model):
            # Those who wait have no use for this worker, or it would be theirs. But it counts.
            tier = queue.tiers[task.tier]
            if record.line is None and tier.arrivals:
                tier.charge(record)
            self._count(queue, record, Right.ROOM)
        self._assign(record, worker, now, Right.ROOM)
        return True

    def fill(self, worker: WorkerRecord, now: float) -> list[TaskRecord]:
        """Give a worker what waits for it, in order."""
        served: list[TaskRecord] = []
        if self._queues:
            self._fill(worker, now, served)
            self._fill_let_go(now, served)
        return served

    def follow(self, record: TaskRecord, now: float) -> list[TaskRecord]:
        """Let those go that a task which has left the queue was in the way of."""
        served: list[TaskRecord] = []
        if record.kept is not None:
            self._let_go_of(record)
        self._follow((record,), now, served)
        self._fill_let_go(now, served)
        return served

    def rematch(self, model: str, now: float) -> list[TaskRecord]:
        """Look at those of a model again who come back: what they were kept off may be all that is left."""
        served: list[TaskRecord] = []
        queue = self._queues.get(model)
        for record in queue.returned() if queue else ():
            self._retry(record, now, served)
        self._fill_let_go(now, served)
        return served

    def retry(self, record: TaskRecord, now: float) -> list[TaskRecord]:
        """Look at one task in line again, which asks for less than it did."""
        served: list[TaskRecord] = []
        self._retry(record, now, served)
        self._fill_let_go(now, served)
        return served

    def abandon(self, worker: WorkerRecord) -> None:
        """Keep a worker for nobody, because it may not be given work any more."""
        record = worker.kept_for
        if record is not None:
            self._unbind(record, worker)

    def _fill(self, worker: WorkerRecord, now: float, served: list[TaskRecord]) -> None:
        fresh = len(served)
        while self._placement.is_ready(worker, now):
            found = self._order.next_for(worker, now)
            if found is None:
                break
            record, right = found
            if right is Right.KEEP or right is Right.KEEP_FOR_AGE:
                self._keep(worker, record, for_age=right is Right.KEEP_FOR_AGE)
                break
            self._serve(record, worker, now, right)
            served.append(record)
        self._follow(served[fresh:], now, served)

    def _follow(self, left: Iterable[TaskRecord], now: float, served: list[TaskRecord]) -> None:
        """Let those behind tasks that have left their lines go too, where they fit and these did not."""
        behind = [record.task for record in left if record.past is None]
        while behind:
            heads = [head for task in behind if (head := self._queues.head_of(task)) is not None]
            if len(heads) > 1:
                heads.sort(key=self._queues.rank)
            for head in heads:
                if self._give_any(head, now, served):
                    break
            else:
                return

    def _retry(self, record: TaskRecord, now: float, served: list[TaskRecord]) -> None:
        if record.kept is not None:
            self._fill(record.kept, now, served)
        if record.state is State.QUEUED:
            self._give_any(record, now, served)

    def _fill_let_go(self, now: float, served: list[TaskRecord]) -> None:
        while self._let_go:
            worker = self._let_go.pop()
            if self._placement.workers.get(worker.spec.id) is worker:
                # Not before: nobody may be given it out of turn while it waits for this.
                self._placement.touch(worker)
                self._fill(worker, now, served)

    def _give_any(self, record: TaskRecord, now: float, served: list[TaskRecord]) -> bool:
        """Give a task in line to any worker that can have it."""
        worker = self._placement.choose(record, now)
        if worker is None:
            return False
        self._serve(record, worker, now, Right.ROOM)
        served.append(record)
        return True

    def _keep(self, worker: WorkerRecord, record: TaskRecord, *, for_age: bool) -> None:
        worker.kept_for, record.kept = record, worker
        pace = self._queues.pace(record.task.model)
        if for_age:
            pace.promised = record
        if not self._placement.goes_alone(record):
            pace.kept = record
        self._placement.touch(worker)

    def _let_go_of(self, record: TaskRecord) -> None:
        """Let the worker that was kept for a task have something else."""
        worker = record.kept
        assert worker is not None
        self._unbind(record, worker)
        self._let_go.append(worker)

    def _unbind(self, record: TaskRecord, worker: WorkerRecord) -> None:
        worker.kept_for, record.kept = None, None
        pace = self._queues.pace(record.task.model)
        if pace.kept is record:
            pace.kept = None
        if pace.promised is record:
            pace.promised = None

    def _serve(self, record: TaskRecord, worker: WorkerRecord, now: float, right: Right) -> None:
        """Give a task in line to a worker."""
        self._count(self._queues[record.task.model], record, right)
        self._queues.serve(record, now)
        self._assign(record, worker, now, right)

    def _count(self, queue: ModelQueue, record: TaskRecord, right: Right) -> None:
        """Note a dispatch of a model, and whether it was one for age."""
        pace = queue.pace
        if right is Right.AGED or pace.promised is record:
            pace.since_aged = 0
        else:
            pace.since_aged += 1

    def _assign(self, record: TaskRecord, worker: WorkerRecord, now: float, right: Right) -> None:
        if record.kept is worker:
            self._unbind(record, worker)
        elif record.kept is not None:
            self._let_go_of(record)
        record.queued_s = record.waited_s(now)
        record.move(Trigger.ASSIGN)
        record.attempt += 1
        record.choice = self._placement.explain(record, worker)
        if record.past is not None:
            worker.alone = self._placement.goes_alone(record)
        worker.take(record)
        self._placement.touch(worker)
