"""How long one engine step takes: a roofline with a smooth knee, fitted per GPU generation.

Arithmetic only. A step serves one tensor-parallel group and one model: some chunks of prompts
(prefill) and one token for each decoding sequence, all sharing one read of the weights. Per layer

    compute = 2·T·(attention + k·mlp)/tp ÷ (peak·ec)        T tokens, k experts per token
    weights = (attention + touched·mlp)·bytes/tp ÷ (BW·eb·deq)
    gemm    = (compute⁴ + weights⁴)^¼                       touched = E·(1 − (1 − k/E)^T)
    layer   = gemm + launches + activations + 2 all-reduces (if tp > 1)

    STEP = L·layer + head + KV reads + prompt attention + host + per-sequence work

The constants are those of vLLM 0.15–0.23 from a reference implementation of these equations, whose
median error on published measurements was about 5 % (p90 16 %). This one is tested against that
one's predictions, not yet against measurements. Mixtures of experts and PCIe boxes with tp ≥ 4 are
known to be worse. Flops and bytes are per GPU, for the power model.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cluster.simulation.hardware import GpuCard
from cluster.simulation.llms import DTYPES, Shape

HOST_S = 566e-6
"""vLLM's scheduling and launch work per step."""
SEQUENCE_S = 5e-6
"""Sampling and bookkeeping per sequence that gets a token."""
LAYER_FACTOR = 0.93
COMPUTE_FACTOR = 0.98
EXPERT_LAYER_FACTOR = 1.35
MAX_BATCHED_TOKENS = 2048
"""Tokens of prompts and decodes that one step takes."""
MAX_SEQUENCES = 256


class StepCost(msgspec.Struct, frozen=True):
    """What one step takes: seconds, and work per GPU."""

    time_s: float
    flops: float
    bytes: float


class PrefillChunk(msgspec.Struct, frozen=True):
    """Prompt tokens processed in one step, after `cached_tokens` that went before."""

    tokens: int
    cached_tokens: int


class LatencyModel:
    """Answers what a step costs for one model in one precision on one tensor-parallel group."""

    def __init__(self, shape: Shape, gpu: GpuCard, tp: int, dtype: str) -> None:
        precision, silicon = DTYPES[dtype], gpu.silicon
        fp8 = precision.fp8_compute and gpu.fp8_tflops > 0
        self._shape, self._tp = shape, tp
        self.peak_flops = (gpu.fp8_tflops if fp8 else gpu.bf16_tflops) * 1e12
        self.peak_bytes_s = gpu.bandwidth_gb_s * 1e9
        self._kv_bandwidth = self.peak_bytes_s * silicon.kv
        self._peak16 = gpu.bf16_tflops * 1e12 * silicon.compute * COMPUTE_FACTOR
        self._peak = self.peak_flops * silicon.compute_fp8 * COMPUTE_FACTOR if fp8 else self._peak16
        self._attention_peak = gpu.bf16_tflops * 1e12 * silicon.attention
        self._weight_bandwidth = self.peak_bytes_s * silicon.weights
        self._dequantised_bandwidth = self._weight_bandwidth * precision.dequantisation
        self._attention_bytes = precision.attention_bytes * shape.attention_params / tp
        self._expert_bytes = precision.mlp_bytes * shape.mlp_params / tp
        self._layer_flops = 2 * (shape.attention_params + shape.experts_used * shape.mlp_params) / tp
        self._head_params = shape.vocabulary * shape.width / tp
        self._activation_s = 2 * (10 * shape.width + 3 * shape.experts_used * shape.mlp_width / tp)
        self._activation_s /= 0.8 * self.peak_bytes_s
        self._kv_bytes = shape.kv_bytes_per_token(tp) * shape.kv_read_share
        self._prompt_flops = 4 * shape.heads * shape.head_width * shape.layers / tp
        launches = LAYER_FACTOR * (EXPERT_LAYER_FACTOR if shape.experts > 1 else 1.0)
        self._launch_s = silicon.layer_s * launches
        self._allreduce_s = silicon.allreduce_s * (1 + 0.1 * (tp / 2 - 1))
        self._allreduce_ramp_s = silicon.allreduce_ramp_s
        # The root complex of a PCIe host carries the traffic of all its GPUs.
        sharers = 1.0 if gpu.nvlink else tp / 2
        self._bus = gpu.link_gb_s * 1e9 * silicon.bus / sharers

    def step(self, prefill: Sequence[PrefillChunk], decoding: int, context_tokens: int) -> StepCost:
        """Return the cost of a step; `context_tokens` is summed over the decoding sequences."""
        shape = self._shape
        tokens = decoding + sum(chunk.tokens for chunk in prefill)
        outputs = decoding + len(prefill)
        gemm_flops = tokens * self._layer_flops
        weight_bytes = self._attention_bytes + self._expert_bytes * shape.experts_touched(tokens)
        layer_s = _knee(gemm_flops / self._peak, weight_bytes / self._dequantised_bandwidth)
        layer_s += self._launch_s + tokens * self._activation_s
        if self._tp > 1:
            layer_s += 2 * self._allreduce(2 * tokens * shape.width)
        head_flops = 2 * outputs * self._head_params
        head_s = _knee(head_flops / self._peak16, 2 * self._head_params / self._weight_bandwidth)
        read_tokens = context_tokens + sum(chunk.cached_tokens for chunk in prefill)
        prompt_flops = self._prompt_flops * sum(
            chunk.tokens * (chunk.cached_tokens + chunk.tokens / 2) for chunk in prefill
        )
        kv_read_bytes = read_tokens * self._kv_bytes
        time_s = shape.layers * layer_s + head_s + HOST_S + outputs * SEQUENCE_S
        time_s += kv_read_bytes / self._kv_bandwidth + prompt_flops / self._attention_peak
        return StepCost(
            time_s=time_s,
            flops=shape.layers * gemm_flops + head_flops + prompt_flops,
            bytes=shape.layers * weight_bytes + 2 * self._head_params + kv_read_bytes,
        )

    def _allreduce(self, size_bytes: float) -> float:
        ramp = min(max((size_bytes - 1e6) / 7e6, 0.0), 1.0)
        return (
            self._allreduce_s + self._allreduce_ramp_s * ramp + size_bytes * 2 * (self._tp - 1) / self._tp / self._bus
        )


def _knee(compute_s: float, memory_s: float) -> float:
    """Join the two roofs smoothly: measured GEMMs bend where both limits are near."""
    return float((compute_s**4 + memory_s**4) ** 0.25)
