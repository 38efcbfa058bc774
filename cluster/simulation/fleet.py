"""The default fleet: workers that together serve every model id on hardware that holds it.

The large models need eight-GPU hosts, and one such host does not hold them all. `gpt-4` and
`gpt-4o` are served by both and `llama-3-8b` by two cards, so that losing a worker can be watched
without an outage.
"""

from __future__ import annotations

import msgspec


class FleetWorker(msgspec.Struct, frozen=True, kw_only=True):
    """One worker of a fleet: what `runworker` would be told."""

    name: str
    gpu: str
    gpus: int = 1
    tp: int | None = None
    dtype: str | None = None
    models: tuple[str, ...]


DEFAULT_FLEET: tuple[FleetWorker, ...] = (
    FleetWorker(
        name="h100-a",
        gpu="H100",
        gpus=8,
        models=("gpt-4", "gpt-4o", "claude-3", "claude-3-opus", "claude-3-sonnet"),
    ),
    FleetWorker(name="h100-b", gpu="H100", gpus=8, models=("llama-2-70b", "llama-3-70b", "gpt-4", "gpt-4o")),
    FleetWorker(name="a100-a", gpu="A100", gpus=2, models=("mixtral-8x7b", "gpt-3.5-turbo")),
    FleetWorker(name="a6000-a", gpu="A6000", models=("llama-3-8b", "mistral-7b")),
    FleetWorker(name="rtx4090-a", gpu="RTX4090", models=("llama-2-7b",)),
    FleetWorker(name="rtx4090-b", gpu="RTX4090", models=("llama-3-8b",)),
)
