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
    from cluster.scheduler.queue import TierQueue
    from cluster.scheduler.state import TaskRecord


def check(scheduler: Scheduler) -> None:
    """Raise AssertionError with a sentence for the first thing that is not true."""
    waiting = [record for queue in scheduler.queues.values() for record in queue.everyone()]
    _check_workers(scheduler)
    _check_queues(scheduler, waiting)
    _check_places(scheduler, waiting)
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


def _check_queues(scheduler: Scheduler, waiting: list[TaskRecord]) -> None:
    for model, queue in scheduler.queues.items():
        assert queue.depth > 0, f"an empty queue is kept for {model}"
        assert queue.depth == sum([tier.depth for tier in queue.tiers]), f"the depth of {model}'s queue is wrong"
        for tier, tiered in zip(Tier, queue.tiers, strict=True):
            _check_tier(tiered, f"{model}/{tier.word}")
    assert scheduler.queues.depth == len(waiting), "the depth of the queues is wrong"
    tenants = Counter([record.task.tenant for record in waiting])
    assert scheduler.queues.by_tenant == tenants, "tenants are miscounted"
    assert scheduler.queues.prompt_tokens == sum([record.task.prompt_tokens for record in waiting]), (
        "the prompts' tokens are miscounted"
    )
    assert sum(scheduler.queues.prompt_tokens_by_tenant.values()) == scheduler.queues.prompt_tokens, (
        "the tenants' tokens are miscounted"
    )


def _check_tier(tiered: TierQueue, place: str) -> None:
    active = 0
    takes_turns = []
    for tenant, line in tiered.lines.items():
        ranks = [record.sequence for record in line.tasks.values()]
        assert bool(ranks) == (line.number >= 0), f"{tenant} has a turn for {place} and no task, or the reverse"
        assert line.unsettled >= 0, f"{place} settles twice"
        if ranks:
            assert ranks == sorted(ranks), f"the line of {tenant} for {place} is out of order"
            assert line.need == line.head.kv_tokens, f"the need of {tenant} for {place} is wrong"
            # One that was filed as far ahead as anybody may be stays there while the others come nearer.
            due = tiered.rounds.number_at(line.used_tokens)
            assert line.number <= due, (
                f"{tenant} stands in round {line.number} for {place} and has used {line.used_tokens}"
            )
            takes_turns.append(tenant)
        active += bool(ranks or line.unsettled)
    for ordered in (tiered.returned, tiered.arrivals.values()):
        if ordered:
            ranks = [record.sequence for record in ordered]
            assert ranks == sorted(ranks), f"arrivals for {place} are out of order"
    lines = list(tiered.rounds)
    assert sorted([line.tenant for line in lines]) == sorted(takes_turns), f"turns of {place}"
    assert len(lines) == tiered.rounds.size, f"{place} miscounts its turns"
    assert active == tiered.rounds.active, f"{place} miscounts who has something to do"
    assert sum([len(line.tasks) for line in lines]) == len(tiered.arrivals), f"{place} has lost a task"


def _check_places(scheduler: Scheduler, waiting: list[TaskRecord]) -> None:
    tasks = scheduler.tasks
    running = sum([len(worker.running) for worker in scheduler.placement.workers.values()])
    fencing = [record for record in tasks.values() if record.state is State.FENCING]
    for record in waiting:
        assert record.state is State.QUEUED, "a task waits that is not queued"
        assert tasks.get(record.task.id) is record, "an ended task waits"
        assert record.worker is None, "a task that does not run has a worker"
    for record in fencing:
        assert record.worker is None, "a task that does not run has a worker"
    assert len(waiting) + running + len(fencing) == len(tasks), "a task is in no place, or in two"


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
    bounds = scheduler.settings
    retrying = 0
    for record in scheduler.tasks.values():
        assert record.attempt <= bounds.max_attempts, "a task is tried too often"
        if (past := record.past) is not None:
            assert len(past.losses) <= bounds.max_attempts, "a task has outlived too many workers"
            retrying += past.budgeted
    assert scheduler.retrying == retrying, "retries are miscounted"


def _check_timers(scheduler: Scheduler) -> None:
    timers = scheduler.timers
    for record in scheduler.tasks.values():
        assert record in timers, f"{record.task.id} has no deadline"
    releases = 0
    for worker in scheduler.placement.workers.values():
        assert worker in timers, f"{worker.spec.id} may fall silent unnoticed"
        for release in worker.releasing.values():
            assert release in timers, "a cancel may stay unanswered"
        releases += len(worker.releasing)
    absent = scheduler.placement.absent_since_s
    for demand in absent:
        assert demand in timers, "a model is missed for ever"
    for outgrown in scheduler.outgrown.values():
        assert outgrown in timers, "what is too large may wait for ever"
    living = len(scheduler.tasks) + len(scheduler.placement.workers) + releases + len(absent)
    living += len(scheduler.outgrown) + len(scheduler.lineages)
    assert len(timers) == living, "a deadline outlives what it is for"
    assert timers.entries <= 2 * len(timers) + SLACK, "the heap of timers keeps what has ended"
