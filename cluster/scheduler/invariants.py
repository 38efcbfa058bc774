"""What is always true of the Scheduler, spelled out. Tests check it after every event."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cluster.domain import Tier
from cluster.scheduler.state import State
from cluster.scheduler.timers import SLACK
from cluster.scheduler.workers import FOREVER

if TYPE_CHECKING:
    from cluster.scheduler.core import Scheduler


def check(scheduler: Scheduler) -> None:
    """Raise AssertionError with a sentence for the first thing that is not true."""
    _check_workers(scheduler)
    _check_queues(scheduler)
    _check_places(scheduler)
    _check_nothing_waits_in_vain(scheduler)
    _check_what_is_kept(scheduler)
    _check_fitness(scheduler)
    _check_retries(scheduler)
    _check_timers(scheduler)


def _check_workers(scheduler: Scheduler) -> None:
    for worker in scheduler.placement.workers.values():
        name = worker.spec.id
        assert 0 <= worker.held <= worker.spec.capacity, f"{name} holds {worker.held} of {worker.spec.capacity} slots"
        assert worker.held == len(worker.running) + len(worker.releasing), f"{name} miscounts its slots"
        reserved = [record.kv_bytes for record in worker.running.values()]
        reserved += [release.kv_bytes for release in worker.releasing.values()]
        assert worker.kv_used_bytes == sum(reserved), (
            f"{name} accounts {worker.kv_used_bytes} KV bytes, its attempts hold {sum(reserved)}"
        )
        assert 0 <= worker.kv_used_bytes <= worker.spec.kv_bytes, f"{name} has more KV reserved than it has"
        for task_id, record in worker.running.items():
            assert record.worker is worker, f"{task_id} runs on {name} and does not know it"
            assert record.state is State.RUNNING, f"{task_id} is in {name}'s slots but {record.state.name}"
            assert scheduler.tasks.get(task_id) is record, f"{task_id} holds a slot of {name} after its end"


def _check_queues(scheduler: Scheduler) -> None:
    for model, queue in scheduler.queues.items():
        assert queue.depth > 0, f"an empty queue is kept for {model}"
        assert queue.depth == sum(tier.depth for tier in queue.tiers), f"the depth of {model}'s queue is wrong"
        for tier in Tier:
            tiered = queue.tiers[tier]
            place = f"{model}/{tier.word}"
            for tenant, line in tiered.lines.items():
                ranks = [record.sequence for record in line.tasks.values()]
                assert ranks == sorted(ranks), f"the line of {tenant} for {place} is out of order"
                assert bool(ranks) == (line.number >= 0), f"{tenant} has a turn for {place} and no task, or the reverse"
                assert not ranks or line.need == line.head.kv_tokens, f"the need of {tenant} for {place} is wrong"
                due = not ranks or line.number == tiered.rounds.number_at(line.used_tokens)
                assert due, f"{tenant} stands in round {line.number} for {place} and has used {line.used_tokens}"
            for ordered in (tiered.returned, list(tiered.arrivals.values())):
                ranks = [record.sequence for record in ordered]
                assert ranks == sorted(ranks), f"arrivals for {place} are out of order"
            turns = [line.tenant for line in tiered.rounds]
            assert sorted(turns) == sorted(t for t, line in tiered.lines.items() if line.tasks), f"turns of {place}"
            assert len(turns) == tiered.rounds.size, f"{place} miscounts its turns"
            active = sum(bool(line.tasks or line.unsettled) for line in tiered.lines.values())
            assert active == tiered.rounds.active, f"{place} miscounts who has something to do"
            assert all(line.unsettled >= 0 for line in tiered.lines.values()), f"{place} settles twice"
            assert sum(len(line.tasks) for line in tiered.rounds) == len(tiered.arrivals), f"{place} has lost a task"

    waiting = [record for model in scheduler.queues for record in scheduler.queues.everyone(model)]
    assert scheduler.queues.depth == len(waiting), "the depth of the queues is wrong"
    assert scheduler.queues.by_tenant == Counter(record.task.tenant for record in waiting), "tenants are miscounted"


def _check_places(scheduler: Scheduler) -> None:
    waiting = [record for model in scheduler.queues for record in scheduler.queues.everyone(model)]
    running = [record for worker in scheduler.placement.workers.values() for record in worker.running.values()]
    fencing = [record for record in scheduler.tasks.values() if record.state is State.FENCING]
    assert all(record.state is State.QUEUED for record in waiting), "a task waits that is not queued"
    assert all(scheduler.tasks.get(record.task.id) is record for record in waiting), "an ended task waits"
    assert all(record.worker is None for record in waiting + fencing), "a task that does not run has a worker"
    assert len(waiting) + len(running) + len(fencing) == len(scheduler.tasks), "a task is in no place, or in two"


def _check_nothing_waits_in_vain(scheduler: Scheduler) -> None:
    placement = scheduler.placement
    for queue in scheduler.queues.values():
        for head in queue.heads():
            name = head.task.id
            for worker in placement.serving(head.demand):
                taken = worker.stale or worker.kept_for not in (None, head)
                idle = not taken and placement.can_take(head, worker)
                assert not idle, f"{name} waits while {worker.spec.id} could take it"
            demand, past = head.demand, head.past
            assert placement.is_served(demand) or demand in scheduler.timers, f"{name} waits for nobody, without an end"
            if past is not None and past.resume_from:
                assert placement.has_equal(head), f"{name} waits for an equal, and there is none"


def _check_what_is_kept(scheduler: Scheduler) -> None:
    for worker in scheduler.placement.workers.values():
        record = worker.kept_for
        if record is not None:
            assert record.kept is worker, f"{worker.spec.id} is kept for a task that does not know it"
            assert record.state is State.QUEUED, f"{worker.spec.id} is kept for a task that does not wait"
            assert worker.open, f"{worker.spec.id} takes nothing and is kept for something"
        assert not worker.alone or worker.held == 1, f"{worker.spec.id} runs something alone, with others"
    for model, queue in scheduler.queues.items():
        kept = queue.pace.kept
        promised = queue.pace.promised
        assert promised is None or promised.kept is not None, f"{model} owes a dispatch to a task that has no worker"
        assert kept is None or (kept.kept is not None and kept.task.model == model), f"{model} has lost a kept worker"


def _check_fitness(scheduler: Scheduler) -> None:
    for worker in scheduler.placement.workers.values():
        name = worker.spec.id
        closed = worker.draining or worker.cordoned or worker.suspect or bool(worker.quarantined_until_s)
        assert worker.open is not closed, f"{name} is open to new tasks and should not be, or the reverse"
        probed = worker.probe_at_s < FOREVER or worker.probe_fails_at_s < FOREVER
        assert probed is worker.suspect, f"{name} is suspect and never probed, or the reverse"
        entries = worker.open and not worker.stale and worker.kept_for is None and worker.has_slot
        assert worker.ready is entries, f"{name} can be chosen and should not be, or the reverse"
    for pool in {worker.pool for worker in scheduler.placement.workers.values()}:
        assert pool.ready == sum(worker.ready for worker in pool.workers.values()), "a pool miscounts who is ready"


def _check_retries(scheduler: Scheduler) -> None:
    pasts = [record.past for record in scheduler.tasks.values() if record.past is not None]
    assert scheduler.retrying == sum(past.budgeted for past in pasts), "retries are miscounted"
    bounds = scheduler.settings
    assert all(len(past.losses) <= bounds.max_attempts for past in pasts), "a task has outlived too many workers"
    attempts = [record.attempt for record in scheduler.tasks.values()]
    assert all(attempt <= bounds.max_attempts for attempt in attempts), "a task is tried too often"


def _check_timers(scheduler: Scheduler) -> None:
    timers = scheduler.timers
    for record in scheduler.tasks.values():
        assert record in timers, f"{record.task.id} has no deadline"
    releases = 0
    for worker in scheduler.placement.workers.values():
        assert worker in timers, f"{worker.spec.id} may fall silent unnoticed"
        assert all(release in timers for release in worker.releasing.values()), "a cancel may stay unanswered"
        releases += len(worker.releasing)
    absent = scheduler.placement.absent_since_s
    assert all(demand in timers for demand in absent), "a model is missed for ever"
    assert all(outgrown in timers for outgrown in scheduler.outgrown.values()), "what is too large may wait for ever"
    living = len(scheduler.tasks) + len(scheduler.placement.workers) + releases + len(absent)
    living += len(scheduler.outgrown) + len(scheduler.lineages)
    assert len(timers) == living, "a deadline outlives what it is for"
    assert timers.entries <= 2 * len(timers) + SLACK, "the heap of timers keeps what has ended"
