"""What a seed decides before a run begins: how large the world is and what may go wrong in it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.simulation.vocabulary import KINDS

EVENTS = 300
RECOVERY_EVENTS = 15
"""What is left at least for the time after the faults: what was begun ends then."""
CALM_EVERY = 20
"""Every so many seeds nothing goes wrong at all, and everything must be completed."""


@dataclass(frozen=True)
class Plan:
    """The frame of one run."""

    seed: int
    events: int
    """After so many the faults end."""
    calm: bool
    """Whether everything must be completed: nothing goes wrong, and there is room for all."""
    workers: int
    models: tuple[str, ...]
    kinds: tuple[str, ...]
    """The kinds of faults that may happen."""
    calm_share: float
    """How often what happens is a new client instead of a fault."""
    pace_per_s: float


def make_plan(seed: int, events: int = EVENTS, kinds: tuple[str, ...] = ()) -> Plan:
    """Return the plan of a seed: the same one every time. `kinds` are faults that it must have and no others."""
    rng = random.Random(f"plan {seed}")
    calm = seed % CALM_EVERY == 0 and not kinds
    workers = 6 if calm else rng.randint(1, 5)
    models = ("llama-3-8b", "mistral-7b") if workers > 1 and rng.random() < 0.5 else ("llama-3-8b",)
    share = rng.choice((0.15, 0.4, 0.8))
    if not calm and not kinds:
        kinds = tuple(kind for kind in KINDS if rng.random() < share)
    pace_per_s = 8.0 if calm else rng.choice((5.0, 12.0, 25.0))
    return Plan(seed, max(1, events - RECOVERY_EVENTS), calm, workers, models, kinds, rng.uniform(0.5, 0.9), pace_per_s)
