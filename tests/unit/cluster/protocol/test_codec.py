"""Frames as bytes: what is refused, in which words, and how large batches are split."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.domain import Generation, Message
from cluster.protocol import codec
from cluster.protocol.codec import FrameTooLarge, ProtocolViolation, decode_from_gateway, decode_from_worker
from cluster.protocol.messages import Cancel, Chunk, CloseCode, Failed, FromWorker, Heartbeat, Step
from tests.fakes import make_assign, make_hello, make_welcome

pack = msgspec.msgpack.encode
NAN, INFINITY = float("nan"), float("inf")


def as_map(message: object) -> dict[str, Any]:
    decoded = msgspec.msgpack.decode(pack(message))
    assert isinstance(decoded, dict)
    return decoded


def put(message: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    *parents, field = path.split(".")
    inner: Any = message
    for parent in parents:
        inner = inner[int(parent)] if isinstance(inner, list) else inner.setdefault(parent, {})
    inner[field] = value
    return message


def refusal(frame: bytes) -> str:
    with pytest.raises(ProtocolViolation) as violation:
        decode_from_worker(frame)
    assert violation.value.close_code is CloseCode.BAD_FRAME
    return violation.value.reason


def chunks_of(messages: list[FromWorker]) -> list[Chunk]:
    return [chunk for message in messages if isinstance(message, Step) for chunk in message.chunks]


def test_a_hello_survives_the_wire() -> None:
    hello = make_hello(resumes=("sim-text:1",), simulated=True, software="test/1")

    assert decode_from_worker(pack([hello])) == [hello]


def test_unknown_fields_are_ignored_so_that_a_worker_may_be_newer() -> None:
    assert decode_from_worker(pack([as_map(make_hello()) | {"colour": "blue"}])) == [make_hello()]


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"", "not a msgpack array"),
        (b"\xc1", "not a msgpack array"),
        (b"{}", "Expected `array`"),
        (pack([make_hello()])[:-3], "not a msgpack array"),
        (pack([make_hello()]) + b"\x00", "not a msgpack array"),
        (pack([]), "empty frame"),
        (pack(5), "Expected `array`"),
        (pack([5]), "Expected `object`"),
        (pack([{"v": 1}]), "missing required field `t`"),
        (pack([{"t": "hello"}]), "missing required field"),
        (b"\x91\x82\xa1t\xa3bye\xa6reason\xa1\xff", "not a msgpack array"),
        (b"\x91\x82\xa1t\xa3bye\xa1x" + b"\x91" * 100_000, "nested too deeply"),
        (b"\x00" * (codec.MAX_FRAME_BYTES + 1), "expected at most 1,048,576"),
    ],
)
def test_a_malformed_frame_is_refused_in_words(frame: bytes, words: str) -> None:
    assert words in refusal(frame)


@pytest.mark.parametrize(
    "message",
    [
        {"t": "CANARY"},
        {"t": "CANARY\n - at"},
        {"t": "heartbeat", "status": "CANARY"},
        {"t": "finished", "task": "t", "attempt": 1, "generated_tokens": 1, "reason": "CANARY"},
        {"t": "bye", "reason": "CANARY\x00"},
        as_map(make_hello(name="alice")) | {"name": "CANARY!"},
    ],
)
def test_a_refusal_never_repeats_the_payload(message: dict[str, Any]) -> None:
    assert "CANARY" not in refusal(pack([message]))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("v", "1"),
        ("v", True),
        ("name", ""),
        ("name", "a b"),
        ("name", "a" * 65),
        ("instance", "a\n"),
        ("capacity", 0),
        ("capacity", 65_537),
        ("capacity", 1_000_000_000),
        ("capacity", True),
        ("capacity", 4.0),
        ("capacity", "4"),
        ("v", True),
        ("simulated", 1),
        ("kv_bytes", 2**64 - 1),
        ("name", "<script>alert(1)</script>"),
        ("name", "a\x00"),
        ("name", "е"),  # a Cyrillic twin
        ("models.0.id", "a\x00"),
        ("models.0.id", "a\u202eb"),
        ("upstream", "http://169.254.169.254/"),
        ("models", [as_map(make_hello().models[0]) | {"id": f"m-{n}"} for n in range(10_000)]),
        ("kv_bytes", -1),
        ("models", []),
        ("models.0.id", ""),
        ("models.0.id", "a\x1b[31m"),
        ("models.0.id", "a" * 129),
        ("models.0.context_tokens", 0),
        ("models.0.kv_bytes_per_token", -1),
        ("models.0.weights_bytes", 2**60),
        ("gpu.name", "H100\n"),
        ("gpu.count", 0),
        ("gpu.vram_total_bytes", -1),
        ("software", "a\tb"),
        ("software", "a" * 129),
    ],
)
def test_a_hello_with_a_bad_value_is_refused_by_the_fields_name(path: str, value: object) -> None:
    reason = refusal(pack([put(as_map(make_hello()), path, value)]))

    assert path.split(".")[-1] in reason or path.split(".")[0] in reason


def test_a_hello_that_offers_a_model_twice_is_refused() -> None:
    offer = make_hello().models[0]

    assert "unique" in refusal(pack([make_hello(models=(offer, offer))]))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gpu.vram_total_bytes", -1),
        ("gpu.vram_kv_bytes", 2**60),
        ("gpu.vram_weights_bytes", 1.5),
        ("gpu.utilization", 1.1),
        ("gpu.utilization", NAN),
        ("gpu.power_w", -1),
        ("gpu.power_w", INFINITY),
        ("gpu.temperature_c", NAN),
        ("load.tokens_per_s", INFINITY),
        ("load.tokens_per_s", NAN),
        ("load.running", -1),
        ("load.running", True),
        ("load.running", 2**64 - 1),
        ("load.tokens_per_s", -5.0),
        ("timestamp", NAN),
    ],
)
def test_a_heartbeat_with_a_bad_value_is_refused_by_the_fields_name(path: str, value: object) -> None:
    assert path.split(".")[-1] in refusal(pack([put(as_map(Heartbeat(status="ready")), path, value)]))


@pytest.mark.parametrize(
    "message",
    [
        {"t": "finished", "task": "t", "attempt": 1, "reason": "stop", "generated_tokens": 1, "ttft_ms": INFINITY},
        {"t": "finished", "task": "t", "attempt": 0, "reason": "stop", "generated_tokens": 1},
        {"t": "finished", "task": "t", "attempt": 1, "reason": "stop", "generated_tokens": -1},
        {"t": "failed", "task": "t", "attempt": 1, "code": "oom", "message": "two\nlines"},
        {"t": "failed", "task": "t", "attempt": 1, "code": "not a word"},
        {"t": "drain", "deadline_s": NAN},
        {"t": "drain", "deadline_s": -1},
        {"t": "bye", "reason": "\x00"},
        {"t": "step", "chunks": [["t", 1, -1, ["x"]]]},
        {"t": "step", "chunks": [["t", 1, 0]]},
        {"t": "step", "chunks": [["t", 1, 0, [5]]]},
        {"t": "step", "chunks": [["t" * 65, 1, 0, ["x"]]]},
        {"t": "welcome", "v": 1, "worker": "w", "link": "l", "heartbeat_s": 1, "max_frame_bytes": 1},
    ],
)
def test_a_message_with_a_bad_value_is_refused(message: dict[str, Any]) -> None:
    refusal(pack([message]))


def test_a_token_may_have_any_text_but_not_any_length() -> None:
    fits = Step([Chunk("t", 1, 0, ["\x00\n\x1b", "a" * codec.MAX_TOKEN_CHARS])])
    too_long = Step([Chunk("t", 1, 0, ["a" * (codec.MAX_TOKEN_CHARS + 1)])])

    assert decode_from_worker(pack([fits])) == [fits]
    assert "token of more than 16,384" in refusal(pack([too_long]))


def test_a_frame_carries_a_bounded_number_of_chunks_and_messages() -> None:
    chunk = Chunk("t", 1, 0, ["x"])

    assert decode_from_worker(pack([Step([chunk] * (codec.MAX_ITEMS - 1))]))
    assert "more than 4,096" in refusal(pack([Step([chunk] * codec.MAX_ITEMS)]))
    assert "more than 4,096" in refusal(pack([Step([])] * (codec.MAX_ITEMS + 1)))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_cause_anything_but_a_protocol_violation(frame: bytes) -> None:
    for decode in (decode_from_worker, decode_from_gateway):
        try:
            decode(frame)
        except ProtocolViolation as violation:
            assert len(violation.reason.encode()) <= 123
    codec.peek_version(frame)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
GOOD = [as_map(make_hello()), as_map(Heartbeat(status="busy")), as_map(Step([Chunk("t", 1, 0, ["x"])]))]


@settings(deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_no_value_in_any_field_causes_anything_but_a_protocol_violation(message: dict[str, Any], data: Any) -> None:
    field = data.draw(st.sampled_from(sorted(message)))
    try:
        decode_from_worker(pack([message | {field: data.draw(VALUES)}]))
    except ProtocolViolation:
        pass


@pytest.mark.parametrize("heartbeat_s", [0, -1.0, NAN, INFINITY])
def test_a_worker_refuses_a_welcome_without_a_usable_rhythm(heartbeat_s: float) -> None:
    with pytest.raises(ProtocolViolation, match="heartbeat_s"):
        decode_from_gateway(pack([make_welcome(heartbeat_s=heartbeat_s)]))


def test_a_small_batch_is_one_frame_and_an_empty_one_is_none() -> None:
    messages = [make_assign("t-1"), Cancel(task="t-1", attempt=1)]

    (frame,) = codec.encode_frames(messages)

    assert decode_from_gateway(frame) == messages
    assert codec.encode_frames([]) == []


def test_a_large_batch_is_split_between_messages_chunks_and_tokens_without_losing_any() -> None:
    long_chunk = Chunk("a", 1, 5, ["x" * 1_000] * 700)
    many_chunks = [Chunk(f"b{number}", 1, 0, ["y" * 500]) for number in range(1_000)]
    messages = [Step([long_chunk]), Step(many_chunks), Failed(task="c", attempt=1, code="oom")]

    frames = codec.encode_frames(messages)

    assert len(frames) > 1
    assert all(len(frame) <= codec.BATCH_BYTES for frame in frames)
    heard = [message for frame in frames for message in decode_from_worker(frame)]
    assert heard[-1] == messages[-1]
    next_seq = 5
    for chunk in chunks_of(heard[:-1]):
        if chunk.task == "a":
            assert chunk.seq == next_seq
            next_seq += len(chunk.texts)
    assert next_seq == 5 + 700
    assert [chunk for chunk in chunks_of(heard) if chunk.task != "a"] == many_chunks


def test_a_batch_of_many_small_chunks_is_split_by_their_number() -> None:
    frames = codec.encode_frames([Step([Chunk("t", 1, seq, ["x"]) for seq in range(3 * codec.MAX_ITEMS)])])

    heard = [message for frame in frames for message in decode_from_worker(frame)]
    assert [chunk.seq for chunk in chunks_of(heard)] == list(range(3 * codec.MAX_ITEMS))


def test_an_assign_with_a_long_prompt_travels_alone() -> None:
    generation = Generation(messages=(Message("user", "a" * 4 * 1024 * 1024),), max_tokens=1, seed=1)
    long_prompt = make_assign("t-2", generation=generation)

    frames = codec.encode_frames([make_assign("t-1"), long_prompt, make_assign("t-3")])

    assert [len(decode_from_gateway(frame)) for frame in frames] == [1, 1, 1]


def test_a_message_that_no_frame_can_hold_is_not_sent() -> None:
    generation = Generation(messages=(Message("user", "a" * 9 * 1024 * 1024),), max_tokens=1, seed=1)

    with pytest.raises(FrameTooLarge, match="one assign of 9,"):
        codec.encode_frames([make_assign(generation=generation)])


def test_a_violations_reason_fits_into_a_close_frame_whatever_it_says() -> None:
    violation = ProtocolViolation(CloseCode.BAD_FRAME, "ü" * 500)

    assert len(violation.reason.encode()) <= 123


def test_printable_leaves_one_line() -> None:
    assert codec.printable("naïve\r\n\x1b[31m‮x") == "naïve   [31m x"
