"""Long random walks of the machine's rules, each with habits of its own, for what short stories never reach.

Hypothesis looks for the shortest story that goes wrong; a queue that ages and workers that are kept, lost
and quarantined need longer ones. A walk is its seed: `pytest -k "walk and 17"` walks it again.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from cluster.domain import Tier
from cluster.scheduler.commands import AnnounceWait, AssignTask, Command, FailTask
from cluster.scheduler.events import AttemptFailed, AttemptFinished, AttemptReleased
from cluster.scheduler.order import Right
from tests.unit.cluster.scheduler.builders import MODEL
from tests.unit.cluster.scheduler.test_machine import OTHER, WORKERS, Cluster

STEPS = 400
HABITS = {
    "submit": 30,
    "finish": 30,
    "begin": 8,
    "time_passes": 14,
    "everybody_beats": 4,
    "fence": 25,
    "release": 10,
    "come": 6,
    "come_again": 1,
    "lose": 2,
    "fail": 3,
    "stall": 2,
    "cancel": 3,
    "drain": 1,
    "want": 2,
    "pause": 1,
    "wait": 1,
    "answer_probe": 4,
    "say_something_stray": 1,
    "hear_an_old_link": 1,
}
NEEDS = {
    "finish": "held",
    "begin": "held",
    "release": "held",
    "fail": "held",
    "stall": "held",
    "fence": "fencing",
    "cancel": "alive",
    "lose": "links",
    "come_again": "links",
    "drain": "links",
    "everybody_beats": "links",
    "hear_an_old_link": "links",
    "answer_probe": "probes",
}


class Walk(Cluster):
    """Takes random steps and counts what it meets."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.met: Counter[str] = Counter()
        self.start(seed=seed, present=self.random.choice((5, 5, 3)))

    def go(self, steps: int) -> None:
        """Take so many steps."""
        habits = {name: weight * self.random.choice((0, 1, 1, 3)) for name, weight in HABITS.items()}
        habits["submit"] = HABITS["submit"]
        for _ in range(steps):
            [name] = self.random.choices(list(habits), list(habits.values()))
            if (name not in NEEDS or getattr(self, NEEDS[name])) and (name != "come" or len(self.links) < len(WORKERS)):
                getattr(self, name)(**self.choices(name))

    def choices(self, name: str) -> dict[str, object]:
        """Return random arguments for a step."""
        pick, choice = self.random.randrange(1_000), self.random.choice
        match name:
            case "submit":
                return {
                    "model": choice((MODEL, MODEL, OTHER)),
                    "tier": choice(tuple(Tier)),
                    "tenant": choice("abc"),
                    "tokens": choice((40, 90, 90, 180, 430)),
                    "simulated_only": choice((False, False, False, True)),
                    "number": choice((1, 1, 2, 5)),
                }
            case "begin" | "finish" | "release" | "cancel" | "stall" | "drain" | "come" | "come_again":
                return {"pick": pick}
            case "hear_an_old_link":
                return {"pick": pick}
            case "lose":
                return {"pick": pick, "clean": choice((False, False, True))}
            case "fail":
                return {"pick": pick, "retryable": choice((True, True, False))}
            case "fence":
                return {"pick": pick, "next_seq": choice((0, 0, 0, 5))}
            case "answer_probe":
                return {"pick": pick, "ok": choice((True, False))}
            case "want":
                return {"cordoned": frozenset(self.random.sample(sorted(WORKERS), choice((0, 0, 1, 2)))), "draining": 0}
            case "pause":
                return {"paused_s": choice((3.0, 20.0))}
            case "time_passes":
                return {"seconds": choice((0.2, 1.0, 2.0, 5.0))}
            case "wait":
                return {"seconds": choice((3.0, 7.5, 20.0))}
            case "say_something_stray":
                kind = choice((AttemptFinished, AttemptReleased, AttemptFailed))
                return {"pick": pick, "kind": kind, "attempt": choice((1, 2, 3, 4))}
            case _:
                return {}

    def obey(self, command: Command) -> None:
        """Count, and do as the machine does."""
        match command:
            case FailTask():
                self.met[command.code] += 1
            case AnnounceWait():
                self.met[command.why] += 1
            case AssignTask():
                self.met["resumed"] += command.resume_from > 0
                worker = self.scheduler.placement.workers[command.worker_id]
                self.met["ran alone"] += worker.alone
        super().obey(command)

    def end(self) -> None:
        """Check that nothing is left, and count by what rights tasks went."""
        self.teardown()
        self.met.update({right.name: number for right, number in self.order.rights.items()})


def walk(seed: int, steps: int = STEPS) -> Counter[str]:
    """Walk, and return what was met."""
    walker = Walk(seed)
    walker.go(steps)
    walker.end()
    return walker.met


@pytest.mark.parametrize("seed", range(30))
def test_a_walk_meets_no_contradiction(seed: int) -> None:
    walk(seed)


def test_walks_meet_everything_there_is() -> None:
    met: Counter[str] = sum((walk(seed) for seed in range(100, 112)), Counter())

    expected = {right.name for right in Right if not right.name.startswith("KEEP")}
    expected |= {"resumed", "ran alone", "isolation", "no_slot", "no_kv_room", "behind_others", "resume", "no_worker"}
    expected |= {"engine_overloaded", "rate_limit_exceeded", "queue_timeout", "worker_crashed", "no_worker_available"}
    expected |= {"worker_failed", "worker_lost", "worker_stalled"}
    assert {name for name in expected if not met[name]} == set()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1_000, 3_000))
def test_a_walk_of_many_meets_no_contradiction(seed: int) -> None:
    walk(seed, steps=600)
