"""The ledger's thread: turns batches of rows into transactions, and keeps the tables in shape.

Runs only in the thread of a `GroupCommit`; what the loop sees of it is `ledger`. Two rules:

- One batch is one transaction over rows, sums and counters, so each request is counted once.
- The batch is written on the assumption that every row is new or still open, and the number of
  changed rows proves it. Where it is not so, each row is looked at by itself (`_write_one`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from cluster.domain import Outcome
from gpucloud.lib.groupcommit import Ticket, TicketState, UnableToCommit
from inference import ledger_sql as sql
from inference.histograms import Bars
from inference.models import OPEN
from inference.records import Opened, Settlement
from inference.timeline import encode_timeline

SumKey = tuple[int, int, int, str, str]
"""Hour since the epoch, user, key or 0, model, node."""

HOUR_S = 3600
RETENTION_EVERY_S = 3600.0
RETENTION_CHUNK = 500
KEEP_ROWS = 10_000
MAX_BARS = 10_000
"""Histograms kept at hand: one for each key and model of an hour."""

_PLACE = {outcome: index for index, outcome in enumerate(Outcome, start=1)}
"""Where an outcome's count stands in `USAGE_COLUMNS`."""


class Row(Ticket):
    """A request's row on its way to the disk: as opened, or (with a settlement) in its final state."""

    opened: Opened
    opening: Row | None = None
    """The open row, if it went to the thread on its own."""
    closing: Row | None = None
    """The row that brings the outcome, if this one had gone to the thread before it was decided."""
    settlement: Settlement | None = None
    ended_at_s: float = 0.0
    abandoned: bool = False
    """The client was told that the commit failed; the row must not say otherwise later."""

    @property
    def last(self) -> Row | None:
        """The row with the outcome: this one or a second one; None while that is undecided."""
        return self.closing if self.settlement is None else self

    @property
    def is_stored(self) -> bool:
        """Whether the open row is on disk; settled by the time this row is in the thread."""
        return self.opening is not None and self.opening.state is TicketState.COMMITTED

    def verdict(self) -> Settlement | None:
        """Return the settlement to write. Read it once a try: `abandoned` may change at any time."""
        settlement = self.settlement
        if settlement is None or not self.abandoned:
            return settlement
        # A stream had its tokens before the commit was due; a JSON body had not.
        delivered_tokens = settlement.delivered_tokens if self.opened.stream else 0
        return msgspec.structs.replace(
            settlement,
            outcome=Outcome.FAILED,
            finish_reason=None,
            error_code="ledger_unavailable",
            delivered_tokens=delivered_tokens,
        )


class LiveReport(Ticket):
    """Since when a node's gateway holds requests. It is queued behind all that ended before it was made."""

    since_s: float


class RowsDiffer(Exception):
    """Some rows of a batch were not as assumed."""


class _Tally:
    """What a batch adds up to: a few statements, whatever the number of its requests."""

    __slots__ = ("admitted", "bars", "live_since_s", "settled", "usage")

    def __init__(self) -> None:
        self.admitted = 0
        self.live_since_s: float | None = None
        self.settled = 0
        self.usage: dict[SumKey, list[int]] = {}
        self.bars: dict[SumKey, Bars] = {}

    def settle(self, opened: Opened, end: Settlement) -> None:
        self.settled += 1
        hour = int(opened.created_at_s) // HOUR_S
        key = (hour, opened.user_id, opened.key_id or 0, opened.model, opened.node)
        usage = self.usage.get(key)
        if usage is None:
            usage = self.usage[key] = [0] * len(sql.USAGE_COLUMNS)
        usage[0] += 1
        usage[_PLACE[end.outcome]] += 1
        if end.served:
            usage[6] += opened.prompt_tokens
            usage[7] += end.billed_tokens
        usage[8] += end.generated_tokens
        if end.outcome is Outcome.COMPLETED:
            bars = self.bars.get(key)
            if bars is None:
                bars = self.bars[key] = Bars()
            bars.count(end.queue_ms, end.ttft_ms, end.total_ms)

    def keys(self) -> dict[int, list[int]]:
        """Return by key what its counters grow by: requests, prompt and completion tokens."""
        keys: dict[int, list[int]] = {}
        for key, usage in self.usage.items():
            counts = keys.setdefault(key[2], [0, 0, 0])
            counts[0] += usage[0]
            counts[1] += usage[6]
            counts[2] += usage[7]
        return keys


