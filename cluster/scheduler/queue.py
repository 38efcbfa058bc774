"""Who waits: queues per (model, tier, tenant), and in what order they may go.

Between tiers: strict; the exception for aged tasks is `matching`'s business. Between the tenants of a
tier: by turns (`turns`). Inside (model, tier, tenant): by arrival.

A task that comes back from a failed attempt has had its turn and has paid for it: it goes before all
turns of its tier, by arrival, and holds nobody up. Of the others only heads of lines may go: nobody
overtakes inside their own line, but a head that fits nowhere does not hold up other tenants.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heapreplace
from itertools import islice

from cluster.domain import Task, Tier
from cluster.scheduler.pace import Pace
from cluster.scheduler.state import TaskRecord
from cluster.scheduler.turns import Line, Rounds

SPARE_LINES = 64
"""Lines with nobody in them that are not worth a sweep."""


class TierQueue:
    """The waiting tasks of one model and tier."""

    __slots__ = ("_crowded", "_estimated_tokens", "_quantum_tokens", "arrivals", "lines", "returned", "rounds")

    def __init__(self, quantum_tokens: int, estimated_tokens: int) -> None:
        self.returned: list[TaskRecord] = []
        """Who comes back from a failed attempt, by arrival."""
        self.arrivals: OrderedDict[str, TaskRecord] = OrderedDict()
        """Everybody else, by arrival: so the oldest is at hand, and heads a line."""
        self.lines: dict[str, Line] = {}
        """By tenant: those with tasks, and those whose tenant has used more than a newcomer."""
        self.rounds = Rounds(quantum_tokens)
        self._quantum_tokens = quantum_tokens
        self._crowded = SPARE_LINES
        """With more lines than this it is time for a sweep."""
        self._estimated_tokens = estimated_tokens

    @property
    def depth(self) -> int:
        """How many wait."""
        return len(self.arrivals) + len(self.returned)

    @property
    def oldest(self) -> TaskRecord | None:
        """Who came first of those that wait."""
        if not self.arrivals:
            return self.returned[0] if self.returned else None
        first = self.arrivals[next(iter(self.arrivals))]
        return self.returned[0] if self.returned and self.returned[0].sequence < first.sequence else first

    def push(self, record: TaskRecord) -> None:
        """Add a task at its rank."""
        task = record.task
        if record.past is not None:
            insort(self.returned, record, key=_rank)
            return
        self.arrivals[task.id] = record
        line = self.lines.get(task.tenant)
        if line is None:
            line = self.lines[task.tenant] = Line(task.tenant)
        line.tasks[task.id] = record
        if line.number < 0:
            self.rounds.enter(line)

    def remove(self, record: TaskRecord) -> None:
        """Take a task out that does not go."""
        task = record.task
        if record.past is not None:
            del self.returned[bisect_left(self.returned, record.sequence, key=_rank)]
        else:
            line = self.lines[task.tenant]
            was_head = line.head is record
            del line.tasks[task.id]
            del self.arrivals[task.id]
            if not line.tasks:
                self.rounds.leave(line)
            elif was_head:
                self.rounds.moved_up(line)
        self._tidy()

    def serve(self, record: TaskRecord) -> None:
        """Take a task out because it goes; if it has its turn now, that is charged."""
        task = record.task
        if record.past is not None:
            del self.returned[bisect_left(self.returned, record.sequence, key=_rank)]
        else:
            line = self.lines[task.tenant]
            del line.tasks[task.id]
            del self.arrivals[task.id]
            record.line, record.charged_tokens = line, self._estimate(task)
            self.rounds.serve(line, record.charged_tokens)
        self._tidy()

    def charge(self, record: TaskRecord) -> None:
        """Charge a task that goes without having waited, while others wait."""
        task = record.task
        line = self.lines.get(task.tenant)
        if line is None:
            line = self.lines[task.tenant] = Line(task.tenant)
        record.line, record.charged_tokens = line, self._estimate(task)
        self.rounds.charge(line, record.charged_tokens)

    def settle(self, record: TaskRecord, used_tokens: int) -> None:
        """Replace what a task was charged by what it used."""
        line, record.line = record.line, None
        if line is not None and self.lines.get(line.tenant) is line:
            self.rounds.settle(line, record.charged_tokens, used_tokens)

    def heads(self) -> Iterator[TaskRecord]:
        """Yield who may go, in order."""
        yield from self.returned
        for line in self.rounds:
            yield line.head

    def ahead_of(self, record: TaskRecord) -> int:
        """Return about how many of this tier go before a task that has just been pushed."""
        if record.past is not None:
            return len(self.returned) - 1
        behind_own = len(self.lines[record.task.tenant].tasks) - 1
        return len(self.returned) + min(len(self.arrivals) - 1, (behind_own + 1) * self.rounds.size - 1)

    def in_order(self, limit: int) -> list[TaskRecord]:
        """Return the first tasks in the order in which they would go, at most `limit`."""
        found = list(islice(self.returned, limit))
        heap = [
            (line.number, turn, line.used_tokens, iter(line.tasks.values()))
            for turn, line in enumerate(islice(self.rounds, limit))
        ]
        heapify(heap)
        turn = limit
        while heap and len(found) < limit:
            _, _, used_tokens, tasks = heap[0]
            record = next(tasks, None)
            if record is None:
                heappop(heap)
                continue
            found.append(record)
            used_tokens += self._estimate(record.task)
            turn += 1
            heapreplace(heap, (self.rounds.number_at(used_tokens), turn, used_tokens, tasks))
        return found

    def _estimate(self, task: Task) -> int:
        return task.prompt_tokens + min(task.generation.max_tokens, self._estimated_tokens)

    def _tidy(self) -> None:
        """Forget accounts that say no more than a newcomer's would."""
        if not self.rounds.size:
            self.lines.clear()
            self.rounds = Rounds(self._quantum_tokens)
        elif len(self.lines) > max(self._crowded, 2 * self.rounds.active):
            origin_tokens = self.rounds.origin_tokens
            self.lines = {
                tenant: line
                for tenant, line in self.lines.items()
                if line.tasks or line.unsettled or line.used_tokens > origin_tokens
            }
            self._crowded = 2 * len(self.lines) + SPARE_LINES


