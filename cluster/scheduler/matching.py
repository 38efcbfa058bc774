"""Who takes what: brings the heads of the queues and the workers with room together.

Work-conserving: no head waits beside a worker that may have it. Four things can bring such a pair
about, and each has its method: a task comes (`place`), a worker has room (`fill`), a line moves up
(`follow`), a worker has left that others were preferred to (`rematch`). They return the tasks that
now have a worker, in order; to whom that must be told is not known here.
"""

from __future__ import annotations

from cluster.scheduler.placement import Placement
from cluster.scheduler.queue import Queues
from cluster.scheduler.state import TaskRecord, Trigger, WorkerRecord


class Matcher:
    """Moves tasks from queues to workers."""

    def __init__(self, queues: Queues, placement: Placement) -> None:
        self._queues = queues
        self._placement = placement

    def place(self, record: TaskRecord, now: float) -> bool:
        """Give a task to a worker, if it is its turn and one can take it, or else put it in line."""
        head = self._queues.head_of(record.task)
        if head is None or record.sequence < head.sequence:
            worker = self._placement.choose(record, now)
            if worker is not None:
                self._assign(record, worker, now)
                return True
        self._queues.push(record)
        return False

    def fill(self, worker: WorkerRecord, now: float) -> list[TaskRecord]:
        """Give a worker what waits for it, by tier, then by arrival."""
        served: list[TaskRecord] = []
        if not self._queues:
            return served
        while self._placement.is_ready(worker, now) and (record := self._most_urgent_for(worker)):
            self._queues.serve(record)
            self._assign(record, worker, now)
            served.append(record)
        for record in served.copy():
            served += self.follow(record, now)
        return served

    def follow(self, record: TaskRecord, now: float) -> list[TaskRecord]:
        """Let those behind a task that has left its line go too, where they fit and it did not."""
        served: list[TaskRecord] = []
        while (head := self._queues.head_of(record.task)) and (worker := self._placement.choose(head, now)):
            self._queues.serve(head)
            self._assign(head, worker, now)
            served.append(head)
        return served

    def rematch(self, model: str, now: float) -> list[TaskRecord]:
        """Look at all heads of a model again: what they were kept off may be all that is left."""
        queue = self._queues.get(model)
        heads = list(queue.heads()) if queue else ()
        return [record for head in heads for record in self.follow(head, now)]

    def _most_urgent_for(self, worker: WorkerRecord) -> TaskRecord | None:
        """Return the first head that fits of each of the worker's models, and of these the first."""
        most_urgent = None
        for model in worker.offers:
            queue = self._queues.get(model)
            if queue is None:
                continue
            # Read once: where tasks are large and tenants many, few heads fit and all are looked at.
            room_tokens = worker.room_tokens(model)
            for head in queue.heads():
                if head.kv_tokens <= room_tokens and worker.spec.id not in self._placement.excluded(head):
                    if most_urgent is None or _urgency(head) < _urgency(most_urgent):
                        most_urgent = head
                    break
        return most_urgent

    def _assign(self, record: TaskRecord, worker: WorkerRecord, now: float) -> None:
        record.queued_s = record.waited_s(now)
        record.move(Trigger.ASSIGN)
        record.attempt += 1
        worker.take(record)
        self._placement.touch(worker)


def _urgency(record: TaskRecord) -> tuple[int, int]:
    return record.task.tier, record.sequence
