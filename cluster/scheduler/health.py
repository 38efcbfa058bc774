"""Whether a worker is fit for work: suspects and their probes, quarantines, and our own pauses.

A worker is *suspect* when it has not acknowledged a cancel in time, or when its attempts stalled
`suspect_after` times with none that ended well between. Heartbeats do not clear it, for being alive is
not making progress: it gets nothing until it has answered a probe, which is an ordinary task of one
token. It is *quarantined* when its links do not last (`lineages`). Both are over by themselves; what
operators want of workers is in `roster`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from cluster.scheduler import events, failures
from cluster.scheduler.commands import CancelAttempt, ProbeWorker, probe_task_id
from cluster.scheduler.desk import Desk, Outgrown
from cluster.scheduler.lineages import Lineages
from cluster.scheduler.settings import Settings
from cluster.scheduler.state import Demand, State
from cluster.scheduler.workers import FOREVER, WorkerRecord


class Health(Desk):
    """The events and verbs about the fitness of workers."""

    def __init__(self, settings: Settings, rng: random.Random, *, now: float) -> None:
        super().__init__(settings, rng, now=now)
        self.lineages = Lineages(settings)
        self._probes = 0

    def _on_probe_answered(self, event: events.ProbeAnswered, now: float) -> None:
        worker = self._linked(event.worker_id, event.link)
        if worker is None or not event.probe or event.probe != worker.probe:
            self.dropped["probe_answered"] += 1
        elif event.ok:
            worker.suspect, worker.probe, worker.probe_fails_at_s = False, 0, FOREVER
            self._rejudge((worker,), now)
        else:
            self._probe_failed(worker, now, answered=True)

    def _on_paused(self, now: float) -> None:
        """We heard nothing because we did not listen: nobody is judged by that time."""
        silent = []
        for worker in self.placement.workers.values():
            worker.last_seen_at_s = now
            for release in worker.releasing.values():
                release.due_at_s = now + self.settings.cancel_ack_s
            if worker.probe:
                worker.probe_fails_at_s = now + self.settings.probe_timeout_s
            if worker.stale:
                silent.append(worker)
        for worker in silent:
            self._heard(worker, now)

    def _heard(self, worker: WorkerRecord, now: float) -> None:
        """Give work again to a worker that was stale."""
        worker.stale = False
        self.placement.touch(worker)
        self._offer(worker, now)

    def _look_after(self, worker: WorkerRecord, now: float) -> None:
        """Do what is due about a worker that is not silent."""
        if worker.quarantined_until_s and now >= worker.quarantined_until_s:
            worker.quarantined_until_s = 0.0
            self._rejudge((worker,), now)
        if now >= worker.probe_fails_at_s:
            self._probe_failed(worker, now)
        if now >= worker.probe_at_s:
            self._probe(worker, now)
        self.timers.arm(worker, worker.due_at_s(self.settings.worker_silent_s))

    def _suspect(self, worker: WorkerRecord, now: float) -> None:
        """Give a worker nothing until it has answered a probe."""
        worker.stalls = 0
        if not worker.suspect:
            worker.suspect = True
            worker.probe_after_s = self.settings.probe_after_s
            worker.probe_at_s = now + worker.probe_after_s
            self.timers.arm(worker, worker.probe_at_s)
            self._rejudge((worker,), now)

    def _probe(self, worker: WorkerRecord, now: float) -> None:
        if worker.held >= worker.spec.capacity:
            worker.probe_at_s = now + worker.probe_after_s  # an answer would have to wait too
            return
        self._probes += 1
        worker.probe, worker.probe_at_s = self._probes, FOREVER
        worker.probe_fails_at_s = now + self.settings.probe_timeout_s
        model = next(iter(worker.offers))
        self._out.append(ProbeWorker(worker.node, worker.spec.id, worker.link, worker.probe, model))

    def _probe_failed(self, worker: WorkerRecord, now: float, *, answered: bool = False) -> None:
        if not answered:
            # It may still be at it, and must not be given a full load on top.
            task_id = probe_task_id(worker.probe)
            self._out.append(CancelAttempt(worker.node, worker.spec.id, worker.link, task_id, 1))
        worker.probe, worker.probe_fails_at_s = 0, FOREVER
        worker.probe_after_s = min(2 * worker.probe_after_s, self.settings.probe_longest_s)
        worker.probe_at_s = now + worker.probe_after_s
        self.timers.arm(worker, worker.probe_at_s)

    def _rejudge(self, workers: Iterable[WorkerRecord], now: float) -> None:
        """Close and open workers to new tasks, as what is known of them now says.

        All that close do so before anybody moves on from one to another of them. Those that open do so
        one by one, or the second would be given away out of turn while the first is filled.
        """
        closed = [worker for worker in workers if worker.open and self.placement.judge(worker, now)]
        for worker in closed:
            self._matcher.abandon(worker)
        for worker in closed:
            self._reconsider(worker, now)
        for worker in workers:
            if not worker.open and self.placement.judge(worker, now):
                self._welcome(worker, now)

    def _welcome(self, worker: WorkerRecord, now: float) -> None:
        """Let a worker that takes tasks, and did not until now, have what waits for it."""
        for demand in worker.demands:
            self.timers.drop(demand)
            self._note_outgrown(demand, now)
        self._offer(worker, now)

    def _reconsider(self, worker: WorkerRecord, now: float) -> None:
        """After a worker has left or was closed: give its models' tasks a grace, or another chance."""
        for demand in worker.demands:
            if demand in self.placement.absent_since_s:
                self.timers.arm(demand, self._patient_until_s(demand))
            else:
                self._note_outgrown(demand, now)
        for model in worker.offers:
            queue = self.queues.get(model)
            for record in queue.returned() if queue else ():
                past = record.past
                if past is None or not past.resume_from or record.state is not State.QUEUED:
                    continue
                if not self.placement.has_equal(record):
                    self._expel(record, failures.broken_off(record, past), now)
            self._announce(self._matcher.rematch(model, now))

    def _note_outgrown(self, demand: Demand, now: float) -> None:
        """Some in line may fit on nobody who is here: give the one that they would fit on time to return."""
        queue = self.queues.get(demand[0])
        if queue is None or queue.largest_tokens <= self.placement.limit_tokens(demand):
            return
        if demand not in self.outgrown:
            outgrown = self.outgrown[demand] = Outgrown(demand)
            self.timers.arm(outgrown, now + self.settings.no_worker_grace_s)
