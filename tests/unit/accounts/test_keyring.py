"""Who a keyring lets pass: its database is a dict, its clock stands still unless a test moves it."""

from __future__ import annotations

import asyncio

import pytest

from accounts import keyring as keyring_module
from accounts.keyring import Identity, Keyring, Refused
from accounts.keys import digest_key, make_key
from accounts.limits import Limits
from tests.unit.accounts.keyring_rig import KEY, PEPPER, SECRET, START_S, Clock, Database, clock, database, keyring

__all__ = ["clock", "database", "keyring"]


async def test_a_key_is_read_once_and_then_served_from_memory(keyring: Keyring, database: Database) -> None:
    prefix = database.add(SECRET)

    assert keyring.peek(KEY, START_S) is None
    found = await keyring.resolve(KEY)

    assert found == Identity(
        key_id=1,
        user_id=7,
        tenant="u:7",
        tenant_label="alice@example.com",
        key_label="laptop",
        prefix=prefix,
        tier="default",
        highest_tier="default",
        limits=Limits(requests_per_minute=60),
    )
    assert keyring.peek(KEY, START_S) == await keyring.resolve(KEY) == found
    assert database.reads == [(prefix,)]


async def test_a_hundred_first_requests_read_a_key_once(keyring: Keyring, database: Database) -> None:
    database.add(SECRET)

    found = await asyncio.gather(*(keyring.resolve(KEY) for _ in range(100)))

    assert [identity and identity.key_id for identity in found] == [1] * 100
    assert len(database.reads) == 1


async def test_keys_wanted_during_a_read_share_the_next_one(keyring: Keyring, database: Database) -> None:
    others = [make_key() for _ in range(3)]
    database.add(SECRET)
    for secret in others:
        database.add(secret)
    database.open_gate.clear()

    first = asyncio.create_task(keyring.resolve(KEY))
    await asyncio.to_thread(database.read_begun.wait, 10)
    rest = [asyncio.create_task(keyring.resolve(secret.encode())) for secret in others]
    await asyncio.sleep(0)
    database.open_gate.set()

    assert all(await asyncio.gather(first, *rest))
    assert [len(read) for read in database.reads] == [1, 3]


async def test_one_who_stops_waiting_does_not_spoil_it_for_the_others(keyring: Keyring, database: Database) -> None:
    database.add(SECRET)
    database.open_gate.clear()
    impatient = asyncio.create_task(keyring.resolve(KEY))
    patient = asyncio.create_task(keyring.resolve(KEY))
    await asyncio.to_thread(database.read_begun.wait, 10)

    impatient.cancel()
    database.open_gate.set()

    assert (await patient) is not None
    assert impatient.cancelled()


async def test_a_malformed_key_never_reaches_the_database(keyring: Keyring, database: Database) -> None:
    for stray in (b"", b"sk-nonsense", KEY[:-1] + b"!", b"\xff" * 60, KEY * 1000):
        assert keyring.peek(stray, START_S) is Refused.MALFORMED
        assert await keyring.resolve(stray) is None

    assert database.reads == []


async def test_an_unknown_key_is_remembered_for_a_second(keyring: Keyring, database: Database, clock: Clock) -> None:
    assert await keyring.resolve(KEY) is None

    assert keyring.peek(KEY, START_S + 0.9) is Refused.UNKNOWN
    assert keyring.peek(KEY, START_S + 1.0) is None
    clock.now += 1.0
    database.add(SECRET)
    assert await keyring.resolve(KEY) is not None


async def test_unknown_keys_are_remembered_up_to_a_bound(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring_module, "MAX_UNKNOWN", 2)
    strays = [make_key().encode() for _ in range(3)]

    for stray in strays:
        await keyring.resolve(stray)

    assert [keyring.peek(stray, START_S) for stray in strays] == [None, Refused.UNKNOWN, Refused.UNKNOWN]


async def test_known_keys_are_remembered_up_to_a_bound(keyring: Keyring, database: Database) -> None:
    secrets = [make_key() for _ in range(4)]
    for secret in secrets:
        database.add(secret)
        await keyring.resolve(secret.encode())

    kept = [keyring.peek(secret.encode(), START_S) is not None for secret in secrets]

    assert kept == [False, True, True, True]


async def test_a_digest_is_compared_also_when_the_prefix_is_unknown(
    keyring: Keyring, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def spy(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return left == right

    monkeypatch.setattr(keyring_module, "compare_digest", spy)
    await keyring.resolve(KEY)
    assert compared == [(digest_key(KEY, PEPPER), bytes(32))]

    assert keyring.peek(KEY, START_S) is Refused.UNKNOWN
    assert len(compared) == 2


async def test_the_right_prefix_with_another_secret_is_refused(keyring: Keyring, database: Database) -> None:
    database.add(SECRET, digest=digest_key(make_key(), PEPPER).hex())

    assert await keyring.resolve(KEY) is None
    assert keyring.peek(KEY, START_S) is Refused.UNKNOWN
    assert len(database.reads) == 1


async def test_under_another_pepper_a_key_is_unknown(database: Database) -> None:
    database.add(SECRET)
    ring = Keyring(pepper=b"another", read=database.read, read_version=database.read_version, clock=Clock())

    assert await ring.resolve(KEY) is None
    await ring.stop()
