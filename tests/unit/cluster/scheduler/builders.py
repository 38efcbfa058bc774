"""Events, commands and workers in the fewest words, and a scheduler that checks itself.

A task takes 100 tokens and a token takes one byte, so that a worker's `kv_tokens` are its KV bytes.
Tasks come from the gateway of node-1, workers are linked to node-2, so that a mix-up shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unittest.mock import ANY

from cluster.domain import Generation, GpuInfo, GpuReading, Message, ModelOffer, Task, Tier, WaitReason, WorkerSpec
from cluster.scheduler.commands import AnnounceAttempt, AnnounceWait, AssignTask, CancelAttempt, Command, FailTask
from cluster.scheduler.core import Scheduler
from cluster.scheduler.events import Event, HeartbeatReceived, TaskSubmitted, WorkerJoined

MODEL = "llama-3-8b"


class CheckedScheduler(Scheduler):
    """A scheduler that checks its invariants after every event."""

    def handle(self, event: Event, now: float) -> list[Command]:
        commands = super().handle(event, now)
        self.check_invariants()
        return commands


def make_task(
    task_id: str,
    *,
    model: str = MODEL,
    tenant: str = "alice",
    tier: Tier = Tier.DEFAULT,
    prompt_tokens: int = 10,
    max_tokens: int = 90,
    simulated_only: bool = False,
) -> Task:
    """Return a task."""
    return Task(
        id=task_id,
        model=model,
        tenant=tenant,
        tenant_label=tenant.capitalize(),
        tier=tier,
        node="node-1",
        prompt_tokens=prompt_tokens,
        generation=Generation(messages=(Message("user", "hello"),), max_tokens=max_tokens, seed=1),
        simulated_only=simulated_only,
    )


def make_spec(
    worker_id: str,
    *,
    models: Iterable[str] = (MODEL,),
    capacity: int = 1,
    kv_tokens: int = 100_000,
    context_tokens: int = 8_192,
    instance: str = "i-1",
    resumes: Iterable[str] = (),
    simulated: bool = False,
    lineage: str = "",
) -> WorkerSpec:
    """Return a worker; with `kv_tokens=0` it does not account KV."""
    return WorkerSpec(
        id=worker_id,
        name=f"name of {worker_id}",
        instance=instance,
        gpu=GpuInfo(name="H100"),
        models=tuple(ModelOffer(id=m, context_tokens=context_tokens, kv_bytes_per_token=1) for m in models),
        capacity=capacity,
        kv_bytes=kv_tokens,
        resumes=frozenset(resumes),
        simulated=simulated,
        lineage=lineage,
    )


def submit(task: Task) -> TaskSubmitted:
    """Return the arrival of a task."""
    return TaskSubmitted(task)


def join(spec: WorkerSpec, link: str | None = None) -> WorkerJoined:
    """Return the arrival of a worker."""
    return WorkerJoined(spec, "node-2", link or _link(spec.id))


def beat(worker_id: str, link: str | None = None) -> HeartbeatReceived:
    """Return a heartbeat."""
    return HeartbeatReceived(worker_id, link or _link(worker_id), GpuReading())


def started(
    task: Task,
    worker_id: str,
    attempt: int = 1,
    *,
    queued_s: Any = 0.0,
    link: str | None = None,
    resume_from: int = 0,
    choice: Any = ANY,
) -> list[Command]:
    """Return the commands that begin an attempt; `queued_s` may be an approximation."""
    return [
        AnnounceAttempt("node-1", task.id, attempt, worker_id, f"name of {worker_id}", queued_s, choice, "H100"),
        AssignTask("node-2", worker_id, link or _link(worker_id), task, attempt, resume_from),
    ]


def waits(task: Task, why: WaitReason = WaitReason.NO_SLOT, position: int = 1) -> AnnounceWait:
    """Return the command that tells a stream that its task was put in line."""
    return AnnounceWait("node-1", task.id, why, position)


def cancelled(task: Task, worker_id: str, attempt: int = 1, *, link: str | None = None) -> CancelAttempt:
    """Return the command that stops an attempt."""
    return CancelAttempt("node-2", worker_id, link or _link(worker_id), task.id, attempt)


def assigned(commands: Iterable[Command]) -> list[tuple[str, str]]:
    """Return which task went to which worker, in order."""
    return [(command.task.id, command.worker_id) for command in commands if isinstance(command, AssignTask)]


def codes(commands: Iterable[Command]) -> list[tuple[str, str, str]]:
    """Return which tasks were ended, with what outcome and code, in order."""
    return [(fail.task_id, fail.outcome.value, fail.code) for fail in commands if isinstance(fail, FailTask)]


def _link(worker_id: str) -> str:
    return f"link of {worker_id}"
