"""How a keyring learns that what it remembers is no longer true."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from accounts import keyring as keyring_module
from accounts.invalidation import _announce
from accounts.keyring import Identity, Keyring, Refused, UnableToReadKeys
from accounts.keys import make_key
from tests.unit.accounts.keyring_rig import KEY, PEPPER, SECRET, START_S, Clock, Database, clock, database, keyring

__all__ = ["clock", "database", "keyring"]


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"revoked_at": datetime.fromtimestamp(START_S, UTC)}, Refused.REVOKED),
        ({"user_is_active": False}, Refused.INACTIVE),
        ({"expires_at": datetime.fromtimestamp(START_S, UTC)}, Refused.EXPIRED),
    ],
)
async def test_a_key_that_changed_is_refused_after_one_poll(
    keyring: Keyring, database: Database, change: dict[str, Any], refused: Refused
) -> None:
    prefix = database.add(SECRET)
    await keyring.resolve(KEY)

    database.change(prefix, **change)
    await keyring.poll()

    assert keyring.peek(KEY, START_S) is refused
    assert await keyring.resolve(KEY) is None


async def test_new_terms_hold_after_one_poll(keyring: Keyring, database: Database) -> None:
    prefix = database.add(SECRET)
    await keyring.resolve(KEY)

    database.change(prefix, tier="batch", requests_per_minute=1)
    await keyring.poll()

    found = keyring.peek(KEY, START_S)
    assert isinstance(found, Identity)
    assert (found.tier, found.limits.requests_per_minute) == ("batch", 1)


async def test_a_deleted_key_is_dropped_by_a_poll(keyring: Keyring, database: Database) -> None:
    prefix = database.add(SECRET)
    await keyring.resolve(KEY)

    del database.rows[prefix]
    database.touch()
    await keyring.poll()

    assert keyring.peek(KEY, START_S) is None
    assert await keyring.resolve(KEY) is None


async def test_a_key_expires_without_any_poll(keyring: Keyring, database: Database) -> None:
    database.add(SECRET, expires_at=datetime.fromtimestamp(START_S + 10, UTC))
    await keyring.resolve(KEY)

    assert isinstance(keyring.peek(KEY, START_S + 9.9), Identity)
    assert keyring.peek(KEY, START_S + 10) is Refused.EXPIRED


async def test_a_poll_reads_no_rows_while_nothing_was_committed(keyring: Keyring, database: Database) -> None:
    prefix = database.add(SECRET)
    await keyring.resolve(KEY)
    await keyring.poll()
    reads = len(database.reads)

    await keyring.poll()
    assert len(database.reads) == reads

    database.change(prefix, tier="flex")
    await keyring.poll()
    assert len(database.reads) == reads + 1


async def test_without_a_version_every_poll_reads(keyring: Keyring, database: Database) -> None:
    database.version = None
    prefix = database.add(SECRET)
    await keyring.resolve(KEY)

    await keyring.poll()
    await keyring.poll()

    assert database.reads == [(prefix,)] * 3


async def test_a_row_read_before_a_change_was_noticed_is_not_kept(keyring: Keyring, database: Database) -> None:
    prefix = database.add(SECRET)
    await keyring.poll()
    database.open_gate.clear()
    early = asyncio.create_task(keyring.resolve(KEY))
    await asyncio.to_thread(database.read_begun.wait, 10)

    # The old row is in the reading thread's hands when the key is revoked and a poll sees it.
    database.change(prefix, revoked_at=datetime.fromtimestamp(START_S, UTC))
    poll = asyncio.create_task(keyring.poll())
    database.open_gate.set()
    await poll
    await early

    assert await keyring.resolve(KEY) is None


async def test_a_row_read_before_the_key_was_forgotten_is_not_kept(keyring: Keyring, database: Database) -> None:
    prefix = database.add(SECRET)
    database.open_gate.clear()
    early = asyncio.create_task(keyring.resolve(KEY))
    await asyncio.to_thread(database.read_begun.wait, 10)

    database.change(prefix, revoked_at=datetime.fromtimestamp(START_S, UTC))
    keyring.forget([prefix])
    late = asyncio.create_task(keyring.resolve(KEY))
    await asyncio.sleep(0)
    database.open_gate.set()

    assert (await early) is not None  # asked before the change
    assert (await late) is None
    assert keyring.peek(KEY, START_S) is Refused.REVOKED


async def test_a_key_forgotten_before_its_read_began_is_still_answered(keyring: Keyring, database: Database) -> None:
    other = make_key().encode()
    prefix = database.add(SECRET)
    database.open_gate.clear()
    busy = asyncio.create_task(keyring.resolve(other))
    await asyncio.to_thread(database.read_begun.wait, 10)
    first = asyncio.create_task(keyring.resolve(KEY))
    await asyncio.sleep(0)

    keyring.forget([prefix])
    second = asyncio.create_task(keyring.resolve(KEY))
    await asyncio.sleep(0)
    database.open_gate.set()

    assert (await first) is not None
    assert (await second) is not None
    assert (await busy) is None
    assert len(database.reads) == 2


async def test_what_another_thread_announces_is_forgotten_at_once(keyring: Keyring, database: Database) -> None:
    prefix = database.add(SECRET)
    await keyring.resolve(KEY)

    await asyncio.to_thread(_announce, (prefix,))

    assert keyring.peek(KEY, START_S) is None


async def test_a_stopped_keyring_hears_nothing_more(database: Database) -> None:
    ring = Keyring(pepper=PEPPER, read=database.read, read_version=database.read_version)
    heard: list[tuple[str, ...]] = []
    ring.forget = heard.append  # type: ignore[method-assign,assignment]
    await ring.start()
    await ring.stop()

    _announce(("sk-abcdefgh",))
    await asyncio.sleep(0)

    assert heard == []


async def test_while_the_database_is_down_a_key_is_served_for_sixty_seconds_from_the_last_poll(
    keyring: Keyring, database: Database, clock: Clock
) -> None:
    database.add(SECRET)
    await keyring.resolve(KEY)
    clock.now += 30
    await keyring.poll()

    database.down = True
    clock.now += 59.9
    await keyring.poll()
    assert isinstance(keyring.peek(KEY, clock.now), Identity)

    clock.now += 0.1
    assert keyring.peek(KEY, clock.now) is None
    with pytest.raises(UnableToReadKeys, match="gone away"):
        await keyring.resolve(KEY)


async def test_a_failed_read_is_tried_again_by_the_next_request(keyring: Keyring, database: Database) -> None:
    database.add(SECRET)
    database.down = True
    with pytest.raises(UnableToReadKeys):
        await keyring.resolve(KEY)

    database.down = False
    assert await keyring.resolve(KEY) is not None


async def test_a_database_that_hangs_is_not_waited_for_longer_than_the_limit(
    keyring: Keyring, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring_module, "READ_TIMEOUT_S", 0.01)
    database.open_gate.clear()

    with pytest.raises(UnableToReadKeys, match=r"within 0.01 s"):
        await keyring.resolve(KEY)

    database.open_gate.set()


async def test_a_poll_after_an_outage_does_not_trust_the_old_version(keyring: Keyring, database: Database) -> None:
    prefix = database.add(SECRET)
    await keyring.resolve(KEY)
    await keyring.poll()
    seen = database.version
    database.down = True
    await keyring.poll()

    # A new connection may start at the same number although much has happened.
    database.change(prefix, revoked_at=datetime.fromtimestamp(START_S, UTC))
    database.version = seen
    database.down = False
    await keyring.poll()

    assert keyring.peek(KEY, START_S) is Refused.REVOKED


async def test_an_outage_is_logged_once(keyring: Keyring, database: Database, caplog: pytest.LogCaptureFixture) -> None:
    database.down = True
    for _ in range(3):
        await keyring.poll()

    assert [record.getMessage() for record in caplog.records] == [
        "The poll for changed keys failed and goes on trying: gone away"
    ]


async def test_a_key_nobody_used_for_a_minute_is_dropped(keyring: Keyring, database: Database, clock: Clock) -> None:
    database.add(SECRET)
    await keyring.resolve(KEY)
    clock.now += 59.9
    await keyring.poll()
    assert isinstance(keyring.peek(KEY, clock.now), Identity)

    clock.now += 60
    await keyring.poll()

    assert keyring.peek(KEY, clock.now) is None


async def test_when_a_key_was_used_is_written_at_most_once_a_minute(
    keyring: Keyring, database: Database, clock: Clock
) -> None:
    database.add(SECRET)
    for _ in range(121):
        await keyring.resolve(KEY)
        await keyring.poll()
        clock.now += 0.5

    assert database.marks == [{1: START_S}, {1: START_S + 60}]


async def test_a_use_between_two_writes_is_not_lost(keyring: Keyring, database: Database, clock: Clock) -> None:
    database.add(SECRET)
    await keyring.resolve(KEY)
    await keyring.poll()

    clock.now += 10
    keyring.peek(KEY, clock.now)
    await keyring.poll()
    clock.now += 50
    await keyring.poll()

    assert database.marks == [{1: START_S}, {1: START_S + 10}]


async def test_a_refused_key_is_not_marked_as_used(keyring: Keyring, database: Database) -> None:
    database.add(SECRET, user_is_active=False)
    await keyring.resolve(KEY)
    await keyring.poll()

    assert database.marks == []


async def test_the_poll_runs_by_itself(database: Database) -> None:
    polled = threading.Event()
    ring = Keyring(pepper=PEPPER, read=database.read, read_version=lambda: polled.set(), poll_s=0.001)
    await ring.start()

    assert await asyncio.to_thread(polled.wait, 10)
    await ring.stop()


def test_no_secret_is_in_the_repr_of_anything(database: Database) -> None:
    prefix = database.add(SECRET)

    assert SECRET not in repr(database.rows[prefix])
    assert SECRET not in repr(Keyring(pepper=PEPPER).__dict__)


async def test_dead_keys_are_told_from_those_that_may_go_on(keyring: Keyring, database: Database) -> None:
    revoked, inactive, expired, forgotten, fine = (database.add(make_key()) for _ in range(5))
    database.change(revoked, revoked_at=datetime.fromtimestamp(START_S, UTC))
    database.change(inactive, user_is_active=False)
    database.change(expired, expires_at=datetime.fromtimestamp(START_S, UTC))
    del database.rows[forgotten]

    dead = await keyring.list_dead([revoked, inactive, expired, forgotten, fine])

    assert dead == {revoked, inactive, forgotten}, "one that expired was good when its requests began"


async def test_a_key_that_is_not_in_memory_is_read_before_it_is_called_dead(
    keyring: Keyring, database: Database
) -> None:
    prefix = database.add(SECRET)
    await keyring.resolve(KEY)
    keyring.forget([prefix])

    assert await keyring.list_dead([prefix]) == set()
    assert database.reads == [(prefix,), (prefix,)]
