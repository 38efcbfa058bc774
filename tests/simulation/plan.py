"""What a seed decides before a run begins: how large the world is and what may go wrong in it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.simulation.vocabulary import KINDS

EVENTS = 300
CALM_EVERY = 20
"""Every so many seeds nothing goes wrong at all, and everything must be completed."""


@dataclass(frozen=True)
class Plan:
    """The frame of one run."""

    seed: int
    events: int
    calm: bool
    """Whether everything must be completed: nothing goes wrong, and there is room for all."""
    workers: int
    models: tuple[str, ...]
    kinds: tuple[str, ...]
    """The kinds of faults that may happen."""
    calm_share: float
    """How often what happens is a new client instead of a fault."""
    pace_per_s: float


def make_plan(seed: int, events: int = EVENTS) -> Plan:
    """Return the plan of a seed: the same one every time."""
    rng = random.Random(f"plan {seed}")
    calm = seed % CALM_EVERY == 0
    workers = 6 if calm else rng.randint(1, 5)
    models = ("llama-3-8b", "mistral-7b") if workers > 1 and rng.random() < 0.5 else ("llama-3-8b",)
    share = rng.choice((0.15, 0.4, 0.8))
    kinds = () if calm else tuple(kind for kind in KINDS if rng.random() < share)
    pace_per_s = 8.0 if calm else rng.choice((5.0, 15.0, 40.0))
    return Plan(seed, events, calm, workers, models, kinds, rng.uniform(0.5, 0.9), pace_per_s)
