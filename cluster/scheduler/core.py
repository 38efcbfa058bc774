"""The Scheduler: events in, commands out.

`handle` is the only mutator. It decides everything about queues, placement, attempts and time-outs,
and does nothing: no I/O, no clock, no callbacks. The Dispatcher stamps `now`, sends the commands, and
ticks when `next_deadline` says so.

Read `state` first (what moves a task), then `handle`, then the section of the event you care about.
After every event `check_invariants` holds; in tests it is called after each one.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import assert_never

import msgspec

from cluster.domain import ClusterSnapshot, Outcome
from cluster.scheduler import commands, events, failures
from cluster.scheduler.commands import Command
from cluster.scheduler.events import Event
from cluster.scheduler.placement import Placement
from cluster.scheduler.queue import ModelQueue
from cluster.scheduler.snapshot import take_snapshot
from cluster.scheduler.state import TRANSITIONS, State, TaskRecord, Trigger, WorkerRecord
from cluster.scheduler.timers import ModelTimer, ReleaseTimer, TaskTimer, Timer, Timers, WorkerTimer

SILENT = 4408
REPLACED = 4409


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The Scheduler's time-outs and bounds."""

    queue_timeout_s: float = 30.0
    no_worker_grace_s: float = 10.0
    """How long a model that was served may be without a worker before its tasks are refused."""
    total_timeout_s: float = 600.0
    worker_stale_s: float = 7.5
    """No new work for a worker that was silent this long."""
    worker_silent_s: float = 16.0
    """Then it is lost."""
    cancel_ack_s: float = 2.0
    max_attempts: int = 3
    max_deaths: int = 2
    """Attempts that may end with their worker's death before the task itself is suspected."""


