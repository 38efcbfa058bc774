"""Bytes and their limits: a frame is a msgpack array of messages.

Both directions pass through here, and nothing else in the project packs or unpacks a frame. What
msgspec can say about a message is in `messages.py`; what it cannot (finite numbers, unique ids,
sizes over a whole frame) is checked here. Which message may come when is in `session.py`.

Whatever a peer sends, the only exception that leaves `decode_*` is `ProtocolViolation`, and its
text never repeats the payload. A step is the hot message: its tokens are not looked at one by one
unless the frame is large enough to hide one that is too long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from typing import TypeVar, assert_never

import msgspec

from cluster.protocol.messages import (
    Bye,
    Chunk,
    CloseCode,
    Drain,
    Failed,
    Finished,
    FromGateway,
    FromWorker,
    Heartbeat,
    Hello,
    Step,
    Welcome,
)

MAX_FRAME_BYTES = 1024 * 1024
"""The largest frame a gateway takes from a worker."""
MAX_GATEWAY_FRAME_BYTES = 8 * 1024 * 1024
"""The largest frame a worker takes: an assign carries a whole prompt, and cannot be split."""
BATCH_BYTES = 256 * 1024
"""Outgoing batches are split here, so that a cancel never waits behind a megabyte."""
MAX_ITEMS = 4_096
"""Messages plus chunks in one frame: bounds the work that one frame can cause."""
MAX_TOKEN_CHARS = 16 * 1024
MAX_REASON_CHARS = 120
"""A WebSocket close frame has room for 123 bytes of reason."""
MAX_COUNT = 2**53

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()
_from_worker = msgspec.msgpack.Decoder(list[FromWorker])
_from_gateway = msgspec.msgpack.Decoder(list[FromGateway])
_raw_messages = msgspec.msgpack.Decoder(list[msgspec.Raw])


class ProtocolViolation(Exception):
    """The peer broke the protocol: close its socket with `close_code` and `reason`."""

    def __init__(self, close_code: CloseCode, reason: str) -> None:
        self.close_code = close_code
        self.reason = reason.encode("ascii", "backslashreplace").decode()[:MAX_REASON_CHARS]
        super().__init__(self.reason)


class FrameTooLarge(Exception):
    """A message of ours is larger than its receiver takes, and cannot be split."""


class _AnyHello(msgspec.Struct, tag_field="t", tag="hello"):
    """The one part of a hello that every version of the protocol shares."""

    v: int


def decode_from_worker(frame: bytes) -> list[FromWorker]:
    """Return the frame's messages, fully validated, or raise `ProtocolViolation`."""
    messages = _decode(_from_worker, frame, MAX_FRAME_BYTES)
    for message in messages:
        if not isinstance(message, Step):
            _check(message)
        elif len(frame) > MAX_TOKEN_CHARS:
            _check_tokens(message)
    return messages


def decode_from_gateway(frame: bytes) -> list[FromGateway]:
    """Return the frame's messages, or raise `ProtocolViolation`."""
    messages = _decode(_from_gateway, frame, MAX_GATEWAY_FRAME_BYTES)
    for message in messages:
        if isinstance(message, Welcome):
            _require(isfinite(message.heartbeat_s) and message.heartbeat_s > 0, "welcome.heartbeat_s: expected > 0")
        elif isinstance(message, Drain):
            _check_drain(message)
    return messages


def peek_version(frame: bytes) -> int | None:
    """Return the version of the hello that opens this frame, None if no hello does.

    Read apart from the rest, so that a hello of another version is refused as such even where
    its other fields have changed.
    """
    try:
        first = _raw_messages.decode(frame)[0]
        return msgspec.msgpack.decode(first, type=_AnyHello).v
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, IndexError):
        return None


def encode_frames(messages: Sequence[FromWorker | FromGateway], batch_bytes: int = BATCH_BYTES) -> list[bytes]:
    """Return the messages as frames in their order, each within the limits of its receiver.

    A batch over `batch_bytes` is halved until its parts fit: between messages, then between the
    chunks of a step, then between the tokens of a chunk.
    """
    if not messages:
        return []
    frame = _encoder.encode(messages)
    if len(frame) <= batch_bytes and _items(messages) <= MAX_ITEMS:
        return [frame]
    if len(messages) > 1:
        half = len(messages) // 2
        return encode_frames(messages[:half], batch_bytes) + encode_frames(messages[half:], batch_bytes)
    match messages[0]:
        case Step(chunks=[Chunk(task=task, attempt=attempt, seq=seq, texts=texts)]) if len(texts) > 1:
            half = len(texts) // 2
            parts = [Chunk(task, attempt, seq, texts[:half]), Chunk(task, attempt, seq + half, texts[half:])]
            return encode_frames([Step([part]) for part in parts], batch_bytes)
        case Step(chunks=chunks) if len(chunks) > 1:
            half = len(chunks) // 2
            return encode_frames([Step(chunks[:half]), Step(chunks[half:])], batch_bytes)
        case Hello() | Heartbeat() | Step() | Finished() | Failed():
            limit = MAX_FRAME_BYTES
        case _:
            limit = MAX_GATEWAY_FRAME_BYTES
    if len(frame) > limit:
        kind = type(messages[0]).__name__.lower()
        raise FrameTooLarge(f"one {kind} of {len(frame):,} bytes: its receiver takes {limit:,}")
    return [frame]


