"""The messages of the worker protocol, version 1, and nothing else.

A WebSocket frame is a msgpack array of messages; a message is a map whose `t` names its kind.
Unknown *fields* are ignored, so that either side may be newer; unknown *kinds* are a violation.
What may be said when is in `session.py`; bytes and their limits are in `codec.py`. The public
contract is `templates/docs/worker-protocol.md`: change both or neither.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cluster.domain import FinishReason, Generation, GpuInfo, GpuReading, ModelOffer

VERSION = 1

Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*\Z")]
TaskId = Annotated[str, Meta(min_length=1, max_length=64)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Attempt = Annotated[int, Meta(ge=1, le=1000)]


class CloseCode(IntEnum):
    """Why a worker's socket was closed by the gateway."""

    GOING_AWAY = 1001
    INTERNAL_ERROR = 1011
    TRY_AGAIN = 1013
    BAD_FRAME = 4400
    NO_TOKEN = 4401
    NOT_YOURS = 4403
    VERSION = 4406
    SILENT = 4408
    REPLACED = 4409
    EVICTED = 4410
    TOO_MANY = 4429


class Hello(msgspec.Struct, frozen=True, tag_field="t", tag="hello", omit_defaults=True, kw_only=True):
    """Worker → gateway, first of all: who I am, what I hold, how much I take."""

    v: int
    name: Name
    instance: Name
    """Drawn once per process, kept over reconnects."""
    gpu: GpuInfo
    models: Annotated[tuple[ModelOffer, ...], Meta(min_length=1, max_length=256)]
    capacity: Annotated[int, Meta(ge=1, le=65_536)]
    kv_bytes: Count = 0
    resumes: Annotated[tuple[Name, ...], Meta(max_length=16)] | None = None
    """Text generators whose output can be continued at a token: `sim-text:1`."""
    simulated: bool = False
    software: Annotated[str, Meta(max_length=128)] = ""
    upstream: None = None
    """Reserved, and refused: nobody here dials an address that a worker names."""


class Welcome(msgspec.Struct, frozen=True, tag_field="t", tag="welcome", omit_defaults=True, kw_only=True):
    """Gateway → worker, the answer to hello: you are in, and this is the rhythm."""

    v: int
    worker: str
    link: str
    heartbeat_s: float
    max_frame_bytes: int


class Load(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a worker has on its plate; telemetry, the scheduler counts for itself."""

    running: Count = 0
    waiting: Count = 0
    tokens_per_s: Annotated[float, Meta(ge=0)] = 0.0


class Heartbeat(msgspec.Struct, frozen=True, tag_field="t", tag="heartbeat", omit_defaults=True, kw_only=True):
    """Worker → gateway, every `heartbeat_s`."""

    status: Literal["ready", "busy", "draining"]
    gpu: GpuReading = GpuReading()
    load: Load = Load()
    timestamp: float = 0.0
    """The worker's wall clock; shown, never used to decide."""


class Assign(msgspec.Struct, frozen=True, gc=False, tag_field="t", tag="assign", omit_defaults=True, kw_only=True):
    """Gateway → worker: generate this."""

    task: TaskId
    attempt: Attempt
    model: str
    prompt_tokens: Count
    generation: Generation
    resume_from: Count = 0
    """Index of the first token to send; 0 is a fresh start."""


class Chunk(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """New tokens of one task: `[task, attempt, seq, texts]`, `seq` the index of `texts[0]`."""

    task: TaskId
    attempt: Attempt
    seq: Count
    texts: list[str]


class Step(msgspec.Struct, frozen=True, gc=False, tag_field="t", tag="step"):
    """Worker → gateway: the new tokens of all sequences that an engine step advanced."""

    chunks: list[Chunk]


class Finished(msgspec.Struct, frozen=True, gc=False, tag_field="t", tag="finished", omit_defaults=True, kw_only=True):
    """Worker → gateway: an attempt ended well, or was cancelled as asked. Frees its slot."""

    task: TaskId
    attempt: Attempt
    reason: FinishReason
    generated_tokens: Count
    """All tokens computed, also those held back or cut off by a stop string."""
    ttft_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Assignment received → first token sent, by the worker's clock."""


class Failed(msgspec.Struct, frozen=True, gc=False, tag_field="t", tag="failed", omit_defaults=True, kw_only=True):
    """Worker → gateway: an attempt ended badly. Frees its slot. The text stays in the log."""

    task: TaskId
    attempt: Attempt
    code: Name
    message: Annotated[str, Meta(max_length=2_000)] = ""
    retryable: bool = True


class Cancel(msgspec.Struct, frozen=True, gc=False, tag_field="t", tag="cancel", kw_only=True):
    """Gateway → worker: stop this attempt and answer `finished: cancelled`."""

    task: TaskId
    attempt: Attempt


class Drain(msgspec.Struct, frozen=True, tag_field="t", tag="drain", omit_defaults=True, kw_only=True):
    """Either way. From a worker: send me nothing new. From a gateway: finish, then leave."""

    deadline_s: float = 25.0


class Bye(msgspec.Struct, frozen=True, tag_field="t", tag="bye", omit_defaults=True, kw_only=True):
    """Either way, last of all: I am leaving on purpose."""

    reason: Annotated[str, Meta(max_length=128)] = ""


FromWorker = Hello | Heartbeat | Step | Finished | Failed | Drain | Bye
FromGateway = Welcome | Assign | Cancel | Drain | Bye
