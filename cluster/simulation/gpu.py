"""The simulated engine: continuous batching as a state machine without a clock.

`step(now)` runs one engine iteration and returns how long it takes; `flush()` hands over what the
steps since the last flush produced. Whoever drives the engine decides when that time has passed:
a live worker sleeps, a planner adds numbers.

One iteration serves all models of the worker, one after the other. Per model it takes one token of
every decoding sequence and fills the rest of vLLM's token budget with chunks of prompts, first
come, first served. The step in which the last chunk ends yields the first token.

Every decoding sequence gains exactly one token per iteration. So nothing is kept per token: a
sequence knows the iteration it started from, a heap knows the iteration it ends in, and a step
costs the same for 1 sequence and for 256.

KV cache is reserved for prompt and `max_tokens` on admission and never overcommitted. The
scheduler counts the same way, so that waiting in here is the exception.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush
from random import Random

import msgspec

from cluster.domain import FinishReason, Generation, GpuReading
from cluster.simulation.gauges import Gauges
from cluster.simulation.kvcache import KvPool, MemoryPlan
from cluster.simulation.lanes import Lane, Sequence
from cluster.simulation.text import write

JITTER_SIGMA = 0.03
"""Steps of real engines scatter by 2 to 5 %; the tokens of one step share its jitter."""


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How one engine departs from the physics of its cards."""

    capacity: int
    """Sequences it runs at once."""
    ttft_s: float | None = None
    """Time from admission to the first token, instead of the prompt's computed time."""
    itl_s: float | None = None
    """Time of a step that decodes, instead of the computed one."""


class Tokens(msgspec.Struct, frozen=True, gc=False):
    """New tokens of one attempt; `seq` is the index of the first."""

    task: str
    attempt: int
    seq: int
    texts: list[str]


class Ended(msgspec.Struct, frozen=True, gc=False):
    """An attempt that generated its last token."""

    task: str
    attempt: int
    reason: FinishReason
    generated_tokens: int
    """Counted from the start of the text, also when the attempt resumed in the middle."""


class Output(msgspec.Struct, frozen=True):
    """What steps produced; tokens come before the ends."""

    tokens: list[Tokens]
    ended: list[Ended]


