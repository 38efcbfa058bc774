"""What the Scheduler remembers of a worker: what it can hold, what it holds, and how it is.

A slot belongs to an attempt and not to a task (rule 3 of `state`): `take` and `give_back` for one that
runs, `start_release` and `end_release` for one that was cancelled and is not yet acknowledged.
"""

from __future__ import annotations

from math import log2
from typing import TYPE_CHECKING

from cluster.domain import GpuReading, ModelOffer, WorkerSpec
from cluster.scheduler.state import Demand, TaskRecord

if TYPE_CHECKING:
    from cluster.scheduler.pools import Pool

FOREVER = float("inf")
SMOOTHING = 0.3
"""How much a heartbeat's speed counts against those before it."""


class Release:
    """A cancelled attempt whose worker has not said yet that it stopped: it still holds a slot."""

    __slots__ = ("attempt", "due_at_s", "kv_bytes", "record", "task_id", "worker")

    def __init__(self, record: TaskRecord, worker: WorkerRecord, due_at_s: float) -> None:
        self.task_id = record.task.id
        self.attempt = record.attempt
        self.record = record
        self.kv_bytes = record.kv_bytes
        self.worker = worker
        self.due_at_s = due_at_s
        """When it is overdue."""


class WorkerRecord:
    """One live worker."""

    __slots__ = (
        "alone",
        "cordoned",
        "demands",
        "draining",
        "gpu_word",
        "held",
        "kept_for",
        "kv_used_bytes",
        "last_seen_at_s",
        "link",
        "node",
        "offers",
        "open",
        "pool",
        "probe",
        "probe_after_s",
        "probe_at_s",
        "probe_fails_at_s",
        "quarantined_until_s",
        "reading",
        "ready",
        "releasing",
        "running",
        "since_aged",
        "slowness",
        "spec",
        "speed",
        "stale",
        "stalls",
        "suspect",
        "tokens_per_s",
        "told",
        "version",
    )

    def __init__(self, spec: WorkerSpec, node: str, link: str, now: float) -> None:
        self.spec = spec
        self.node = node
        self.link = link
        self.offers: dict[str, ModelOffer] = {offer.id: offer for offer in spec.models}
        self.demands: list[Demand] = [(model, False) for model in self.offers]
        """What it can satisfy."""
        if spec.simulated:
            self.demands += [(model, True) for model in self.offers]
        self.gpu_word = spec.gpu.name if spec.gpu.count == 1 else f"{spec.gpu.count}×{spec.gpu.name}"
        self.last_seen_at_s = now
        self.reading = GpuReading()
        self.tokens_per_s = 0.0
        self.speed = 0.0
        """Tokens a second of one sequence, of late; 0 while it has not been seen to work."""
        self.slowness = 0
        """Its speed in coarse steps, the smaller the faster: workers of one step are alike."""

        self.draining = False
        self.told = False
        """Whether it was sent away over this link."""
        self.cordoned = False
        self.suspect = False
        self.quarantined_until_s = 0.0
        self.open = True
        """Whether it takes new tasks at all: none of the four above. Kept by `judge`."""
        self.stale = False
        """Whether it was found to be silent for too long to be given work just now."""

        self.stalls = 0
        """Attempts that made no progress here, since the last that ended well."""
        self.probe = 0
        """The number of the last probe."""
        self.probe_at_s = FOREVER
        """When it is probed next; never while it is not suspect or a probe is under way."""
        self.probe_fails_at_s = FOREVER
        self.probe_after_s = 0.0

        self.running: dict[str, TaskRecord] = {}
        self.releasing: dict[tuple[str, int], Release] = {}
        """By task and attempt."""
        self.held = 0
        """Slots in use by both."""
        self.kv_used_bytes = 0
        self.alone = False
        """Whether what it runs must not have neighbours."""
        self.kept_for: TaskRecord | None = None
        """The only task it may be given."""
        self.since_aged = 0
        """Dispatches since one went to a model whose turn it was not, for its age."""

        self.pool: Pool
        """Its alternatives; set when it takes its place among them."""
        self.version = 0
        """Which entries of its pool's heaps are true."""
        self.ready = False
        """Whether it has any."""

    @property
    def has_slot(self) -> bool:
        """Whether a slot is free, and not to be left free for a neighbour's sake."""
        return self.held < self.spec.capacity and not self.alone

    @property
    def load(self) -> float:
        """The larger share in use of slots and of KV cache, 0..1."""
        spec = self.spec
        slots = self.held / spec.capacity
        if not spec.kv_bytes:
            return slots
        kv = self.kv_used_bytes / spec.kv_bytes
        return kv if kv > slots else slots

    def judge(self) -> bool:
        """Work out anew whether it takes new tasks; return whether that has changed."""
        was = self.open
        self.open = not (self.draining or self.cordoned or self.suspect or self.quarantined_until_s)
        return self.open is not was

    def due_at_s(self, silent_s: float) -> float:
        """Return when to look at it next."""
        return min(
            self.last_seen_at_s + silent_s,
            self.probe_at_s,
            self.probe_fails_at_s,
            self.quarantined_until_s or FOREVER,
        )

    def measure(self, tokens_per_s: float) -> None:
        """Note the speed that a heartbeat reports."""
        self.tokens_per_s = tokens_per_s
        if tokens_per_s > 0 and self.held:
            speed = tokens_per_s / self.held
            self.speed += SMOOTHING * (speed - self.speed) if self.speed else speed
            # Half powers of two: whoever is not a good third faster is no faster at all.
            self.slowness = -round(2 * log2(self.speed))

    def kv_need(self, record: TaskRecord) -> int:
        """Return the KV bytes a task would take here; 0 where the worker does not account them."""
        return record.kv_tokens * self.offers[record.task.model].kv_bytes_per_token if self.spec.kv_bytes else 0

    def limit_tokens(self, model: str) -> int:
        """Return the most tokens, prompt and answer, that one task of a model can ever have here."""
        return self._tokens(model, self.spec.kv_bytes)

    def room_tokens(self, model: str) -> int:
        """Return the most tokens that one task of a model can have if it starts here now."""
        return self._tokens(model, self.spec.kv_bytes - self.kv_used_bytes)

    def fits(self, record: TaskRecord) -> bool:
        """Return whether there is room for the task now."""
        # What `has_slot` and `room_tokens` say, spelled out: asked of several workers for every task.
        spec, kv_tokens = self.spec, record.kv_tokens
        if self.held >= spec.capacity or self.alone:
            return False
        offer = self.offers[record.task.model]
        if kv_tokens > offer.context_tokens:
            return False
        return not spec.kv_bytes or kv_tokens * offer.kv_bytes_per_token <= spec.kv_bytes - self.kv_used_bytes

    def suits(self, record: TaskRecord) -> bool:
        """Return whether the task may be here and, if it has begun to answer, can be continued here."""
        if record.task.simulated_only and not self.spec.simulated:
            return False
        past = record.past
        return past is None or not past.resume_from or not past.resumes.isdisjoint(self.spec.resumes)

    def take(self, record: TaskRecord) -> None:
        """Reserve a slot and KV cache for the task's current attempt."""
        record.worker = self
        record.kv_bytes = self.kv_need(record)
        self.running[record.task.id] = record
        self.held += 1
        self.kv_used_bytes += record.kv_bytes

    def give_back(self, record: TaskRecord) -> None:
        """Free what an attempt held that is over here too."""
        record.worker = None
        del self.running[record.task.id]
        self._free(record.kv_bytes)

    def start_release(self, record: TaskRecord, due_at_s: float) -> Release:
        """Keep what an attempt holds that is over for us, until it is over here."""
        record.worker = None
        del self.running[record.task.id]
        release = self.releasing[record.task.id, record.attempt] = Release(record, self, due_at_s)
        return release

    def end_release(self, task_id: str, attempt: int) -> Release | None:
        """Free what a cancelled attempt held; return None if there is no such attempt."""
        release = self.releasing.pop((task_id, attempt), None)
        if release is not None:
            self._free(release.kv_bytes)
        return release

    def _free(self, kv_bytes: int) -> None:
        self.held -= 1
        self.kv_used_bytes -= kv_bytes
        if not self.held:
            self.alone = False

    def _tokens(self, model: str, kv_bytes: int) -> int:
        offer = self.offers[model]
        if not self.spec.kv_bytes or not offer.kv_bytes_per_token:
            return offer.context_tokens
        return min(offer.context_tokens, kv_bytes // offer.kv_bytes_per_token)
