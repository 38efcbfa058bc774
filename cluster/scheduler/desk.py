"""What the Scheduler is made of, and the verbs that its events share.

admit, offer, announce, free, fence, stop, fail, end: whatever an event means, it is said with these.
What the events mean is in `attempts`, `health` and `roster`; `core` puts the three together.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from cluster.domain import Outcome, WaitReason
from cluster.scheduler import admission, failures, waiting
from cluster.scheduler.commands import (
    AnnounceAttempt,
    AnnounceWait,
    AssignTask,
    CancelAttempt,
    Command,
    FailTask,
    FenceAttempt,
)
from cluster.scheduler.lineages import Lineage
from cluster.scheduler.matching import Matcher
from cluster.scheduler.placement import Placement
from cluster.scheduler.queue import Queues
from cluster.scheduler.settings import Settings
from cluster.scheduler.state import Demand, Past, State, TaskRecord, Trigger
from cluster.scheduler.timers import Timers
from cluster.scheduler.workers import Release, WorkerRecord


class Outgrown:
    """A kind of task of which some in line have become too large for all workers that are left."""

    __slots__ = ("demand",)

    def __init__(self, demand: Demand) -> None:
        self.demand = demand


Timed = TaskRecord | WorkerRecord | Release | Lineage | Outgrown | Demand
"""What has a deadline; a demand has one while no worker can satisfy it."""


class Desk:
    """The Scheduler's state and its verbs."""

    def __init__(self, settings: Settings, rng: random.Random, *, now: float) -> None:
        self.settings = settings
        self.tasks: dict[str, TaskRecord] = {}
        self.queues = Queues(
            quantum_tokens=settings.quantum_tokens,
            estimated_tokens=settings.estimated_tokens,
            aged_every=settings.aged_every,
        )
        self.placement = Placement(rng, stale_s=settings.worker_stale_s)
        self.timers: Timers[Timed] = Timers()
        self.dropped: Counter[str] = Counter()
        """Late and stray events by kind, and cancels that no worker answered."""
        self.retrying = 0
        """Live tasks that are tried again because a worker reported a failure."""
        self.outgrown: dict[Demand, Outgrown] = {}
        self._matcher = Matcher(self.queues, self.placement, settings)
        self._started_at_s = now
        self._arrivals = 0
        self._out: list[Command] = []

    def _admit(self, record: TaskRecord, now: float) -> None:
        """Give a task to a worker, or let it wait at its rank, or say why neither makes sense."""
        # Most tasks find a worker at once: why they could not have been served is nobody's question.
        if self._matcher.place(record, now):
            self._announce((record,))
            self.timers.arm(record, self._due_at_s(record))
            return
        if refusal := self._refusal(record, now):
            self._fail(record, Trigger.REFUSE, refusal)
            return
        if record.past is None and (refusal := admission.turn_away(record, self.queues, self.settings, now)):
            self._fail(record, Trigger.REFUSE, refusal)
            return
        self._put_in_line(record, now)
        self.timers.arm(record, self._due_at_s(record))

    def _put_in_line(self, record: TaskRecord, now: float) -> None:
        self.queues.push(record, now)
        task = record.task
        why, position = waiting.reason(record, self.placement, self.queues), waiting.position(record, self.queues)
        if why is WaitReason.NO_WORKER:
            demand = record.demand
            self.placement.absent_since_s.setdefault(demand, self._started_at_s)
            self.timers.arm(demand, self._patient_until_s(demand))
        self._out.append(AnnounceWait(task.node, task.id, why, position))

    def _refusal(self, record: TaskRecord, now: float) -> FailTask | None:
        """Return why a task cannot be served at all, or None if it can, or may be soon."""
        demand, past = record.demand, record.past
        if past is not None and past.resume_from and not self.placement.has_equal(record):
            return failures.broken_off(record, past)
        limit_tokens = self.placement.limit_tokens(demand)
        if record.kv_tokens <= limit_tokens:
            return None
        if self.placement.is_served(demand):
            return failures.too_large(record, limit_tokens)
        if now < self._patient_until_s(demand):
            return None
        return self._no_worker(record, Outcome.FAILED)

    def _no_worker(self, record: TaskRecord, outcome: Outcome) -> FailTask:
        model = record.task.model
        present = self.placement.is_present(model)
        return failures.no_worker(record, outcome, present=present, all_draining=self.placement.all_draining(model))

    def _offer(self, worker: WorkerRecord, now: float) -> None:
        """Give a worker with room what waits for it."""
        if self.queues:
            self._announce(self._matcher.fill(worker, now))

    def _announce(self, records: Iterable[TaskRecord]) -> None:
        """Tell streams and workers about attempts that have just been given a slot."""
        for record in records:
            worker, task, attempt, past = record.worker, record.task, record.attempt, record.past
            assert worker is not None
            spec = worker.spec
            self._out.append(
                AnnounceAttempt(
                    task.node,
                    task.id,
                    attempt,
                    spec.id,
                    spec.name,
                    record.queued_s,
                    record.choice,
                    worker.gpu_word,
                )
            )
            resume_from = past.resume_from if past is not None else 0
            self._out.append(AssignTask(worker.node, spec.id, worker.link, task, attempt, resume_from))

    def _free(self, record: TaskRecord, now: float) -> None:
        """Give back what an attempt held on a worker that lives, and use it."""
        worker = record.worker
        assert worker is not None
        worker.give_back(record)
        self.placement.touch(worker)
        self._offer(worker, now)

    def _release(
        self, worker_id: str, task_id: str, attempt: int, now: float, generated_tokens: int | None = None
    ) -> bool:
        """Free what a cancelled attempt held and use it; return whether there was one."""
        worker = self.placement.workers.get(worker_id)
        release = worker.end_release(task_id, attempt) if worker else None
        if worker is None or release is None:
            return False
        self.timers.drop(release)
        self._settle_release(release, generated_tokens)
        self.placement.touch(worker)
        self._offer(worker, now)
        return True

    def _settle(self, record: TaskRecord, generated_tokens: int) -> None:
        """Let a tenant's share pay for what was generated, and no longer for what was expected."""
        if record.line is not None:
            # No more than was asked for: a worker's word must not cost a tenant its turns for hours.
            generated_tokens = min(generated_tokens, record.task.generation.max_tokens)
            self.queues.settle(record, record.task.prompt_tokens + generated_tokens)

    def _settle_seen(self, record: TaskRecord) -> None:
        """Let a tenant's share pay for what its client has seen of an answer that ends between attempts."""
        if record.line is not None:
            seen_tokens = record.past.resume_from if record.past is not None else 0
            self.queues.settle(record, record.task.prompt_tokens + seen_tokens if seen_tokens else 0)

    def _settle_release(self, release: Release, generated_tokens: int | None = None) -> None:
        """Settle a task that was cancelled while it ran; what nobody has counted stays as it was expected."""
        record = release.record
        if record.line is not None and record.state is State.ENDED:
            if generated_tokens is None:
                self.queues.settle(record, record.charged_tokens)
            else:
                self._settle(record, generated_tokens)

    def _stop(self, record: TaskRecord, trigger: Trigger, now: float) -> None:
        """End a task before its time; a worker that runs it is told, and keeps its slot till it answers."""
        worker, waits = record.worker, record.state is State.QUEUED
        self._end(record, trigger)
        if worker is None:
            self._settle_seen(record)
        if waits:
            self.queues.remove(record)
            self._announce(self._matcher.follow(record, now))
        elif worker is not None:
            self._cancel_attempt(record, worker, now)

    def _cancel_attempt(self, record: TaskRecord, worker: WorkerRecord, now: float) -> None:
        """Tell a worker to stop; it keeps the slot until it answers."""
        release = worker.start_release(record, now + self.settings.cancel_ack_s)
        self.timers.arm(release, release.due_at_s)
        self._out.append(CancelAttempt(worker.node, worker.spec.id, worker.link, record.task.id, record.attempt))

    def _fence(self, record: TaskRecord, trigger: Trigger, failure: str) -> Past:
        """Ask the stream how far the attempt came; the task waits for the answer."""
        worker = record.worker
        assert worker is not None
        record.move(trigger)
        past = record.past
        if past is None:
            past = record.past = Past()
        past.excluded |= {worker.spec.id}
        past.resumes = worker.spec.resumes
        past.failure = failure
        self._out.append(FenceAttempt(record.task.node, record.task.id, record.attempt, failure))
        return past

    def _fail(self, record: TaskRecord, trigger: Trigger, failure: FailTask) -> None:
        """End a task with an error."""
        self._out.append(failure)
        self._end(record, trigger)
        self._settle_seen(record)

    def _end(self, record: TaskRecord, trigger: Trigger) -> None:
        moved = record.move(trigger)
        assert moved, f"{record.task.id} cannot {trigger.name} while {record.state.name}"
        del self.tasks[record.task.id]
        self.timers.drop(record)
        if record.past is not None and record.past.budgeted:
            self.retrying -= 1

    def _expel(self, record: TaskRecord, failure: FailTask, now: float) -> None:
        """End a task in line with an error, and let those behind it move up."""
        self.queues.remove(record)
        self._fail(record, Trigger.EXPIRE, failure)
        self._announce(self._matcher.follow(record, now))

    def _linked(self, worker_id: str, link: str) -> WorkerRecord | None:
        """Return the worker, unless the event came over a link that it no longer has."""
        worker = self.placement.workers.get(worker_id)
        return worker if worker is not None and worker.link == link else None

    def _due_at_s(self, record: TaskRecord) -> float:
        """Return when to look at a task next: it has lived, or waits, too long, or asks for less."""
        ends_at_s = record.submitted_at_s + self.settings.total_timeout_s
        if record.state is not State.QUEUED:
            return ends_at_s
        past = record.past
        waits_s = self.settings.queue_timeout_s
        if past is not None and past.patient and past.losses:
            waits_s = min(waits_s, self.settings.isolation_patience_s)
        return min(ends_at_s, record.queued_at_s + waits_s)

    def _patient_until_s(self, demand: Demand) -> float:
        """Return until when tasks that no worker can take are kept: some may be reconnecting."""
        return self.placement.absent_since_s.get(demand, self._started_at_s) + self.settings.no_worker_grace_s
