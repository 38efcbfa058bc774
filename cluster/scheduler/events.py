"""What the Scheduler is told: frozen facts in past tense.

Do not subclass these. `Scheduler.handle(event, now)` is the only thing that reads them; the
Dispatcher stamps `now` on arrival, so no event carries a time of its own.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from cluster.domain import GpuReading, Task, WorkerSpec


class TaskSubmitted(msgspec.Struct, frozen=True, gc=False):
    """A gateway has accepted a request and opened its stream."""

    task: Task


class TaskCancelled(msgspec.Struct, frozen=True, gc=False):
    """Nobody waits for this task any more: its client left, or its key was revoked."""

    task_id: str


class AttemptStarted(msgspec.Struct, frozen=True, gc=False):
    """The first token of an attempt reached its stream."""

    task_id: str
    attempt: int


class AttemptFinished(msgspec.Struct, frozen=True, gc=False):
    """The worker generated the last token; its slot is free."""

    task_id: str
    attempt: int
    worker_id: str
    generated_tokens: int = 0
    """Over all attempts: what the tenant's share is settled with."""


class AttemptFailed(msgspec.Struct, frozen=True, gc=False):
    """The worker gave up on an attempt; its slot is free. `code` is a word, never its text."""

    task_id: str
    attempt: int
    worker_id: str
    code: str
    retryable: bool = True


class AttemptStalled(msgspec.Struct, frozen=True):
    """The stream saw no progress of its attempt for too long, however alive the worker is."""

    task_id: str
    attempt: int
    phase: Literal["first_token", "next_token"]


class AttemptReleased(msgspec.Struct, frozen=True, gc=False):
    """The worker acknowledged a cancel; its slot is free."""

    task_id: str
    attempt: int
    worker_id: str
    generated_tokens: int | None = None
    """None when nobody counted: then the tenant's share stays charged with the estimate."""


class AttemptFenced(msgspec.Struct, frozen=True, gc=False):
    """The stream closed an attempt for good and says where the next would begin."""

    task_id: str
    attempt: int
    next_seq: int


class WorkerJoined(msgspec.Struct, frozen=True):
    """A worker's link said hello. `link` is new with every connection and fences the old one."""

    worker: WorkerSpec
    node: str
    link: str


class HeartbeatReceived(msgspec.Struct, frozen=True):
    """A worker is alive. What it says of itself is telemetry; load is our own count."""

    worker_id: str
    link: str
    reading: GpuReading
    tokens_per_s: float = 0.0


class WorkerDraining(msgspec.Struct, frozen=True):
    """A worker wants no new work; what runs on it goes on."""

    worker_id: str
    link: str


class WorkerLost(msgspec.Struct, frozen=True):
    """A worker's link closed. `reason` is one word for logs and timelines."""

    worker_id: str
    link: str
    reason: str
    clean: bool = False
    """Whether it said goodbye or was sent away: nothing is wrong with it or with its tasks."""


class ProbeAnswered(msgspec.Struct, frozen=True):
    """A suspect worker generated the token that it was asked for, or said that it cannot."""

    worker_id: str
    link: str
    probe: int
    ok: bool


class IntentsObserved(msgspec.Struct, frozen=True):
    """What operators want of workers now: the whole truth each time, not a change of it."""

    cordoned: frozenset[str]
    draining: frozenset[str]


class LoopPaused(msgspec.Struct, frozen=True):
    """This process did not run for a while; what had arrived meanwhile has been handled since."""

    paused_s: float


class Tick(msgspec.Struct, frozen=True):
    """Time has passed: whatever is due happens now."""


Event = (
    TaskSubmitted
    | TaskCancelled
    | AttemptStarted
    | AttemptFinished
    | AttemptFailed
    | AttemptStalled
    | AttemptReleased
    | AttemptFenced
    | WorkerJoined
    | HeartbeatReceived
    | WorkerDraining
    | WorkerLost
    | ProbeAnswered
    | IntentsObserved
    | LoopPaused
    | Tick
)
