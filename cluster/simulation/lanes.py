"""Who is inside a simulated engine: sequences, and the lane of each model that they run in.

The bookkeeping of `gpu.py`, which alone decides what happens when. A lane keeps sums over its
decoding sequences, so that nothing here is done per sequence and step.
"""

from __future__ import annotations

from collections import deque

from cluster.simulation.kvcache import MemoryPlan, PlannedModel
from cluster.simulation.latency import MAX_BATCHED_TOKENS, LatencyModel, PrefillChunk, StepCost
from cluster.simulation.text import Script


class Sequence:
    """One attempt inside the engine."""

    __slots__ = (
        "admitted_at",
        "attempt",
        "key",
        "kv_bytes",
        "lane",
        "offset",
        "prefilled_tokens",
        "prompt_tokens",
        "script",
        "sent",
        "start",
        "task",
    )

    def __init__(
        self, task: str, attempt: int, lane: Lane, script: Script, prompt_tokens: int, start: int, kv_bytes: int
    ) -> None:
        self.task, self.attempt = task, attempt
        self.key = (task, attempt)
        self.lane = lane
        self.script = script
        self.prompt_tokens = prompt_tokens
        self.start = self.sent = start
        self.kv_bytes = kv_bytes
        self.admitted_at = 0.0
        self.prefilled_tokens = 0
        self.offset: int | None = None
        """Iteration at which its text would have begun; None until it decodes."""

    def generated(self, iteration: int) -> int:
        """Return how far into its text it is."""
        return self.start if self.offset is None else min(iteration - self.offset, self.script.length)

    def cached_tokens(self, iteration: int) -> int:
        """Return the length of its KV cache once it decodes."""
        assert self.offset is not None
        return self.prompt_tokens + iteration - self.offset


class Lane:
    """One model's share of the engine: who is in it, and how much context they have."""

    def __init__(self, model: PlannedModel, plan: MemoryPlan) -> None:
        self.latency = LatencyModel(model.card.shape, plan.gpu, plan.tp, model.dtype)
        self.kv_bytes_per_token = model.kv_bytes_per_token
        self.prefilling: deque[Sequence] = deque()
        self.decoding = 0
        self.context_tokens = 0
        """Over the decoding sequences."""
        self._replicas = plan.replicas

    def take_chunks(self, prefilled: list[Sequence]) -> list[PrefillChunk]:
        """Fill the step's token budget with prompts; add those that end to `prefilled`."""
        chunks = []
        budget_tokens = MAX_BATCHED_TOKENS * self._replicas - self.decoding
        while self.prefilling and budget_tokens > 0:
            sequence = self.prefilling[0]
            done_tokens = sequence.prefilled_tokens
            # A resumed attempt has to read again what was said before.
            left_tokens = sequence.prompt_tokens + sequence.start - done_tokens
            tokens = min(left_tokens, budget_tokens, MAX_BATCHED_TOKENS)
            chunks.append(PrefillChunk(tokens, done_tokens))
            sequence.prefilled_tokens += tokens
            budget_tokens -= tokens
            if tokens < left_tokens:
                break
            prefilled.append(self.prefilling.popleft())
        return chunks

    def cost(self, chunks: list[PrefillChunk]) -> StepCost:
        """Return the cost of a step on the replica with the most work; the others keep pace."""
        if self._replicas == 1:
            return self.latency.step(chunks, self.decoding, self.context_tokens)
        share = -(-self.decoding // self._replicas)
        return self.latency.step(chunks[:: self._replicas], share, self.context_tokens // self._replicas)

    def join(self, sequence: Sequence, iteration: int) -> None:
        """Let a sequence decode from the next step on."""
        self.decoding += 1
        self.context_tokens += sequence.cached_tokens(iteration)

    def leave(self, sequence: Sequence, iteration: int) -> None:
        """Take a decoding sequence out."""
        self.decoding -= 1
        self.context_tokens -= sequence.cached_tokens(iteration)

    def kv_bytes_in_use(self) -> int:
        """Return the cache that is filled, which is less than what is reserved."""
        prefilled = sum(sequence.prefilled_tokens for sequence in self.prefilling)
        return (self.context_tokens + prefilled) * self.kv_bytes_per_token
