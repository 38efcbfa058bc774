"""A simulated worker that writes down what it says, and misbehaves where a test wants it to.

    python -m tests.scripted_worker --gateway URL --name N [--record FILE] [--die-on TEXT] [--never-work]
        [--stutter] [--stall-after N]

The token comes from the environment, as a real worker's does. Tests also run it in their own process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cluster.protocol.messages import Assign, Failed, Finished, Step
from cluster.worker.agent import Agent, Backoff
from cluster.worker.backends.base import Emit
from cluster.worker.backends.simulated import SimulatedBackend, SimulatedOptions
from cluster.worker.cli import TOKEN_VARIABLE
from tests.history import Said

MODEL = "llama-3-8b"
QUICK_BACKOFF_S = 0.1
"""Tests kill servers often: the product's ten seconds would be most of their time."""


class ScriptedBackend(SimulatedBackend):
    """The product's simulated engine behind a script."""

    def __init__(
        self,
        options: SimulatedOptions,
        *,
        name: str = "scripted",
        record: Path | None = None,
        die_on: str = "",
        never_work: bool = False,
        stutter: bool = False,
        stall_after: int = 0,
    ) -> None:
        super().__init__(options)
        self.assigned: list[Assign] = []
        self._name = name
        self._record = record.open("ab", buffering=0) if record else None
        self._die_on = die_on
        self._never_work = never_work
        self._stutter = stutter
        self._stall_after = stall_after
        self._tokens = 0

    def start(self, emit: Emit) -> None:
        def say(messages: Sequence[Step | Finished | Failed]) -> None:
            if self._stall_after and self._tokens >= self._stall_after:
                return
            for message in messages:
                if isinstance(message, Step):
                    self._tokens += sum(len(chunk.texts) for chunk in message.chunks)
                    self._write_down(message)
            emit(messages)
            if self._stutter:
                emit(messages)

        super().start(say)

    def assign(self, assign: Assign) -> None:
        self.assigned.append(assign)
        if self._die_on and any(self._die_on in message.content for message in assign.generation.messages):
            os._exit(137)
        if not self._never_work:
            super().assign(assign)

    async def stop(self) -> None:
        await super().stop()
        if self._record is not None:
            self._record.close()

    def _write_down(self, step: Step) -> None:
        if self._record is None:
            return
        for chunk in step.chunks:
            said = Said(
                worker=self._name, task=chunk.task, attempt=chunk.attempt, seq=chunk.seq, texts=list(chunk.texts)
            )
            # Before it is sent, unbuffered: what a client sees has been written down, whoever is killed.
            self._record.write(msgspec.json.encode(said) + b"\n")


def make_options(*, ttft_ms: float = 5.0, itl_ms: float = 2.0, capacity: int = 8) -> SimulatedOptions:
    """Return a small simulated GPU with a pace of its own."""
    return SimulatedOptions(models=(MODEL,), ttft_ms=ttft_ms, itl_ms=itl_ms, capacity=capacity)


def make_agent(backend: ScriptedBackend, *, name: str, gateway: str, token: str) -> Agent:
    """Return an agent that comes back at once when its gateway is gone."""
    backoff = Backoff(QUICK_BACKOFF_S, QUICK_BACKOFF_S)
    return Agent(backend, name=name, gateway=gateway, token=token, backoff=backoff)


def main() -> int:
    """Run one worker until it is told to leave, or dies."""
    parser = argparse.ArgumentParser(prog="python -m tests.scripted_worker")
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--die-on", default="")
    parser.add_argument("--never-work", action="store_true")
    parser.add_argument("--stutter", action="store_true")
    parser.add_argument("--stall-after", type=int, default=0, help="tokens until it says nothing more, but heartbeats")
    parser.add_argument("--ttft-ms", type=float, default=5.0)
    parser.add_argument("--itl-ms", type=float, default=2.0)
    given = parser.parse_args()
    backend = ScriptedBackend(
        make_options(ttft_ms=given.ttft_ms, itl_ms=given.itl_ms),
        name=given.name,
        record=given.record,
        die_on=given.die_on,
        never_work=given.never_work,
        stutter=given.stutter,
        stall_after=given.stall_after,
    )
    agent = make_agent(backend, name=given.name, gateway=given.gateway, token=os.environ[TOKEN_VARIABLE])
    asyncio.run(agent.run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
