"""What a key's terms do to a request, on a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from accounts.limits import Limits
from cluster.domain import Outcome
from cluster.protocol.messages import Cancel
from inference.openai.errors import ApiError
from inference.revocation import RevocationWatch
from tests.unit.cluster.engine.rig import Rig
from tests.unit.inference.rig import Desk

PROMPT_TOKENS = 8
"""Of the desk's usual request."""


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    rig = Rig()
    yield Desk(rig)
    rig.stop()


async def refusal_of(desk: Desk, *, terms: dict[str, Any], **body: Any) -> ApiError:
    with pytest.raises(ApiError) as refused:
        await desk.start("req_refused", terms=terms, **body)
    return refused.value


@pytest.mark.parametrize(("globs", "may"), [(("llama-*",), True), (("gpt-*", "llama-3-8b"), True), (("gpt-*",), False)])
async def test_a_model_that_a_key_may_not_use_does_not_exist(desk: Desk, globs: tuple[str, ...], may: bool) -> None:
    if may:
        await desk.start(terms={"models": globs})
        return

    error = await refusal_of(desk, terms={"models": globs})
    unknown = await refusal_of(desk, terms={}, model="llama-9")

    assert (error.status, error.code) == (404, "model_not_found")
    assert error.envelope.error.message == unknown.envelope.error.message.replace("llama-9", "llama-3-8b")


async def test_a_cap_refuses_more_and_is_what_those_get_who_name_none(desk: Desk) -> None:
    error = await refusal_of(desk, terms={"max_tokens": 7})
    completion = await desk.start(terms={"max_tokens": 7}, max_tokens=None)

    assert (error.status, error.code, error.envelope.error.param) == (400, "integer_above_max_value", "max_tokens")
    assert completion.task.generation.max_tokens == 7


async def test_who_names_no_length_holds_no_more_than_a_minutes_tokens(desk: Desk) -> None:
    terms = {"limits": Limits(tokens_per_minute=100)}

    completion = await desk.start(terms=terms, max_tokens=None)

    assert completion.task.kv_tokens == 100


async def test_a_test_key_is_served_by_simulated_workers_only(desk: Desk) -> None:
    assert (await desk.start("req_1", terms={"simulated_only": True})).task.simulated_only
    assert not (await desk.start("req_2")).task.simulated_only


async def test_tokens_are_held_while_a_request_runs_and_what_it_left_is_given_back(desk: Desk) -> None:
    terms = {"limits": Limits(tokens_per_minute=100, concurrent_requests=5)}
    first = await desk.start("req_1", terms=terms, max_tokens=90 - PROMPT_TOKENS)
    assert first.task.prompt_tokens == PROMPT_TOKENS
    error = await refusal_of(desk, terms=terms, max_tokens=20)
    assert (error.status, error.envelope.error.type) == (429, "tokens")

    first.delivered_tokens = 2
    await first.complete()

    await desk.start("req_2", terms=terms, max_tokens=90 - 2 * PROMPT_TOKENS)
    assert (await refusal_of(desk, terms=terms, max_tokens=1)).status == 429


@pytest.mark.parametrize("end", ["complete", "leave", "close", "fail"])
async def test_a_slot_is_free_whatever_ended_the_request(desk: Desk, end: str) -> None:
    terms = {"limits": Limits(concurrent_requests=1)}
    running = await desk.start("req_1", terms=terms)
    assert (await refusal_of(desk, terms=terms)).status == 429

    match end:
        case "complete":
            await running.complete()
        case "leave":
            running.leave()
        case "close":
            running.close()
        case _:
            running.fail(ApiError(503, "No.", code="queue_timeout"), Outcome.EXPIRED)
    running.close()

    assert (desk.limits.count_running(1), desk.completions.live) == (0, set())
    await desk.start("req_2", terms=terms)


async def test_a_request_that_nobody_served_has_not_been_counted(desk: Desk) -> None:
    terms = {"limits": Limits(requests_per_minute=1, tokens_per_minute=100)}
    waiting = await desk.start("req_1", terms=terms)

    waiting.fail(ApiError(503, "No.", code="no_worker_available"), Outcome.FAILED)

    await desk.start("req_2", terms=terms, max_tokens=100 - PROMPT_TOKENS)


async def test_a_request_refused_by_a_drain_has_not_been_counted(desk: Desk) -> None:
    terms = {"limits": Limits(requests_per_minute=1, concurrent_requests=1)}
    desk.completions.draining = True
    assert (await refusal_of(desk, terms=terms)).code == "server_draining"

    desk.completions.draining = False

    await desk.start(terms=terms)


class Keys:
    """A keyring that knows which keys are dead."""

    def __init__(self, *dead: str) -> None:
        self.dead = set(dead)
        self.asked: list[set[str]] = []

    async def list_dead(self, prefixes: set[str]) -> set[str]:
        self.asked.append(set(prefixes))
        return self.dead & prefixes


async def test_what_runs_on_a_revoked_key_is_ended_and_its_worker_told(desk: Desk) -> None:
    keys: Any = Keys()
    watch = RevocationWatch(desk.completions, keys, desk.rig.gateway)
    worker = desk.rig.join()
    dead, alive = await desk.start("req_1"), await desk.start("req_2", terms={"prefix": "sk-alive"})
    worker.hear()
    await watch.look()
    assert not dead.stream.ended

    keys.dead.add("sk")
    await watch.look()

    assert dead.stream.failure is not None and dead.stream.failure.code == "invalid_api_key"
    assert not alive.stream.ended
    assert [message.task for message in worker.hear() if isinstance(message, Cancel)] == ["req_1"]


async def test_nobody_is_asked_while_nothing_runs(desk: Desk) -> None:
    keys: Any = Keys("sk")

    await RevocationWatch(desk.completions, keys, desk.rig.gateway).look()

    assert keys.asked == []


async def test_the_watch_goes_on_after_a_failure(desk: Desk) -> None:
    asked = asyncio.Event()

    class Broken:
        times = 0

        async def list_dead(self, prefixes: set[str]) -> set[str]:
            self.times += 1
            if self.times == 2:
                asked.set()
            raise RuntimeError("not now")

    broken: Any = Broken()
    await desk.start()
    watch = RevocationWatch(desk.completions, broken, desk.rig.gateway, every_s=0.0)
    watch.start()

    async with asyncio.timeout(5):
        await asked.wait()
    await watch.stop()
