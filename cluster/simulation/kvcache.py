"""GPU memory: which models fit on a worker, and who holds how much of the KV cache.

`plan_memory` answers once, when a worker starts; `KvPool` counts while it runs. Both work in
bytes, because the models of one worker share one pool and their tokens differ in size.

    usable per GPU = 90 % of its memory − 1 GB for activations      (vLLM's defaults)
    KV pool        = usable − Σ weights ÷ tp,  times the number of GPUs

A worker with more GPUs than `tp` runs gpus ÷ tp equal replicas of every model.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cluster.simulation.hardware import GPUS, GpuCard
from cluster.simulation.llms import DTYPES, LlmCard

USABLE_SHARE = 0.90
ACTIVATIONS_BYTES = 1_000_000_000
MIN_POOL_TOKENS = 2_048
"""A pool that holds less than this of any one model is refused: it would serve nobody."""
_GB = 1e9


class DoesNotFit(Exception):
    """The models do not fit; the text shows the arithmetic and what would fit."""


class PlannedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a worker, in the precision it is served in."""

    card: LlmCard
    dtype: str
    weights_bytes: int
    """One copy, over the GPUs of a tensor-parallel group."""
    kv_bytes_per_token: int
    """Over the GPUs of a tensor-parallel group."""
    context_tokens: int
    """What the model was built for, or what the pool can hold if that is less."""


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker's memory is divided, over all its GPUs."""

    gpu: GpuCard
    gpus: int
    tp: int
    models: tuple[PlannedModel, ...]
    vram_bytes: int
    weights_bytes: int
    kv_bytes: int

    @property
    def replicas(self) -> int:
        """Copies of every model."""
        return self.gpus // self.tp


def plan_memory(
    models: Sequence[LlmCard], gpu: GpuCard, gpus: int = 1, tp: int | None = None, dtype: str | None = None
) -> MemoryPlan:
    """Divide a worker's memory between weights and KV cache, or raise `DoesNotFit`.

    `tp` is the number of GPUs that share one copy of each model, all of them unless given.
    `dtype` overrides the precision that each card is served in.
    """
    tp = tp or gpus
    _check_arguments(models, gpu, gpus, tp, dtype)
    usable_bytes = _usable_bytes(gpu)
    pool_bytes = usable_bytes * tp - _weights_bytes(models, dtype)
    needed_bytes = MIN_POOL_TOKENS * max(_kv_bytes_per_token(card, tp) for card in models)
    if pool_bytes < needed_bytes:
        raise DoesNotFit(_arithmetic(models, gpu, gpus, tp, dtype))
    planned = tuple(
        PlannedModel(
            card=card,
            dtype=dtype or card.dtype,
            weights_bytes=card.shape.weights_bytes(dtype or card.dtype),
            kv_bytes_per_token=_kv_bytes_per_token(card, tp),
            context_tokens=min(card.context_tokens, pool_bytes // _kv_bytes_per_token(card, tp)),
        )
        for card in models
    )
    replicas = gpus // tp
    return MemoryPlan(
        gpu=gpu,
        gpus=gpus,
        tp=tp,
        models=planned,
        vram_bytes=gpu.memory_bytes * gpus,
        weights_bytes=sum(model.weights_bytes for model in planned) * replicas,
        kv_bytes=pool_bytes * replicas,
    )


def _check_arguments(models: Sequence[LlmCard], gpu: GpuCard, gpus: int, tp: int, dtype: str | None) -> None:
    if not models:
        raise DoesNotFit("No model to serve: name at least one with --model.")
    if gpus < 1 or tp < 1 or gpus % tp:
        raise DoesNotFit(f"--gpus {gpus} --tp {tp}: the GPUs must divide into groups of tp, each at least 1.")
    if dtype is not None and dtype not in DTYPES:
        raise DoesNotFit(f"--dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}.")
    for card in models:
        if card.shape.heads % tp:
            raise DoesNotFit(f"{card.id} has {card.shape.heads} attention heads, which --tp {tp} does not divide.")


def _usable_bytes(gpu: GpuCard) -> int:
    return int(gpu.memory_bytes * USABLE_SHARE) - ACTIVATIONS_BYTES


def _weights_bytes(models: Sequence[LlmCard], dtype: str | None) -> int:
    return sum(card.shape.weights_bytes(dtype or card.dtype) for card in models)


def _kv_bytes_per_token(card: LlmCard, tp: int) -> int:
    return card.shape.kv_bytes_per_token(tp) * tp


def _arithmetic(models: Sequence[LlmCard], gpu: GpuCard, gpus: int, tp: int, dtype: str | None) -> str:
    weights = " + ".join(
        f"{card.id} {card.shape.weights_bytes(dtype or card.dtype) / _GB:.1f} GB ({dtype or card.dtype})"
        for card in models
    )
    per_gpu = _weights_bytes(models, dtype) / tp / _GB
    cache = MIN_POOL_TOKENS * max(_kv_bytes_per_token(card, tp) for card in models) / tp / _GB
    return (
        f"Does not fit on {gpus} x {gpu.name}: weights {weights}, over --tp {tp} that is {per_gpu:.1f} GB per GPU, "
        f"and {MIN_POOL_TOKENS} tokens of KV cache need {cache:.1f} GB more; usable are "
        f"{_usable_bytes(gpu) / _GB:.1f} GB of {gpu.memory_bytes / _GB:.1f} GB "
        f"(90 % less 1 GB for activations). {_suggestion(models, gpu, gpus, tp, dtype)}"
    )


def _suggestion(models: Sequence[LlmCard], gpu: GpuCard, gpus: int, tp: int, dtype: str | None) -> str:
    """Say what would fit, the smallest changes first."""
    ways = []
    for other in (width for width in (1, 2, 4, 8) if width > tp):
        if _fits(models, gpu, other, dtype):
            ways.append(f"--tp {other}" if gpus % other == 0 else f"--gpus {other} --tp {other}")
            break
    for other_dtype in ("fp8", "int4"):
        if other_dtype != dtype and _fits(models, gpu, tp, other_dtype):
            ways.append(f"--dtype {other_dtype}")
            break
    for card in GPUS.values():
        if not ways and _fits(models, card, 8, dtype):
            ways.append(f"--gpu {card.name} --gpus 8 --tp 8")
    return f"What would fit: {' or '.join(ways)}." if ways else "Serve fewer models on this worker."


def _fits(models: Sequence[LlmCard], gpu: GpuCard, tp: int, dtype: str | None) -> bool:
    pool_bytes = _usable_bytes(gpu) * tp - _weights_bytes(models, dtype)
    return all(pool_bytes >= MIN_POOL_TOKENS * _kv_bytes_per_token(card, tp) for card in models)


class KvPool:
    """Counts who holds how many bytes of one KV cache; never gives more than there is."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.reserved_bytes = 0
        self._held: dict[object, int] = {}

    def reserve(self, holder: object, size_bytes: int) -> bool:
        """Reserve for a holder that has nothing yet; say no if it does not fit."""
        if holder in self._held:
            raise ValueError(f"{holder!r} holds KV cache already.")
        if self.reserved_bytes + size_bytes > self.size_bytes:
            return False
        self._held[holder] = size_bytes
        self.reserved_bytes += size_bytes
        return True

    def release(self, holder: object) -> None:
        """Free what a holder has, if anything."""
        self.reserved_bytes -= self._held.pop(holder, 0)
