"""Why a task could not be served, in one sentence its client can act on.

Each function returns the command that ends the task. The codes are those of the error contract.
"""

from __future__ import annotations

from cluster.domain import Outcome
from cluster.scheduler.commands import FailTask
from cluster.scheduler.settings import Settings
from cluster.scheduler.state import TaskRecord


def no_worker(record: TaskRecord, outcome: Outcome, *, all_draining: bool) -> FailTask:
    """The model has no worker that takes new tasks."""
    why = "all workers that have it are draining" if all_draining else "no worker serves it"
    message = f"The model {record.task.model} cannot be served now: {why}."
    return _fail(record, outcome, "no_worker_available", message, retry_after_s=5.0)


def too_large(record: TaskRecord, limit_tokens: int) -> FailTask:
    """The task fits on none of the workers that serve its model, however free they are."""
    task = record.task
    message = (
        f"The request needs room for {record.kv_tokens} tokens ({task.prompt_tokens} in the prompt and up to "
        f"{task.generation.max_tokens} to generate); the largest worker that serves {task.model} has room for "
        f"{limit_tokens}."
    )
    return _fail(record, Outcome.FAILED, "no_worker_available", message, retry_after_s=60.0)


def waited_too_long(record: TaskRecord, queue_timeout_s: float) -> FailTask:
    """The task was not assigned in time."""
    message = f"No worker was free for the request within {queue_timeout_s:g} s."
    return _fail(record, Outcome.EXPIRED, "queue_timeout", message, retry_after_s=queue_timeout_s / 2)


def lived_too_long(record: TaskRecord, total_timeout_s: float) -> FailTask:
    """The task did not end in time."""
    message = f"The request was not complete after {total_timeout_s:g} s."
    return _fail(record, Outcome.EXPIRED, "timeout", message)


def refused_by_worker(record: TaskRecord, code: str) -> FailTask:
    """The worker said that another attempt would end as this one did."""
    message = _REFUSALS.get(code, "The worker could not generate an answer to this request.")
    return _fail(record, Outcome.FAILED, code if code in _REFUSALS else "worker_failed", message)


def of_attempts(record: TaskRecord, next_seq: int, deaths: int, settings: Settings) -> FailTask | None:
    """The attempts were too many, or the last got too far to be repeated; None if another may be made.

    `next_seq` is how far the stream has come, and `deaths` how many workers died with the task.
    """
    if next_seq > 0:
        verb = "was lost" if record.failure == "worker_lost" else "failed"
        message = f"The worker {verb} while it generated this answer."
        return _fail(record, Outcome.FAILED, record.failure, message)
    if deaths >= settings.max_deaths:
        message = f"{deaths} workers were lost while they served this request; it is not tried again."
        return _fail(record, Outcome.FAILED, "worker_crashed", message)
    if record.attempt >= settings.max_attempts:
        message = f"{record.attempt} attempts failed; no more are made."
        return _fail(record, Outcome.FAILED, record.failure, message)
    return None


def _fail(
    record: TaskRecord, outcome: Outcome, code: str, message: str, *, retry_after_s: float | None = None
) -> FailTask:
    return FailTask(record.task.node, record.task.id, outcome, code, message, retry_after_s)


_REFUSALS = {
    "context_length_exceeded": "The request is longer than the model's context on the worker that took it.",
}
"""What workers may tell clients; their other codes, and their words, stay in our logs."""
