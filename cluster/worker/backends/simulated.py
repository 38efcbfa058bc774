"""A simulated GPU as a backend: the pure engine of `cluster.simulation`, driven in real time.

The engine's virtual time advances by whole steps only. Its tokens go out when the wall clock
reaches the step's virtual end: `wall = anchor + (virtual − anchor) / speed`. A late wake-up never
moves virtual time: the steps that are overdue are run at once and go out together.

At speed 0 nothing sleeps: steps run for about a millisecond of CPU, go out together, and the loop
gets its turn. Above 1, steps that end within the same 2 ms go out together. An idle engine waits
on an event and costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from random import Random

import msgspec

from cluster.domain import FinishReason, GpuInfo, GpuReading, ModelOffer
from cluster.protocol.messages import Assign, Chunk, Failed, Finished, Load, Step
from cluster.simulation.gpu import EngineSettings, Refused, SimulatedGpu
from cluster.simulation.hardware import UnknownGpu, get_gpu
from cluster.simulation.kvcache import DoesNotFit, MemoryPlan, plan_memory
from cluster.simulation.latency import MAX_SEQUENCES
from cluster.simulation.llms import UnknownLlm, get_llm
from cluster.simulation.text import TEXT_VERSION
from cluster.worker.backends.base import Capabilities, Emit, UnableToLoad

logger = logging.getLogger(__name__)

TICK_S = 0.002
"""Steps closer together than this are one frame at speeds above 1."""
BURST_S = 0.001
"""CPU time after which the event loop gets its turn, whatever is due."""
MAX_FRAME_TOKENS = 16_384
"""Bounds a frame well below the protocol's 1 MiB."""
TYPICAL_SEQUENCE_TOKENS = 1_024
MIN_SPEED = 0.1


class SimulatedOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator asked for; the flags of `runworker`."""

    models: tuple[str, ...]
    gpu: str = "H100"
    gpus: int = 1
    tp: int | None = None
    dtype: str | None = None
    speed: float = 1.0
    """Virtual seconds per second; 0 is as fast as it goes."""
    ttft_ms: float | None = None
    itl_ms: float | None = None
    load_time_s: float = 0.0
    seed: int = 0
    capacity: int | None = None


class _Attempt:
    """What the backend remembers of an attempt: when it came, and when it first spoke."""

    __slots__ = ("assigned_at", "ttft_ms")

    def __init__(self, assigned_at: float) -> None:
        self.assigned_at = assigned_at
        self.ttft_ms: float | None = None


class SimulatedBackend:
    """Runs one `SimulatedGpu` as a task of the event loop."""

    def __init__(self, options: SimulatedOptions) -> None:
        self._options = options
        self._rate = options.speed or 1.0
        self._attempts: dict[tuple[str, int], _Attempt] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._virtual = 0.0
        """Virtual end of the last step that was run."""
        self._anchor_virtual = self._anchor_wall = 0.0
        self._idle_since: float | None = None
        self._read_at = 0.0
        self._read_tokens = 0

    async def load(self) -> Capabilities:
        """Plan the memory and wait as long as loading the weights is meant to take."""
        self._plan, self._capacity = _plan(self._options)
        self._gpu = self._engine()
        await asyncio.sleep(self._options.load_time_s)
        plan = self._plan
        return Capabilities(
            gpu=GpuInfo(name=plan.gpu.name, count=plan.gpus, vram_total_bytes=plan.vram_bytes),
            models=tuple(
                ModelOffer(
                    id=model.card.id,
                    context_tokens=model.context_tokens,
                    kv_bytes_per_token=model.kv_bytes_per_token,
                    weights_bytes=model.weights_bytes,
                )
                for model in plan.models
            ),
            capacity=self._capacity,
            kv_bytes=plan.kv_bytes,
            resumes=(TEXT_VERSION,),
            simulated=True,
        )

    def start(self, emit: Emit) -> None:
        """Begin the engine's loop as a task of the running event loop."""
        self._emit = emit
        self._anchor_wall = self._read_at = time.monotonic()
        self._task = asyncio.create_task(self._run(), name="simulated-gpu")

    def assign(self, assign: Assign) -> None:
        """Hand one attempt to the engine; one that is here already is left as it is."""
        key, now = (assign.task, assign.attempt), time.monotonic()
        if key in self._attempts:
            return
        try:
            self._gpu.add(
                assign.task,
                assign.attempt,
                model=assign.model,
                prompt_tokens=assign.prompt_tokens,
                generation=assign.generation,
                resume_from=assign.resume_from,
                now=self._virtual_at(now),
            )
        except Refused as refused:
            self._emit([Failed(task=assign.task, attempt=assign.attempt, code=refused.code, message=str(refused))])
            return
        self._attempts[key] = _Attempt(now)
        self._wake.set()

    def cancel(self, task: str, attempt: int) -> None:
        """Take one attempt out of the batch and say so at once."""
        generated_tokens = self._gpu.cancel(task, attempt)
        if generated_tokens is not None:
            self._emit([self._finished(task, attempt, FinishReason.CANCELLED, generated_tokens)])

    def abort_all(self) -> None:
        """Empty the engine without a word."""
        self._gpu.clear()
        self._attempts.clear()

    def read(self) -> tuple[GpuReading, Load]:
        """Read the gauges in the engine's time, and tokens per second of the wall clock."""
        now = time.monotonic()
        tokens, interval_s = self._gpu.tokens_generated, now - self._read_at
        tokens_per_s = (tokens - self._read_tokens) / interval_s if interval_s > 0 else 0.0
        self._read_at, self._read_tokens = now, tokens
        load = Load(running=self._gpu.running, waiting=self._gpu.waiting, tokens_per_s=tokens_per_s)
        return self._gpu.read(self._virtual_at(now)), load

    async def stop(self) -> None:
        """End the engine's loop and drop what is in it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            self.abort_all()

    async def _run(self) -> None:
        while True:
            if not self._gpu.busy:
                await self._idle()
            try:
                self._run_due_steps()
                # At speed 0, or when late, a sleep of zero: others on this loop get their turn.
                await asyncio.sleep(max(0.0, self._wall_at(self._virtual) - time.monotonic()))
                self._send()
            except Exception:
                logger.exception("The simulated engine failed; its attempts are given up.")
                self._give_up()

    async def _idle(self) -> None:
        """Wait for work. Virtual time goes on meanwhile; afterwards it is anchored anew."""
        self._idle_since = time.monotonic()
        self._wake.clear()
        await self._wake.wait()
        now = time.monotonic()
        self._virtual = self._anchor_virtual = self._virtual_at(now)
        self._anchor_wall, self._idle_since = now, None

    def _run_due_steps(self) -> None:
        """Run at least one step, and all whose tokens would go out in the same tick."""
        began = time.monotonic()
        tick_s = TICK_S if self._options.speed > 1 else 0.0
        until = self._virtual_at(began + tick_s) if self._options.speed else float("inf")
        most_tokens = self._gpu.tokens_generated + MAX_FRAME_TOKENS
        while True:
            begun = self._gpu.begun
            self._virtual += self._gpu.step(self._virtual)
            if (
                self._virtual >= until
                # A first token that is due goes out now, not when the step after it ends.
                or (self._gpu.begun > begun and self._options.speed)
                or not self._gpu.busy
                or time.monotonic() - began > BURST_S
                or self._gpu.tokens_generated > most_tokens
            ):
                return

    def _send(self) -> None:
        """Emit what has been generated, tokens first, as one batch."""
        output = self._gpu.flush()
        messages: list[Step | Finished | Failed] = []
        if output.tokens:
            now = time.monotonic()
            chunks = []
            for new in output.tokens:
                attempt = self._attempts[new.task, new.attempt]
                if attempt.ttft_ms is None:
                    attempt.ttft_ms = (now - attempt.assigned_at) * 1000
                chunks.append(Chunk(new.task, new.attempt, new.seq, new.texts))
            messages.append(Step(chunks))
        for end in output.ended:
            messages.append(self._finished(end.task, end.attempt, end.reason, end.generated_tokens))
        if messages:
            self._emit(messages)

    def _finished(self, task: str, attempt: int, reason: FinishReason, generated_tokens: int) -> Finished:
        ttft_ms = self._attempts.pop((task, attempt)).ttft_ms
        return Finished(
            task=task, attempt=attempt, reason=reason, generated_tokens=generated_tokens, ttft_ms=ttft_ms or 0.0
        )

    def _give_up(self) -> None:
        attempts, self._attempts = self._attempts, {}
        self._gpu = self._engine()
        self._read_tokens = 0
        self._emit([Failed(task=task, attempt=attempt, code="engine_error") for task, attempt in attempts])

    def _engine(self) -> SimulatedGpu:
        options = self._options
        settings = EngineSettings(
            capacity=self._capacity, ttft_s=_seconds(options.ttft_ms), itl_s=_seconds(options.itl_ms)
        )
        return SimulatedGpu(self._plan, settings, Random(options.seed), self._virtual)

    def _virtual_at(self, wall: float) -> float:
        if self._idle_since is not None:
            return self._virtual + (wall - self._idle_since) * self._rate
        if self._options.speed == 0:
            return self._virtual
        return self._anchor_virtual + (wall - self._anchor_wall) * self._rate

    def _wall_at(self, virtual: float) -> float:
        if self._options.speed == 0:
            return self._anchor_wall
        return self._anchor_wall + (virtual - self._anchor_virtual) / self._rate


def _plan(options: SimulatedOptions) -> tuple[MemoryPlan, int]:
    if not (options.speed == 0 or MIN_SPEED <= options.speed < float("inf")):
        raise UnableToLoad(f"--speed {options.speed:g}: use 0 for as fast as it goes, or at least {MIN_SPEED:g}.")
    for flag, value in (("--ttft-ms", options.ttft_ms), ("--itl-ms", options.itl_ms)):
        if value is not None and not 0 <= value < float("inf"):
            raise UnableToLoad(f"{flag} {value:g}: use a number of milliseconds, 0 or more.")
    if not 0 <= options.load_time_s < float("inf"):
        raise UnableToLoad(f"--load-time {options.load_time_s:g}: use a number of seconds, 0 or more.")
    try:
        cards = [get_llm(id) for id in dict.fromkeys(options.models)]
        plan = plan_memory(cards, get_gpu(options.gpu), options.gpus, options.tp, options.dtype)
    except (UnknownGpu, UnknownLlm, DoesNotFit) as error:
        raise UnableToLoad(str(error)) from error
    largest = max(model.kv_bytes_per_token for model in plan.models)
    capacity = options.capacity
    if capacity is None:
        capacity = min(MAX_SEQUENCES * plan.replicas, max(1, plan.kv_bytes // (largest * TYPICAL_SEQUENCE_TOKENS)))
    if capacity < 1:
        raise UnableToLoad(f"--capacity {capacity}: a worker runs at least 1 sequence at once.")
    return plan, capacity


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000
