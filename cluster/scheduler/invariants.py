"""What is always true of the Scheduler, spelled out. Tests check it after every event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.domain import Tier
from cluster.scheduler.state import State
from cluster.scheduler.timers import SLACK

if TYPE_CHECKING:
    from cluster.scheduler.core import Scheduler


def check(scheduler: Scheduler) -> None:
    """Raise AssertionError with a sentence for the first thing that is not true."""
    _check_workers(scheduler)
    _check_queues(scheduler)
    _check_places(scheduler)
    _check_nothing_waits_in_vain(scheduler)
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
        for tier in Tier:
            tiered = queue.tiers[tier]
            assert tiered.depth == sum(map(len, tiered.ring.values())), f"the depth of {model}/{tier.word} is wrong"
            for tenant, line in tiered.ring.items():
                ranks = [record.sequence for record in line.values()]
                assert ranks, f"an empty line is kept for {tenant}"
                assert ranks == sorted(ranks), f"the line of {tenant} for {model}/{tier.word} is out of order"


def _check_places(scheduler: Scheduler) -> None:
    waiting = [record for model in scheduler.queues for record in scheduler.queues.everyone(model)]
    running = [record for worker in scheduler.placement.workers.values() for record in worker.running.values()]
    fencing = [record for record in scheduler.tasks.values() if record.state is State.FENCING]
    assert all(record.state is State.QUEUED for record in waiting), "a task waits that is not queued"
    assert all(scheduler.tasks.get(record.task.id) is record for record in waiting), "an ended task waits"
    assert all(record.worker is None for record in waiting + fencing), "a task that does not run has a worker"
    assert len(waiting) + len(running) + len(fencing) == len(scheduler.tasks), "a task is in no place, or in two"


def _check_nothing_waits_in_vain(scheduler: Scheduler) -> None:
    for model, queue in scheduler.queues.items():
        for head in queue.heads():
            excluded = scheduler.placement.excluded(head)
            for worker in scheduler.placement.serving(model):
                idle = not worker.stale and worker.spec.id not in excluded and worker.fits(head)
                assert not idle, f"{head.task.id} waits while {worker.spec.id} could take it"
        assert scheduler.placement.is_served(model) or model in scheduler.timers, (
            f"tasks wait for {model}, which nobody serves, without an end"
        )


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
    assert all(model in timers for model in absent), "a model is missed for ever"
    living = len(scheduler.tasks) + len(scheduler.placement.workers) + releases + len(absent)
    assert len(timers) == living, "a deadline outlives what it is for"
    assert timers.entries <= 2 * len(timers) + SLACK, "the heap of timers keeps what has ended"
