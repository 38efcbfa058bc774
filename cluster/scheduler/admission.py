"""How many may wait, and when whoever is turned away should come again.

Only tasks that have to wait are counted: what a worker takes at once is never refused. They are counted
by heads and by the tokens of their prompts, so that the queue's memory is bounded whatever they are. A
tenant has a share of both so that none can fill the queue alone. `Retry-After` is when the line will surely have moved
at the pace it has moved of late: who comes back then finds room, unless others came first.
"""

from __future__ import annotations

from cluster.scheduler import failures
from cluster.scheduler.commands import FailTask
from cluster.scheduler.queue import Queues
from cluster.scheduler.settings import Settings
from cluster.scheduler.state import TaskRecord

LEAST_S, MOST_S = 1.0, 60.0


def turn_away(record: TaskRecord, queues: Queues, settings: Settings, now: float) -> FailTask | None:
    """Return why a new task may not wait, or None if it may."""
    tenant, share = record.task.tenant, settings.max_waiting_share
    own, own_tokens = queues.by_tenant[tenant], queues.prompt_tokens_by_tenant[tenant]
    # Who waits with nothing yet may come with a prompt of any length that a model takes.
    if own >= settings.max_waiting * share or (own and own_tokens >= settings.max_waiting_tokens * share):
        return failures.share_exceeded(record, _own_room_s(record, queues, settings, now))
    if queues.depth >= settings.max_waiting or queues.prompt_tokens >= settings.max_waiting_tokens:
        return failures.queue_full(record, _any_room_s(queues, settings, now))
    return None


def eta_s(queues: Queues, model: str, position: int, now: float) -> float | None:
    """Return when the task at a position of a model's queue may start; None when that is not known."""
    rate = queues.pace(model).drain.per_s(now)
    return position / rate if rate else None


def _any_room_s(queues: Queues, settings: Settings, now: float) -> float:
    """Return after how long one task, whichever, will have left the queue."""
    waits_s = [queue.pace.drain.wait_s(1, now) for queue in queues.values()]
    return _bounded(min((wait_s for wait_s in waits_s if wait_s is not None), default=None), settings)


def _own_room_s(record: TaskRecord, queues: Queues, settings: Settings, now: float) -> float:
    """Return after how long one task of the same tenant will have left the queue."""
    queue, task = queues.get(record.task.model), record.task
    if queue is None:
        return _bounded(None, settings)
    # It has its turn when all other tenants of its tier have had theirs, and higher tiers are done.
    turns = max(1, queue.tiers[task.tier].rounds.size)
    ahead = sum(tier.depth for tier in queue.tiers[: task.tier])
    return _bounded(queue.pace.drain.wait_s(ahead + turns, now), settings)


def _bounded(wait_s: float | None, settings: Settings) -> float:
    """After the longest anyone may wait, all who wait now are gone for certain."""
    longest_s = min(MOST_S, settings.queue_timeout_s)
    return max(LEAST_S, longest_s if wait_s is None else min(wait_s, longest_s))
