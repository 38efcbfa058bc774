"""What the Scheduler remembers of a task and of a worker, and how a task may move.

Rule 1: a task moves along `TRANSITIONS` or not at all. An event that has no entry for the state a
task is in is late or stray: it is counted and changes nothing.
Rule 2: an ended task leaves no trace here. `ENDED` is in the table, never in a record.
Rule 3: a slot belongs to an attempt, not to a task. It is held while the attempt runs, and after a
cancel until the worker has acknowledged it (`releasing`).

    submitted → QUEUED ──assign──→ RUNNING ──finish, give up──→ (ended)
                  ↑                   │ fail, lose
                  └──── fenced ──── FENCING ──give up──→ (ended)
    and: QUEUED ──refuse──→ (ended); from anywhere: cancel, expire → (ended)

FENCING is the moment between an attempt's end and the stream's answer to `FenceAttempt`: only that
answer says whether a client has seen tokens, so only then may the task be assigned again.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from cluster.domain import GpuReading, ModelOffer, Task, WorkerSpec

if TYPE_CHECKING:
    from cluster.scheduler.placement import Pool


class State(Enum):
    """Where a task stands."""

    QUEUED = auto()
    RUNNING = auto()
    FENCING = auto()
    ENDED = auto()

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is four times slower


class Trigger(Enum):
    """What moves a task."""

    REFUSE = auto()
    ASSIGN = auto()
    START = auto()
    FINISH = auto()
    FAIL = auto()
    LOSE = auto()
    FENCED = auto()
    GIVE_UP = auto()
    CANCEL = auto()
    EXPIRE = auto()

    __hash__ = object.__hash__


TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.QUEUED, Trigger.REFUSE): State.ENDED,
    (State.QUEUED, Trigger.ASSIGN): State.RUNNING,
    (State.QUEUED, Trigger.CANCEL): State.ENDED,
    (State.QUEUED, Trigger.EXPIRE): State.ENDED,
    (State.RUNNING, Trigger.START): State.RUNNING,
    (State.RUNNING, Trigger.FINISH): State.ENDED,
    (State.RUNNING, Trigger.FAIL): State.FENCING,
    (State.RUNNING, Trigger.LOSE): State.FENCING,
    (State.RUNNING, Trigger.GIVE_UP): State.ENDED,
    (State.RUNNING, Trigger.CANCEL): State.ENDED,
    (State.RUNNING, Trigger.EXPIRE): State.ENDED,
    (State.FENCING, Trigger.FENCED): State.QUEUED,
    (State.FENCING, Trigger.GIVE_UP): State.ENDED,
    (State.FENCING, Trigger.CANCEL): State.ENDED,
    (State.FENCING, Trigger.EXPIRE): State.ENDED,
}


class TaskRecord:
    """One live task. `sequence` is its rank of arrival, which it keeps over all attempts."""

    __slots__ = (
        "attempt",
        "excluded",
        "failure",
        "kv_bytes",
        "kv_tokens",
        "lost_on",
        "queued_at_s",
        "queued_s",
        "sequence",
        "state",
        "submitted_at_s",
        "task",
        "worker",
    )

    def __init__(self, task: Task, sequence: int, now: float) -> None:
        self.task = task
        self.sequence = sequence
        self.state = State.QUEUED
        self.kv_tokens = task.kv_tokens
        self.submitted_at_s = now
        self.queued_at_s = now
        self.queued_s = 0.0
        """Time spent in line before the current attempt or wait."""
        self.attempt = 0
        self.worker: WorkerRecord | None = None
        """Where it runs, while it runs."""
        self.kv_bytes = 0
        """What the current attempt has reserved on its worker."""
        self.excluded: frozenset[str] = frozenset()
        """Workers on which an earlier attempt ended badly."""
        self.lost_on: tuple[str, ...] = ()
        """Workers that were lost with an attempt, one entry an attempt."""
        self.failure = ""
        """The code of the last attempt's bad end."""

    def move(self, trigger: Trigger) -> bool:
        """Go where the table says; return False, unmoved, if it knows no such way."""
        after = TRANSITIONS.get((self.state, trigger))
        if after is None:
            return False
        self.state = after
        return True

    def waited_s(self, now: float) -> float:
        """Return the time spent in line, over all waits, of a task that waits."""
        return self.queued_s + now - self.queued_at_s


