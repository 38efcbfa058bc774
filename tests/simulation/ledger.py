"""A ledger without a disk: it keeps the real one's promises, takes its time, and may fail.

It also notices what the real one would hide: it takes the first settlement, as the real one does,
but a second is a violation, for the product is to decide an outcome once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from gpucloud.lib.groupcommit import Told, resolve
from inference.ledger import UnableToCommit
from inference.records import Opened, Settlement

if TYPE_CHECKING:
    from tests.simulation.world import World

COMMIT_S = 0.003
PATIENCE_S = 1.0
"""How long a waiter waits for its commit (5 s in the product)."""


class SimEntry:
    """One accepted request."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.on_record = False
        self.settlement: Settlement | None = None
        self.committed_as: str | None = None
        """The outcome on the disk; None while there is none."""
        self.abandoned = False
        """Whether a client was told that the commit failed."""

    @property
    def id(self) -> str:
        return self.opened.id

    @property
    def settled(self) -> bool:
        return self.settlement is not None


class SimLedger:
    """All entries of a run."""

    def __init__(self, world: World) -> None:
        self.entries: dict[str, SimEntry] = {}
        self.delay_s = COMMIT_S
        """How long a commit takes."""
        self.healthy = True
        self._world = world
        self._commits: dict[tuple[str, bool], asyncio.Future[None]] = {}

    @property
    def admitted(self) -> int:
        return len(self.entries)

    @property
    def live(self) -> int:
        return sum(not entry.settled for entry in self.entries.values())

    def open(self, opened: Opened, **_more: Any) -> SimEntry:
        """Begin to put a request on record."""
        if opened.id in self.entries:
            self._world.violation(f"{opened.id} is opened twice")
        entry = self.entries[opened.id] = SimEntry(opened)

        def on_disk() -> None:
            entry.on_record = True

        self._commit((opened.id, False), on_disk)
        return entry

    async def opened(self, entry: SimEntry) -> None:
        """Return once the request is on record."""
        await self._wait((entry.id, False))

    def settle(self, entry: SimEntry, settlement: Settlement, **_more: Any) -> bool:
        """Take the outcome, once."""
        if entry.settlement is not None:
            self._world.violation(f"{entry.id} is settled twice: {entry.settlement.outcome}, {settlement.outcome}")
            return False
        entry.settlement = settlement

        def on_disk() -> None:
            entry.on_record = True
            entry.committed_as = "failed" if entry.abandoned else settlement.outcome.value

        self._commit((entry.id, True), on_disk)
        return True

    async def committed(self, entry: SimEntry) -> None:
        """Return once the outcome is on record."""
        waiter: asyncio.Future[None] = self._world.loop.create_future()
        self.tell_committed(entry, partial(resolve, waiter))
        await waiter

    def tell_committed(self, entry: SimEntry, told: Told) -> None:
        """Call `told` once the outcome is on record, or with the error after a while."""
        committed = self._commits[entry.id, True]
        heard = False

        def tell(error: UnableToCommit | None = None) -> None:
            nonlocal heard
            if heard:
                return
            heard = True
            # After a pause both are due at once; what the thread has said is heard first, as in the real one.
            if error is None or committed.done():
                told(None)
            else:
                # The real one is told so by who gets the error, a turn of the loop later.
                self.give_up(entry)
                told(error)

        committed.add_done_callback(lambda _: tell())
        self._world.later(PATIENCE_S, lambda: tell(UnableToCommit("The commit takes too long.")))

    def give_up(self, entry: SimEntry) -> None:
        """Note that the client is told of a failure."""
        entry.abandoned = True

    def _commit(self, key: tuple[str, bool], on_disk: Callable[[], None]) -> None:
        future = self._commits[key] = self._world.loop.create_future()

        def done() -> None:
            on_disk()
            future.set_result(None)

        self._world.loop.call_later(self.delay_s, done)

    async def _wait(self, key: tuple[str, bool]) -> None:
        done, _ = await asyncio.wait([self._commits[key]], timeout=PATIENCE_S)
        if not done:
            raise UnableToCommit("The commit takes too long.")