class ModelQueue:
    """The waiting tasks of one model, a `TierQueue` per tier, the first to be served first."""

    __slots__ = ("depth", "largest_tokens", "pace", "tiers")

    def __init__(self, pace: Pace, quantum_tokens: int, estimated_tokens: int) -> None:
        self.depth = 0
        """How many wait."""
        self.largest_tokens = 0
        """None of them needs room for more."""
        self.pace = pace
        self.tiers = tuple(TierQueue(quantum_tokens, estimated_tokens) for _ in Tier)

    def heads(self) -> Iterator[TaskRecord]:
        """Yield who may go, in order. Do not change the queue while iterating."""
        for tier in self.tiers:
            yield from tier.heads()

    def everyone(self) -> list[TaskRecord]:
        """Return all who wait."""
        return [record for tier in self.tiers for record in (*tier.returned, *tier.arrivals.values())]

    def returned(self) -> list[TaskRecord]:
        """Return all who wait after a failed attempt, in order."""
        return [record for tier in self.tiers for record in tier.returned]


class Queues(dict[str, ModelQueue]):
    """All waiting tasks: a `ModelQueue` for each model that has any."""

    __slots__ = (
        "_aged_every",
        "_estimated_tokens",
        "_paces",
        "_quantum_tokens",
        "by_tenant",
        "depth",
        "prompt_tokens",
        "prompt_tokens_by_tenant",
    )

    MAX_PACES = 1_024

    def __init__(self, *, quantum_tokens: int, estimated_tokens: int, aged_every: int) -> None:
        super().__init__()
        self.depth = 0
        """How many wait."""
        self.prompt_tokens = 0
        """In all their prompts."""
        self.by_tenant: Counter[str] = Counter()
        """How many of each tenant wait; nobody with none."""
        self.prompt_tokens_by_tenant: Counter[str] = Counter()
        """In the prompts of these."""
        self._paces: dict[str, Pace] = {}
        self._quantum_tokens = quantum_tokens
        self._estimated_tokens = estimated_tokens
        self._aged_every = aged_every

    def push(self, record: TaskRecord, now: float) -> None:
        """Add a task at its rank."""
        task = record.task
        queue = self.get(task.model)
        if queue is None:
            queue = self[task.model] = ModelQueue(self.pace(task.model), self._quantum_tokens, self._estimated_tokens)
            queue.pace.drain.begin(now)
        queue.tiers[task.tier].push(record)
        queue.depth += 1
        if record.kv_tokens > queue.largest_tokens:
            queue.largest_tokens = record.kv_tokens
        if record.past is not None:
            queue.pace.quiet = (-1, 0.0)  # what it waited before counts too
        self.depth += 1
        self.by_tenant[task.tenant] += 1
        self.prompt_tokens += task.prompt_tokens
        self.prompt_tokens_by_tenant[task.tenant] += task.prompt_tokens

    def remove(self, record: TaskRecord) -> None:
        """Take a task out."""
        queue = self[record.task.model]
        queue.tiers[record.task.tier].remove(record)
        self._count_out(queue, record.task)

    def serve(self, record: TaskRecord, now: float) -> None:
        """Take a task out because it goes."""
        queue = self[record.task.model]
        queue.tiers[record.task.tier].serve(record)
        queue.pace.drain.note(now)
        self._count_out(queue, record.task)

    def settle(self, record: TaskRecord, used_tokens: int) -> None:
        """Replace what a task was charged by what it used, once and if that still matters to anybody."""
        queue = self.get(record.task.model)
        if queue is not None:
            queue.tiers[record.task.tier].settle(record, used_tokens)

    def head_of(self, task: Task) -> TaskRecord | None:
        """Return the first in the line of a task's tenant, tier and model, if anyone stands there."""
        queue = self.get(task.model)
        line = queue.tiers[task.tier].lines.get(task.tenant) if queue else None
        return line.head if line and line.tasks else None

    def rank(self, head: TaskRecord) -> tuple[int, int, int]:
        """Return what the first of a line is ordered by among those of its model."""
        task = head.task
        line = self[task.model].tiers[task.tier].lines[task.tenant]
        return task.tier, line.number, line.place

    def everyone(self, model: str) -> list[TaskRecord]:
        """Return all who wait for a model."""
        queue = self.get(model)
        return queue.everyone() if queue else []

    def _count_out(self, queue: ModelQueue, task: Task) -> None:
        queue.depth -= 1
        self.depth -= 1
        self.prompt_tokens -= task.prompt_tokens
        left = self.by_tenant[task.tenant] - 1
        if left:
            self.by_tenant[task.tenant] = left
            self.prompt_tokens_by_tenant[task.tenant] -= task.prompt_tokens
        else:
            del self.by_tenant[task.tenant]
            del self.prompt_tokens_by_tenant[task.tenant]
        if not queue.depth:
            del self[task.model]

    def pace(self, model: str) -> Pace:
        """Return what is remembered of a model's queue."""
        pace = self._paces.get(model)
        if pace is None:
            if len(self._paces) >= self.MAX_PACES:
                self._paces = {name: self._paces[name] for name in self}
            pace = self._paces[model] = Pace(self._aged_every)
        return pace


def _rank(record: TaskRecord) -> int:
    return record.sequence
