"""The two ends of a link: what is legal when, who is let in, and how much is too much."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest

from cluster.domain import FinishReason, ModelOffer
from cluster.protocol.messages import (
    Bye,
    Cancel,
    Chunk,
    CloseCode,
    Drain,
    Failed,
    Finished,
    FromGateway,
    FromWorker,
    Heartbeat,
    Step,
)
from cluster.protocol.session import (
    FROM_GATEWAY,
    FROM_WORKER,
    MAX_FRAMES_PER_S,
    MAX_HEARTBEATS_PER_S,
    Allowance,
    GatewaySession,
    ProtocolViolation,
    State,
    UnableToSend,
    WorkerSession,
)
from tests.fakes import make_assign, make_hello, make_welcome

pack = msgspec.msgpack.encode

WORKER_SAYS: list[FromWorker] = [
    make_hello(),
    Heartbeat(status="ready"),
    Step([Chunk("t-1", 1, 0, ["x"])]),
    Finished(task="t-1", attempt=1, reason=FinishReason.STOP, generated_tokens=1),
    Failed(task="t-1", attempt=1, code="oom"),
    Drain(),
    Bye(),
]
GATEWAY_SAYS: list[FromGateway] = [
    make_welcome(),
    make_assign(),
    Cancel(task="t-1", attempt=1),
    Drain(),
    Bye(),
]
OPEN_STATES = [state for state in State if state is not State.CLOSED]


def gateway_in(state: State, **options: tuple[str, ...]) -> GatewaySession:
    session = GatewaySession(now=0.0, **options)  # type: ignore[arg-type]
    session.state = state
    return session


def worker_in(state: State) -> WorkerSession:
    session = WorkerSession()
    session.state = state
    return session


def name(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize(("state", "message"), list(product(OPEN_STATES, WORKER_SAYS)), ids=name)
def test_both_ends_agree_on_what_a_worker_may_say(state: State, message: FromWorker) -> None:
    gateway, worker = gateway_in(state), worker_in(state)
    after = FROM_WORKER.get((state, type(message)))

    if after is None:
        with pytest.raises(UnableToSend):
            worker.send([message], 0.0)
        with pytest.raises(ProtocolViolation) as violation:
            gateway.receive(pack([message]), 0.0)
        assert worker.state is state
        assert (gateway.state, violation.value.close_code) == (State.CLOSED, CloseCode.BAD_FRAME)
    else:
        (frame,) = worker.send([message], 0.0)
        assert gateway.receive(frame, 0.0) == [message]
        assert gateway.state is worker.state is after


@pytest.mark.parametrize(("state", "message"), list(product(OPEN_STATES, GATEWAY_SAYS)), ids=name)
def test_both_ends_agree_on_what_a_gateway_may_say(state: State, message: FromGateway) -> None:
    gateway, worker = gateway_in(state), worker_in(state)
    after = FROM_GATEWAY.get((state, type(message)))

    if after is None:
        with pytest.raises(UnableToSend):
            gateway.send([message])
        with pytest.raises(ProtocolViolation):
            worker.receive(pack([message]), 0.0)
        assert gateway.state is state
    else:
        (frame,) = gateway.send([message])
        assert worker.receive(frame, 0.0) == [message]
        assert worker.state is gateway.state is after


def test_a_closed_link_neither_hears_nor_says() -> None:
    gateway, worker = gateway_in(State.CLOSED), worker_in(State.CLOSED)

    assert gateway.receive(b"\xc1", 0.0) == []
    assert worker.receive(b"\xc1", 0.0) == []
    assert gateway.send([make_assign()]) == []
    assert worker.send([Bye()], 0.0) == []


def test_nothing_is_heard_after_a_bye_in_the_same_frame() -> None:
    assert gateway_in(State.READY).receive(pack([Bye(), make_hello()]), 0.0) == [Bye()]
    assert worker_in(State.READY).receive(pack([Bye(), make_welcome()]), 0.0) == [Bye()]


def test_a_refused_batch_leaves_the_session_as_it_was() -> None:
    session = worker_in(State.READY)

    with pytest.raises(UnableToSend, match="hello cannot be sent in state draining"):
        session.send([Drain(), make_hello()], 0.0)

    assert session.state is State.READY


def test_a_token_that_is_not_text_cannot_be_sent() -> None:
    session = worker_in(State.READY)

    with pytest.raises(UnableToSend):
        session.send([Step([Chunk("t", 1, 0, ["\ud800"])]), Bye()], 0.0)

    assert session.state is State.READY


def test_a_hello_opens_the_session_and_is_kept() -> None:
    session = GatewaySession(now=0.0)

    session.receive(pack([make_hello()]), 1.0)

    assert session.hello == make_hello()
    assert session.state is State.AWAITING_WELCOME


def test_a_silent_socket_is_closed_at_its_deadline_and_not_before() -> None:
    session = GatewaySession(now=100.0, hello_timeout_s=5.0)
    assert session.deadline == 105.0

    session.check(104.999)
    with pytest.raises(ProtocolViolation) as violation:
        session.check(105.0)

    assert violation.value.close_code is CloseCode.SILENT
    assert session.state is State.CLOSED


def test_a_worker_that_said_hello_has_no_deadline() -> None:
    session = GatewaySession(now=0.0, hello_timeout_s=5.0)
    session.receive(pack([make_hello()]), 4.9)

    assert session.deadline is None
    session.check(1_000.0)


@pytest.mark.parametrize(
    "frame",
    [
        pack([make_hello(v=2)]),
        # A hello of the future need not look like one of today.
        pack([{"t": "hello", "v": 2, "identity": {"name": "alice"}}]),
        pack([{"t": "hello", "v": 0}, {"t": "novelty"}]),
    ],
)
def test_another_version_is_refused_as_such(frame: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="this gateway speaks 1") as violation:
        GatewaySession(now=0.0).receive(frame, 0.0)

    assert violation.value.close_code is CloseCode.VERSION


def test_a_worker_refuses_a_welcome_of_another_version() -> None:
    with pytest.raises(ProtocolViolation) as violation:
        worker_in(State.AWAITING_WELCOME).receive(pack([make_welcome(v=2)]), 0.0)

    assert violation.value.close_code is CloseCode.VERSION


@pytest.mark.parametrize(
    ("globs", "models", "permitted"),
    [
        ((), ("gpt-4",), True),
        (("llama-*",), ("llama-3-8b", "llama-2-7b"), True),
        (("llama-*", "gpt-4"), ("llama-3-8b", "gpt-4"), True),
        (("llama-*",), ("llama-3-8b", "gpt-4"), False),
        (("LLAMA-*",), ("llama-3-8b",), False),
    ],
)
def test_a_worker_may_offer_only_what_its_token_permits(
    globs: tuple[str, ...], models: tuple[str, ...], permitted: bool
) -> None:
    session = GatewaySession(now=0.0, allowed_models=globs)
    hello = make_hello(models=tuple(ModelOffer(id=id, context_tokens=1, kv_bytes_per_token=0) for id in models))

    if permitted:
        assert session.receive(pack([hello]), 0.0) == [hello]
    else:
        with pytest.raises(ProtocolViolation, match="does not permit") as violation:
            session.receive(pack([hello]), 0.0)
        assert violation.value.close_code is CloseCode.NOT_YOURS
        assert session.hello is None


def test_a_flood_of_frames_is_too_many_and_a_steady_stream_is_not() -> None:
    frame = pack([Step([Chunk("t-1", 1, 0, ["x"])])])
    steady, flood = gateway_in(State.READY), gateway_in(State.READY)

    for number in range(20_000):
        steady.receive(frame, number / MAX_FRAMES_PER_S)
    with pytest.raises(ProtocolViolation) as violation:
        for number in range(30_000):
            flood.receive(frame, number / (2 * MAX_FRAMES_PER_S))

    assert violation.value.close_code is CloseCode.TOO_MANY


def test_a_flood_of_heartbeats_is_too_many_even_in_few_frames() -> None:
    session = gateway_in(State.READY)
    beats = [Heartbeat(status="ready")] * int(MAX_HEARTBEATS_PER_S)
    session.receive(pack(beats), 10.0)
    session.receive(pack(beats), 11.0)

    with pytest.raises(ProtocolViolation) as violation:
        session.receive(pack(beats), 11.1)

    assert violation.value.close_code is CloseCode.TOO_MANY


def test_a_worker_that_keeps_its_pace_is_never_too_many() -> None:
    worker, gateway = worker_in(State.READY), gateway_in(State.READY)
    now = 0.0

    for _ in range(10_000):
        now += worker.pause_s(now)
        for frame in worker.send([Step([Chunk("t-1", 1, 0, ["x"])])], now):
            gateway.receive(frame, now)

    assert 8.0 < now < 10.0


def test_an_allowance_grants_its_burst_then_its_rate() -> None:
    allowance = Allowance(rate_per_s=10.0, burst_s=1.0)

    granted = sum(allowance.spend(5.0) for _ in range(100))

    assert granted in (10, 11)
    assert 0 < allowance.wait_s(5.0) <= 0.1
    assert not allowance.spend(5.0)
    assert allowance.spend(5.2)


def test_heartbeats_are_due_at_the_welcome_and_then_in_its_rhythm() -> None:
    session = worker_in(State.AWAITING_WELCOME)
    assert session.next_heartbeat_at is None

    session.receive(pack([make_welcome(heartbeat_s=5.0)]), 100.0)
    assert session.next_heartbeat_at == 100.0

    session.send([Heartbeat(status="ready")], 101.0)
    assert session.next_heartbeat_at == 106.0


def test_a_worker_keeps_to_the_frame_size_of_its_welcome() -> None:
    session = worker_in(State.AWAITING_WELCOME)
    session.receive(pack([make_welcome(max_frame_bytes=2_000)]), 0.0)

    frames = session.send([Step([Chunk("t-1", 1, seq, ["x" * 100]) for seq in range(100)])], 0.0)

    assert max(map(len, frames)) <= 2_000