class Refused(Exception):
    """The engine can never run this: a word for machines, and a text that says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SimulatedGpu:
    """All the GPUs of one worker, running one engine."""

    def __init__(self, plan: MemoryPlan, settings: EngineSettings, rng: Random, now: float = 0.0) -> None:
        self.plan = plan
        self._settings = settings
        self._rng = rng
        self._lanes = {model.card.id: Lane(model, plan) for model in plan.models}
        self._pool = KvPool(plan.kv_bytes)
        self._gauges = Gauges(plan.gpu, now)
        self._iteration = 0
        self._sequences: dict[tuple[str, int], Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._ends: list[tuple[int, int, Sequence]] = []
        self._output = Output([], [])
        self.tokens_generated = 0
        self.begun = 0
        """Attempts that have had their first token."""

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._sequences)

    @property
    def running(self) -> int:
        """Attempts that take part in steps."""
        return len(self._sequences) - len(self._waiting)

    @property
    def waiting(self) -> int:
        """Attempts that wait for a slot or for KV cache."""
        return len(self._waiting)

    def add(
        self,
        task: str,
        attempt: int,
        *,
        model: str,
        prompt_tokens: int,
        generation: Generation,
        resume_from: int = 0,
        now: float,
    ) -> None:
        """Take one attempt, or raise `Refused`. It joins the next step that has room for it.

        An attempt that is here already is left as it is.
        """
        if (task, attempt) in self._sequences:
            return
        lane = self._lanes.get(model)
        if lane is None:
            served = ", ".join(self._lanes)
            raise Refused("model_not_served", f"Model {model!r} is not on this worker; it serves {served}.")
        kv_bytes = (prompt_tokens + generation.max_tokens) * lane.kv_bytes_per_token
        most_bytes = self._pool.size_bytes // self.plan.replicas
        if kv_bytes > most_bytes:
            raise Refused(
                "kv_cache_too_small",
                f"{prompt_tokens} prompt tokens and max_tokens {generation.max_tokens} need {kv_bytes:,} bytes of "
                f"KV cache; a sequence on this worker gets at most {most_bytes:,}.",
            )
        script = write(model, generation)
        sequence = Sequence(task, attempt, lane, script, prompt_tokens, min(resume_from, script.length), kv_bytes)
        self._sequences[sequence.key] = sequence
        self._waiting.append(sequence)
        self._admit(now)

    def cancel(self, task: str, attempt: int) -> int | None:
        """Drop one attempt; return how many tokens it had generated, or None if it is not here."""
        sequence = self._sequences.get((task, attempt))
        if sequence is None:
            return self._take_back(task, attempt)
        generated = sequence.generated(self._iteration)
        if sequence.offset is not None:
            sequence.lane.leave(sequence, self._iteration)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        else:
            sequence.lane.prefilling.remove(sequence)
        self._forget(sequence)
        return generated

    def clear(self) -> None:
        """Drop all attempts and all output not yet flushed."""
        for task, attempt in list(self._sequences):
            self.cancel(task, attempt)
        self._output = Output([], [])
        self._ends.clear()

    def step(self, now: float) -> float:
        """Run one engine iteration that starts at `now`; return its length in seconds."""
        self._admit(now)
        self._iteration += 1
        ttft_s = self._settings.ttft_s
        decoding = 0
        time_s = compute_s = memory_s = 0.0
        prefilled: list[Sequence] = []
        for lane in self._lanes.values():
            if not lane.decoding and (ttft_s is not None or not lane.prefilling):
                continue
            decoding += lane.decoding
            chunks = lane.take_chunks(prefilled) if ttft_s is None else []
            cost = lane.cost(chunks)
            time_s += cost.time_s
            compute_s += cost.flops / lane.latency.peak_flops
            memory_s += cost.bytes / lane.latency.peak_bytes_s
            lane.context_tokens += lane.decoding
        time_s = self._duration_s(time_s, decoding, now)
        if ttft_s is not None:
            prefilled = self._due_prompts(now + time_s - ttft_s)
        for sequence in prefilled:
            self._begin_decoding(sequence)
        self.tokens_generated += decoding + len(prefilled)
        while self._ends and self._ends[0][0] <= self._iteration:
            self._finish(heappop(self._ends)[2])
        self._gauges.record(now, time_s, compute_s=compute_s, memory_s=memory_s)
        return time_s

    def flush(self) -> Output:
        """Return what the steps since the last flush produced."""
        output, self._output = self._output, Output([], [])
        for sequence in self._sequences.values():
            if sequence.offset is not None:
                self._collect(sequence, output)
        return output

    def read(self, now: float) -> GpuReading:
        """Read the gauges: utilisation and power are means since the last read."""
        self._gauges.read(now)
        plan = self.plan
        return GpuReading(
            vram_total_bytes=plan.vram_bytes,
            vram_weights_bytes=plan.weights_bytes,
            vram_kv_bytes=sum(lane.kv_bytes_in_use() for lane in self._lanes.values()),
            utilization=self._gauges.utilization,
            power_w=self._gauges.power_w * plan.gpus,
            temperature_c=self._gauges.temperature_c,
        )

    def _admit(self, now: float) -> None:
        while self._waiting and self.running < self._settings.capacity:
            sequence = self._waiting[0]
            if not self._pool.reserve(sequence.key, sequence.kv_bytes):
                break
            self._waiting.popleft()
            sequence.admitted_at = now
            sequence.lane.prefilling.append(sequence)

    def _duration_s(self, computed_s: float, decoding: int, now: float) -> float:
        settings = self._settings
        if decoding and settings.itl_s is not None:
            return settings.itl_s
        if not decoding and settings.ttft_s is not None:
            first = min(lane.prefilling[0].admitted_at for lane in self._lanes.values() if lane.prefilling)
            return max(0.0, first + settings.ttft_s - now)
        return computed_s * math.exp(JITTER_SIGMA * self._rng.gauss(0.0, 1.0))

    def _due_prompts(self, admitted_until: float) -> list[Sequence]:
        due = []
        for lane in self._lanes.values():
            # A hair of tolerance, or rounding would leave the sequence that set the step's length.
            while lane.prefilling and lane.prefilling[0].admitted_at <= admitted_until + 1e-9:
                due.append(lane.prefilling.popleft())
        return due

    def _begin_decoding(self, sequence: Sequence) -> None:
        sequence.offset = self._iteration - sequence.start - 1
        sequence.lane.join(sequence, self._iteration)
        self.begun += 1
        # The count breaks ties, so that sequences are never compared.
        heappush(self._ends, (sequence.offset + sequence.script.length, self.begun, sequence))

    def _finish(self, sequence: Sequence) -> None:
        if self._sequences.get(sequence.key) is not sequence:
            return
        self._collect(sequence, self._output)
        script = sequence.script
        self._output.ended.append(Ended(sequence.task, sequence.attempt, script.reason, script.length))
        sequence.lane.leave(sequence, self._iteration)
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        del self._sequences[sequence.key]
        self._pool.release(sequence.key)

    def _take_back(self, task: str, attempt: int) -> int | None:
        """Unsay the end of an attempt that has been computed and not handed over: its time has not come."""
        output = self._output
        for end in output.ended:
            if end.task == task and end.attempt == attempt:
                output.ended.remove(end)
                output.tokens[:] = [new for new in output.tokens if (new.task, new.attempt) != (task, attempt)]
                return end.generated_tokens
        return None

    def _collect(self, sequence: Sequence, output: Output) -> None:
        script, sent = sequence.script, sequence.sent
        emitted = script.emitted_after(sequence.generated(self._iteration))
        if emitted > sent:
            sequence.sent = emitted
            texts = list(script.texts[sent:emitted])
            output.tokens.append(Tokens(sequence.task, sequence.attempt, sent, texts))
