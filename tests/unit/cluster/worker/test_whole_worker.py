"""A whole simulated worker over a real socket, as a gateway sees it: resume, probe, cancel, drain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cluster.domain import FinishReason, Generation, Message
from cluster.protocol.messages import Assign, Bye, Cancel, Drain, Failed, Finished, Heartbeat, Step
from cluster.simulation.text import TEXT_VERSION, write
from cluster.worker.agent import Agent, Backoff
from cluster.worker.backends.simulated import SimulatedBackend, SimulatedOptions
from tests.fakes import FakeGateway, FakeLink, make_assign

FAST = {"speed": 0.0}
STEADY = {"ttft_ms": 1.0, "itl_ms": 2.0}
STUCK = {"ttft_ms": 60_000.0, "itl_ms": 0.0}
"""A worker whose step takes a minute."""


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway().listening() as gateway:
        yield gateway


@asynccontextmanager
async def worker(gateway: FakeGateway, name: str = "alice", **options: object) -> AsyncIterator[FakeLink]:
    """Run a worker and give the gateway's end of its link, the welcome said."""
    backend = SimulatedBackend(SimulatedOptions(models=("llama-3-8b",), **options))  # type: ignore[arg-type]
    agent = Agent(backend, name=name, gateway=gateway.url, token="s3cret", backoff=Backoff(base_s=0.001, cap_s=0.002))
    task = asyncio.create_task(agent.run())
    try:
        link = await gateway.next_link()
        await link.welcome()
        await link.expect(Heartbeat)
        yield link
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def generation(**changes: object) -> Generation:
    return Generation(**{"messages": (Message("user", "hi"),), "max_tokens": 60, "seed": 5, **changes})  # type: ignore[arg-type]


async def read_texts(link: FakeLink, assign: Assign, at_least: int) -> list[str]:
    """Return the texts of an attempt, once there are so many; a gap or an overlap is an error."""
    texts: list[str] = []
    while len(texts) < at_least:
        for chunk in (await link.expect(Step)).chunks:
            assert (chunk.task, chunk.attempt) == (assign.task, assign.attempt)
            assert chunk.seq == assign.resume_from + len(texts)
            texts += chunk.texts
    return texts


@pytest.mark.parametrize("stop", [(), ("simulated: a small grammar wrote it, not",)])
async def test_another_worker_continues_at_the_token_where_the_first_was_lost(
    gateway: FakeGateway, stop: tuple[str, ...]
) -> None:
    request = generation(stop=stop)
    whole = write("llama-3-8b", request)
    async with worker(gateway, "alice", **STEADY) as link:
        first = make_assign("req_1", generation=request)
        await link.send(first)
        before = await read_texts(link, first, 3)
        link.socket.transport.abort()

    async with worker(gateway, "bob", gpu="A6000", **FAST) as link:
        assert link.session.hello is not None and link.session.hello.resumes == (TEXT_VERSION,)
        second = make_assign("req_1", 2, generation=request, resume_from=len(before))
        await link.send(second)
        after = await read_texts(link, second, len(whole.texts) - len(before))
        finished = await link.expect(Finished)

    assert before + after == list(whole.texts)
    assert (finished.reason, finished.generated_tokens) == (whole.reason, whole.length)


async def test_a_probe_is_answered_like_any_other_attempt(gateway: FakeGateway) -> None:
    async with worker(gateway, **STEADY) as link:
        await link.send(make_assign("req_1", generation=generation(max_tokens=1_000)))
        await link.expect(Step)

        await link.send(make_assign("probe_17", prompt_tokens=1, generation=generation(max_tokens=1)))

        while (finished := await link.expect(Finished)).task != "probe_17":
            pass
    assert (finished.reason, finished.generated_tokens) == (FinishReason.LENGTH, 1)


@pytest.mark.parametrize("max_tokens", [1, 50])
async def test_a_cancel_is_answered_at_once_in_the_middle_of_a_slow_step(gateway: FakeGateway, max_tokens: int) -> None:
    async with worker(gateway, **STUCK) as link:
        await link.send(make_assign("req_1", generation=generation(max_tokens=max_tokens)))
        # Answered at once, so the assign before it has been taken and its step begun.
        await link.send(make_assign("req_2"), Cancel(task="req_2", attempt=1))
        assert (await link.expect(Finished)).task == "req_2"

        asked_at = time.monotonic()
        await link.send(Cancel(task="req_1", attempt=1))
        finished = await link.expect(Finished)

        assert time.monotonic() - asked_at < 1
        assert (finished.task, finished.reason) == ("req_1", FinishReason.CANCELLED)


async def test_a_cancel_that_crossed_the_end_or_names_nothing_is_not_answered(gateway: FakeGateway) -> None:
    async with worker(gateway, **FAST) as link:
        await link.send(make_assign("req_1"))
        assert (await link.expect(Finished)).reason is not FinishReason.CANCELLED

        await link.send(Cancel(task="req_1", attempt=1), Cancel(task="req_nobody", attempt=1), make_assign("req_2"))

        assert (await link.expect(Finished)).task == "req_2"


async def test_a_worker_that_is_told_to_drain_finishes_refuses_says_bye_and_dials_again(gateway: FakeGateway) -> None:
    async with worker(gateway, **STEADY) as link:
        await link.send(make_assign("req_1", generation=generation(max_tokens=20)))
        await link.send(Drain(deadline_s=25), make_assign("req_2"))

        assert (await link.expect(Failed)).code == "draining"
        assert (await link.expect(Finished)).task == "req_1"
        await link.expect(Bye)
        again = await (await gateway.next_link()).welcome()

    assert link.session.hello is not None
    assert again.instance == link.session.hello.instance


async def test_an_idle_worker_that_is_told_to_drain_leaves_at_once(gateway: FakeGateway) -> None:
    async with worker(gateway, **FAST) as link:
        await link.send(Drain(deadline_s=25))

        await link.expect(Bye)
        await (await gateway.next_link()).welcome()


async def test_a_drain_ends_at_its_deadline_whatever_still_runs(gateway: FakeGateway) -> None:
    async with worker(gateway, **STUCK) as link:
        await link.send(make_assign("req_1"), Drain(deadline_s=0.05))

        await link.expect(Bye)
        again = await gateway.next_link()
        await again.welcome()

        # It has come back empty: what it held is aborted, and new work is taken.
        assert (await again.expect(Heartbeat)).load.running == 0
