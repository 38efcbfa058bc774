"""Why a task waits, and about how many go before it: for clients, timelines and panels."""

from __future__ import annotations

from cluster.domain import WaitReason
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
    if record.kept is not None or placement.has_ready(record.task.model):
        return WaitReason.NO_KV_ROOM
    return WaitReason.NO_SLOT


def position(record: TaskRecord, queues: Queues) -> int:
    """Return about the place in its model's queue of a task that has just been put there; 1 is next."""
    tiers, tier = queues[record.task.model].tiers, record.task.tier
    higher = 0
    for queued in tiers[:tier]:
        higher += queued.depth
    return higher + tiers[tier].ahead_of(record) + 1
