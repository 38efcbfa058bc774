"""Who is next for a worker with room. Moves nobody; `matching` does what follows from it.

Whose turn it is, model by model:

1. The task that the worker is *kept* for, and nobody else.
2. Once in `aged_every` dispatches of the model: the oldest of those in lower tiers, if it is aged.
3. Tier by tier: those who come back, by arrival, then the tenants by their turns; the first that fits.

Work-conserving: nobody waits beside a worker that may have it. With one exception, without which large
tasks would starve behind small ones, and tasks that must run alone behind everybody: such a task, when
it is its turn and it has waited long enough, has the worker at hand kept for it until what runs there
has made room. That takes as long as those tasks do, and is bounded: one worker at a time for each model
because of size, and never the last because of isolation.
"""

from __future__ import annotations

from enum import Enum, auto

from cluster.scheduler.placement import Placement
from cluster.scheduler.queue import ModelQueue, Queues, TierQueue
from cluster.scheduler.settings import Settings
from cluster.scheduler.state import TaskRecord
from cluster.scheduler.workers import WorkerRecord


class Right(Enum):
    """By what right a task goes before the others of its model."""

    TURN = auto()
    AGED = auto()
    KEPT = auto()
    """A worker was kept for it."""
    ROOM = auto()
    """None of the others could use what is free."""
    KEEP = auto()
    """It does not go yet: it has the worker kept for it."""
    KEEP_FOR_AGE = auto()
    """The same, and when it goes that is the one dispatch in ten."""

    __hash__ = object.__hash__


Found = tuple[TaskRecord, Right]


class Order:
    """Reads the queues."""

    def __init__(self, queues: Queues, placement: Placement, settings: Settings) -> None:
        self._queues = queues
        self._placement = placement
        self._aged_after_s = settings.aged_after_s
        self._others_first = settings.aged_every - 1
        """Dispatches between two that go to aged tasks of lower tiers."""

    def next_for(self, worker: WorkerRecord, now: float) -> Found | None:
        """Return who goes to a worker, over all its models."""
        kept_for = worker.kept_for
        if kept_for is not None:
            return (kept_for, Right.KEPT) if self._placement.can_take(kept_for, worker) else None
        first: Found | None = None
        eldest: Found | None = None
        urgency = (0, 0)
        for model in worker.offers:
            queue = self._queues.get(model)
            if queue is None:
                continue
            found = self._next_of(queue, model, worker, now)
            if found is None:
                continue
            record, right = found
            # Who goes before a higher tier for its age stands in for that tier among models too.
            for_age = right is Right.AGED or right is Right.KEEP_FOR_AGE
            tier = _top(queue) if for_age else int(record.task.tier)
            if first is None or (tier, record.sequence) < urgency:
                first, urgency = found, (tier, record.sequence)
            if eldest is None or record.sequence < eldest[0].sequence:
                eldest = found
        if first is None or eldest is None or first is eldest:
            return first
        # Several models want this worker: one in ten, as among tiers, or one model might starve another.
        if worker.since_aged >= self._others_first and eldest[0].waited_s(now) > self._aged_after_s:
            worker.since_aged = 0
            return eldest
        worker.since_aged += 1
        return first

    def _next_of(self, queue: ModelQueue, model: str, worker: WorkerRecord, now: float) -> Found | None:
        """Return who of a model goes to a worker."""
        # Read once: where tasks are large and tenants many, few heads fit.
        room_tokens = worker.room_tokens(model)
        top = True
        for number, tier in enumerate(queue.tiers):
            if not tier.arrivals and not tier.returned:
                continue
            if top and queue.pace.since_aged >= self._others_first:
                aged = self._aged(queue, number, now)
                if aged is not None:
                    if self._placement.can_take(aged, worker):
                        return aged, Right.AGED
                    if self._may_keep(worker, aged, queue, now):
                        return aged, Right.KEEP_FOR_AGE
            found = self._next_of_tier(tier, queue, worker, room_tokens, now, top=top)
            if found is not None:
                return found
            top = False
        return None

    def _next_of_tier(
        self, tier: TierQueue, queue: ModelQueue, worker: WorkerRecord, room_tokens: int, now: float, *, top: bool
    ) -> Found | None:
        for record in tier.returned:
            if self._placement.can_take(record, worker):
                return record, Right.TURN
            if top and self._may_keep(worker, record, queue, now):
                return record, Right.KEEP
        line = tier.rounds.first()
        if line is None:
            return None
        record = line.head
        if line.need <= room_tokens and worker.suits(record):
            return record, Right.TURN
        if top and self._may_keep(worker, record, queue, now):
            return record, Right.KEEP
        for line in tier.rounds.fitting(room_tokens):
            record = line.head
            if worker.suits(record):
                return record, Right.TURN
        return None

    def _aged(self, queue: ModelQueue, top: int, now: float) -> TaskRecord | None:
        """Return the oldest task of the tiers below the first with any, if it is aged."""
        if queue.pace.promised is not None:
            return None  # this dispatch has been given away already
        quiet_top, quiet_until_s = queue.pace.quiet
        if quiet_top == top and now <= quiet_until_s:
            return None
        oldest: TaskRecord | None = None
        for tier in queue.tiers[top + 1 :]:
            record = tier.oldest
            if record is not None and (oldest is None or record.sequence < oldest.sequence):
                oldest = record
        waited_s = 0.0 if oldest is None else oldest.waited_s(now)
        if waited_s > self._aged_after_s:
            return oldest
        queue.pace.quiet = (top, now + self._aged_after_s - waited_s)
        return None

    def _may_keep(self, worker: WorkerRecord, record: TaskRecord, queue: ModelQueue, now: float) -> bool:
        """Return whether a worker that cannot take a task now may be kept until it can."""
        if record.kept is not None or not self._placement.could_take(record, worker):
            return False
        if self._placement.goes_alone(record):
            return self._placement.leaves_others(record, worker)
        return queue.pace.kept is None and record.waited_s(now) > self._aged_after_s


def _top(queue: ModelQueue) -> int:
    """Return the first tier in which anybody waits."""
    number = 0
    for tier in queue.tiers:
        if tier.arrivals or tier.returned:
            break
        number += 1
    return number
