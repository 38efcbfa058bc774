"""The words of the cluster: what a task, a worker and a snapshot are.

Pure: the standard library and msgspec, no clock and no I/O. Everything here is a frozen
value that may cross any boundary (loop, thread, broker, wire). What *happens* to these
values is decided in `cluster.scheduler`; how they travel in `cluster.protocol`.

A tenant is an opaque string with a label: this app never meets a user or a key.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

import msgspec


class Tier(IntEnum):
    """The queue class of a task; a smaller number is served first."""

    PRIORITY = 0
    DEFAULT = 1
    FLEX = 2
    BATCH = 3

    @property
    def word(self) -> str:
        """The tier's name as it stands in rows, on the wire and in the UI."""
        return _TIER_WORDS[self]


_TIER_WORDS = [tier.name.lower() for tier in Tier]
TIERS = dict(zip(_TIER_WORDS, Tier, strict=True))
"""Tiers by their word."""


class FinishReason(StrEnum):
    """Why a generation ended on the worker."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


class Outcome(StrEnum):
    """The one terminal state of an accepted request (promise 1)."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"


class Message(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One turn of the conversation, its text parts already joined."""

    role: str
    content: str
    name: str | None = None


class Generation(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """What a worker is asked to generate: the canonical request of a task.

    Two equal generations for one model give the same simulated text, whatever worker, batch
    or attempt produces it; so the seed is always present (the gateway draws one if need be).
    """

    messages: tuple[Message, ...]
    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


class Task(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One accepted request on its way through the cluster. `id` is the `x-request-id`."""

    id: str
    model: str
    tenant: str
    tenant_label: str
    tier: Tier
    node: str
    """The node whose gateway holds the client's stream."""
    prompt_tokens: int
    generation: Generation
    simulated_only: bool = False
    """Whether only simulated workers may have it: its owner may not use real hardware."""

    @property
    def kv_tokens(self) -> int:
        """KV-cache tokens to reserve on a worker: the prompt and all it may generate."""
        return self.prompt_tokens + self.generation.max_tokens


class WaitReason(StrEnum):
    """Why a task is still in line; the words that clients, timelines and panels show."""

    NO_SLOT = "no_slot"
    """Every worker that takes tasks of its model is full."""
    NO_KV_ROOM = "no_kv_room"
    """There are free slots, but none with room for the tokens that it may need."""
    NO_WORKER = "no_worker"
    """No worker takes tasks of its model just now."""
    BEHIND_OTHERS = "behind_others"
    """An older task of the same tenant is to go first."""
    ISOLATION = "isolation"
    """A worker died with it: it waits for a worker that it has to itself."""
    RESUME = "resume"
    """Its answer has begun: it waits for a worker that can continue the text."""


class Choice(msgspec.Struct, frozen=True, gc=False):
    """Why a task went to the worker that it went to. Scores are 0..1, and 1 is best."""

    candidates: int
    """Workers with a free slot among which it was chosen."""
    load: float
    """How free the worker was: 1 less the larger share in use of its slots and its KV cache."""
    wait: float
    """How soon it gives a first token: its speed as a share of the fastest worker's."""


class Intent(StrEnum):
    """What operators want of a worker."""

    NONE = "none"
    CORDONED = "cordoned"
    """It finishes what it has and gets nothing new, until they think otherwise."""
    DRAINING = "draining"
    """It finishes what it has and is told to leave."""


class ModelOffer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One model that a worker serves."""

    id: str
    context_tokens: int
    kv_bytes_per_token: int
    """Bytes of KV cache per token over all the worker's GPUs; 0 when the worker cannot say."""
    weights_bytes: int = 0


class GpuInfo(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The hardware behind a worker, fixed for the life of its link."""

    name: str
    count: int = 1
    vram_total_bytes: int = 0


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker said of itself in its hello, plus the identity the gateway gave it."""

    id: str
    """Stable over reconnects of one process: derived from token, name and instance."""
    name: str
    instance: str
    gpu: GpuInfo
    models: tuple[ModelOffer, ...]
    capacity: int
    """Sequences it runs at once."""
    kv_bytes: int
    """KV cache shared by all its models; 0 means not accounted."""
    resumes: frozenset[str] = frozenset()
    """Kinds of text that it can continue at any token, such as `sim-text:1`."""
    simulated: bool = False
    lineage: str = ""
    """The same over restarts of the process: derived from token and name. Flapping is judged by it."""


class GpuReading(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a heartbeat says of the GPUs behind a worker: sums over them, or means."""

    vram_total_bytes: int = 0
    vram_weights_bytes: int = 0
    vram_kv_bytes: int = 0
    utilization: float = 0.0
    """Share of the interval with a step running, 0..1."""
    power_w: float = 0.0
    temperature_c: float = 0.0


class WorkerStatus(StrEnum):
    """How the scheduler sees a worker; the words the UI shows."""

    ONLINE = "online"
    BUSY = "busy"
    SUSPECT = "suspect"
    """Silent, or without progress and under probe."""
    QUARANTINED = "quarantined"
    """Its links do not last: no work for a while."""
    CORDONED = "cordoned"
    DRAINING = "draining"
    OFFLINE = "offline"


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """One worker in a snapshot."""

    id: str
    name: str
    status: WorkerStatus
    gpu: GpuInfo
    models: tuple[str, ...]
    running: int
    capacity: int
    kv_used_bytes: int
    """What the scheduler has reserved, not what the worker reports."""
    kv_bytes: int
    reading: GpuReading
    tokens_per_s: float
    simulated: bool
    heartbeat_age_s: float
    """At `ClusterSnapshot.taken_at_s`."""
    cordoned: bool = False
    """Whether operators want it to get nothing new."""


class WaitingView(msgspec.Struct, frozen=True, kw_only=True):
    """One waiting task in a snapshot."""

    task: str
    model: str
    tenant: str
    tenant_label: str
    tier: Tier
    position: int
    """1 is next in its model's queue."""
    waited_s: float
    why: str = ""
    """A word of `WaitReason`."""
    eta_ms: int | None = None
    """When it may start, at the pace at which its model's line moves; None before one is known."""


class TierView(msgspec.Struct, frozen=True, kw_only=True):
    """One tier's queue in a snapshot, over all models."""

    tier: Tier
    depth: int
    oldest_wait_s: float


class ClusterSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable picture of the cluster; the only thing sync code reads of it."""

    version: int = 0
    taken_at_s: float = 0.0
    """Wall clock, seconds since the epoch: for people and browsers, never for decisions."""
    running: int = 0
    waiting: int = 0
    capacity: int = 0
    workers: tuple[WorkerView, ...] = ()
    tiers: tuple[TierView, ...] = ()
    head: tuple[WaitingView, ...] = ()
    """The first 100 waiting per tier."""
    dropped: dict[str, int] = {}
    """Late or stray events, by kind: counted, never acted on."""