def printable(text: str) -> str:
    """Return the text as one printable line, for fields that may not hold control characters."""
    return "".join(char if char.isprintable() else " " for char in text)


def _decode(decoder: msgspec.msgpack.Decoder[list[M]], frame: bytes, limit: int) -> list[M]:
    _require(len(frame) <= limit, f"frame of {len(frame):,} bytes: expected at most {limit:,}")
    try:
        messages = decoder.decode(frame)
    except msgspec.ValidationError as error:
        # msgspec quotes the unknown value of a tag or an enum, which is the peer's text.
        reason = re.sub(r"Invalid (enum )?value .* - at", "Unknown value - at", str(error), flags=re.DOTALL)
        raise ProtocolViolation(CloseCode.BAD_FRAME, reason) from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ProtocolViolation(CloseCode.BAD_FRAME, "not a msgpack array of messages") from None
    except RecursionError:
        raise ProtocolViolation(CloseCode.BAD_FRAME, "nested too deeply") from None
    _require(bool(messages), "empty frame: expected at least one message")
    _require(_items(messages) <= MAX_ITEMS, f"more than {MAX_ITEMS:,} messages and chunks in one frame")
    return messages


def _items(messages: Sequence[object]) -> int:
    return len(messages) + sum(len(message.chunks) for message in messages if type(message) is Step)


def _check(message: Hello | Heartbeat | Finished | Failed | Drain | Bye) -> None:
    match message:
        case Hello():
            _check_hello(message)
        case Heartbeat():
            _check_heartbeat(message)
        case Finished():
            _require(isfinite(message.ttft_ms), "finished.ttft_ms: expected a finite number")
        case Failed():
            _require(message.message.isprintable(), "failed.message: expected one line without control characters")
        case Drain():
            _check_drain(message)
        case Bye():
            _require(message.reason.isprintable(), "bye.reason: expected one line without control characters")
        case _:
            assert_never(message)


def _check_hello(hello: Hello) -> None:
    _require(_is_label(hello.gpu.name), "hello.gpu.name: expected 1 to 128 printable characters")
    _require(1 <= hello.gpu.count <= 1_024, "hello.gpu.count: expected 1 to 1,024")
    _require(_is_count(hello.gpu.vram_total_bytes), "hello.gpu.vram_total_bytes: expected 0 to 2^53")
    _require(hello.software.isprintable(), "hello.software: expected one line without control characters")
    for offer in hello.models:
        _require(_is_label(offer.id), "hello.models.id: expected 1 to 128 printable characters")
        _require(1 <= offer.context_tokens <= MAX_COUNT, "hello.models.context_tokens: expected 1 to 2^53")
        _require(_is_count(offer.kv_bytes_per_token), "hello.models.kv_bytes_per_token: expected 0 to 2^53")
        _require(_is_count(offer.weights_bytes), "hello.models.weights_bytes: expected 0 to 2^53")
    _require(len({offer.id for offer in hello.models}) == len(hello.models), "hello.models: expected unique ids")


def _check_heartbeat(heartbeat: Heartbeat) -> None:
    gpu = heartbeat.gpu
    for field in ("vram_total_bytes", "vram_weights_bytes", "vram_kv_bytes"):
        _require(_is_count(getattr(gpu, field)), f"heartbeat.gpu.{field}: expected 0 to 2^53")
    _require(0 <= gpu.utilization <= 1, "heartbeat.gpu.utilization: expected 0 to 1")
    _require(isfinite(gpu.power_w) and gpu.power_w >= 0, "heartbeat.gpu.power_w: expected a finite number >= 0")
    _require(isfinite(gpu.temperature_c), "heartbeat.gpu.temperature_c: expected a finite number")
    _require(isfinite(heartbeat.load.tokens_per_s), "heartbeat.load.tokens_per_s: expected a finite number")
    _require(isfinite(heartbeat.timestamp), "heartbeat.timestamp: expected a finite number")


def _check_tokens(step: Step) -> None:
    for chunk in step.chunks:
        longest = max(map(len, chunk.texts), default=0)
        _require(longest <= MAX_TOKEN_CHARS, f"step: a token of more than {MAX_TOKEN_CHARS:,} characters")


def _check_drain(drain: Drain) -> None:
    _require(isfinite(drain.deadline_s) and drain.deadline_s >= 0, "drain.deadline_s: expected a finite number >= 0")


def _is_label(text: str) -> bool:
    return 1 <= len(text) <= 128 and text.isprintable()


def _is_count(number: int) -> bool:
    return 0 <= number <= MAX_COUNT


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise ProtocolViolation(CloseCode.BAD_FRAME, reason)
