"""Where the newest snapshot hangs for everybody to read.

`latest` may be read from any thread: it is replaced whole and never changed. Waiting is for
coroutines of the loop that publishes; a slow waiter skips versions, it never queues them.
"""

from __future__ import annotations

import asyncio

from cluster.domain import ClusterSnapshot, WaitingView


class SnapshotBoard:
    """Holds the newest `ClusterSnapshot` and wakes whoever waits for a newer one."""

    def __init__(self) -> None:
        self.latest = ClusterSnapshot()
        self._places: dict[str, WaitingView] = {}
        self._places_version = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def publish(self, snapshot: ClusterSnapshot) -> None:
        """Replace the snapshot."""
        self.latest = snapshot
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def place_of(self, task_id: str) -> WaitingView | None:
        """Return where a task stands in line; None if it does not wait, or too far behind to be shown."""
        if self._places_version != self.latest.version:
            self._places = {view.task: view for view in self.latest.head}
            self._places_version = self.latest.version
        return self._places.get(task_id)

    async def newer_than(self, version: int) -> ClusterSnapshot:
        """Return the latest snapshot once its version differs from `version`."""
        while self.latest.version == version:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return self.latest
