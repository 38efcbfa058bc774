"""What the Scheduler remembers of a task, and how a task may move.

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

import msgspec

from cluster.domain import Choice, Task

if TYPE_CHECKING:
    from cluster.scheduler.turns import Line
    from cluster.scheduler.workers import WorkerRecord

Demand = tuple[str, bool]
"""What a task needs of any worker at all: a model, and whether it must be a simulated one."""


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


class Loss:
    """A worker that was lost with attempts on it. It is a death unless its process comes back."""

    __slots__ = ("at_s", "returned", "worker_id")

    def __init__(self, worker_id: str, at_s: float) -> None:
        self.worker_id = worker_id
        self.at_s = at_s
        self.returned = False


class Past:
    """What a task has been through, from the first bad end of an attempt on."""

    __slots__ = ("budgeted", "excluded", "failure", "losses", "patient", "resume_from", "resumes")

    def __init__(self) -> None:
        self.excluded: frozenset[str] = frozenset()
        """Workers on which an attempt ended badly."""
        self.losses: list[Loss] = []
        """One entry for each attempt that ended with its worker."""
        self.failure = ""
        """The code of the last bad end."""
        self.resumes: frozenset[str] = frozenset()
        """What its last worker could resume: only its equals can go on from there."""
        self.resume_from = 0
        """The token to go on from; 0 while its client has seen none."""
        self.patient = True
        """Whether it still waits for a worker of its own, if it should have one."""
        self.budgeted = False
        """Whether it is one of the retries of which only so many are made at a time."""

    @property
    def deaths(self) -> int:
        """How many attempts ended with a worker whose process is not back: a dropped link is no death."""
        return sum([not loss.returned for loss in self.losses])


class TaskRecord(msgspec.Struct, eq=False):
    """One live task. `sequence` is its rank of arrival, which it keeps over all attempts."""

    task: Task
    sequence: int
    submitted_at_s: float
    queued_at_s: float
    kv_tokens: int
    state: State = State.QUEUED
    queued_s: float = 0.0
    """Time spent in line before the current attempt or wait."""
    attempt: int = 0
    worker: WorkerRecord | None = None
    """Where it runs, while it runs."""
    choice: Choice | None = None
    """Why there."""
    kv_bytes: int = 0
    """What the current attempt has reserved on its worker."""
    kept: WorkerRecord | None = None
    """The worker that takes nothing else until it has room for this one."""
    line: Line | None = None
    """The account of its tenant that it was charged to, if others waited."""
    charged_tokens: int = 0
    past: Past | None = None
    """None while no attempt has ended badly."""

    @property
    def demand(self) -> Demand:
        """What it needs of any worker at all."""
        return self.task.model, self.task.simulated_only

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
