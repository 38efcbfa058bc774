"""An event loop whose time is a number: it jumps to the next timer instead of waiting for it.

Product code reads the clock as `time.monotonic()`. Inside `virtual_time` the modules that do so see
this loop's clock, so an hour of queues and heartbeats passes in as long as its events take, and a
run is the same every time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from heapq import heappop
from types import ModuleType
from typing import Any, NoReturn

EPOCH_S = 1_800_000_000.0
PACKAGES = ("cluster.", "inference.", "gpucloud.lib.")


class Deadlock(Exception):
    """Nothing is scheduled any more, and yet somebody waits."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks, timers and tasks; knows no sockets, no threads and no signals."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0

    def time(self) -> float:
        return self.now

    def jump(self, seconds: float) -> None:
        """Let time pass in which this loop does not run, as for a process that was stopped."""
        self.now += seconds

    def run_in_executor(self, *args: Any) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("the simulation has no threads: they would bring real time in")

    def _run_once(self) -> None:
        """Do what asyncio's loop does in one turn, but jump where it would wait."""
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            while scheduled and scheduled[0]._cancelled:
                heappop(scheduled)._scheduled = False
            if not scheduled:
                raise Deadlock("everybody waits and no timer is set")
            self.now = max(self.now, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self.now:
            handle = heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _write_to_self(self) -> None:
        """Do nothing: there are no other threads to wake this one."""


class _VirtualTime:
    """What a module sees as `time`."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.monotonic: Callable[[], float] = loop.time
        self.perf_counter: Callable[[], float] = loop.time
        self._loop = loop

    def time(self) -> float:
        return EPOCH_S + self._loop.now

    def time_ns(self) -> int:
        return int(self.time() * 1e9)

    def __getattr__(self, name: str) -> Any:
        if name == "sleep":
            raise RuntimeError("something would sleep on the event loop")
        return getattr(time, name)


@cache
def _clocked_modules() -> tuple[ModuleType, ...]:
    """Return the product's modules that read the clock; all of them are imported by now."""
    named = sorted((name, module) for name, module in sys.modules.items() if name.startswith(PACKAGES))
    return tuple(module for _, module in named if getattr(module, "time", None) is time)


@contextmanager
def virtual_time(loop: VirtualLoop) -> Iterator[None]:
    """Let the product see this loop's time."""
    modules = _clocked_modules()
    fake = _VirtualTime(loop)
    for module in modules:
        module.time = fake  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in modules:
            module.time = time  # type: ignore[attr-defined]
