"""Workers: how they come, speak, drain, fall silent and go, and what operators want of them.

A worker that is gone, by whatever sign, is the business of `_lose_worker` alone.
"""

from __future__ import annotations

import random

from cluster.domain import Outcome
from cluster.scheduler import events, failures
from cluster.scheduler.commands import DrainWorker, EvictWorker
from cluster.scheduler.desk import Outgrown
from cluster.scheduler.health import Health
from cluster.scheduler.lineages import Lineage
from cluster.scheduler.settings import Settings
from cluster.scheduler.state import Demand, Loss, Trigger
from cluster.scheduler.workers import WorkerRecord

SILENT = 4408
REPLACED = 4409


class WorkerEvents(Health):
    """What workers do, and what becomes of models without any."""

    def __init__(self, settings: Settings, rng: random.Random, *, now: float) -> None:
        super().__init__(settings, rng, now=now)
        self._cordoned: frozenset[str] = frozenset()
        self._draining: frozenset[str] = frozenset()

    def _on_joined(self, event: events.WorkerJoined, now: float) -> None:
        if older := self.placement.workers.get(event.worker.id):
            # The same process on a new link: it comes back empty, so what ran over the old one is lost.
            self._out.append(EvictWorker(older.node, older.spec.id, older.link, REPLACED, "replaced"))
            self._lose_worker(older, now)
        if self.lineages.returned(event.worker, now):
            # Who waits for a worker of its own because this one died need not do so any longer.
            for model in list(self.queues):
                self._announce(self._matcher.rematch(model, now))
        worker = WorkerRecord(event.worker, event.node, event.link, now)
        worker.quarantined_until_s = self.lineages.quarantine_until_s(event.worker, now)
        # Back under a standing drain, it has done what was asked: told again, it would go and come for ever.
        worker.told = worker.spec.id in self._draining
        self._note_intent(worker)
        self.placement.add(worker)
        self.timers.arm(worker, worker.due_at_s(self.settings.worker_silent_s))
        if worker.open:
            self._welcome(worker, now)

    def _on_heartbeat(self, event: events.HeartbeatReceived, now: float) -> None:
        worker = self._linked(event.worker_id, event.link)
        if worker is None:
            self.dropped["heartbeat"] += 1
            return
        was_stale = worker.stale or now - worker.last_seen_at_s > self.settings.worker_stale_s
        worker.last_seen_at_s = now
        worker.reading = event.reading
        self.placement.measure(worker, event.tokens_per_s)
        if was_stale:
            self._heard(worker, now)

    def _on_draining(self, event: events.WorkerDraining, now: float) -> None:
        worker = self._linked(event.worker_id, event.link)
        if worker is None:
            self.dropped["worker_draining"] += 1
        else:
            worker.draining = True
            self._rejudge((worker,), now)

    def _on_lost(self, event: events.WorkerLost, now: float) -> None:
        if worker := self._linked(event.worker_id, event.link):
            self._lose_worker(worker, now, clean=event.clean)
        else:
            self.dropped["worker_lost"] += 1

    def _on_intents(self, event: events.IntentsObserved, now: float) -> None:
        changed = (event.cordoned ^ self._cordoned) | (event.draining ^ self._draining)
        self._cordoned, self._draining = event.cordoned, event.draining
        workers = [self.placement.workers[name] for name in sorted(changed) if name in self.placement.workers]
        for worker in workers:
            self._note_intent(worker)
        self._rejudge(workers, now)

    def _note_intent(self, worker: WorkerRecord) -> None:
        """Take over what operators want; a worker that was told to leave cannot be told to stay."""
        cordon, drain = worker.spec.id in self._cordoned, worker.spec.id in self._draining
        if drain and not worker.told:
            worker.draining = worker.told = True
            self._out.append(DrainWorker(worker.node, worker.spec.id, worker.link))
        elif not drain and not worker.draining:
            worker.told = False
        worker.cordoned = cordon or (drain and not worker.draining)

    def _on_worker_due(self, worker: WorkerRecord, now: float) -> None:
        if now < worker.last_seen_at_s + self.settings.worker_silent_s:
            self._look_after(worker, now)
        else:
            self._out.append(EvictWorker(worker.node, worker.spec.id, worker.link, SILENT, "silent"))
            self._lose_worker(worker, now)

    def _on_demand_due(self, demand: Demand, now: float) -> None:
        self.placement.absent_since_s.pop(demand, None)
        for record in self.queues.everyone(demand[0]):
            if record.demand == demand:
                self._expel(record, self._no_worker(record, Outcome.EXPIRED), now)

    def _on_outgrown_due(self, outgrown: Outgrown, now: float) -> None:
        del self.outgrown[outgrown.demand]
        if not self.placement.is_served(outgrown.demand):
            return
        limit_tokens = self.placement.limit_tokens(outgrown.demand)
        for record in self.queues.everyone(outgrown.demand[0]):
            if record.demand == outgrown.demand and record.kv_tokens > limit_tokens:
                self._expel(record, failures.too_large(record, limit_tokens, Outcome.EXPIRED), now)

    def _on_lineage_due(self, lineage: Lineage, now: float) -> None:
        forget_at_s = self.lineages.forget_at_s(lineage)
        if now < forget_at_s:
            self.timers.arm(lineage, forget_at_s)
        else:
            self.lineages.forget(lineage)

    def _lose_worker(self, worker: WorkerRecord, now: float, *, clean: bool = False) -> None:
        """A worker is gone, by whatever sign: its tasks go on elsewhere or learn why not."""
        self._matcher.abandon(worker)
        self.placement.remove(worker, now)
        self.timers.drop(worker)
        for release in worker.releasing.values():
            self.timers.drop(release)
            self._settle_release(release)
        loss: Loss | None = None
        if not clean:
            lineage, loss = self.lineages.lost(worker.spec, now)
            self.timers.arm(lineage, self.lineages.forget_at_s(lineage))
        for record in worker.running.values():
            past = self._fence(record, Trigger.LOSE, "worker_lost")
            record.worker = None
            if loss is not None:
                past.losses.append(loss)
        self._reconsider(worker, now)
