"""A keyring over a dict and a clock that stands still: what the tests of the keyring share."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
import pytest

from accounts.keyring import Keyring
from accounts.keys import digest_key, make_key, prefix_of
from accounts.selectors import KeyRow

PEPPER = b"pepper"
START_S = 1_800_000_000.0


class Database:
    """Stands in for the rows: counts what is asked, and can be down, slow, or at a new version."""

    def __init__(self) -> None:
        self.rows: dict[str, KeyRow] = {}
        self.reads: list[tuple[str, ...]] = []
        self.marks: list[dict[int, float]] = []
        self.version: int | None = 1
        self.down = False
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.read_begun = threading.Event()

    def add(self, secret: str, **changes: Any) -> str:
        """Store a row for `secret`; return its prefix."""
        row = KeyRow(
            key_id=len(self.rows) + 1,
            prefix=prefix_of(secret),
            digest=digest_key(secret, PEPPER).hex(),
            name="laptop",
            tier="default",
            highest_tier="default",
            test=False,
            models=["*"],
            requests_per_minute=60,
            tokens_per_minute=0,
            concurrent_requests=0,
            max_tokens=0,
            monthly_tokens=0,
            user_id=7,
            email="alice@example.com",
            user_is_active=True,
            revoked_at=None,
            expires_at=None,
        )
        self.rows[row.prefix] = msgspec.structs.replace(row, **changes)
        self.touch()
        return row.prefix

    def change(self, prefix: str, **changes: Any) -> None:
        """Write to a row as another connection would."""
        self.rows[prefix] = msgspec.structs.replace(self.rows[prefix], **changes)
        self.touch()

    def touch(self) -> None:
        """Commit something."""
        if self.version is not None:
            self.version += 1

    def read(self, prefixes: Sequence[str]) -> list[KeyRow]:
        if self.down:
            raise OSError("gone away")
        self.reads.append(tuple(prefixes))
        found = [self.rows[prefix] for prefix in prefixes if prefix in self.rows]
        self.read_begun.set()
        assert self.open_gate.wait(10)
        return found

    def read_version(self) -> int | None:
        if self.down:
            raise OSError("gone away")
        return self.version

    def mark_used(self, used_at_s: Mapping[int, float], now_s: float) -> None:
        self.marks.append(dict(used_at_s))


class Clock:
    """A wall clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = START_S

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def keyring(database: Database, clock: Clock) -> AsyncIterator[Keyring]:
    ring = Keyring(
        pepper=PEPPER,
        read=database.read,
        read_version=database.read_version,
        mark_used=database.mark_used,
        clock=clock,
        poll_s=3600,
        max_keys=3,
    )
    await ring.start()
    yield ring
    await ring.stop()


SECRET = make_key()
KEY = SECRET.encode()
