"""The ledger's statements, and what SQLite and Postgres make of them.

Plain SQL on the driver's own connection: Django's cursor costs as much as the statement. The
statements are written once, with `?` for a parameter; a `Database` owns all that differs. Every
object here belongs to the one thread that made it.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from gpucloud.lib.groupcommit import Unavailable
from inference.models import OPEN

Params = Sequence[object]

START_COLUMNS = (
    "id", "key_id", "user_id", "model", "source", "stream", "tier", "node", "prompt_tokens", "created_at",
)  # fmt: skip
END_COLUMNS = (
    "state", "finish_reason", "error_code", "generated_tokens", "delivered_tokens", "completion_tokens",
    "attempts", "worker_id", "worker_name", "queue_ms", "ttft_ms", "total_ms", "ended_at", "timeline",
)  # fmt: skip
SUM_COLUMNS = ("hour", "user_id", "key_id", "model", "node")
USAGE_COLUMNS = (
    "requests", "completed", "failed", "cancelled", "expired", "lost",
    "prompt_tokens", "completion_tokens", "generated_tokens",
)  # fmt: skip


def _insert(table: str, columns: Sequence[str], on_conflict: str, constants: Sequence[str] = ()) -> str:
    """Return an INSERT with a parameter for each column, but for the last ones if they are constant."""
    values = ", ".join(["?"] * (len(columns) - len(constants)) + list(constants))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values}) ON CONFLICT {on_conflict}"


def _add(table: str, keys: Sequence[str], counts: Sequence[str]) -> str:
    """Return the statement that adds counts to a row, or makes it."""
    sums = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in counts)
    return _insert(table, [*keys, *counts], f"({', '.join(keys)}) DO UPDATE SET {sums}")


# A row that is there already is left alone and shows in the count of changed rows, so that a
# batch whose commit had an unknown result may simply be written again.
# Constants in the statement of an open row save a quarter of its cost against parameters.
OPEN_REQUEST = _insert(
    "inference_request",
    START_COLUMNS + END_COLUMNS,
    "(id) DO NOTHING",
    (f"'{OPEN}'", "NULL", "NULL", "0", "0", "0", "0", "''", "''", "0.0", "NULL", "0.0", "NULL", "NULL"),
)
INSERT_REQUEST = _insert("inference_request", START_COLUMNS + END_COLUMNS, "(id) DO NOTHING")
END_REQUEST = (
    f"UPDATE inference_request SET {', '.join(f'{name} = ?' for name in END_COLUMNS)} WHERE id = ? AND state = '{OPEN}'"
)
STATE_OF = "SELECT state FROM inference_request WHERE id = ?"
ADD_USAGE = _add("inference_usagerollup", SUM_COLUMNS, USAGE_COLUMNS)
BARS_OF = f"SELECT bars FROM inference_latencyhistogram WHERE {' AND '.join(f'{name} = ?' for name in SUM_COLUMNS)}"
SET_BARS = _insert(
    "inference_latencyhistogram",
    (*SUM_COLUMNS, "bars"),
    f"({', '.join(SUM_COLUMNS)}) DO UPDATE SET bars = excluded.bars",
)
KEY_COLUMNS = ("requests", "prompt_tokens", "completion_tokens")
ADD_KEY = _add("inference_keytotal", ("key_id", "node"), KEY_COLUMNS)
ADD_COUNTER = _add("inference_ledgercounter", ("node",), ("admitted", "settled"))

NEWEST_BUT = "SELECT created_at FROM inference_request ORDER BY created_at DESC LIMIT 1 OFFSET ?"
RETAIN_FROM = (
    _insert("inference_ledgercounter", ("node", "admitted", "settled", "retained_from"), "(node)")
    + " DO UPDATE SET retained_from = excluded.retained_from WHERE inference_ledgercounter.retained_from IS NULL"
    " OR inference_ledgercounter.retained_from < excluded.retained_from"
)
LIVE_SINCE = (
    _insert("inference_ledgercounter", ("node", "admitted", "settled", "live_since"), "(node)")
    + " DO UPDATE SET live_since = excluded.live_since"
)
DELETE_OLDEST = (
    "DELETE FROM inference_request WHERE id IN (SELECT id FROM inference_request"
    f" WHERE created_at < ? AND state <> '{OPEN}' ORDER BY created_at LIMIT ?)"
)


WIDEST = 32
"""Rows that one INSERT takes at the most: the statements of all widths stay prepared."""


@lru_cache(maxsize=4 * WIDEST)
def _widen(sql: str, rows: int) -> str:
    """Return an INSERT that takes the parameters of several rows."""
    head, _, rest = sql.partition(" VALUES ")
    values, _, tail = rest.partition(" ON CONFLICT ")
    return f"{head} VALUES {', '.join([values] * rows)} ON CONFLICT {tail}"


class Database(ABC):
    """One thread's own connection: opened when first needed, dropped after an error."""

    def __init__(self, alias: str, *, timeout_s: float) -> None:
        self._alias = alias
        self._timeout_s = timeout_s
        self._wrapper: BaseDatabaseWrapper | None = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is done inside, or none of it; `Unavailable` if the database is at fault."""
        try:
            if self._wrapper is None:
                self._wrapper = self._connect()
            self._execute(self._begin)
            yield
            self._execute("COMMIT")
        except Exception as error:
            # A new connection is the one rollback that works whatever is broken.
            self.close()
            if isinstance(error, self._away):
                raise Unavailable(f"{type(error).__name__}: {error}") from error
            raise

    def close(self) -> None:
        """Let go of the connection; the next transaction opens another."""
        wrapper, self._wrapper = self._wrapper, None
        if wrapper is not None:
            wrapper.close()

    @abstractmethod
    def many(self, sql: str, rows: Sequence[Params]) -> int:
        """Run a statement once for each row of parameters; return how many table rows changed."""

    @abstractmethod
    def one(self, sql: str, params: Params) -> Any:
        """Return the first column of the first row, or None."""

    @abstractmethod
    def stamp(self, at_s: float) -> object:
        """Return a time (seconds since the epoch) as a parameter that Django reads back."""

    @abstractmethod
    def checkpoint(self) -> None:
        """Move what is committed from the log to its place, where that is ours to do."""

    _begin: str
    _away: tuple[type[Exception], ...]

    @abstractmethod
    def _execute(self, sql: str, params: Params = ()) -> Any: ...

    @abstractmethod
    def _connect(self) -> BaseDatabaseWrapper: ...

    def _fresh_wrapper(self) -> BaseDatabaseWrapper:
        """Return an unopened copy of Django's connection, outside any pool and request."""
        wrapper = connections[self._alias].copy()
        wrapper.settings_dict["OPTIONS"].pop("pool", None)
        return wrapper


