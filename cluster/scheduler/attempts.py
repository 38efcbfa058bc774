"""Tasks and their attempts: how they come, go on, end well and end badly.

An attempt that ends badly is *fenced*: only when its stream has said how far it came may there be
another. None seen: from the start, on another worker. Some seen: from there, on a worker that can
continue this text. The bounds are in `failures.of_attempts`, except the budget for retries after
failures that workers *report*: if they all do, trying again is what keeps them down. A worker's death
is outside the budget, for it costs one worker and not each its own.
"""

from __future__ import annotations

from cluster.scheduler import events, failures
from cluster.scheduler.health import Health
from cluster.scheduler.state import Past, State, TaskRecord, Trigger
from cluster.scheduler.workers import Release

AttemptEnded = events.AttemptFinished | events.AttemptFailed | events.AttemptReleased


class AttemptEvents(Health):
    """What tasks and attempts do."""

    @property
    def running(self) -> int:
        """How many tasks have an attempt, or are between two."""
        return len(self.tasks) - self.queues.depth

    def _on_submitted(self, event: events.TaskSubmitted, now: float) -> None:
        task = event.task
        if task.id in self.tasks:
            self.dropped["task_submitted"] += 1
            return
        self._arrivals += 1
        record = self.tasks[task.id] = TaskRecord(task, self._arrivals, now, now, task.kv_tokens)
        self._admit(record, now)

    def _on_started(self, event: events.AttemptStarted) -> None:
        record = self.tasks.get(event.task_id)
        if record is None or record.attempt != event.attempt or not record.move(Trigger.START):
            self.dropped["attempt_started"] += 1

    def _on_finished(self, event: events.AttemptFinished, now: float) -> None:
        if record := self._running(event):
            assert record.worker is not None
            record.worker.stalls = 0
            self._end(record, Trigger.FINISH)
            self._settle(record, event.generated_tokens)
            self._free(record, now)
        elif not self._release(event.worker_id, event.task_id, event.attempt, now, event.generated_tokens):
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

    def _on_stalled(self, event: events.AttemptStalled, now: float) -> None:
        record = self.tasks.get(event.task_id)
        worker = record.worker if record is not None else None
        if record is None or worker is None or record.attempt != event.attempt:
            self.dropped["attempt_stalled"] += 1
            return
        self._fence(record, Trigger.FAIL, "worker_stalled")
        self._cancel_attempt(record, worker, now)
        worker.stalls += 1
        if worker.stalls >= self.settings.suspect_after:
            self._suspect(worker, now)

    def _on_released(self, event: events.AttemptReleased, now: float) -> None:
        if self._release(event.worker_id, event.task_id, event.attempt, now, event.generated_tokens):
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
        past = record.past if record is not None else None
        if record is None or past is None or record.attempt != event.attempt or record.state is not State.FENCING:
            self.dropped["attempt_fenced"] += 1
            return
        past.resume_from, past.patient = event.next_seq, True
        if failure := failures.of_attempts(record, past, self.settings):
            self._fail(record, Trigger.GIVE_UP, failure)
        elif past.failure == "worker_failed" and not self._may_retry(past):
            self._fail(record, Trigger.GIVE_UP, failures.no_retry_left(record, past))
        else:
            record.move(Trigger.FENCED)
            record.queued_at_s = now
            self._admit(record, now)

    def _on_cancelled(self, event: events.TaskCancelled, now: float) -> None:
        if record := self.tasks.get(event.task_id):
            self._stop(record, Trigger.CANCEL, now)
        else:
            self.dropped["task_cancelled"] += 1

    def _on_task_due(self, record: TaskRecord, now: float) -> None:
        due_at_s = self._due_at_s(record)
        total_s, queue_s = self.settings.total_timeout_s, self.settings.queue_timeout_s
        if now < due_at_s:
            self.timers.arm(record, due_at_s)
        elif now >= record.submitted_at_s + total_s:
            self._out.append(failures.lived_too_long(record, total_s))
            self._stop(record, Trigger.EXPIRE, now)
        elif now >= record.queued_at_s + queue_s:
            self._out.append(failures.waited_too_long(record, queue_s))
            self._stop(record, Trigger.EXPIRE, now)
        elif record.past is not None:
            # It could not have a worker to itself in time. Rather in company than not at all.
            record.past.patient = False
            self.timers.arm(record, self._due_at_s(record))
            self._announce(self._matcher.retry(record, now))

    def _on_release_due(self, release: Release, now: float) -> None:
        if now < release.due_at_s:
            self.timers.arm(release, release.due_at_s)
            return
        self.dropped["cancel_unanswered"] += 1
        self._suspect(release.worker, now)
        self._release(release.worker.spec.id, release.task_id, release.attempt, now)

    def _may_retry(self, past: Past) -> bool:
        """Return whether the budget allows one more retry, and take it."""
        if not past.budgeted:
            if self.retrying >= max(self.settings.retry_floor, self.settings.retry_share * self.running):
                return False
            past.budgeted = True
            self.retrying += 1
        return True

    def _running(self, event: AttemptEnded) -> TaskRecord | None:
        """Return the task whose current attempt the event is about, if it runs where it says."""
        record = self.tasks.get(event.task_id)
        if record is None or record.attempt != event.attempt or record.worker is None:
            return None
        return record if record.worker.spec.id == event.worker_id else None
