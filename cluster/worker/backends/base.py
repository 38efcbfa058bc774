"""The contract between a worker's agent and a way to produce tokens.

The agent owns the link and knows nothing of engines; a backend owns its engine and knows nothing
of links. They meet here: `assign` and `cancel` go down, messages come up through `emit`. All
methods are called on the worker's one event loop, and none of them blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from cluster.domain import GpuInfo, GpuReading, ModelOffer
from cluster.protocol.messages import Assign, Failed, Finished, Load, Step

Emit = Callable[[Sequence[Step | Finished | Failed]], None]
"""Takes the messages of one engine step; the agent sends them as one frame."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend offers, fixed once it is loaded; the body of the worker's hello."""

    gpu: GpuInfo
    models: tuple[ModelOffer, ...]
    capacity: int
    kv_bytes: int
    resumes: tuple[str, ...] = ()
    simulated: bool = False


class Backend(Protocol):
    """One engine: vLLM, a simulated GPU, …"""

    async def load(self) -> Capabilities:
        """Bring the models up. Raise `UnableToLoad` with a sentence for the operator."""
        ...

    def start(self, emit: Emit) -> None:
        """Begin the engine's loop as a task of the running event loop."""
        ...

    def assign(self, assign: Assign) -> None:
        """Take one attempt; answer it with steps, then exactly one `Finished` or `Failed`."""
        ...

    def cancel(self, task: str, attempt: int) -> None:
        """Stop one attempt; answer `Finished(reason="cancelled")`, or nothing if it is unknown."""
        ...

    def abort_all(self) -> None:
        """Drop all attempts without an answer: the link they came over is gone."""
        ...

    def read(self) -> tuple[GpuReading, Load]:
        """Read the gauges for a heartbeat."""
        ...

    async def stop(self) -> None:
        """End the engine's loop and free what it holds."""
        ...


class UnableToLoad(Exception):
    """A backend cannot serve what it was asked to; the text says why and what would fit."""