class Sqlite(Database):
    """SQLite in WAL mode: commits reach the disk before they are answered."""

    # IMMEDIATE takes the write lock at once, where waiting for it is possible.
    _begin = "BEGIN IMMEDIATE"
    _away = (sqlite3.OperationalError,)

    def __init__(self, alias: str, *, timeout_s: float) -> None:
        super().__init__(alias, timeout_s=timeout_s)
        self._second = -1
        self._prefix = ""

    def many(self, sql: str, rows: Sequence[Params]) -> int:
        if len(rows) < 2 or not sql.startswith("INSERT"):
            return int(self._raw.executemany(sql, rows).rowcount)
        # Several rows a statement: each step of a statement lets go of the GIL and has to win it
        # back from the event loop.
        changed = 0
        for start in range(0, len(rows), WIDEST):
            part = rows[start : start + WIDEST]
            changed += self._raw.execute(_widen(sql, len(part)), list(chain.from_iterable(part))).rowcount
        return changed

    def one(self, sql: str, params: Params) -> Any:
        row = self._execute(sql, params).fetchone()
        return None if row is None else row[0]

    def stamp(self, at_s: float) -> str:
        second, micros = divmod(round(at_s * 1_000_000), 1_000_000)
        # Times in a batch share their second; formatting it anew would be half the cost of a row.
        if second != self._second:
            self._second = second
            self._prefix = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d %H:%M:%S.")
        return f"{self._prefix}{micros:06d}"

    def checkpoint(self) -> None:
        if self._wrapper is not None:
            self._execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _execute(self, sql: str, params: Params = ()) -> sqlite3.Cursor:
        return self._raw.execute(sql, params)

    def _connect(self) -> BaseDatabaseWrapper:
        wrapper = self._fresh_wrapper()
        wrapper.settings_dict["OPTIONS"]["cached_statements"] = 4 * WIDEST
        wrapper.connect()
        self._raw: sqlite3.Connection = wrapper.connection
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            # Left to itself a commit now and then also copies the log back, while a client waits.
            "wal_autocheckpoint = 0",
            f"busy_timeout = {round(self._timeout_s * 1000)}",
        ):
            self._raw.execute(f"PRAGMA {pragma}").fetchall()
        return wrapper


class Postgres(Database):
    """Postgres through psycopg, whose `executemany` is one round trip a statement."""

    _begin = "BEGIN"

    def __init__(self, alias: str, *, timeout_s: float) -> None:
        import psycopg

        super().__init__(alias, timeout_s=timeout_s)
        self._away = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction)
        self._cursor_class = psycopg.Cursor

    def many(self, sql: str, rows: Sequence[Params]) -> int:
        cursor = self._cursor_class(self._raw)
        cursor.executemany(sql.replace("?", "%s"), rows)
        return int(cursor.rowcount)

    def one(self, sql: str, params: Params) -> Any:
        row = self._execute(sql, params).fetchone()
        return None if row is None else row[0]

    def stamp(self, at_s: float) -> datetime:
        return datetime.fromtimestamp(at_s, UTC)

    def checkpoint(self) -> None:
        """Do nothing: the server checkpoints for itself."""

    def _execute(self, sql: str, params: Params = ()) -> Any:
        return self._cursor_class(self._raw).execute(sql.replace("?", "%s"), params)

    def _connect(self) -> BaseDatabaseWrapper:
        wrapper = self._fresh_wrapper()
        options = wrapper.settings_dict["OPTIONS"]
        options.setdefault("connect_timeout", max(1, round(self._timeout_s)))
        # A server that fell silent must not hold the thread for the kernel's quarter of an hour.
        options.setdefault("tcp_user_timeout", round(self._timeout_s * 1000))
        wrapper.connect()
        self._raw = wrapper.connection
        self._execute(f"SET statement_timeout = {round(self._timeout_s * 1000)}")
        return wrapper


def open_database(alias: str, *, timeout_s: float) -> Database:
    """Return the database behind a Django alias, not yet connected."""
    vendor = connections[alias].vendor
    match vendor:
        case "sqlite":
            return Sqlite(alias, timeout_s=timeout_s)
        case "postgresql":
            return Postgres(alias, timeout_s=timeout_s)
        case _:
            raise ImproperlyConfigured(f"The ledger writes to SQLite or Postgres, not to {vendor}.")
