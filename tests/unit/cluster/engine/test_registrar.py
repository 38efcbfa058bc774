"""The registrar between links and rows; the rows themselves are tested with the services."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from django.db import OperationalError

from cluster.engine import registrar as module
from cluster.engine.links import WorkerLink
from cluster.engine.registrar import Registrar, UnableToAuthenticate
from cluster.protocol.messages import CloseCode
from cluster.services import WorkerCredential
from tests.client import until
from tests.unit.cluster.engine.rig import Rig


@pytest.fixture
async def registrar(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Registrar]:
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    registrar = Registrar(rig.gateway)
    yield registrar
    await registrar.stop()


class Rows:
    """The database as the registrar sees it."""

    def __init__(self) -> None:
        self.dead: set[int] = set()
        self.written: list[str] = []
        self.trouble: list[Exception] = []
        """What the next calls raise, used up one by one."""

    def write_and_read(self, new: list[WorkerLink], again: list[WorkerLink], tokens: set[int]) -> set[int]:
        if self.trouble:
            raise self.trouble.pop(0)
        self.written += [link.worker.name for link in new if link.worker]
        return self.dead & tokens


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    rows = Rows()
    monkeypatch.setattr(module, "_write_and_read", rows.write_and_read)
    return rows


async def test_each_link_is_written_down_once(rig: Rig, registrar: Registrar, rows: Rows):
    rig.join("alice")
    await registrar.reconcile()
    rig.join("bob", instance="i-2")
    await registrar.reconcile()
    await registrar.reconcile()

    assert rows.written == ["alice", "bob"]


async def test_a_dead_token_takes_its_links_along_and_no_others(rig: Rig, registrar: Registrar, rows: Rows):
    alice, bob = rig.join("alice"), rig.dial(token_id=2)
    rows.dead = {1}

    await registrar.reconcile()

    assert alice.close_code == CloseCode.NO_TOKEN
    assert bob.close_code is None
    assert rig.held() == {}


@pytest.mark.parametrize("trouble", [OperationalError("database is locked"), OverflowError("int too large")])
async def test_trouble_with_one_row_does_not_end_the_watch(
    rig: Rig, registrar: Registrar, rows: Rows, trouble: Exception
):
    alice = rig.join("alice")
    rows.trouble, rows.dead = [trouble], {1}

    registrar.start()

    await until(lambda: alice.close_code == CloseCode.NO_TOKEN, "the dead token is noticed all the same")


async def test_a_database_that_cannot_answer_is_not_a_refusal(registrar: Registrar, monkeypatch: pytest.MonkeyPatch):
    def fail(secret: str) -> WorkerCredential | None:
        raise OperationalError("database is locked")

    monkeypatch.setattr(module, "authenticate_worker", fail)

    with pytest.raises(UnableToAuthenticate):
        await registrar.authenticate("wk-secret")
