"""A net that catches nothing proves nothing: each bug planted here must be caught by the simulation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.domain import Outcome
from cluster.engine.gateway import Gateway
from cluster.engine.streams import TokenStream, Verdict
from cluster.scheduler.commands import CancelAttempt, FenceAttempt
from cluster.scheduler.core import Scheduler
from cluster.scheduler.events import AttemptFenced
from cluster.scheduler.workers import WorkerRecord
from inference.completions import Completion
from tests.simulation.runner import run_seeds

SEEDS = range(1, 101)
"""As many as a plain bug may take to show."""


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Replace a method of the product: the new one is given the old one first."""

    def replace(owner: Any, name: str, new: Any) -> None:
        old = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **more: new(old, *args, **more))

    yield replace


def assert_caught(*signs: str) -> None:
    """Run seeds until something is violated; one of the signs must be among what is said of it."""
    report = run_seeds(SEEDS, stop_at_violation=True)
    assert report.violations, "the simulation has not noticed"
    said = "\n".join(report.violations.popitem()[1])
    assert any(sign in said for sign in signs), said


def test_the_simulation_catches_a_skipped_fence(plant):
    """The stream answers as it should, and goes on taking what the old attempt sends."""

    def fence(old: Any, stream: TokenStream, attempt: int) -> int:
        worker_id = stream.worker_id
        next_seq: int = old(stream, attempt)
        stream.worker_id = worker_id
        return next_seq

    plant(TokenStream, "fence", fence)

    assert_caught("took tokens of a fenced attempt")


def test_the_simulation_catches_a_fence_that_keeps_what_nobody_has_seen(plant):
    plant(TokenStream, "fence", lambda old, stream, attempt: stream.next_seq)

    assert_caught("and its client had seen nothing", "took tokens of a fenced attempt")


def test_the_simulation_catches_a_stream_that_takes_tokens_of_any_attempt(plant):
    def push(old: Any, stream: TokenStream, worker_id: str, attempt: int, seq: int, texts: list[str]) -> Verdict:
        return old(stream, stream.worker_id, stream.attempt, seq, texts)

    plant(TokenStream, "push", push)

    assert_caught("evil", "took tokens of a fenced attempt", "did nothing wrong and was hung up on")


def test_the_simulation_catches_a_skipped_position(plant):
    def push(old: Any, stream: TokenStream, worker_id: str, attempt: int, seq: int, texts: list[str]) -> Verdict:
        return old(stream, worker_id, attempt, stream.next_seq, texts)

    plant(TokenStream, "push", push)

    assert_caught("which does not begin", "is all of")


def test_the_simulation_catches_a_fence_that_is_answered_for_the_stream(plant):
    def execute(old: Any, gateway: Gateway, command: Any) -> None:
        if isinstance(command, FenceAttempt):
            gateway._broker.publish_event(AttemptFenced(command.task_id, command.attempt, 0))
        else:
            old(gateway, command)

    plant(Gateway, "execute", execute)

    assert_caught("took tokens of a fenced attempt")


def test_the_simulation_catches_a_leaked_slot(plant):
    """After a failure that a worker reported its slot is given back everywhere but in the sum."""

    def give_back(old: Any, worker: WorkerRecord, record: Any) -> None:
        old(worker, record)
        worker.held += 1

    plant(WorkerRecord, "give_back", give_back)

    assert_caught("slots")


def test_the_simulation_catches_a_slot_that_no_release_gives_back(plant):
    plant(WorkerRecord, "end_release", lambda old, worker, task_id, attempt: None)

    assert_caught("a cancel may stay unanswered")


def test_the_simulation_catches_an_attempt_that_the_gateway_never_strikes_off(plant):
    def end_assignment(old: Any, gateway: Gateway, link: Any, task_id: str, attempt: int) -> bool:
        held = (task_id, attempt) in link.assigned
        return held or old(gateway, link, task_id, attempt)

    plant(Gateway, "_end_assignment", end_assignment)

    assert_caught("still lists")


def test_the_simulation_catches_a_stream_that_is_never_closed(plant):
    plant(Gateway, "close", lambda old, gateway, stream: gateway.abandon(stream))

    assert_caught("still has the streams")


def test_the_simulation_catches_a_cancel_that_is_lost_on_its_way_to_the_worker(plant):
    def execute(old: Any, gateway: Gateway, command: Any) -> None:
        if not isinstance(command, CancelAttempt):
            old(gateway, command)

    plant(Gateway, "execute", execute)

    assert_caught("whose client is gone", "at once")


def test_the_simulation_catches_a_departure_that_nobody_is_told_of(plant):
    plant(Gateway, "abandon", lambda old, gateway, stream: stream.abandon())

    assert_caught("whose client is gone")


def test_the_simulation_catches_an_outcome_that_is_decided_twice(plant):
    def settle(old: Any, completion: Completion, *args: Any, **more: Any) -> None:
        completion.settlement = None
        old(completion, *args, **more)

    plant(Completion, "_settle", settle)

    assert_caught("is settled twice")


def test_the_simulation_catches_a_farewell_before_the_commit(plant):
    async def complete(old: Any, completion: Completion) -> None:
        completion._settle(Outcome.COMPLETED, finish_reason=str(completion.stream.finish_reason))

    plant(Completion, "complete", complete)

    assert_caught("before that is on record")


def test_the_simulation_catches_tokens_that_are_not_billed(plant):
    def settle(old: Any, completion: Completion, *args: Any, **more: Any) -> None:
        completion.delivered_tokens = max(0, completion.delivered_tokens - 1)
        old(completion, *args, **more)

    plant(Completion, "_settle", settle)

    assert_caught("is billed")


def test_the_simulation_catches_a_worker_that_is_evicted_for_nothing(plant):
    plant(Scheduler, "_on_heartbeat", lambda old, scheduler, event, now: None)

    assert_caught("did nothing wrong and was hung up on")
