"""Who is next: queues per (model, tier, tenant).

Between tiers: strict. Between tenants of a tier: in turn, one task each; whoever was served goes to
the end of the ring. Inside (model, tier, tenant): by arrival, and a task that comes back after a
failed attempt has its old rank.

`heads` gives the order in which tasks may go. Only heads may: nobody overtakes inside their own
line, but a head that fits nowhere does not hold up other tenants or lower tiers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice, takewhile

from cluster.domain import Task, Tier
from cluster.scheduler.state import TaskRecord

Line = OrderedDict[str, TaskRecord]
"""Waiting tasks of one tenant by id, in order of arrival. Ordered dicts are O(1) at both ends and
in the middle; a plain dict slows down when its front is deleted again and again."""


class TierQueue:
    """The waiting tasks of one model and tier: a ring of tenants, a line each."""

    __slots__ = ("depth", "ring")

    def __init__(self) -> None:
        self.ring: OrderedDict[str, Line] = OrderedDict()
        self.depth = 0

    def push(self, record: TaskRecord) -> None:
        """Add a task at its rank."""
        line = self.ring.get(record.task.tenant)
        if line is None:
            line = self.ring[record.task.tenant] = OrderedDict()
        newest = line[next(reversed(line))].sequence if line else 0
        line[record.task.id] = record
        self.depth += 1
        if record.sequence < newest:
            # Back from a failed attempt. Tasks leave from the front only, so that all who are older
            # than this one have been out too, and are few.
            elders = list(takewhile(lambda other: other.sequence < record.sequence, line.values()))
            line.move_to_end(record.task.id, last=False)
            for elder in reversed(elders):
                line.move_to_end(elder.task.id, last=False)

    def remove(self, record: TaskRecord) -> None:
        """Take a task out."""
        line = self.ring[record.task.tenant]
        del line[record.task.id]
        if not line:
            del self.ring[record.task.tenant]
        self.depth -= 1

    def serve(self, record: TaskRecord) -> None:
        """Take a task out because it goes; its tenant has had its turn."""
        self.remove(record)
        if record.task.tenant in self.ring:
            self.ring.move_to_end(record.task.tenant)

    def heads(self) -> Iterator[TaskRecord]:
        """Yield the first of each line, the next tenant's first."""
        for line in self.ring.values():
            yield line[next(iter(line))]

    def in_order(self, limit: int) -> list[TaskRecord]:
        """Return the first tasks in the order in which they would be served, at most `limit`."""
        lines = [iter(line.values()) for line in islice(self.ring.values(), limit)]
        found: list[TaskRecord] = []
        while lines and len(found) < limit:
            turn = [(line, record) for line in lines if (record := next(line, None)) is not None]
            found += [record for _, record in turn]
            lines = [line for line, _ in turn]
        return found[:limit]


class ModelQueue:
    """The waiting tasks of one model, a `TierQueue` per tier, the first to be served first."""

    __slots__ = ("tiers",)

    def __init__(self) -> None:
        self.tiers = tuple(TierQueue() for _ in Tier)

    @property
    def depth(self) -> int:
        """How many wait."""
        return sum([tier.depth for tier in self.tiers])

    def heads(self) -> Iterator[TaskRecord]:
        """Yield who may go, in order. Do not change the queue while iterating."""
        for tier in self.tiers:
            for line in tier.ring.values():
                yield line[next(iter(line))]

    def everyone(self) -> list[TaskRecord]:
        """Return all who wait."""
        return [record for tier in self.tiers for line in tier.ring.values() for record in line.values()]


class Queues(dict[str, ModelQueue]):
    """All waiting tasks: a `ModelQueue` for each model that has any."""

    __slots__ = ()

    @property
    def depth(self) -> int:
        """How many wait."""
        return sum(queue.depth for queue in self.values())

    def push(self, record: TaskRecord) -> None:
        """Add a task at its rank."""
        queue = self.get(record.task.model)
        if queue is None:
            queue = self[record.task.model] = ModelQueue()
        queue.tiers[record.task.tier].push(record)

    def remove(self, record: TaskRecord) -> None:
        """Take a task out."""
        queue = self[record.task.model]
        queue.tiers[record.task.tier].remove(record)
        if not queue.depth:
            del self[record.task.model]

    def serve(self, record: TaskRecord) -> None:
        """Take a task out because it goes."""
        queue = self[record.task.model]
        queue.tiers[record.task.tier].serve(record)
        if not queue.depth:
            del self[record.task.model]

    def head_of(self, task: Task) -> TaskRecord | None:
        """Return the first in the line of a task's tenant, tier and model, if anyone stands there."""
        queue = self.get(task.model)
        line = queue.tiers[task.tier].ring.get(task.tenant) if queue else None
        return line[next(iter(line))] if line else None

    def everyone(self, model: str) -> list[TaskRecord]:
        """Return all who wait for a model."""
        queue = self.get(model)
        return queue.everyone() if queue else []
