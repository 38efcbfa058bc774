"""What the Scheduler asks for: imperative values that the Dispatcher sends to gateways.

Every command names the node it is for: the one that holds the client's stream (`AnnounceAttempt`,
`AnnounceWait`, `FenceAttempt`, `FailTask`) or the one that holds the worker's link (the others). On one machine
these are the same node; nothing here may assume so.
"""

from __future__ import annotations

import msgspec

from cluster.domain import Choice, Outcome, Task, WaitReason


class AnnounceAttempt(msgspec.Struct, frozen=True, gc=False):
    """Tell the stream which attempt may write to it from now on. Always precedes `AssignTask`."""

    node: str
    task_id: str
    attempt: int
    worker_id: str
    worker_name: str
    queued_s: float
    """How long the task has waited in queues so far."""
    choice: Choice | None = None
    """Why this worker."""
    worker_gpu: str = ""


class AnnounceWait(msgspec.Struct, frozen=True):
    """Tell the stream that its task was put in line, why, and about how many go before it."""

    node: str
    task_id: str
    why: WaitReason
    position: int
    """1 is next."""


class AssignTask(msgspec.Struct, frozen=True, gc=False):
    """Hand the task to a worker."""

    node: str
    worker_id: str
    link: str
    task: Task
    attempt: int
    resume_from: int = 0
    """Index of the first token to emit; 0 is a fresh start."""


class CancelAttempt(msgspec.Struct, frozen=True, gc=False):
    """Ask a worker to stop; it answers with `finished: cancelled`."""

    node: str
    worker_id: str
    link: str
    task_id: str
    attempt: int


class FenceAttempt(msgspec.Struct, frozen=True, gc=False):
    """Close an attempt at its stream, which answers with `AttemptFenced`."""

    node: str
    task_id: str
    attempt: int
    why: str = ""
    """The code of its bad end: `worker_lost`, `worker_failed`, `worker_stalled`."""


class FailTask(msgspec.Struct, frozen=True, gc=False):
    """End the stream with an error that its client can act on."""

    node: str
    task_id: str
    outcome: Outcome
    code: str
    """A word of the error contract: `no_worker_available`, `queue_timeout`, `timeout`, `worker_lost` …"""
    message: str
    """One sentence for the client: what happened and which constraint failed."""
    retry_after_s: float | None = None


class EvictWorker(msgspec.Struct, frozen=True):
    """Close a worker's link with a protocol close code."""

    node: str
    worker_id: str
    link: str
    close_code: int
    reason: str


PROBE_PREFIX = "probe_"


def probe_task_id(probe: int) -> str:
    """Return what a probe is called on the wire."""
    return f"{PROBE_PREFIX}{probe}"


class ProbeWorker(msgspec.Struct, frozen=True):
    """Ask a suspect worker for one token; it is answered with `ProbeAnswered`."""

    node: str
    worker_id: str
    link: str
    probe: int
    model: str

    @property
    def task_id(self) -> str:
        """What the probe is called on the wire, where it is a task like any other."""
        return probe_task_id(self.probe)


class DrainWorker(msgspec.Struct, frozen=True):
    """Ask a worker to finish what it has and leave."""

    node: str
    worker_id: str
    link: str


Command = (
    AnnounceAttempt
    | AnnounceWait
    | AssignTask
    | CancelAttempt
    | FenceAttempt
    | FailTask
    | ProbeWorker
    | DrainWorker
    | EvictWorker
)
