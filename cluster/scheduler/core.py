"""The Scheduler: events in, commands out.

`handle` is the only mutator. It decides everything about queues, placement, attempts and time-outs,
and does nothing: no I/O, no clock, no callbacks. The Dispatcher stamps `now`, sends the commands, and
ticks when `next_deadline` says so.

Read `state` first (what moves a task), then `handle`, then the method of the event you care about,
then the verbs they share: admit, offer, free, stop, fence, end. A worker that is gone, by whatever
sign, is the business of `_lose_worker` alone. After every event `check_invariants` holds.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, KeysView
from typing import assert_never

from cluster.domain import ClusterSnapshot, Outcome
from cluster.scheduler import events, failures, invariants
from cluster.scheduler.commands import (
    AnnounceAttempt,
    AssignTask,
    CancelAttempt,
    Command,
    EvictWorker,
    FailTask,
    FenceAttempt,
)
from cluster.scheduler.events import Event
from cluster.scheduler.matching import Matcher
from cluster.scheduler.placement import Placement
from cluster.scheduler.queue import Queues
from cluster.scheduler.settings import Settings
from cluster.scheduler.snapshot import take_snapshot
from cluster.scheduler.state import Release, State, TaskRecord, Trigger, WorkerRecord
from cluster.scheduler.timers import Timers

__all__ = ["Scheduler", "Settings"]

SILENT = 4408
REPLACED = 4409

Timed = TaskRecord | WorkerRecord | Release | str
"""What has a deadline; a string is a model without workers."""
AttemptEnded = events.AttemptFinished | events.AttemptFailed | events.AttemptReleased


class Scheduler:
    """Decides what runs where, for the whole cluster."""

    def __init__(self, settings: Settings, rng: random.Random, *, now: float) -> None:
        self.settings = settings
        self.tasks: dict[str, TaskRecord] = {}
        self.queues = Queues()
        self.placement = Placement(rng, stale_s=settings.worker_stale_s)
        self._matcher = Matcher(self.queues, self.placement)
        self.timers: Timers[Timed] = Timers()
        self.dropped: Counter[str] = Counter()
        """Late and stray events by kind, and cancels that no worker answered."""
        self._started_at_s = now
        self._arrivals = 0
        self._out: list[Command] = []

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take note of an event and return what is to be done about it, in order."""
        self._out = out = list[Command]()
        match event:
            case events.TaskSubmitted():
                self._on_submitted(event, now)
            case events.AttemptStarted():
                self._on_started(event)
            case events.AttemptFinished():
                self._on_finished(event, now)
            case events.Tick():
                self._on_tick(now)
            case events.HeartbeatReceived():
                self._on_heartbeat(event, now)
            case events.TaskCancelled():
                self._on_cancelled(event, now)
            case events.AttemptReleased():
                self._on_released(event, now)
            case events.AttemptFailed():
                self._on_failed(event, now)
            case events.AttemptFenced():
                self._on_fenced(event, now)
            case events.WorkerJoined():
                self._on_joined(event, now)
            case events.WorkerDraining():
                self._on_draining(event, now)
            case events.WorkerLost():
                self._on_lost(event, now)
            case events.IntentsObserved():
                pass
            case _:
                assert_never(event)
        return out

    def next_deadline(self) -> float | None:
        """Return when the next `Tick` has something to do; None when nothing will be due."""
        return self.timers.next_deadline()

    @property
    def waiting(self) -> int:
        """How many tasks are in line."""
        return self.queues.depth

    @property
    def running(self) -> int:
        """How many tasks have an attempt, or are between two."""
        return len(self.tasks) - self.queues.depth

    def live_task_ids(self) -> KeysView[str]:
        """Return the tasks that have not ended: a view, good until the next event."""
        return self.tasks.keys()

    def snapshot(self, now: float, *, version: int, wall_s: float) -> ClusterSnapshot:
        """Return a picture of the cluster; `wall_s` is what people call `now`."""
        return take_snapshot(
            self.placement.workers.values(),
            self.queues,
            dict(self.dropped),
            now=now,
            stale_s=self.settings.worker_stale_s,
            version=version,
            wall_s=wall_s,
        )

    def check_invariants(self) -> None:
        """Raise AssertionError with a sentence if the Scheduler contradicts itself."""
        invariants.check(self)

    def _on_submitted(self, event: events.TaskSubmitted, now: float) -> None:
        task = event.task
        if task.id in self.tasks:
            self.dropped["task_submitted"] += 1
            return
        self._arrivals += 1
        record = self.tasks[task.id] = TaskRecord(task, self._arrivals, now)
        self._admit(record, now)

    def _on_started(self, event: events.AttemptStarted) -> None:
        record = self.tasks.get(event.task_id)
        if record is None or record.attempt != event.attempt or not record.move(Trigger.START):
            self.dropped["attempt_started"] += 1

    def _on_finished(self, event: events.AttemptFinished, now: float) -> None:
        if record := self._running(event):
            self._end(record, Trigger.FINISH)
            self._free(record, now)
        elif not self._release(event.worker_id, event.task_id, event.attempt, now):
            self.dropped["attempt_finished"] += 1

    def _on_failed(self, event: events.AttemptFailed, now: float) -> None:
        record = self._running(event)
        if record is None:
            if not self._release(event.worker_id, event.task_id, event.attempt, now):
                self.dropped["attempt_failed"] += 1
            return
        if event.retryable:
            self._fence(record, Trigger.FAIL, "worker_failed")
        else:
            self._fail(record, Trigger.GIVE_UP, failures.refused_by_worker(record, event.code))
        self._free(record, now)

    def _on_released(self, event: events.AttemptReleased, now: float) -> None:
        if self._release(event.worker_id, event.task_id, event.attempt, now):
            return
        record = self._running(event)
        if record is None:
            self.dropped["attempt_released"] += 1
            return
        # A worker that stops unasked has failed, whatever it calls it.
        self._fence(record, Trigger.FAIL, "worker_failed")
        self._free(record, now)

    def _on_fenced(self, event: events.AttemptFenced, now: float) -> None:
        record = self.tasks.get(event.task_id)
        if record is None or record.attempt != event.attempt or record.state is not State.FENCING:
            self.dropped["attempt_fenced"] += 1
            return
        if failure := failures.of_attempts(record, event.next_seq, self._deaths(record), self.settings):
            self._fail(record, Trigger.GIVE_UP, failure)
        else:
            record.move(Trigger.FENCED)
            record.queued_at_s = now
            self._admit(record, now)

    def _on_cancelled(self, event: events.TaskCancelled, now: float) -> None:
        if record := self.tasks.get(event.task_id):
            self._stop(record, Trigger.CANCEL, now)
        else:
            self.dropped["task_cancelled"] += 1

    def _on_joined(self, event: events.WorkerJoined, now: float) -> None:
        if older := self.placement.workers.get(event.worker.id):
            # The same process on a new link: it comes back empty, so what ran over the old one is lost.
            self._out.append(EvictWorker(older.node, older.spec.id, older.link, REPLACED, "replaced"))
            self._lose_worker(older, now)
        worker = WorkerRecord(event.worker, event.node, event.link, now)
        self.placement.add(worker)
        self.timers.arm(worker, now + self.settings.worker_silent_s)
        for model in worker.offers:
            self.timers.drop(model)
        self._offer(worker, now)

    def _on_heartbeat(self, event: events.HeartbeatReceived, now: float) -> None:
        worker = self._linked(event.worker_id, event.link)
        if worker is None:
            self.dropped["heartbeat"] += 1
            return
        was_stale = worker.stale or now - worker.last_seen_at_s > self.settings.worker_stale_s
        worker.last_seen_at_s = now
        worker.reading = event.reading
        worker.tokens_per_s = event.tokens_per_s
        if was_stale:
            worker.stale = False
            self.placement.touch(worker)
            self._offer(worker, now)

    def _on_draining(self, event: events.WorkerDraining, now: float) -> None:
        worker = self._linked(event.worker_id, event.link)
        if worker is None:
            self.dropped["worker_draining"] += 1
        elif not worker.draining:
            self.placement.drain(worker, now)
            self._reconsider(worker, now)

    def _on_lost(self, event: events.WorkerLost, now: float) -> None:
        if worker := self._linked(event.worker_id, event.link):
            self._lose_worker(worker, now)
        else:
            self.dropped["worker_lost"] += 1

    def _on_tick(self, now: float) -> None:
        while (due := self.timers.pop_due(now)) is not None:
            match due:
                case TaskRecord():
                    self._on_task_due(due, now)
                case WorkerRecord():
                    self._on_worker_due(due, now)
                case Release():
                    self.dropped["cancel_unanswered"] += 1
                    self._release(due.worker.spec.id, due.task_id, due.attempt, now)
                case str():
                    self._on_model_due(due)
                case _:
                    assert_never(due)

    def _on_task_due(self, record: TaskRecord, now: float) -> None:
        due_at_s, total_s = self._due_at_s(record), self.settings.total_timeout_s
        if now < due_at_s:
            self.timers.arm(record, due_at_s)
            return
        if now >= record.submitted_at_s + total_s:
            self._out.append(failures.lived_too_long(record, total_s))
        else:
            self._out.append(failures.waited_too_long(record, self.settings.queue_timeout_s))
        self._stop(record, Trigger.EXPIRE, now)

    def _on_worker_due(self, worker: WorkerRecord, now: float) -> None:
        silent_at_s = worker.last_seen_at_s + self.settings.worker_silent_s
        if now < silent_at_s:
            self.timers.arm(worker, silent_at_s)
        else:
            self._out.append(EvictWorker(worker.node, worker.spec.id, worker.link, SILENT, "silent"))
            self._lose_worker(worker, now)

    def _on_model_due(self, model: str) -> None:
        self.placement.absent_since_s.pop(model, None)
        all_draining = self.placement.is_present(model)
        for record in self.queues.everyone(model):
            self.queues.remove(record)
            self._fail(record, Trigger.EXPIRE, failures.no_worker(record, Outcome.EXPIRED, all_draining=all_draining))

    def _lose_worker(self, worker: WorkerRecord, now: float) -> None:
        """A worker is gone, by whatever sign: its tasks go on elsewhere or learn why not."""
        self.placement.remove(worker, now)
        self.timers.drop(worker)
        for release in worker.releasing.values():
            self.timers.drop(release)
        for record in worker.running.values():
            record.lost_on += (worker.spec.id,)
            self._fence(record, Trigger.LOSE, "worker_lost")
            record.worker = None
        self._reconsider(worker, now)

    def _reconsider(self, worker: WorkerRecord, now: float) -> None:
        """After a worker has left or drains: give its models' tasks a grace, or another chance."""
        for model in worker.offers:
            if model in self.placement.absent_since_s:
                self.timers.arm(model, self._patient_until_s(model))
            else:
                self._announce(self._matcher.rematch(model, now))

    def _admit(self, record: TaskRecord, now: float) -> None:
        """Give a task to a worker, or let it wait at its rank, or say why neither makes sense."""
        if refusal := self._refusal(record, now):
            self._fail(record, Trigger.REFUSE, refusal)
            return
        model = record.task.model
        if self._matcher.place(record, now):
            self._announce((record,))
        elif not self.placement.is_served(model):
            self.placement.absent_since_s.setdefault(model, self._started_at_s)
            self.timers.arm(model, self._patient_until_s(model))
        self.timers.arm(record, self._due_at_s(record))

    def _refusal(self, record: TaskRecord, now: float) -> FailTask | None:
        """Return why a task cannot be served at all, or None if it can, or may be soon."""
        model = record.task.model
        if self.placement.is_served(model):
            limit_tokens = self.placement.limit_tokens(model)
            return None if record.kv_tokens <= limit_tokens else failures.too_large(record, limit_tokens)
        if now < self._patient_until_s(model):
            return None
        return failures.no_worker(record, Outcome.FAILED, all_draining=self.placement.is_present(model))

    def _offer(self, worker: WorkerRecord, now: float) -> None:
        """Give a worker with room what waits for it."""
        self._announce(self._matcher.fill(worker, now))

    def _announce(self, records: Iterable[TaskRecord]) -> None:
        """Tell streams and workers about attempts that have just been given a slot."""
        for record in records:
            worker, task, attempt = record.worker, record.task, record.attempt
            assert worker is not None
            spec = worker.spec
            self._out.append(AnnounceAttempt(task.node, task.id, attempt, spec.id, spec.name, record.queued_s))
            self._out.append(AssignTask(worker.node, spec.id, worker.link, task, attempt))

    def _free(self, record: TaskRecord, now: float) -> None:
        """Give back what an attempt held on a worker that lives, and use it."""
        worker = record.worker
        assert worker is not None
        worker.give_back(record)
        self.placement.touch(worker)
        self._offer(worker, now)

    def _release(self, worker_id: str, task_id: str, attempt: int, now: float) -> bool:
        """Free what a cancelled attempt held and use it; return whether there was one."""
        worker = self.placement.workers.get(worker_id)
        release = worker.end_release(task_id, attempt) if worker else None
        if worker is None or release is None:
            return False
        self.timers.drop(release)
        self.placement.touch(worker)
        self._offer(worker, now)
        return True

    def _stop(self, record: TaskRecord, trigger: Trigger, now: float) -> None:
        """End a task before its time; a worker that runs it is told, and keeps its slot till it answers."""
        worker, waits = record.worker, record.state is State.QUEUED
        self._end(record, trigger)
        if waits:
            self.queues.remove(record)
            self._announce(self._matcher.follow(record, now))
        elif worker is not None:
            release = worker.start_release(record)
            self.timers.arm(release, now + self.settings.cancel_ack_s)
            self._out.append(CancelAttempt(worker.node, worker.spec.id, worker.link, record.task.id, record.attempt))

    def _fence(self, record: TaskRecord, trigger: Trigger, failure: str) -> None:
        """Ask the stream how far the attempt came; the task waits for the answer."""
        assert record.worker is not None
        record.move(trigger)
        record.excluded |= {record.worker.spec.id}
        record.failure = failure
        self._out.append(FenceAttempt(record.task.node, record.task.id, record.attempt))

    def _fail(self, record: TaskRecord, trigger: Trigger, failure: FailTask) -> None:
        self._out.append(failure)
        self._end(record, trigger)

    def _end(self, record: TaskRecord, trigger: Trigger) -> None:
        moved = record.move(trigger)
        assert moved, f"{record.task.id} cannot {trigger.name} while {record.state.name}"
        del self.tasks[record.task.id]
        self.timers.drop(record)

    def _running(self, event: AttemptEnded) -> TaskRecord | None:
        """Return the task whose current attempt the event is about, if it runs where it says."""
        record = self.tasks.get(event.task_id)
        if record is None or record.attempt != event.attempt or record.worker is None:
            return None
        return record if record.worker.spec.id == event.worker_id else None

    def _linked(self, worker_id: str, link: str) -> WorkerRecord | None:
        """Return the worker, unless the event came over a link that it no longer has."""
        worker = self.placement.workers.get(worker_id)
        return worker if worker is not None and worker.link == link else None

    def _deaths(self, record: TaskRecord) -> int:
        """Count the attempts that ended with a worker that is not back: a dropped link is no death."""
        return sum([worker_id not in self.placement.workers for worker_id in record.lost_on])

    def _due_at_s(self, record: TaskRecord) -> float:
        """Return when the task has lived, or waits, too long."""
        ends_at_s = record.submitted_at_s + self.settings.total_timeout_s
        if record.state is not State.QUEUED:
            return ends_at_s
        return min(ends_at_s, record.queued_at_s + self.settings.queue_timeout_s)

    def _patient_until_s(self, model: str) -> float:
        """Return until when tasks of a model without workers are kept: some may be reconnecting."""
        return self.placement.absent_since_s.get(model, self._started_at_s) + self.settings.no_worker_grace_s
