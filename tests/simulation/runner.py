"""Runs seeds and adds up what happened. The way in for tests and for `python -m tests.simulation`."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from cluster import consumers
from cluster.engine import runtime
from inference.openai import routing
from tests.simulation.loop import virtual_time
from tests.simulation.plan import EVENTS, make_plan
from tests.simulation.verdicts import judge, outcomes_of
from tests.simulation.world import WatchedScheduler, World

LOGGERS = ("cluster", "inference", "gpucloud", "accounts")
COLLECT_EVERY = 20


@dataclass
class Report:
    """What came of some runs."""

    seeds: int = 0
    events: int = 0
    requests: int = 0
    virtual_s: float = 0.0
    wall_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    commands: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    violations: dict[int, list[str]] = field(default_factory=dict)
    """By seed."""

    def __str__(self) -> str:
        lines = [
            f"seeds {self.seeds:,} · events {self.events:,} · requests {self.requests:,} · "
            f"faults {self.faults.total():,} · violations {sum(map(len, self.violations.values()))} · "
            f"{self.virtual_s / 3600:.1f} h of virtual time in {self.wall_s:.1f} s"
        ]
        for title in ("faults", "outcomes", "commands", "dropped"):
            counter: Counter[str] = getattr(self, title)
            lines.append(f"{title}: " + ", ".join(f"{name} {number:,}" for name, number in counter.most_common()))
        for seed, violations in self.violations.items():
            lines += [f"seed {seed}: {violation}" for violation in violations[:5]]
            lines.append(f"replay: python -m tests.simulation --seed {seed}")
        return "\n".join(lines)


def run_seeds(
    seeds: Iterable[int], *, events: int = EVENTS, kinds: tuple[str, ...] = (), stop_at_violation: bool = False
) -> Report:
    """Run each seed in a world of its own, with faults of these kinds only if any are named."""
    report = Report()
    began_s = time.perf_counter()
    gc.disable()
    # What is there by now stays: to walk through all of it again and again would be a twentieth of the time.
    gc.freeze()
    try:
        for seed in seeds:
            run_seed(seed, report, events=events, kinds=kinds)
            if report.seeds % COLLECT_EVERY == 0:
                gc.collect()
            if report.violations and stop_at_violation:
                break
    finally:
        gc.unfreeze()
        gc.enable()
    report.wall_s = time.perf_counter() - began_s
    return report


def run_seed(
    seed: int,
    report: Report,
    *,
    events: int = EVENTS,
    kinds: tuple[str, ...] = (),
    log: list[str] | None = None,
) -> None:
    """Run one seed and add what happened to the report; the log gets a line for every step of it."""
    world = World(make_plan(seed, events, kinds), log=log)
    with _product_in(world):
        try:
            world.loop.run_until_complete(world.run())
            if not world.violations:
                world.violations += judge(world)
            world.loop.run_until_complete(world.stop())
        finally:
            world.loop.close()
    report.seeds += 1
    report.events += world.events
    report.requests += len(world.clients)
    report.virtual_s += world.loop.now - 1_000
    report.faults += world.faults
    report.outcomes += outcomes_of(world)
    report.commands += world.commands
    report.dropped += world.gateway.dropped
    if world.violations:
        report.violations[seed] = world.violations


@contextmanager
def _product_in(world: World) -> Iterator[None]:
    """Give the product this world's clock and dice, and hear its complaints."""
    links = count(1)
    dice: Any = SimpleNamespace(Random=lambda: world.rng_of_product)
    complaints = _Complaints(world)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        logger.addHandler(complaints)
    try:
        with (
            virtual_time(world.loop),
            patch.object(runtime, "Scheduler", WatchedScheduler),
            patch.object(runtime, "random", dice),
            patch.object(consumers, "secrets", SimpleNamespace(token_hex=lambda size: f"{next(links)}")),
            patch.object(routing, "make_id", _name_after_client),
        ):
            yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            logger.removeHandler(complaints)


def _name_after_client(prefix: str) -> str:
    """Return the id of a request: the number of the client whose task asks for it."""
    task = asyncio.current_task()
    assert task is not None
    return prefix + task.get_name()


class _Complaints(logging.Handler):
    """Makes an error in the product's log a violation."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        cause = record.exc_info[1] if record.exc_info else None
        self._world.violation(f"logged: {record.getMessage()} {cause!r}")
