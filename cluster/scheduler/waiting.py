"""Why a task waits, and about how many go before it: for clients, timelines and panels."""

from __future__ import annotations

from cluster.domain import Tier, WaitReason
from cluster.scheduler.placement import Placement
from cluster.scheduler.queue import Queues
from cluster.scheduler.state import TaskRecord


def reason(record: TaskRecord, placement: Placement, queues: Queues) -> WaitReason:
    """Return what a task in line waits for."""
    past = record.past
    if not placement.is_served(record.demand):
        return WaitReason.NO_WORKER
    if past is None:
        if queues.head_of(record.task) is not record:
            return WaitReason.BEHIND_OTHERS
    elif placement.goes_alone(record):
        return WaitReason.ISOLATION
    elif past.resume_from:
        return WaitReason.RESUME
    return WaitReason.NO_KV_ROOM if placement.has_ready(record.task.model) else WaitReason.NO_SLOT


def position(record: TaskRecord, queues: Queues) -> int:
    """Return about the place in its model's queue of a task that has just been put there; 1 is next."""
    queue, tier = queues[record.task.model], record.task.tier
    higher = sum([queue.tiers[other].depth for other in Tier if other < tier])
    return higher + queue.tiers[tier].ahead_of(record) + 1
