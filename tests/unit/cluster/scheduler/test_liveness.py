"""When faults stop, everything ends: without the help of a time-out, for time stands still here."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, settings

from cluster.scheduler.events import AttemptFenced, AttemptFinished
from tests.unit.cluster.scheduler.test_machine import SETTINGS, WORKERS, Cluster


class Recovery(Cluster):
    """Lets anything happen, then brings every worker back and has them do nothing but their work."""

    settings = msgspec.structs.replace(SETTINGS, flap_losses=1_000_000)
    """Nobody is quarantined: that only time can end."""

    def teardown(self) -> None:
        """Whatever has happened, all who still wait are served now."""
        if hasattr(self, "scheduler"):
            self.want(frozenset(), 0)
            for worker_id in sorted(WORKERS):
                self.join(worker_id)
            self.serve_until_idle()
        super().teardown()

    def serve_until_idle(self) -> None:
        """Answer every fence and finish every attempt; each round must bring the end nearer."""
        rounds = len(self.alive) + SETTINGS.max_attempts
        for _ in range(rounds):
            for task_id, attempt in sorted(self.fencing.items()):
                del self.fencing[task_id]
                self.tell(AttemptFenced(task_id, attempt, self.seen.get(task_id, 0)))
            for (task_id, attempt), worker_id in sorted(self.held.items()):
                del self.held[task_id, attempt]
                self.alive.discard(task_id)
                self.tell(AttemptFinished(task_id, attempt, worker_id))
        assert self.alive == set(), f"{sorted(self.alive)} are not served after {rounds} rounds of work"
        assert all(worker.held == 0 for worker in self.scheduler.placement.workers.values()), "a slot has leaked"


TestRecovery = Recovery.TestCase
TestRecovery.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.soak
class TestRecoveryAtLength(Recovery.TestCase):
    settings = settings(
        max_examples=3_000, stateful_step_count=150, deadline=None, suppress_health_check=list(HealthCheck)
    )
