"""Group commit: one thread writes all rows that wait in one transaction, and then again.

The event loop queues tickets; while the thread commits one batch the next one gathers, so a batch
is as large as the load makes it. A lone row never waits for a timer. In a crowd batches keep a pace,
for a commit costs as much as dozens of rows. Rules that make it safe:

- Only the loop touches the queue, and a ticket once taken by the thread is not changed any more.
- At most one batch is in the thread, and the next is handed over only after its tickets have
  landed. So whoever writes a later ticket may rely on the state of an earlier one.
- A batch that fails by a row's fault is written row by row: a bad row never fails its neighbours.
- A row may linger if nobody waits for it yet: it goes when somebody does, or after `LINGER_S`. A row
  that changes meanwhile is written once instead of twice.
- While the database is away (`Unavailable`) the batch is tried again, with pauses, and never given
  up before `stop`. Waiting for it is bounded; the row is not undone by its waiter leaving.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from typing import Generic, Protocol, TypeVar

import msgspec

from gpucloud.lib.linger import Linger

logger = logging.getLogger(__name__)

LINGER_S = 0.05
"""How long a row that nobody waits for may stay in memory; half as long at the least."""
CROWD = 4
"""A batch of at least so many rows is a sign of load."""
PACE_S = 0.010
"""Under load batches begin this far apart."""
BUSY_BATCHES = 256
"""Under unbroken load housekeeping comes in between after so many batches."""
QUIET_S = 0.2
"""How long no batch must have come before housekeeping."""
TIDY_RETRY_S = 60.0


class UnableToCommit(Exception):
    """The row is not known to be on disk; the message says why."""


class Unavailable(Exception):
    """Raised by a writer when the database, not a row, is at fault."""


class TicketState(IntEnum):
    """How far a row has got."""

    LINGERING = 0
    QUEUED = 1
    TAKEN = 2
    COMMITTED = 3
    FAILED = 4


Told = Callable[["UnableToCommit | None"], None]
"""What is called once a row has landed: with None if it is on disk. It must not raise."""


class Ticket(msgspec.Struct, eq=False, kw_only=True):
    """One row on its way to the disk; subclasses carry the row."""

    state: TicketState = TicketState.QUEUED
    error: UnableToCommit | None = None
    told: list[Told] | None = None
    """Who is told when it has landed."""


T = TypeVar("T", bound=Ticket)
T_contra = TypeVar("T_contra", bound=Ticket, contravariant=True)


class Writer(Protocol[T_contra]):
    """What the thread drives. All of it runs there, so it may own a connection."""

    def write(self, batch: Sequence[T_contra], /) -> None:
        """Commit all rows of the batch in one transaction, or none and raise."""

    def tidy(self) -> float:
        """Do one short piece of housekeeping and return after how many idle seconds to come back."""

    def close(self) -> None:
        """Let go of the connection."""


class GroupCommit(Generic[T]):
    """The loop's side of the writer thread. All methods belong to the loop that called `start`."""

    def __init__(self, writer: Writer[T], *, name: str, timeout_s: float, retry_s: float = 0.25) -> None:
        self.healthy = True
        """False from a failed or overdue commit until one succeeds."""
        self._writer = writer
        self._name = name
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._pending: list[T] = []
        self._lingering: Linger[T] = Linger(self.urge, longest_s=LINGER_S)
        """Rows put with `linger`; most are urged long before it is their time."""
        self._flying: list[T] = []
        self._busy = False
        self._next_at_s = 0.0
        """Loop time before which no batch is handed over."""
        self._overdue = False
        self._timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self._inbox: queue.SimpleQueue[list[T] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop

    async def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.get_running_loop()
        self._stopping.clear()
        # A daemon: a process that dies without `stop` must not hang on a thread that waits for rows.
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Write what is queued, then end the thread; rows that cannot be written now are refused."""
        if self._thread is None:
            return
        self._stopping.set()
        self._lingering.act_on_all()
        # Rows that are put meanwhile are written too.
        while self._busy:
            self._drained = self._loop.create_future()
            await self._drained
        thread, self._thread = self._thread, None
        self._inbox.put(None)
        await asyncio.to_thread(thread.join)

    def put(self, ticket: T, *, linger: bool = False) -> None:
        """Queue a row. Everything queued in one turn of an idle loop shares a transaction.

        With `linger` the row may wait for `urge`, for somebody to `wait` for it, or for `LINGER_S`.
        """
        if self._thread is None:
            _land(ticket, UnableToCommit("The writer is not running."))
            return
        if linger and not self._stopping.is_set():
            ticket.state = TicketState.LINGERING
            self._lingering.add(ticket)
            return
        self._queue(ticket)

    def urge(self, ticket: T) -> None:
        """Let a row linger no longer; does nothing for one that does not."""
        if ticket.state == LINGERING:
            self._lingering.let_go(ticket)
            ticket.state = TicketState.QUEUED
            self._queue(ticket)

    def _queue(self, ticket: T) -> None:
        self._pending.append(ticket)
        if not self._busy:
            self._busy = True
            self._hand_over_in_time()

    async def wait(self, ticket: T) -> None:
        """Return once the row is committed, or raise `UnableToCommit` in time."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self.tell(ticket, partial(resolve, waiter))
        await waiter

    def tell(self, ticket: T, told: Told) -> None:
        """Call `told` once the row is committed, or with `UnableToCommit` in time; be it at once."""
        if ticket.state >= COMMITTED:
            told(ticket.error)
            return
        self.urge(ticket)
        if self._overdue:
            told(UnableToCommit("The database does not answer."))
        elif ticket.told is None:
            ticket.told = [told]
        else:
            ticket.told.append(told)

    def _hand_over_in_time(self) -> None:
        if self._loop.time() >= self._next_at_s or self._stopping.is_set():
            self._loop.call_soon(self._hand_over)
        else:
            self._loop.call_at(self._next_at_s, self._hand_over)

    def _hand_over(self) -> None:
        self._flying, self._pending = self._pending, []
        for ticket in self._flying:
            ticket.state = TicketState.TAKEN
        if len(self._flying) >= CROWD:
            self._next_at_s = self._loop.time() + PACE_S
        # One timer for the batch instead of one for every waiter: all of them wait for this batch.
        self._timer = self._loop.call_later(self._timeout_s, self._give_notice)
        self._inbox.put(self._flying)

    def _landed(self, errors: Sequence[Exception | None] | None, available: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.healthy = available
        self._overdue = False
        batch, self._flying = self._flying, []
        if errors is None:
            for ticket in batch:
                ticket.state = COMMITTED
                if ticket.told is not None:
                    _tell(ticket, None)
        else:
            for ticket, error in zip(batch, errors, strict=True):
                _land(ticket, error)
        if self._pending:
            self._hand_over_in_time()
            return
        self._busy = False
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    def _give_notice(self) -> None:
        """Free all who wait for a commit that takes too long; their rows stay queued."""
        self.healthy = False
        self._overdue = True
        for ticket in [*self._flying, *self._pending]:
            _tell(ticket, UnableToCommit(f"The commit takes longer than {self._timeout_s:g} s."))

    def _run(self) -> None:
        pause_s = 0.0
        batches = 0
        try:
            while True:
                try:
                    batch = self._inbox.get(timeout=pause_s)
                except queue.Empty:
                    pause_s, batches = self._tidy(), 0
                    continue
                if batch is None:
                    return
                errors, available = self._commit(batch)
                self._loop.call_soon_threadsafe(self._landed, errors, available)
                pause_s = QUIET_S
                batches += 1
                if batches == BUSY_BATCHES:
                    batches = 0
                    self._tidy()
        finally:
            self._writer.close()

    def _commit(self, batch: list[T]) -> tuple[Sequence[Exception | None] | None, bool]:
        """Write a batch; return its rows' errors (None: not one) and whether the database is there."""
        try:
            self._write(batch)
        except Unavailable as error:
            return [error] * len(batch), False
        except Exception as error:
            if len(batch) == 1:
                logger.error("A row could not be written: %s", error)
                return [error], True
        else:
            return None, True
        outcomes = [self._commit([ticket]) for ticket in batch]
        errors = [None if one is None else one[0] for one, _ in outcomes]
        return errors, all(available for _, available in outcomes)

    def _write(self, batch: list[T]) -> None:
        """Write a batch as soon as the database is there, or raise `Unavailable` when told to stop."""
        while True:
            try:
                return self._writer.write(batch)
            except Unavailable as error:
                if self.healthy:
                    logger.warning("The database is away, rows wait: %s", error)
                self.healthy = False
                if self._stopping.wait(self._retry_s):
                    raise

    def _tidy(self) -> float:
        try:
            return self._writer.tidy()
        except Exception:
            logger.warning("Housekeeping failed; it is tried again in %d s.", TIDY_RETRY_S, exc_info=True)
            return TIDY_RETRY_S


def _land(ticket: Ticket, error: Exception | None) -> None:
    ticket.error = _as_refusal(error)
    ticket.state = TicketState.COMMITTED if error is None else TicketState.FAILED
    _tell(ticket, ticket.error)


def _as_refusal(error: Exception | None) -> UnableToCommit | None:
    if error is None or isinstance(error, UnableToCommit):
        return error
    refusal = UnableToCommit(f"{type(error).__name__}: {error}")
    refusal.__cause__ = error
    return refusal


def _tell(ticket: Ticket, error: UnableToCommit | None) -> None:
    everyone, ticket.told = ticket.told, None
    for told in everyone or ():
        try:
            told(error)
        except Exception:
            # The other rows of the batch have landed too, and their clients wait.
            logger.exception("Whoever was told of a row has failed.")


def resolve(waiter: asyncio.Future[None], error: UnableToCommit | None) -> None:
    """Have a future tell what has become of a row."""
    # A waiter that was cancelled, its client gone, is done already.
    if waiter.done():
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)


# Enum's members are looked up through a descriptor, which the way of each request can feel.
LINGERING = TicketState.LINGERING
COMMITTED = TicketState.COMMITTED
