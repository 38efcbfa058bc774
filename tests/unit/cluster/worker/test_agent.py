"""The worker's life over real sockets, against a gateway in the hands of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from random import Random

import pytest
from websockets.exceptions import ConnectionClosed

from cluster.domain import FinishReason
from cluster.protocol.messages import Bye, Cancel, Chunk, CloseCode, Drain, Failed, Finished, Heartbeat, Step
from cluster.worker.agent import Agent, Backoff, UnableToServe, link_url
from cluster.worker.link import MAX_OUTBOX_CHUNKS
from tests.fakes import FakeBackend, FakeGateway, FakeLink, make_assign, make_welcome


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway().listening() as gateway:
        yield gateway


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


def make_agent(gateway: FakeGateway, backend: FakeBackend, *, drain_s: float = 25.0) -> Agent:
    backoff = Backoff(base_s=0.001, cap_s=0.002)
    return Agent(backend, name="alice", gateway=gateway.url, token="s3cret", drain_s=drain_s, backoff=backoff)


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(agent.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def close_code(link: FakeLink) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await link.receive()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


async def test_a_worker_introduces_itself_with_its_token_and_capabilities(
    gateway: FakeGateway, backend: FakeBackend
) -> None:
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        hello = await link.welcome()

    assert gateway.tokens == ["Bearer s3cret"]
    assert (hello.name, hello.capacity, hello.models[0].id) == ("alice", 4, "llama-3-8b")


async def test_a_worker_beats_in_the_rhythm_of_its_welcome(gateway: FakeGateway, backend: FakeBackend) -> None:
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        await link.welcome(heartbeat_s=0.05)
        beats = [await link.receive() for _ in range(3)]

    assert all(isinstance(beat, Heartbeat) for beat in beats)
    first, _, last = (beat.timestamp for beat in beats if isinstance(beat, Heartbeat))
    assert last - first >= 0.09


async def test_an_assign_reaches_the_backend_and_its_tokens_the_gateway(
    gateway: FakeGateway, backend: FakeBackend
) -> None:
    def answer(assign: object) -> None:
        backend.step("t-1", 1, 0, "Hello", " world")
        backend.finish("t-1", 1)

    backend.on_assign = answer
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        await link.welcome()
        await link.send(make_assign())
        step = await link.expect(Step)
        finished = await link.expect(Finished)

    assert step.chunks[0].texts == ["Hello", " world"]
    assert finished.reason is FinishReason.STOP


async def test_what_is_emitted_in_one_turn_of_the_loop_leaves_in_one_frame(
    gateway: FakeGateway, backend: FakeBackend
) -> None:
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        await link.welcome()
        await link.expect(Heartbeat)
        before = link.frames
        for seq in range(50):
            backend.step("t-1", 1, seq, "x")
        seqs = [(await link.expect(Step)).chunks[0].seq for _ in range(50)]

    assert seqs == list(range(50))
    assert link.frames == before + 1


async def test_an_emission_before_the_first_frame_is_read_is_not_lost(
    gateway: FakeGateway, backend: FakeBackend
) -> None:
    backend.on_assign = lambda assign: backend.finish("t-1", 1)
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        hello_frame = await link.socket.recv()
        assert isinstance(hello_frame, bytes)
        link.session.receive(hello_frame, 0.0)
        # Welcome and assign in one frame: the backend answers while the link still opens.
        await link.send(make_welcome(), make_assign())
        finished = await link.expect(Finished)

    assert finished.task == "t-1"


async def test_a_cancel_is_answered_with_a_cancelled_finish(gateway: FakeGateway, backend: FakeBackend) -> None:
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        await link.welcome()
        await link.send(make_assign(), Cancel(task="t-1", attempt=1))
        finished = await link.expect(Finished)

    assert finished.reason is FinishReason.CANCELLED


async def test_a_backend_that_cannot_take_an_attempt_fails_it_and_keeps_its_link(
    gateway: FakeGateway, backend: FakeBackend
) -> None:
    def refuse(assign: object) -> None:
        raise RuntimeError("a secret prompt")

    backend.on_assign = refuse
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        await link.welcome()
        await link.send(make_assign())
        failed = await link.expect(Failed)

    assert (failed.code, failed.retryable, failed.message) == ("backend_error", True, "")


async def test_a_failure_text_is_cleaned_to_one_line(gateway: FakeGateway, backend: FakeBackend) -> None:
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        await link.welcome()
        backend.emit([Failed(task="t-1", attempt=1, code="oom", message="out of\nmemory\x1b[0m")])
        failed = await link.expect(Failed)

    assert failed.message == "out of memory [0m"


async def test_a_dropped_link_aborts_all_and_comes_back_as_the_same_instance(
    gateway: FakeGateway, backend: FakeBackend
) -> None:
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        first = await link.welcome()
        await link.send(make_assign())
        await link.expect(Heartbeat)
        link.socket.transport.abort()
        again = await gateway.next_link()
        second = await again.welcome()

    assert second.instance == first.instance
    assert backend.aborts >= 1


async def test_what_a_backend_says_without_a_link_is_dropped(gateway: FakeGateway, backend: FakeBackend) -> None:
    backend.on_abort = lambda: backend.finish("t-old", 1)
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        await link.welcome()
        link.socket.transport.abort()
        again = await gateway.next_link()
        await again.welcome()
        backend.finish("t-new", 1)

        assert (await again.expect(Finished)).task == "t-new"


@pytest.mark.parametrize("code", [1001, CloseCode.SILENT, CloseCode.TOO_MANY])
async def test_a_close_that_time_can_mend_makes_the_worker_dial_again(
    gateway: FakeGateway, backend: FakeBackend, code: int
) -> None:
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        await link.welcome()
        await link.socket.close(code)

        await (await gateway.next_link()).welcome()


@pytest.mark.parametrize("code", [CloseCode.BAD_FRAME, CloseCode.NO_TOKEN, CloseCode.NOT_YOURS, CloseCode.VERSION])
async def test_a_close_that_dialling_cannot_mend_ends_the_worker(
    gateway: FakeGateway, backend: FakeBackend, code: CloseCode
) -> None:
    async with running(make_agent(gateway, backend)) as task:
        link = await gateway.next_link()
        await link.welcome()
        await link.socket.close(code, "because")

        with pytest.raises(UnableToServe, match=f"{code:d} because"):
            await task
    assert backend.stopped


@pytest.mark.parametrize("status", [HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN])
async def test_a_refused_handshake_ends_the_worker_without_telling_its_token(
    gateway: FakeGateway, backend: FakeBackend, status: HTTPStatus
) -> None:
    gateway.refuse_with = [status]
    async with running(make_agent(gateway, backend)) as task:
        with pytest.raises(UnableToServe, match=f"HTTP {status:d}") as refused:
            await task

    assert "s3cret" not in str(refused.value)


async def test_a_busy_gateway_is_dialled_again(gateway: FakeGateway, backend: FakeBackend) -> None:
    gateway.refuse_with = [HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.BAD_GATEWAY]
    async with running(make_agent(gateway, backend)):
        await (await gateway.next_link()).welcome()

    assert len(gateway.tokens) == 3


async def test_a_worker_that_leaves_finishes_what_runs_and_refuses_what_crosses(
    gateway: FakeGateway, backend: FakeBackend
) -> None:
    agent = make_agent(gateway, backend)
    async with running(agent) as task:
        link = await gateway.next_link()
        await link.welcome()
        await link.send(make_assign("t-1"))
        await link.expect(Heartbeat)
        agent.leave()
        await link.expect(Drain)
        await link.send(make_assign("t-2"))
        refused = await link.expect(Failed)
        backend.finish("t-1", 1)
        finished = await link.expect(Finished)
        await link.expect(Bye)

        assert await close_code(link) == 1000
        await task
    assert (refused.task, refused.code, refused.retryable) == ("t-2", "draining", True)
    assert finished.task == "t-1"
    assert backend.stopped


async def test_a_worker_that_leaves_waits_no_longer_than_its_deadline(
    gateway: FakeGateway, backend: FakeBackend
) -> None:
    agent = make_agent(gateway, backend, drain_s=0.05)
    async with running(agent) as task:
        link = await gateway.next_link()
        await link.welcome()
        await link.send(make_assign("t-1"))
        await link.expect(Heartbeat)
        agent.leave()
        await link.expect(Bye)
        await task

    assert backend.aborts == 1


async def test_a_worker_without_a_link_leaves_at_once(gateway: FakeGateway, backend: FakeBackend) -> None:
    agent = make_agent(gateway, backend)
    async with running(agent) as task:
        link = await gateway.next_link()
        await link.receive()
        agent.leave()

        await task
    assert backend.stopped


async def test_a_draining_gateway_is_left_after_the_work_and_dialled_again(
    gateway: FakeGateway, backend: FakeBackend
) -> None:
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        first = await link.welcome()
        await link.send(make_assign("t-1"))
        await link.expect(Heartbeat)
        await link.send(Drain(deadline_s=25))
        backend.step("t-1", 1, 0, "x")
        await link.expect(Step)
        backend.finish("t-1", 1)
        await link.expect(Bye)

        second = await (await gateway.next_link()).welcome()
    assert second.instance == first.instance


async def test_a_gateway_that_sends_nonsense_is_left_and_dialled_again(
    gateway: FakeGateway, backend: FakeBackend
) -> None:
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        await link.welcome()
        await link.socket.send(b"\xc1")

        await (await gateway.next_link()).welcome()


async def test_a_gateway_that_does_not_read_is_given_up(gateway: FakeGateway, backend: FakeBackend) -> None:
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        await link.welcome()
        await link.expect(Heartbeat)
        backend.emit([Step([Chunk("t-1", 1, 0, ["x"])] * (MAX_OUTBOX_CHUNKS + 1))])

        await (await gateway.next_link()).welcome()


async def test_a_token_that_cannot_be_encoded_costs_the_link_and_not_the_process(
    gateway: FakeGateway, backend: FakeBackend
) -> None:
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        await link.welcome()
        await link.expect(Heartbeat)
        backend.step("t-1", 1, 0, "\ud800")

        await (await gateway.next_link()).welcome()


async def test_an_assign_that_comes_twice_is_taken_once(gateway: FakeGateway, backend: FakeBackend) -> None:
    async with running(make_agent(gateway, backend)):
        link = await gateway.next_link()
        await link.welcome()
        await link.send(make_assign(), make_assign(), Cancel(task="t-1", attempt=1))
        await link.expect(Finished)

    assert len(backend.assigned) == 1


async def test_a_full_worker_calls_itself_busy(gateway: FakeGateway) -> None:
    async with running(make_agent(gateway, FakeBackend(capacity=1))):
        link = await gateway.next_link()
        await link.welcome(heartbeat_s=0.02)
        await link.send(make_assign())
        while (await link.expect(Heartbeat)).status != "busy":
            pass


def test_the_backoff_is_jittered_doubles_and_is_capped() -> None:
    backoff = Backoff(base_s=0.2, cap_s=10.0, rng=Random(1))
    bounds = [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]

    waits = [backoff.next_s() for _ in bounds]

    assert all(0 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    assert len(set(waits)) == len(waits)
    backoff.reset()
    assert backoff.next_s() <= 0.2


@pytest.mark.parametrize(
    ("gateway_url", "expected"),
    [
        ("http://127.0.0.1:8000", "ws://127.0.0.1:8000/ws/worker/"),
        ("https://cloud.example/base/", "wss://cloud.example/base/ws/worker/"),
        ("wss://cloud.example", "wss://cloud.example/ws/worker/"),
    ],
)
def test_a_gateways_url_says_where_to_dial(gateway_url: str, expected: str) -> None:
    assert link_url(gateway_url) == expected


@pytest.mark.parametrize("text", ["127.0.0.1:8000", "ftp://cloud.example", "http://", ""])
def test_a_gateway_that_is_no_url_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected one like http://127\.0\.0\.1:8000"):
        link_url(text)
