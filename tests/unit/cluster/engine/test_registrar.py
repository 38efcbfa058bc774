"""The registrar between links and rows; the rows themselves are tested with the services."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from django.db import OperationalError

from cluster.engine import registrar as module
from cluster.engine.links import WorkerLink
from cluster.engine.registrar import Findings, Registrar, UnableToAuthenticate
from cluster.protocol.messages import CloseCode
from cluster.scheduler.events import Event, IntentsObserved
from cluster.selectors import Intents
from cluster.services import WorkerCredential
from tests.client import until
from tests.unit.cluster.engine.rig import Rig


@pytest.fixture
async def registrar(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Registrar]:
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    registrar = Registrar(rig.gateway, rig.broker)
    yield registrar
    await registrar.stop()


class Rows:
    """The database as the registrar sees it."""

    def __init__(self) -> None:
        self.dead: set[int] = set()
        self.evicted: set[str] = set()
        self.intents = Intents()
        self.written: list[str] = []
        self.trouble: list[Exception] = []
        """What the next calls raise, used up one by one."""

    def write_and_read(self, new: list[WorkerLink], again: list[WorkerLink], links: list[WorkerLink]) -> Findings:
        if self.trouble:
            raise self.trouble.pop(0)
        self.written += [link.worker.name for link in new if link.worker]
        return Findings(self.dead, self.evicted, self.intents)


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


async def test_an_evicted_link_is_closed_with_a_code_of_its_own_and_its_worker_may_come_back(
    rig: Rig, registrar: Registrar, rows: Rows
):
    alice, bob = rig.join("alice"), rig.join("bob", instance="i-2")
    rows.evicted = {alice.link.id}

    await registrar.reconcile()
    again = rig.join("alice")
    await registrar.reconcile()

    assert alice.close_code == CloseCode.EVICTED
    assert again.close_code is bob.close_code is None
    assert rig.held() == {"alice": 0, "bob": 0}


async def test_what_operators_want_is_told_every_time_changed_or_not(rig: Rig, registrar: Registrar, rows: Rows):
    told: list[Event] = []
    rig.broker.attach_dispatcher(told.append)

    await registrar.reconcile()
    rows.intents = Intents(cordoned=frozenset({"wrk_1"}), draining=frozenset({"wrk_2"}))
    await registrar.reconcile()
    await registrar.reconcile()

    wanted = IntentsObserved(cordoned=frozenset({"wrk_1"}), draining=frozenset({"wrk_2"}))
    assert told == [IntentsObserved(frozenset(), frozenset()), wanted, wanted]


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
