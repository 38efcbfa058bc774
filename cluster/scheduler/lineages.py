"""Workers that were lost: whose process came back, and whose links do not last.

Two questions are asked of the past. Did a worker die, or did only its link drop? Its *process* answers
that, by coming back within `return_s`. Is a worker worth any work yet? Its *lineage* answers, which is
the same over restarts: one that was lost `flap_losses` times within `flap_window_s` is quarantined when
it comes back, for twice as long each time, until it has gone `flap_memory_s` without a loss.
"""

from __future__ import annotations

from collections import deque

from cluster.domain import WorkerSpec
from cluster.scheduler.settings import Settings
from cluster.scheduler.state import Loss


class Lineage:
    """One worker over all its processes, after a loss."""

    __slots__ = ("lost_at_s", "name", "recent", "strikes", "unreturned")

    def __init__(self, name: str, remembered: int) -> None:
        self.name = name
        self.lost_at_s = 0.0
        """The last time."""
        self.recent: deque[float] = deque(maxlen=remembered)
        """Losses that no quarantine has answered yet."""
        self.strikes = 0
        """Quarantines so far."""
        self.unreturned: list[Loss] = []


class Lineages:
    """All that were lost of late."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._by_name: dict[str, Lineage] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def lost(self, spec: WorkerSpec, now: float) -> tuple[Lineage, Loss]:
        """Note that a worker is gone without a goodbye."""
        name = _name(spec)
        lineage = self._by_name.get(name)
        if lineage is None:
            lineage = self._by_name[name] = Lineage(name, self._settings.flap_losses)
        lineage.lost_at_s = now
        lineage.recent.append(now)
        loss = Loss(spec.id, now)
        lineage.unreturned = [other for other in lineage.unreturned if self._may_return(other, now)] + [loss]
        return lineage, loss

    def returned(self, spec: WorkerSpec, now: float) -> bool:
        """Note that a worker is here; return whether it was thought to be dead until now."""
        lineage = self._by_name.get(_name(spec))
        if lineage is None:
            return False
        before = len(lineage.unreturned)
        for loss in lineage.unreturned:
            loss.returned = loss.worker_id == spec.id and self._may_return(loss, now)
        lineage.unreturned = [loss for loss in lineage.unreturned if not loss.returned]
        return len(lineage.unreturned) < before

    def quarantine_until_s(self, spec: WorkerSpec, now: float) -> float:
        """Return until when a worker that is here again gets nothing; 0 if there is no reason for that."""
        lineage = self._by_name.get(_name(spec))
        if lineage is None or not self._flaps(lineage, now):
            return 0.0
        settings = self._settings
        quarantine_s = min(settings.quarantine_s * 2.0**lineage.strikes, settings.quarantine_longest_s)
        lineage.strikes += 1
        lineage.recent.clear()
        return now + quarantine_s

    def forget_at_s(self, lineage: Lineage) -> float:
        """Return when a lineage has gone long enough without a loss."""
        return lineage.lost_at_s + self._settings.flap_memory_s

    def forget(self, lineage: Lineage) -> None:
        """Let bygones be bygones."""
        del self._by_name[lineage.name]

    def _flaps(self, lineage: Lineage, now: float) -> bool:
        recent, settings = lineage.recent, self._settings
        if lineage.strikes and recent:
            return True  # on probation: once more is enough
        return len(recent) == settings.flap_losses and now - recent[0] <= settings.flap_window_s

    def _may_return(self, loss: Loss, now: float) -> bool:
        return now - loss.at_s <= self._settings.return_s


def _name(spec: WorkerSpec) -> str:
    return spec.lineage or spec.id
