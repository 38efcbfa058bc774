"""What must be true when a run is over: of every request, and of what is left in the product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cluster.domain import Generation, Message
from tests.simulation.workers import PROBE, answer_to

if TYPE_CHECKING:
    from tests.simulation.clients import SimClient
    from tests.simulation.world import World

TOO_SLOW = "client_too_slow"
RETRIED = ("worker_lost", "worker_failed")
"""Ends of an attempt after which another is made while the client has seen nothing."""


def judge(world: World) -> Iterator[str]:
    """Say all that is wrong, a sentence each."""
    for client in world.clients:
        yield from _judge_client(world, client)
    yield from _judge_rest(world)


def outcomes_of(world: World) -> Counter[str]:
    """Return how the requests ended, by outcome and code."""
    counted: Counter[str] = Counter()
    for client in world.clients:
        settlement = client.entry.settlement if client.entry else None
        if settlement is None:
            counted["refused"] += 1
        else:
            counted[settlement.outcome.value + (f" {settlement.error_code}" if settlement.error_code else "")] += 1
    return counted


def _judge_client(world: World, client: SimClient) -> Iterator[str]:
    if not client.over:
        yield f"{client.id} never ended"
        return
    expected = "".join(_expected(client))
    text = client.text
    if not expected.startswith(text):
        yield f"{client.id} got {text!r}, which does not begin {expected!r}"
    entry = client.entry
    if entry is None:
        if client.gone_at_s is None and client.status == 200:
            yield f"{client.id} was answered and is not on record"
        return
    end = entry.settlement
    if end is None:
        yield f"{client.id} has no outcome"
        return
    if end.error_code == TOO_SLOW:
        # Cut off, where the server can; what it takes later it takes for free.
        if client.ending == "done" or end.delivered_tokens > client.handed_tokens:
            yield f"{client.id} was given up as too slow, told {client.ending} and billed {end.delivered_tokens} tokens"
    elif client.gone_at_s is None:
        yield from _judge_answer(client, text, expected)
        if client.stream and end.delivered_tokens != client.handed_tokens:
            yield f"{client.id} is billed {end.delivered_tokens} tokens and got {client.handed_tokens}"
    elif not client.passed_tokens <= end.delivered_tokens <= client.handed_tokens and client.stream:
        yield f"{client.id} left, is billed {end.delivered_tokens} of {client.passed_tokens}..{client.handed_tokens}"
    if end.attempts > world.scheduler.settings.max_attempts:
        yield f"{client.id} had {end.attempts} attempts"
    if world.poisoned[client.id] > world.scheduler.settings.max_deaths + world.stalled[client.id]:
        yield f"{client.id} killed {world.poisoned[client.id]} workers"
    exhausted = end.attempts >= world.scheduler.settings.max_attempts or client.id in world.refused
    if end.error_code in RETRIED and not exhausted and (not client.stream or not client.handed_tokens):
        yield f"{client.id} was given up after {end.attempts} attempts, and its client had seen nothing"
    if world.plan.calm and end.outcome != "completed":
        yield f"{client.id} {end.outcome} {end.error_code} in a calm world"


def _judge_answer(client: SimClient, text: str, expected: str) -> Iterator[str]:
    """Compare what a client that stayed was told with what is on record."""
    assert client.entry is not None and client.entry.settlement is not None
    end, on_record = client.entry.settlement, client.entry.committed_as
    if client.ending == "done":
        if on_record != "completed":
            yield f"{client.id} was told that it is complete and is on record as {on_record}"
        if text != expected:
            yield f"{client.id} was told that {text!r} is all of {expected!r}"
        if not client.stream and end.delivered_tokens != len(_expected(client)):
            yield f"{client.id} is billed {end.delivered_tokens} tokens and got {len(_expected(client))}"
    else:
        if on_record == "completed":
            yield f"{client.id} is on record as completed and was told {client.ending}"
        if client.ending == "cut":
            yield f"{client.id} was cut off without a word"


def _judge_rest(world: World) -> Iterator[str]:
    """When all is over nothing may be left."""
    scheduler, gateway = world.scheduler, world.gateway
    if left := sorted(scheduler.live_task_ids()):
        yield f"the scheduler still has {left}"
    if scheduler.queues.depth:
        yield f"{scheduler.queues.depth} tasks are still in line"
    if gateway.streams:
        yield f"the gateway still has the streams {sorted(gateway.streams)}"
    for worker in scheduler.placement.workers.values():
        if worker.held or worker.kv_used_bytes:
            yield f"{worker.spec.name} is idle and holds {worker.held} slots, {worker.kv_used_bytes} KV bytes"
    for link in gateway.links.values():
        # A cancel that was not answered may be yet, as long as the link is up.
        left_over = {key for key in link.assigned - world.unanswered if not key[0].startswith(PROBE)}
        if link.worker is not None and left_over:
            yield f"the link of {link.worker.name} still lists {sorted(left_over)}"
    for worker in world.workers:
        if jobs := sorted(key for key in worker.jobs if not key[0].startswith(PROBE)):
            yield f"{worker.name} still works for {jobs}"
        if not worker.linked:
            yield f"{worker.name} has not come back"
    if world.ledger.live:
        yield f"{world.ledger.live} requests have no outcome"
    if overdue := [entry.id for entry in world.ledger.entries.values() if entry.settled and not entry.committed_as]:
        yield f"the outcomes of {overdue} never reached the disk"


def _expected(client: SimClient) -> list[str]:
    body = client.body
    prompt = body["messages"][0]["content"]
    generation = Generation(messages=(Message("user", prompt),), max_tokens=body["max_tokens"], seed=body["seed"])
    return answer_to(generation)
