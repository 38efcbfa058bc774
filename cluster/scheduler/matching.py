"""Who takes what: brings those who wait and the workers with room together.

Four things can bring a pair about, and each has its method: a task comes (`place`), a worker has room
(`fill`), a line moves up or a worker is let go (`follow`), a worker has left that others were
preferred to (`rematch`). They return the tasks that now have a worker, in order; to whom that must be
told is not known here.

Whose turn it is for a worker with room, model by model:

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

from collections.abc import Iterable
from enum import Enum, auto

from cluster.scheduler.placement import Placement
from cluster.scheduler.queue import ModelQueue, Queues, TierQueue
from cluster.scheduler.settings import Settings
from cluster.scheduler.state import State, TaskRecord, Trigger
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


class Matcher:
    """Moves tasks from queues to workers."""

    def __init__(self, queues: Queues, placement: Placement, settings: Settings) -> None:
        self._queues = queues
        self._placement = placement
        self._aged_after_s = settings.aged_after_s
        self._others_first = settings.aged_every - 1
        """Dispatches between two that go to aged tasks of lower tiers."""
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
            found = self._next_for(worker, now)
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

    def _next_for(self, worker: WorkerRecord, now: float) -> Found | None:
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


def _top(queue: ModelQueue) -> int:
    """Return the first tier in which anybody waits."""
    number = 0
    for tier in queue.tiers:
        if tier.arrivals or tier.returned:
            break
        number += 1
    return number
