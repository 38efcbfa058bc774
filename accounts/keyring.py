"""Who holds this key? The data plane's answer, from memory.

One `Keyring` per node. `peek` is the hot path: no await, no database. What it does not know
`resolve` reads, all that is wanted at that moment in one query. An answer stops being true
by one of three ways:

1. A service in this process tells what it changed as soon as that is committed (`forget`).
2. A poll every 0.5 s re-reads the rows of all cached keys, on SQLite only when another connection
   has committed. So raw SQL, `QuerySet.update` and other processes are noticed like the admin.
3. An answer holds for 60 s after the database last confirmed it: that long an outage is survived.
   One that nobody used for 60 s is dropped.

All state belongs to the event loop. The database is met on two threads, so that a flood of unknown
keys cannot hold up the poll. An answer read before a change was noticed may arrive after it: it
goes to those who wait for it, and is not kept. Which rows there are is the business of
`selectors`, what a key looks like that of `keys`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from hmac import compare_digest
from secrets import token_bytes

from accounts.identity import Identity, Refused
from accounts.invalidation import subscribe, unsubscribe
from accounts.keys import PRIVATE_CHARS, digest_key, is_well_formed
from accounts.limits import Limits
from accounts.selectors import KeyRow, list_key_rows, read_data_version, tenant_of
from accounts.services import MARK_EVERY_S, mark_keys_used
from gpucloud.lib.dbthread import DatabaseThread

__all__ = ["Identity", "Keyring", "Refused", "UnableToReadKeys"]

POLL_S = 0.5
KEPT_S = 60.0
UNKNOWN_S = 1.0
READ_TIMEOUT_S = 5.0
MAX_KEYS = 50_000
MAX_UNKNOWN = 10_000

_NEVER = float("-inf")
_NO_DIGEST = bytes(32)

logger = logging.getLogger(__name__)


class UnableToReadKeys(Exception):
    """The database did not answer for a key that is not in memory: 503, not 401."""


class Keyring:
    """Remembers which secrets are whose. Times are wall-clock seconds, as expiry is."""

    def __init__(
        self,
        *,
        pepper: bytes,
        read: Callable[[Sequence[str]], list[KeyRow]] = list_key_rows,
        read_version: Callable[[], int | None] = read_data_version,
        mark_used: Callable[[Mapping[int, float], float], None] = mark_keys_used,
        clock: Callable[[], float] = time.time,
        poll_s: float = POLL_S,
        max_keys: int = MAX_KEYS,
    ) -> None:
        self._pepper = pepper
        self._marking_key = token_bytes(32)
        self._read = read
        self._read_version = read_version
        self._mark_used = mark_used
        self._clock = clock
        self._poll_s = poll_s
        self._max_keys = max_keys
        self._entries: dict[str, _Entry] = {}
        self._unknown: dict[str, float] = {}
        self._flights: dict[str, asyncio.Future[_Answer]] = {}
        self._wanted: dict[str, asyncio.Future[_Answer]] = {}
        self._confirmed_at_s = _NEVER
        self._version: int | None = None
        self._changes = 0
        self._failing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loader: asyncio.Task[None] | None = None
        self._poller: asyncio.Task[None] | None = None
        self._reads = DatabaseThread("keyring-read")
        self._polls = DatabaseThread("keyring-poll")

    async def start(self) -> None:
        """Begin to notice changes."""
        self._loop = asyncio.get_running_loop()
        subscribe(self._forget_soon)
        self._poller = asyncio.create_task(self._poll_forever(), name="keyring-poll")

    async def stop(self) -> None:
        """Stop noticing changes and give the connections back."""
        unsubscribe(self._forget_soon)
        tasks = [task for task in (self._poller, self._loader) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._reads.stop()
        await self._polls.stop()

    def peek(self, secret: bytes, now: float) -> Identity | Refused | None:
        """Return what is known of `secret` at wall-clock time `now`; None: ask `resolve`."""
        prefix = secret[:-PRIVATE_CHARS].decode("latin-1")
        entry = self._entries.get(prefix)
        if entry is None:
            if not is_well_formed(secret):
                return Refused.MALFORMED
            fresh = abs(now - self._unknown.get(prefix, _NEVER)) < UNKNOWN_S
        else:
            fresh = abs(now - max(entry.read_at_s, self._confirmed_at_s)) < KEPT_S
        return self._judge(secret, entry, now) if fresh else None

    async def resolve(self, secret: bytes) -> Identity | None:
        """Return who holds `secret`, None if nobody may use it; else raise `UnableToReadKeys`."""
        verdict = self.peek(secret, self._clock())
        if verdict is None:
            entry = await self._join_flight(secret[:-PRIVATE_CHARS].decode())
            verdict = self._judge(secret, entry, self._clock())
        return verdict if isinstance(verdict, Identity) else None

    async def list_dead(self, prefixes: Iterable[str]) -> set[str]:
        """Return which of these keys, all let in before, are revoked, their users' switched off, or gone.

        Raise `UnableToReadKeys` where that is not known and cannot be read.
        """
        dead = set()
        for prefix in prefixes:
            entry = self._entries.get(prefix) or await self._join_flight(prefix)
            if entry is None or entry.refused is not None:
                dead.add(prefix)
        return dead

    def forget(self, prefixes: Iterable[str]) -> None:
        """Drop what is known of these keys, and what is being read of them."""
        for prefix in prefixes:
            self._entries.pop(prefix, None)
            self._unknown.pop(prefix, None)
            self._flights.pop(prefix, None)

    async def poll(self) -> None:
        """Ask the database once what became of the cached keys, and write when they were used."""
        now = self._clock()
        try:
            await self._refresh(now)
            await self._write_uses(now)
        except Exception as error:
            # The thread's next connection is another one, on which this number means nothing.
            self._version = None
            if not self._failing:
                logger.warning("The poll for changed keys failed and goes on trying: %s", error)
            self._failing = True
        else:
            self._failing = False

    def _judge(self, secret: bytes, entry: _Entry | None, now: float) -> Identity | Refused:
        # A secret that has passed once is known by a mark under a key of this process: BLAKE2 costs a
        # third of the HMAC, and neither is kept anywhere but in memory.
        mark = blake2b(secret, digest_size=32, key=self._marking_key).digest()
        if entry is None or not compare_digest(mark, entry.mark):
            # Compared also when there is nothing to compare with: how long a refusal takes must not
            # tell which prefixes exist.
            digest = digest_key(secret, self._pepper)
            matches = compare_digest(digest, _NO_DIGEST if entry is None else entry.digest)
            if entry is None or not matches:
                return Refused.UNKNOWN
            entry.mark = mark
        if entry.refused is not None:
            return entry.refused
        expires_at_s = entry.identity.expires_at_s
        if expires_at_s is not None and now >= expires_at_s:
            return Refused.EXPIRED
        entry.used_at_s = now
        return entry.identity

    async def _join_flight(self, prefix: str) -> _Entry | None:
        flight = self._flights.get(prefix)
        if flight is None:
            # One may be wanted already: forgotten before its read began, it is as good as a new one.
            flight = self._wanted.setdefault(prefix, asyncio.get_running_loop().create_future())
            self._flights[prefix] = flight
            if self._loader is None or self._loader.done():
                self._loader = asyncio.create_task(self._read_wanted(), name="keyring-read")
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                # Shielded: the flight is everybody's, and one of those who wait may be cancelled.
                answer = await asyncio.shield(flight)
        except TimeoutError:
            raise UnableToReadKeys(f"The database did not answer within {READ_TIMEOUT_S:g} s.") from None
        if isinstance(answer, Exception):
            raise UnableToReadKeys(f"The database does not answer: {answer}") from answer
        return answer

    async def _read_wanted(self) -> None:
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            now, changes = self._clock(), self._changes
            found: dict[str, _Entry] = {}
            failure: Exception | None = None
            try:
                for row in await self._reads.run(self._read, tuple(wanted)):
                    found[row.prefix] = _Entry(row, now)
            except Exception as error:
                failure = error
            for prefix, flight in wanted.items():
                entry = found.get(prefix)
                if self._flights.get(prefix) is flight:
                    del self._flights[prefix]
                    if failure is None and changes == self._changes:
                        self._keep(prefix, entry, now)
                flight.set_result(failure or entry)

    def _keep(self, prefix: str, entry: _Entry | None, now: float) -> None:
        if entry is None:
            if len(self._unknown) >= MAX_UNKNOWN:
                del self._unknown[next(iter(self._unknown))]
            self._unknown[prefix] = now
        else:
            if len(self._entries) >= self._max_keys:
                del self._entries[next(iter(self._entries))]
            self._entries[prefix] = entry

    async def _refresh(self, now: float) -> None:
        asked = {prefix: entry for prefix, entry in self._entries.items() if now - entry.touched_at_s < KEPT_S}
        idle = self._entries.keys() - asked.keys()
        self._version, rows = await self._polls.run(self._reread, tuple(asked), self._version)
        # Only now that the database has answered: in an outage an idle key is all there is.
        for prefix in idle:
            self._entries.pop(prefix, None)
        if rows is not None:
            self._changes += 1
            found = {row.prefix: row for row in rows}
            for prefix, entry in tuple(self._entries.items()):
                row = found.get(prefix) if asked.get(prefix) is entry else None
                if row is None:
                    del self._entries[prefix]  # gone, or read while this was under way
                elif row != entry.row:
                    entry.learn(row)
        self._confirmed_at_s = now

    def _reread(self, prefixes: Sequence[str], seen: int | None) -> tuple[int | None, list[KeyRow] | None]:
        # The version first: what commits between the two reads moves it again.
        version = self._read_version()
        if version is not None and version == seen:
            return version, None
        return version, self._read(prefixes)

    async def _write_uses(self, now: float) -> None:
        used = [
            entry
            for entry in self._entries.values()
            if entry.used_at_s > entry.marked_at_s and now - entry.marked_at_s >= MARK_EVERY_S
        ]
        if used:
            await self._polls.run(self._mark_used, {entry.row.key_id: entry.used_at_s for entry in used}, now)
            for entry in used:
                entry.marked_at_s = now

    async def _poll_forever(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self.poll()

    def _forget_soon(self, prefixes: tuple[str, ...]) -> None:
        # The loop runs this before it resumes whoever awaited the thread that committed.
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.forget, prefixes)


class _Entry:
    """One cached key: its row, what follows from it, and when it was used."""

    __slots__ = ("digest", "identity", "mark", "marked_at_s", "read_at_s", "refused", "row", "used_at_s")

    def __init__(self, row: KeyRow, now: float) -> None:
        self.read_at_s = now
        self.used_at_s = _NEVER
        self.marked_at_s = _NEVER
        self.learn(row)

    @property
    def touched_at_s(self) -> float:
        """When it was last of use to anybody."""
        return max(self.read_at_s, self.used_at_s)

    def learn(self, row: KeyRow) -> None:
        """Take over a row."""
        self.row = row
        self.digest = bytes.fromhex(row.digest)
        self.mark = b""
        """Of the secret that matches the digest, once it was shown."""
        self.refused: Refused | None = None
        if row.revoked_at is not None:
            self.refused = Refused.REVOKED
        elif not row.user_is_active:
            self.refused = Refused.INACTIVE
        self.identity = Identity(
            key_id=row.key_id,
            user_id=row.user_id,
            tenant=tenant_of(row.user_id),
            tenant_label=row.email,
            key_label=row.name,
            prefix=row.prefix,
            tier=row.tier,
            highest_tier=row.highest_tier,
            models=None if row.models == ["*"] else tuple(row.models),
            max_tokens=row.max_tokens,
            simulated_only=row.test,
            limits=Limits(
                requests_per_minute=row.requests_per_minute,
                tokens_per_minute=row.tokens_per_minute,
                concurrent_requests=row.concurrent_requests,
                # A test key costs nothing, so there is nothing to budget.
                monthly_tokens=0 if row.test else row.monthly_tokens,
            ),
            expires_at_s=None if row.expires_at is None else row.expires_at.timestamp(),
        )


_Answer = _Entry | Exception | None
