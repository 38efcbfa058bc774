"""The Scheduler: events in, commands out.

`handle` is the only mutator. It decides everything about queues, placement, attempts and time-outs,
and does nothing: no I/O, no clock, no callbacks. The Dispatcher stamps `now`, sends the commands, and
ticks when `next_deadline` says so.

Read `state` first (what moves a task), then `handle`, then the method of the event you care about: of
tasks in `attempts`, of workers in `roster` and `health`. The verbs they share are in `desk`; who goes
where is decided in `matching`, with `order`, `queue` and `turns` for who, and `placement` for where.
After every event `check_invariants` holds.
"""

from __future__ import annotations

from collections.abc import KeysView
from typing import assert_never

from cluster.domain import ClusterSnapshot
from cluster.scheduler import events, invariants
from cluster.scheduler.attempts import AttemptEvents
from cluster.scheduler.commands import Command
from cluster.scheduler.desk import Outgrown
from cluster.scheduler.events import Event
from cluster.scheduler.lineages import Lineage
from cluster.scheduler.roster import WorkerEvents
from cluster.scheduler.settings import Settings
from cluster.scheduler.snapshot import take_snapshot
from cluster.scheduler.state import TaskRecord
from cluster.scheduler.workers import Release, WorkerRecord

__all__ = ["Scheduler", "Settings"]


class Scheduler(AttemptEvents, WorkerEvents):
    """Decides what runs where, for the whole cluster."""

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
            case events.AttemptStalled():
                self._on_stalled(event, now)
            case events.WorkerJoined():
                self._on_joined(event, now)
            case events.WorkerDraining():
                self._on_draining(event, now)
            case events.WorkerLost():
                self._on_lost(event, now)
            case events.ProbeAnswered():
                self._on_probe_answered(event, now)
            case events.IntentsObserved():
                self._on_intents(event, now)
            case events.LoopPaused():
                self._on_paused(now)
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

    def live_task_ids(self) -> KeysView[str]:
        """Return the tasks that have not ended: a view, good until the next event."""
        return self.tasks.keys()

    def snapshot(self, now: float, *, version: int, wall_s: float) -> ClusterSnapshot:
        """Return a picture of the cluster; `wall_s` is what people call `now`."""
        return take_snapshot(
            self.placement,
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

    def _on_tick(self, now: float) -> None:
        while (due := self.timers.pop_due(now)) is not None:
            match due:
                case TaskRecord():
                    self._on_task_due(due, now)
                case WorkerRecord():
                    self._on_worker_due(due, now)
                case Release():
                    self._on_release_due(due, now)
                case Lineage():
                    self._on_lineage_due(due, now)
                case Outgrown():
                    self._on_outgrown_due(due, now)
                case (str(), bool()):
                    self._on_demand_due(due, now)
                case _:
                    assert_never(due)
