"""The GPU cards: what a board can do on paper and how much of that serving code reaches.

Only data and its lookup; what follows from it is in `latency.py` (time), `llms.py` (memory) and
`gauges.py` (power, heat). To add a card, add one line to `_CARDS`.

Where the numbers come from, and how far they carry:

- Peaks are dense, not sparse: data sheets as collected in NVIDIA's aiconfigurator
  (`systems/*.yaml`), waredb.com (RTX 4090), LLM-Viewer and nvidia-smi logs (A40, A6000),
  nemulai.com (T4). The A10G's are from memory.
- Idle power is with a CUDA context open. A100, H100, H200 and L40S: splitwise-sim's power model,
  aiperf's DCGM presets, arXiv 2605.23918. All others are estimates.
- `Silicon` holds efficiencies fitted on published measurements of A100, H100, L40S, RTX 4090 and
  A6000. The other cards inherit those of a relative.
- PCIe links are set so that Llama-2-70B on several A6000 and RTX 4090 comes out as a reference
  implementation of these equations predicts; the RTX 4090 has no peer copies, so half of it.
- Temperatures are a rule of thumb.
"""

from __future__ import annotations

import msgspec

GB = 10**9
GIB = 2**30
MIB = 2**20


class Silicon(msgspec.Struct, frozen=True, kw_only=True):
    """How much of its data sheet one GPU generation reaches under an inference engine."""

    compute: float
    """Share of the 16-bit peak that GEMMs reach."""
    compute_fp8: float
    """Share of the FP8 peak; of no use to a card without one."""
    weights: float
    """Share of the memory bandwidth that reading weights reaches."""
    kv: float
    """Share of the memory bandwidth that reading the KV cache reaches."""
    attention: float
    """Share of the 16-bit peak that attention over the prompt reaches."""
    layer_s: float
    """Launches and other fixed work per layer and step."""
    allreduce_s: float
    """Latency of a small all-reduce over two GPUs."""
    allreduce_ramp_s: float
    """What the change of algorithm between 1 and 8 MB adds."""
    bus: float
    """Share of the link that an all-reduce reaches."""


_AMPERE = Silicon(
    compute=0.749,
    compute_fp8=0.749,
    weights=0.736,
    kv=0.851,
    attention=0.445,
    layer_s=30.6e-6,
    allreduce_s=6e-6,
    allreduce_ramp_s=70e-6,
    bus=0.74,
)
_HOPPER = Silicon(
    compute=0.746,
    compute_fp8=0.636,
    weights=0.768,
    kv=0.890,
    attention=0.552,
    layer_s=27.7e-6,
    allreduce_s=6e-6,
    allreduce_ramp_s=36e-6,
    bus=0.78,
)
_ADA = Silicon(
    compute=0.90,
    compute_fp8=0.709,
    weights=0.837,
    kv=0.785,
    attention=0.534,
    layer_s=17.9e-6,
    allreduce_s=15e-6,
    allreduce_ramp_s=0.0,
    bus=0.80,
)
_GA102 = Silicon(
    compute=0.59,
    compute_fp8=0.59,
    weights=0.894,
    kv=0.774,
    attention=0.45,
    layer_s=29.7e-6,
    allreduce_s=15e-6,
    allreduce_ramp_s=0.0,
    bus=0.80,
)


class GpuCard(msgspec.Struct, frozen=True):
    """One GPU board: peaks from its data sheet, in SI units."""

    name: str
    silicon: Silicon
    bf16_tflops: float
    fp8_tflops: float
    """0 where the tensor cores have no FP8: such weights are expanded to 16 bit to compute."""
    bandwidth_gb_s: float
    memory_bytes: int
    tdp_w: float
    idle_w: float
    link_gb_s: float
    """One way, to another GPU of the host."""
    nvlink: bool = False
    """All pairs at full speed. Without it the GPUs of a host share the PCIe root."""
    idle_c: float = 35.0
    load_c: float = 70.0
    """Temperature after long work at full power."""


_CARDS = (
    GpuCard("B200", _HOPPER, 2250, 4500, 7700, 180 * GIB, 1000, 150, 900, nvlink=True),
    GpuCard("H200", _HOPPER, 989, 1979, 4800, 141 * GB, 700, 115, 450, nvlink=True),
    GpuCard("H100", _HOPPER, 989, 1979, 3350, 80 * GIB, 700, 115, 450, nvlink=True),
    GpuCard("H100-PCIe", _HOPPER, 756, 1513, 2000, 80 * GIB, 350, 75, 64),
    GpuCard("A100", _AMPERE, 312, 0, 2039, 80 * GIB, 400, 85, 300, nvlink=True),
    GpuCard("A100-PCIe", _AMPERE, 312, 0, 1935, 80 * GIB, 300, 80, 32),
    GpuCard("L40S", _ADA, 362, 733, 864, 46_068 * MIB, 350, 100, 25),
    GpuCard("L4", _ADA, 121, 242, 300, 24 * GIB, 72, 25, 25),
    GpuCard("A40", _GA102, 149.7, 0, 696, 46_068 * MIB, 300, 70, 25),
    GpuCard("A6000", _GA102, 154.8, 0, 768, 46_068 * MIB, 300, 70, 25, idle_c=30, load_c=75),
    GpuCard("A10G", _GA102, 70, 0, 600, 24 * GB, 300, 60, 25),
    GpuCard("T4", _GA102, 65, 0, 320, 16 * GB, 70, 20, 12),
    GpuCard("RTX4090", _ADA, 165.2, 330.3, 1008, 25_250_000_000, 450, 60, 12.5, idle_c=30, load_c=75),
)
GPUS: dict[str, GpuCard] = {card.name: card for card in _CARDS}


class UnknownGpu(LookupError):
    """No card has this name; the text lists those that exist."""


def get_gpu(name: str) -> GpuCard:
    """Return the card of that name; case, spaces, dashes and a leading RTX do not matter."""
    card = _BY_PLAIN_NAME.get(_plain(name))
    if card is None:
        raise UnknownGpu(f"GPU {name!r} is not known; choose one of {', '.join(GPUS)}.")
    return card


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum()).removeprefix("rtx")


_BY_PLAIN_NAME = {_plain(name): card for name, card in GPUS.items()}
