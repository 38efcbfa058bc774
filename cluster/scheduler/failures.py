"""Why a task could not be served, in one sentence its client can act on.

Each function returns the command that ends the task. The codes are those of the error contract.
"""

from __future__ import annotations

from cluster.domain import Outcome
from cluster.scheduler.commands import FailTask
from cluster.scheduler.settings import Settings
from cluster.scheduler.state import Past, TaskRecord


def no_worker(record: TaskRecord, outcome: Outcome, *, present: bool, all_draining: bool) -> FailTask:
    """The model has no worker that takes new tasks."""
    if all_draining:
        why = "all workers that have it are draining"
    elif present:
        why = "none of the workers that have it takes new requests"
    else:
        why = "no worker serves it"
    message = f"The model {record.task.model} cannot be served now: {why}."
    return _fail(record, outcome, "no_worker_available", message, retry_after_s=5.0)


def too_large(record: TaskRecord, limit_tokens: int, outcome: Outcome = Outcome.FAILED) -> FailTask:
    """The task fits on none of the workers that serve its model, however free they are."""
    task = record.task
    message = (
        f"The request needs room for {record.kv_tokens} tokens ({task.prompt_tokens} in the prompt and up to "
        f"{task.generation.max_tokens} to generate); the largest worker that serves {task.model} has room for "
        f"{limit_tokens}."
    )
    return _fail(record, outcome, "no_worker_available", message, retry_after_s=60.0)


def share_exceeded(record: TaskRecord, retry_after_s: float) -> FailTask:
    """The tenant has as many tasks in line as one tenant may have."""
    message = "Too many of your requests are waiting; send more when some of them have been served."
    return _fail(record, Outcome.FAILED, "rate_limit_exceeded", message, retry_after_s=retry_after_s)


def queue_full(record: TaskRecord, retry_after_s: float) -> FailTask:
    """As many tasks are in line as may be."""
    message = "The service is overloaded and its queue is full; try again in a moment."
    return _fail(record, Outcome.FAILED, "engine_overloaded", message, retry_after_s=retry_after_s)


def waited_too_long(record: TaskRecord, queue_timeout_s: float) -> FailTask:
    """The task was not assigned in time."""
    past = record.past
    if past is not None and past.resume_from:
        return broken_off(record, past)
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


def of_attempts(record: TaskRecord, past: Past, settings: Settings) -> FailTask | None:
    """The attempts were too many, or killed too many workers; None if another may be made."""
    if past.deaths >= settings.max_deaths:
        message = f"{past.deaths} workers were lost while they served this request; it is not tried again."
        return _fail(record, Outcome.FAILED, "worker_crashed", message)
    if record.attempt >= settings.max_attempts:
        if past.resume_from:
            return broken_off(record, past)
        message = f"{record.attempt} attempts failed; no more are made."
        return _fail(record, Outcome.FAILED, past.failure, message)
    return None


def no_retry_left(record: TaskRecord, past: Past) -> FailTask:
    """So many tasks are being tried again that one more would only add to the trouble."""
    if past.resume_from:
        return broken_off(record, past)
    message = "The worker failed, and too many failed requests are being tried again already."
    return _fail(record, Outcome.FAILED, past.failure, message)


def broken_off(record: TaskRecord, past: Past) -> FailTask:
    """The client has seen tokens, and no worker goes on from there."""
    message = f"The worker {_VERBS.get(past.failure, 'failed')} while it generated this answer."
    return _fail(record, Outcome.FAILED, past.failure, message)


def _fail(
    record: TaskRecord, outcome: Outcome, code: str, message: str, *, retry_after_s: float | None = None
) -> FailTask:
    return FailTask(record.task.node, record.task.id, outcome, code, message, retry_after_s)


_VERBS = {"worker_lost": "was lost", "worker_stalled": "stopped making progress"}
_REFUSALS = {
    "context_length_exceeded": "The request is longer than the model's context on the worker that took it.",
}
"""What workers may tell clients; their other codes, and their words, stay in our logs."""