class LedgerStore:
    """Writes one node's rows; the `Writer` of its group commit."""

    def __init__(
        self,
        *,
        node: str,
        database: sql.Database,
        keep_s: float,
        keep_rows: int = KEEP_ROWS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._database = database
        self._keep_s = keep_s
        self._keep_rows = keep_rows
        self._clock = clock
        self._retained_from_s = 0
        self._retention_due_s = 0.0
        self._pruning = False
        self._checkpointed = True
        self._bars: dict[SumKey, Bars] = {}
        """What the histograms of this hour hold on disk: a node's sums have no writer but the node's own."""

    def write(self, batch: Sequence[Row | LiveReport]) -> None:
        """Commit all rows of the batch with their sums, or none."""
        try:
            with self._database.transaction():
                tally = _Tally()
                rows = [ticket for ticket in batch if isinstance(ticket, Row)]
                if len(rows) < len(batch):
                    tally.live_since_s = max(ticket.since_s for ticket in batch if isinstance(ticket, LiveReport))
                if not self._write_fast(rows, tally):
                    if len(batch) > 1:
                        raise RowsDiffer
                    tally = _Tally()
                    self._write_one(rows[0], tally)
                self._write_tally(tally)
        except Exception:
            self._bars.clear()  # counted here already, and not on disk
            raise
        self._checkpointed = False

    def tidy(self) -> float:
        """Checkpoint, and delete what is past keeping, a little at a time."""
        if not self._checkpointed:
            self._database.checkpoint()
            self._checkpointed = True
        now = self._clock()
        if not self._pruning and now >= self._retention_due_s:
            self._retention_due_s = now + RETENTION_EVERY_S
            self._pruning = self._move_retention(now)
        if self._pruning:
            self._pruning = self._delete_chunk()
            self._checkpointed = False
            return 0.0
        return max(0.0, self._retention_due_s - now)

    def close(self) -> None:
        """Let go of the connection."""
        self._database.close()

    def _write_fast(self, batch: Sequence[Row], tally: _Tally) -> bool:
        """Write the batch; return whether all rows were as assumed."""
        opens: list[sql.Params] = []
        inserts: list[sql.Params] = []
        updates: list[sql.Params] = []
        for row in batch:
            opened = row.opened
            end = row.verdict()
            if end is None:
                opens.append(self._start_of(opened))
                continue
            if row.is_stored:
                updates.append((*self._end_of(row, end), opened.id))
            else:
                inserts.append(self._start_of(opened) + self._end_of(row, end))
            tally.settle(opened, end)
        tally.admitted = len(opens) + len(inserts)
        changed = 0
        if opens:
            changed += self._database.many(sql.OPEN_REQUEST, opens)
        if inserts:
            changed += self._database.many(sql.INSERT_REQUEST, inserts)
        if updates:
            changed += self._database.many(sql.END_REQUEST, updates)
        return changed == len(batch)

    def _write_one(self, row: Row, tally: _Tally) -> None:
        """Bring one row to where it belongs, whatever is there."""
        opened = row.opened
        end = row.verdict()
        state = self._database.one(sql.STATE_OF, (opened.id,))
        if state is None:
            if end is None:
                self._database.many(sql.OPEN_REQUEST, [self._start_of(opened)])
            else:
                self._database.many(sql.INSERT_REQUEST, [self._start_of(opened) + self._end_of(row, end)])
            tally.admitted += 1
        elif end is None or state == end.outcome:
            return
        elif state == OPEN:
            self._database.many(sql.END_REQUEST, [(*self._end_of(row, end), opened.id)])
        else:
            raise UnableToCommit(f"{opened.id} is on record as {state} and cannot become {end.outcome}.")
        if end is not None:
            tally.settle(opened, end)

    def _write_tally(self, tally: _Tally) -> None:
        many, stamp = self._database.many, self._database.stamp
        if tally.usage:
            many(
                sql.ADD_USAGE,
                [(stamp(key[0] * HOUR_S), *key[1:], *counts) for key, counts in sorted(tally.usage.items())],
            )
            many(sql.ADD_KEY, [(key_id, self._node, *counts) for key_id, counts in sorted(tally.keys().items())])
        for key, more in sorted(tally.bars.items()):
            params = (stamp(key[0] * HOUR_S), *key[1:])
            bars = self._bars.get(key) or self._read_bars(key, params)
            bars.add(more)
            many(sql.SET_BARS, [(*params, bars.encode())])
        if tally.admitted or tally.settled:
            many(sql.ADD_COUNTER, [(self._node, tally.admitted, tally.settled)])
        if tally.live_since_s is not None:
            many(sql.LIVE_SINCE, [(self._node, 0, 0, stamp(tally.live_since_s))])

    def _read_bars(self, key: SumKey, params: sql.Params) -> Bars:
        """Return what is on disk of a histogram, and keep it at hand while its hour lasts."""
        text = self._database.one(sql.BARS_OF, params)
        if len(self._bars) >= MAX_BARS or any(hour < key[0] for hour, *_ in self._bars):
            self._bars.clear()
        bars = self._bars[key] = Bars() if text is None else Bars.decode(text)
        return bars

    def _start_of(self, opened: Opened) -> tuple[object, ...]:
        # `Opened` has its fields in the columns' order, the time last.
        return (*msgspec.structs.astuple(opened)[:-1], self._database.stamp(opened.created_at_s))

    def _end_of(self, row: Row, end: Settlement) -> tuple[object, ...]:
        return (
            end.outcome.value,
            end.finish_reason,
            end.error_code,
            end.generated_tokens,
            end.delivered_tokens,
            end.billed_tokens,
            end.attempts,
            end.worker_id,
            end.worker_name,
            end.queue_ms,
            end.ttft_ms,
            end.total_ms,
            self._database.stamp(row.ended_at_s),
            encode_timeline(end.timeline) if end.timeline else None,
        )

    def _move_retention(self, now: float) -> bool:
        """Decide from which hour on rows are kept, put it on record, and return whether it moved.

        It is recorded before anything is deleted: `balance` compares rows with sums only from
        there on, so it is right also when a deletion was cut short.
        """
        with self._database.transaction():
            newest: datetime | None = self._database.one(sql.NEWEST_BUT, (self._keep_rows - 1,))
            if newest is None:
                return False
            # SQLite's driver gives a time without a zone, Postgres one in UTC; both mean UTC.
            oldest_kept_s = newest.replace(tzinfo=UTC).timestamp()
            hour_s = int(min(now - self._keep_s, oldest_kept_s)) // HOUR_S * HOUR_S
            if hour_s <= self._retained_from_s:
                return False
            self._database.many(sql.RETAIN_FROM, [(self._node, 0, 0, self._database.stamp(hour_s))])
            self._retained_from_s = hour_s
            return True

    def _delete_chunk(self) -> bool:
        """Delete some of the oldest rows past keeping; return whether there may be more."""
        stamp = self._database.stamp(self._retained_from_s)
        with self._database.transaction():
            return self._database.many(sql.DELETE_OLDEST, [(stamp, RETENTION_CHUNK)]) == RETENTION_CHUNK
