"""The ledger: one row per accepted request, on disk before its client hears of it.

This is the loop's side. `open` and `settle` are synchronous and only queue; `opened` and
`committed` wait for the disk. The order that callers owe (promises 1 and 2): await `opened` before
the first byte, `settle` once the outcome is known, await `committed` before the last byte. Whoever
settles first decides; the row belongs to the writer, so a waiter that leaves cannot undo it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container
from functools import partial

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections

from cluster.domain import Outcome
from gpucloud.lib.groupcommit import GroupCommit, TicketState, Told, UnableToCommit, resolve
from inference import ledger_sql, selectors
from inference.ledger_store import LedgerStore, LiveReport, Row
from inference.records import Opened, Settlement

__all__ = ["Ledger", "Row", "UnableToCommit"]

DAY_S = 86_400

TAKEN = TicketState.TAKEN


class Ledger:
    """Keeps the requests of one node on record. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        node: str,
        alias: str = DEFAULT_DB_ALIAS,
        commit_timeout_s: float = 5.0,
        on_settled: Callable[[Opened, Settlement], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.admitted = 0
        """Requests opened since the start."""
        self.settled = 0
        """Of these, how many have an outcome."""
        self._node = node
        self._alias = alias
        self._clock = clock
        self._on_settled = on_settled
        self._undecided: dict[str, float] = {}
        """When each request without an outcome was admitted, the oldest first."""
        self._reported: tuple[int, bool] | None = None
        self._writer = GroupCommit(
            LedgerStore(
                node=node,
                database=ledger_sql.open_database(alias, timeout_s=commit_timeout_s),
                keep_s=settings.LEDGER_DAYS * DAY_S,
                clock=clock,
            ),
            name="ledger",
            timeout_s=commit_timeout_s,
        )

    @property
    def healthy(self) -> bool:
        """False from a failed or overdue commit until one succeeds. Accept no requests meanwhile."""
        return self._writer.healthy

    @property
    def live(self) -> int:
        """Requests without an outcome."""
        return self.admitted - self.settled

    async def start(self) -> None:
        """Start writing; first close as lost what a dead predecessor of this node left open."""
        await self._writer.start()
        # Read before the first `open`, so that nothing of our own can be among them.
        left = await asyncio.to_thread(self._read_left_open)
        now = self._clock()
        closings = []
        for opened in left:
            opening = Row(opened=opened)
            opening.state = TicketState.COMMITTED
            total_ms = max(0.0, now - opened.created_at_s) * 1000
            closings.append(self._close(opening, Settlement(outcome=Outcome.LOST, total_ms=total_ms)))
        for closing in closings:
            await self._writer.wait(closing)

    async def stop(self) -> None:
        """Write all that is queued and end the thread."""
        await self._writer.stop()

    def open(self, opened: Opened) -> Row:
        """Queue the row of a request that is being accepted."""
        row = Row(opened=opened)
        self.admitted += 1
        self._undecided[opened.id] = opened.created_at_s
        # It lingers until it is waited for: a request that is settled by then is one INSERT.
        self._writer.put(row, linger=True)
        return row

    async def opened(self, row: Row) -> None:
        """Return once the request is on record, or raise `UnableToCommit` within the time-out."""
        await self._writer.wait(row)

    def settle(self, row: Row, settlement: Settlement) -> bool:
        """Decide a request's outcome; return False, and change nothing, if it is decided already."""
        if row.last is not None:
            return False
        self._close(row, settlement)
        self.settled += 1
        self._undecided.pop(row.opened.id, None)
        if self._on_settled is not None:
            self._on_settled(row.opened, settlement)
        return True

    def report_live(self, held: Container[str]) -> None:
        """Put on record since when the requests `held` by the gateway go back; older open rows are nobody's.

        It is queued behind the outcome of all that is not held any more, so it is never ahead of the rows.
        """
        since_s = next((at_s for id, at_s in self._undecided.items() if id in held), None)
        state = (self.admitted, since_s is None)
        if since_s is None and state == self._reported:
            return  # nothing came since, and nothing was there then: an idle node leaves the disk alone
        self._reported = state
        self._writer.put(LiveReport(since_s=self._clock() if since_s is None else since_s))

    async def committed(self, row: Row) -> None:
        """Return once the outcome is on record, or raise `UnableToCommit` within the time-out.

        A caller that gets the error owes its client one too: should the row still reach the disk,
        it says `failed`.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tell_committed(row, partial(resolve, waiter))
        try:
            await waiter
        except UnableToCommit:
            self.give_up(row)
            raise

    def tell_committed(self, row: Row, told: Told) -> None:
        """Call `told` when `committed` would return; who gets the error has to `give_up` the row."""
        last = row.last
        if last is None:
            raise RuntimeError(f"{row.opened.id} has no outcome yet: settle it, then wait for the commit.")
        self._writer.tell(last, told)

    def give_up(self, row: Row) -> None:
        """Note that the client is told of a failure: should the row still reach the disk, it says so."""
        if row.last is not None:
            row.last.abandoned = True

    def _close(self, row: Row, settlement: Settlement) -> Row:
        # Not in the thread yet: the row waits where it is and becomes one INSERT in its final state.
        if row.state < TAKEN:
            row.settlement, row.ended_at_s = settlement, self._clock()
            self._writer.urge(row)
            return row
        closing = row.closing = Row(opened=row.opened, opening=row)
        closing.settlement, closing.ended_at_s = settlement, self._clock()
        self._writer.put(closing)
        return closing

    def _read_left_open(self) -> list[Opened]:
        try:
            return selectors.list_open(node=self._node, using=self._alias)
        finally:
            connections[self._alias].close()
