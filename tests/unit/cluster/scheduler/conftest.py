"""The scheduler under test, and a way to have one with other settings."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from cluster.scheduler.core import Settings
from tests.unit.cluster.scheduler.builders import CheckedScheduler

MakeScheduler = Callable[..., CheckedScheduler]


@pytest.fixture
def make_scheduler() -> Iterator[MakeScheduler]:
    """Make schedulers with the given settings; each is checked once more at the end."""
    made = []

    def make(*, seed: int = 1, **settings: float) -> CheckedScheduler:
        made.append(CheckedScheduler(Settings(**settings), random.Random(seed), now=0.0))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.check_invariants()


@pytest.fixture
def scheduler(make_scheduler: MakeScheduler) -> CheckedScheduler:
    """A scheduler with the default settings, started at 0."""
    return make_scheduler()