class Release:
    """A cancelled attempt whose worker has not said yet that it stopped: it still holds a slot."""

    __slots__ = ("attempt", "kv_bytes", "task_id", "worker")

    def __init__(self, record: TaskRecord, worker: WorkerRecord) -> None:
        self.task_id = record.task.id
        self.attempt = record.attempt
        self.kv_bytes = record.kv_bytes
        self.worker = worker


class WorkerRecord:
    """One live worker: what it can hold and what it holds."""

    __slots__ = (
        "draining",
        "held",
        "kv_used_bytes",
        "last_seen_at_s",
        "link",
        "node",
        "offers",
        "pool",
        "reading",
        "releasing",
        "running",
        "spec",
        "stale",
        "tokens_per_s",
        "version",
    )

    def __init__(self, spec: WorkerSpec, node: str, link: str, now: float) -> None:
        self.spec = spec
        self.node = node
        self.link = link
        self.offers: dict[str, ModelOffer] = {offer.id: offer for offer in spec.models}
        self.last_seen_at_s = now
        self.reading = GpuReading()
        self.tokens_per_s = 0.0
        self.draining = False
        self.stale = False
        """Whether it was found to be silent for too long to be given work."""
        self.running: dict[str, TaskRecord] = {}
        self.releasing: dict[tuple[str, int], Release] = {}
        """By task and attempt."""
        self.held = 0
        """Slots in use by both."""
        self.kv_used_bytes = 0
        self.pool: Pool
        """Its alternatives; set when it takes its place among them."""
        self.version = 0
        """Which entries of its pool's heaps are true."""

    @property
    def has_slot(self) -> bool:
        """Whether a slot is free."""
        return self.held < self.spec.capacity

    @property
    def load(self) -> float:
        """The larger share in use of slots and of KV cache, 0..1."""
        slots = self.held / self.spec.capacity
        return max(slots, self.kv_used_bytes / self.spec.kv_bytes) if self.spec.kv_bytes else slots

    def kv_need(self, record: TaskRecord) -> int:
        """Return the KV bytes a task would take here; 0 where the worker does not account them."""
        return record.kv_tokens * self.offers[record.task.model].kv_bytes_per_token if self.spec.kv_bytes else 0

    def limit_tokens(self, model: str) -> int:
        """Return the most tokens, prompt and answer, that one task of a model can ever have here."""
        return self._tokens(model, self.spec.kv_bytes)

    def room_tokens(self, model: str) -> int:
        """Return the most tokens that one task of a model can have if it starts here now."""
        return self._tokens(model, self.spec.kv_bytes - self.kv_used_bytes)

    def fits(self, record: TaskRecord) -> bool:
        """Return whether the task can start here now."""
        return self.held < self.spec.capacity and record.kv_tokens <= self.room_tokens(record.task.model)

    def take(self, record: TaskRecord) -> None:
        """Reserve a slot and KV cache for the task's current attempt."""
        record.worker = self
        record.kv_bytes = self.kv_need(record)
        self.running[record.task.id] = record
        self.held += 1
        self.kv_used_bytes += record.kv_bytes

    def give_back(self, record: TaskRecord) -> None:
        """Free what an attempt held that is over here too."""
        record.worker = None
        del self.running[record.task.id]
        self.held -= 1
        self.kv_used_bytes -= record.kv_bytes

    def start_release(self, record: TaskRecord) -> Release:
        """Keep what an attempt holds that is over for us, until it is over here."""
        record.worker = None
        del self.running[record.task.id]
        release = self.releasing[record.task.id, record.attempt] = Release(record, self)
        return release

    def end_release(self, task_id: str, attempt: int) -> Release | None:
        """Free what a cancelled attempt held; return None if there is no such attempt."""
        release = self.releasing.pop((task_id, attempt), None)
        if release is not None:
            self.held -= 1
            self.kv_used_bytes -= release.kv_bytes
        return release

    def _tokens(self, model: str, kv_bytes: int) -> int:
        offer = self.offers[model]
        if not self.spec.kv_bytes or not offer.kv_bytes_per_token:
            return offer.context_tokens
        return min(offer.context_tokens, kv_bytes // offer.kv_bytes_per_token)