class Scheduler:
    """Decides what runs where, for the whole cluster."""

    def __init__(self, settings: Settings, rng: random.Random, *, now: float) -> None:
        self.dropped: Counter[str] = Counter()
        """Late and stray events by kind, and what went unanswered."""
        self.tasks: dict[str, TaskRecord] = {}
        self.queues: dict[str, ModelQueue] = {}
        self.placement = Placement(rng, stale_s=settings.worker_stale_s)
        self.timers: Timers[Timer] = Timers()
        self._settings = settings
        self._started_at_s = now
        self._sequence = 0
        self._left_at_s: dict[str, float] = {}
        """When the last worker of a model left, for models without one."""
        self._out: list[Command] = []

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take note of an event and return what is to be done about it, in order."""
        self._out = []
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
                if worker := self._worker(event.worker_id, event.link, "worker lost"):
                    self._lose_worker(worker, now)
            case _:
                assert_never(event)
        return self._out

    def next_deadline(self) -> float | None:
        """Return when the next `Tick` has something to do; None when nothing will be due."""
        return self.timers.next_deadline()

    def snapshot(self, now: float, *, version: int, wall_s: float) -> ClusterSnapshot:
        """Return a picture of the cluster."""
        return take_snapshot(
            self.placement.workers.values(),
            self.queues,
            dict(self.dropped),
            now=now,
            stale_s=self._settings.worker_stale_s,
            version=version,
            wall_s=wall_s,
        )

    def check_invariants(self) -> None:
        """Raise AssertionError if the Scheduler contradicts itself."""
        from cluster.scheduler.invariants import check

        check(self)

    def _on_submitted(self, event: events.TaskSubmitted, now: float) -> None:
        task = event.task
        if task.id in self.tasks:
            self.dropped["task submitted twice"] += 1
            return
        self._sequence += 1
        record = TaskRecord(task, self._sequence, now)
        if refusal := self._refuse(record, now):
            self._out.append(refusal)
            return
        self.tasks[task.id] = record
        self.timers.arm(TaskTimer(task.id), now + min(self._settings.queue_timeout_s, self._settings.total_timeout_s))
        self._enqueue(record, now)

    def _refuse(self, record: TaskRecord, now: float) -> Command | None:
        """Return why a task cannot be served at all, or None if it can, or may be soon."""
        model = record.task.model
        if self.placement.is_served(model):
            limit = self.placement.limit_tokens(model)
            if record.kv_tokens <= limit:
                return None
            return failures.too_large(record, limit)
        if now < self._orphaned_until(model):
            self.timers.arm(ModelTimer(model), self._orphaned_until(model))
            return None
        return self._no_worker(record, Outcome.FAILED)

    def _on_started(self, event: events.AttemptStarted) -> None:
        record = self.tasks.get(event.task_id)
        if record is None or record.attempt != event.attempt or not self._move(record, Trigger.START):
            self.dropped["attempt started"] += 1
            return
        record.started = True

    def _on_finished(self, event: events.AttemptFinished, now: float) -> None:
        if record := self._running(event.task_id, event.attempt, event.worker_id):
            self._end(record, Trigger.FINISH)
            self._free(record, now)
        elif not self._release(event.worker_id, event.task_id, event.attempt, now):
            self.dropped["attempt finished"] += 1

    def _on_failed(self, event: events.AttemptFailed, now: float) -> None:
        record = self._running(event.task_id, event.attempt, event.worker_id)
        if record is None:
            if not self._release(event.worker_id, event.task_id, event.attempt, now):
                self.dropped["attempt failed"] += 1
            return
        if event.retryable:
            self._fence(record, Trigger.FAIL, "worker_failed")
        else:
            self._end(record, Trigger.GIVE_UP)
            self._out.append(failures.refused_by_worker(record))
        self._free(record, now)

    def _on_released(self, event: events.AttemptReleased, now: float) -> None:
        if self._release(event.worker_id, event.task_id, event.attempt, now):
            return
        record = self._running(event.task_id, event.attempt, event.worker_id)
        if record is None:
            self.dropped["attempt released"] += 1
            return
        # A worker that stops unasked has failed, whatever it calls it.
        self._fence(record, Trigger.FAIL, "worker_failed")
        self._free(record, now)

    def _on_fenced(self, event: events.AttemptFenced, now: float) -> None:
        record = self.tasks.get(event.task_id)
        if record is None or record.attempt != event.attempt or record.state is not State.FENCING:
            self.dropped["attempt fenced"] += 1
            return
        if event.next_seq > 0:
            self._give_up(record, failures.broken_off(record))
        elif self._deaths(record) >= self._settings.max_deaths:
            self._give_up(record, failures.deadly(record, self._deaths(record)))
        elif record.attempt >= self._settings.max_attempts:
            self._give_up(record, failures.tried_enough(record))
        else:
            self._move(record, Trigger.FENCED)
            record.queued_at_s = now
            record.started = False
            self._enqueue(record, now)

    def _on_cancelled(self, event: events.TaskCancelled, now: float) -> None:
        record = self.tasks.get(event.task_id)
        if record is None:
            self.dropped["task cancelled"] += 1
            return
        self._stop(record, Trigger.CANCEL, now)

    def _on_joined(self, event: events.WorkerJoined, now: float) -> None:
        older = self.placement.workers.get(event.worker.id)
        if older is not None:
            # The same process on a new link: it comes back empty, so what ran over the old one is lost.
            self._out.append(commands.EvictWorker(older.node, older.spec.id, older.link, REPLACED, "replaced"))
            self._lose_worker(older, now)
        worker = WorkerRecord(event.worker, event.node, event.link, now)
        self.placement.add(worker)
        self.timers.arm(WorkerTimer(worker.spec.id, worker.link), now + self._settings.worker_silent_s)
        for model in worker.pool:
            self._left_at_s.pop(model, None)
            self.timers.drop(ModelTimer(model))
        self._offer(worker, now)

    def _on_heartbeat(self, event: events.HeartbeatReceived, now: float) -> None:
        worker = self._worker(event.worker_id, event.link, "heartbeat")
        if worker is None:
            return
        was_stale = worker.stale or now - worker.last_seen_at_s > self._settings.worker_stale_s
        worker.last_seen_at_s = now
        worker.reading = event.reading
        worker.tokens_per_s = event.tokens_per_s
        if was_stale:
            worker.stale = False
            self.placement.touch(worker)
            self._offer(worker, now)

    def _on_draining(self, event: events.WorkerDraining, now: float) -> None:
        worker = self._worker(event.worker_id, event.link, "worker draining")
        if worker is not None and not worker.draining:
            self.placement.drain(worker)
            self._watch_models(worker, now)

    def _on_tick(self, now: float) -> None:
        while (timer := self.timers.pop_due(now)) is not None:
            match timer:
                case TaskTimer():
                    self._on_task_timer(self.tasks[timer.task_id], now)
                case WorkerTimer():
                    self._on_worker_timer(self.placement.workers[timer.worker_id], now)
                case ReleaseTimer():
                    self.dropped["cancel unanswered"] += 1
                    self._release(timer.worker_id, timer.task_id, timer.attempt, now)
                case ModelTimer():
                    self._on_model_timer(timer.model)
                case _:
                    assert_never(timer)

    def _on_task_timer(self, record: TaskRecord, now: float) -> None:
        ends_at_s = record.submitted_at_s + self._settings.total_timeout_s
        waits_until_s = record.queued_at_s + self._settings.queue_timeout_s
        if now >= ends_at_s:
            self._out.append(failures.lived_too_long(record, self._settings.total_timeout_s))
            self._stop(record, Trigger.EXPIRE, now)
        elif record.state is State.QUEUED and now >= waits_until_s:
            self._out.append(failures.waited_too_long(record, self._settings.queue_timeout_s))
            self._stop(record, Trigger.EXPIRE, now)
        else:
            waits = record.state is State.QUEUED
            self.timers.arm(TaskTimer(record.task.id), min(ends_at_s, waits_until_s) if waits else ends_at_s)

    def _on_worker_timer(self, worker: WorkerRecord, now: float) -> None:
        silent_at_s = worker.last_seen_at_s + self._settings.worker_silent_s
        if now < silent_at_s:
            self.timers.arm(WorkerTimer(worker.spec.id, worker.link), silent_at_s)
            return
        self._out.append(commands.EvictWorker(worker.node, worker.spec.id, worker.link, SILENT, "silent"))
        self._lose_worker(worker, now)

    def _on_model_timer(self, model: str) -> None:
        queue = self.queues.get(model)
        for record in queue.everyone() if queue else ():
            self._out.append(self._no_worker(record, Outcome.EXPIRED))
            self._dequeue(record)
            self._end(record, Trigger.EXPIRE)

    def _lose_worker(self, worker: WorkerRecord, now: float) -> None:
        """A worker is gone, by whatever sign: its tasks go on elsewhere or learn why not."""
        self.placement.remove(worker)
        self.timers.drop(WorkerTimer(worker.spec.id, worker.link))
        for task_id, attempt in worker.releasing:
            self.timers.drop(ReleaseTimer(worker.spec.id, worker.link, task_id, attempt))
        for record in worker.running.values():
            record.lost_on.append(worker.spec.id)
            self._fence(record, Trigger.LOSE, "worker_lost")
        self._watch_models(worker, now)

    def _watch_models(self, worker: WorkerRecord, now: float) -> None:
        """After a worker has left or drains: give its models' tasks a grace, or another chance."""
        for model in worker.pool:
            if not self.placement.is_served(model):
                self._left_at_s.setdefault(model, now)
                if model in self.queues:
                    self.timers.arm(ModelTimer(model), self._orphaned_until(model))
            elif model in self.queues:
                # A task that was kept off a worker may have it now, if that is the last one left.
                self._dispatch(model, now)

    def _enqueue(self, record: TaskRecord, now: float) -> None:
        model = record.task.model
        queue = self.queues.get(model)
        if queue is None:
            queue = self.queues[model] = ModelQueue()
        is_head = queue.push(record)
        if is_head and (worker := self.placement.choose(record, now)):
            self._assign(record, worker, now)
            self._follow(record, now)
            return
        if not self.placement.is_served(model):
            self._left_at_s.setdefault(model, self._started_at_s)
            self.timers.arm(ModelTimer(model), max(now, self._orphaned_until(model)))
        self.timers.arm(TaskTimer(record.task.id), record.queued_at_s + self._settings.queue_timeout_s)

    def _offer(self, worker: WorkerRecord, now: float) -> None:
        """Give a worker with room what waits for it, by tier, then by arrival."""
        if not self.queues:
            return
        served = []
        while not worker.draining and worker.held < worker.spec.capacity:
            waiting = [self.queues[model] for model in worker.pool if model in self.queues]
            heads = [head for queue in waiting if (head := self._first_for(queue, worker))]
            if not heads:
                break
            record = min(heads, key=_urgency)
            self._assign(record, worker, now)
            served.append(record)
        for record in served:
            self._follow(record, now)

    def _follow(self, record: TaskRecord, now: float) -> None:
        """Let those behind a task that went or ended go too, if they fit where it did not."""
        while (queue := self.queues.get(record.task.model)) and (head := queue.head_of(record.task)):
            worker = self.placement.choose(head, now)
            if worker is None:
                return
            self._assign(head, worker, now)

    def _first_for(self, queue: ModelQueue, worker: WorkerRecord) -> TaskRecord | None:
        for head in queue.heads():
            if worker.fits(head) and worker.spec.id not in self.placement.excluded(head):
                return head
        return None

    def _dispatch(self, model: str, now: float) -> None:
        """Assign every head of a model's queue that some worker can take."""
        while queue := self.queues.get(model):
            chosen = next(
                ((head, worker) for head in queue.heads() if (worker := self.placement.choose(head, now))), None
            )
            if chosen is None:
                return
            self._assign(*chosen, now)

    def _assign(self, record: TaskRecord, worker: WorkerRecord, now: float) -> None:
        self._dequeue(record, serve=True)
        self._move(record, Trigger.ASSIGN)
        record.attempt += 1
        record.queued_s += now - record.queued_at_s
        record.worker = worker
        record.kv_bytes = worker.kv_need(record)
        task = record.task
        worker.running[task.id] = record
        worker.kv_used_bytes += record.kv_bytes
        self.placement.touch(worker)
        spec = worker.spec
        self._out.append(
            commands.AnnounceAttempt(task.node, task.id, record.attempt, spec.id, spec.name, record.queued_s)
        )
        self._out.append(commands.AssignTask(worker.node, spec.id, worker.link, task, record.attempt))

    def _dequeue(self, record: TaskRecord, *, serve: bool = False) -> None:
        model = record.task.model
        queue = self.queues[model]
        if serve:
            queue.serve(record)
        else:
            queue.remove(record)
        if not queue.depth:
            del self.queues[model]
            self.timers.drop(ModelTimer(model))

    def _stop(self, record: TaskRecord, trigger: Trigger, now: float) -> None:
        """End a task before its time; a worker that runs it is told, and keeps its slot till it answers."""
        if record.state is State.QUEUED:
            self._dequeue(record)
            self._end(record, trigger)
            self._follow(record, now)
            return
        worker = record.worker
        self._end(record, trigger)
        if worker is None:
            return
        del worker.running[record.task.id]
        worker.releasing[record.task.id, record.attempt] = record.kv_bytes
        timer = ReleaseTimer(worker.spec.id, worker.link, record.task.id, record.attempt)
        self.timers.arm(timer, now + self._settings.cancel_ack_s)
        self._out.append(
            commands.CancelAttempt(worker.node, worker.spec.id, worker.link, record.task.id, record.attempt)
        )

    def _fence(self, record: TaskRecord, trigger: Trigger, code: str) -> None:
        """Ask the stream how far the attempt came; the task waits for the answer."""
        worker = record.worker
        assert worker is not None
        self._move(record, trigger)
        record.excluded.add(worker.spec.id)
        record.failure = code
        self._out.append(commands.FenceAttempt(record.task.node, record.task.id, record.attempt))
        if trigger is Trigger.LOSE:
            record.worker = None

    def _free(self, record: TaskRecord, now: float) -> None:
        """Give back what an attempt held on a worker that lives, and use it."""
        worker, record.worker = record.worker, None
        assert worker is not None
        del worker.running[record.task.id]
        worker.kv_used_bytes -= record.kv_bytes
        self.placement.touch(worker)
        self._offer(worker, now)

    def _release(self, worker_id: str, task_id: str, attempt: int, now: float) -> bool:
        """Free the slot of a cancelled attempt; return whether there was one."""
        worker = self.placement.workers.get(worker_id)
        if worker is None or (task_id, attempt) not in worker.releasing:
            return False
        worker.kv_used_bytes -= worker.releasing.pop((task_id, attempt))
        self.timers.drop(ReleaseTimer(worker_id, worker.link, task_id, attempt))
        self.placement.touch(worker)
        self._offer(worker, now)
        return True

    def _give_up(self, record: TaskRecord, failure: Command) -> None:
        self._out.append(failure)
        self._end(record, Trigger.GIVE_UP)

    def _end(self, record: TaskRecord, trigger: Trigger) -> None:
        self._move(record, trigger)
        del self.tasks[record.task.id]
        self.timers.drop(TaskTimer(record.task.id))

    def _move(self, record: TaskRecord, trigger: Trigger) -> bool:
        """Move a task along the table; return False if there is no such way."""
        after = TRANSITIONS.get((record.state, trigger))
        if after is None:
            return False
        record.state = after
        return True

    def _running(self, task_id: str, attempt: int, worker_id: str) -> TaskRecord | None:
        record = self.tasks.get(task_id)
        if record is None or record.attempt != attempt or record.state is not State.RUNNING:
            return None
        return record if record.worker is not None and record.worker.spec.id == worker_id else None

    def _worker(self, worker_id: str, link: str, kind: str) -> WorkerRecord | None:
        worker = self.placement.workers.get(worker_id)
        if worker is not None and worker.link == link:
            return worker
        self.dropped[kind] += 1
        return None

    def _deaths(self, record: TaskRecord) -> int:
        """Count the attempts that ended with a worker that is not back: a dropped link is no death."""
        return sum(worker_id not in self.placement.workers for worker_id in record.lost_on)

    def _orphaned_until(self, model: str) -> float:
        """Return until when tasks of a model without workers are kept: some may be reconnecting."""
        return (
            max(self._started_at_s, self._left_at_s.get(model, self._started_at_s)) + self._settings.no_worker_grace_s
        )

    def _no_worker(self, record: TaskRecord, outcome: Outcome) -> Command:
        return failures.no_worker(record, outcome, all_draining=self.placement.is_present(record.task.model))


def _urgency(record: TaskRecord) -> tuple[int, int]:
    return record.task.tier, record.sequence
