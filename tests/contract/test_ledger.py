"""The ledger's contract, the same on every database it supports."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from datetime import datetime
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.db import connections

from cluster.domain import Choice, Outcome, WaitReason
from inference.balance import list_checks
from inference.ledger import Ledger, UnableToCommit
from inference.ledger_sql import open_database
from inference.ledger_store import LedgerStore, Row
from inference.models import KeyTotal, LedgerCounter, Request, UsageRollup
from inference.records import Assigned, Opened, Queued, Settlement
from inference.timeline import tell_story
from tests.contract.conftest import NOW, NOW_S, Ledgers


def make_opened(user_id: int, request_id: str = "req_1", **fields: Any) -> Opened:
    described: dict[str, Any] = {
        "id": request_id,
        "key_id": None,
        "user_id": user_id,
        "model": "llama-3-8b",
        "source": "api",
        "stream": True,
        "tier": "default",
        "node": "n",
        "prompt_tokens": 10,
        "created_at_s": NOW_S,
    }
    return Opened(**described | fields)


def make_settlement(outcome: Outcome = Outcome.COMPLETED, **fields: Any) -> Settlement:
    described: dict[str, Any] = {
        "generated_tokens": 9,
        "delivered_tokens": 7,
        "attempts": 1,
        "worker_id": "wrk_1",
        "worker_name": "h100-1",
        "queue_ms": 1.5,
        "ttft_ms": 20.0,
        "total_ms": 300.0,
    }
    return Settlement(outcome=outcome, **described | fields)


async def complete(ledger: Ledger, opened: Opened, **fields: Any) -> Row:
    entry = ledger.open(opened)
    await ledger.opened(entry)
    ledger.settle(entry, make_settlement(**fields))
    await ledger.committed(entry)
    return entry


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        for _ in iter(condition, True):
            await asyncio.sleep(0.01)


def differences(using: str, now: datetime = NOW) -> dict[str, int]:
    return {check.name: check.difference for check in list_checks(now=now, using=using) if check.difference}


async def test_an_opened_request_is_on_record_as_open(using: str, alice_id: int, ledgers: Ledgers) -> None:
    async with ledgers() as ledger:
        entry = ledger.open(make_opened(alice_id))
        await ledger.opened(entry)

        row = Request.objects.using(using).get()
        assert (row.id, row.state, row.created_at, row.ended_at) == ("req_1", "open", NOW, None)
        assert (row.stream, row.prompt_tokens, row.key_id) == (True, 10, None)
        assert (entry.last is not None, ledger.live) == (False, 1)
        assert differences(using) == {}


async def test_a_completed_request_is_on_record_with_its_usage_and_sums(
    using: str, alice_id: int, ledgers: Ledgers
) -> None:
    async with ledgers() as ledger:
        await complete(ledger, make_opened(alice_id), finish_reason="stop")

        row = Request.objects.using(using).get()
        assert (row.state, row.finish_reason, row.error_code, row.ended_at) == ("completed", "stop", None, NOW)
        assert (row.generated_tokens, row.delivered_tokens, row.completion_tokens) == (9, 7, 7)
        assert (row.queue_ms, row.ttft_ms, row.total_ms) == (1.5, 20.0, 300.0)
        usage = UsageRollup.objects.using(using).get()
        assert usage.hour == NOW.replace(minute=0, second=0, microsecond=0)
        assert (usage.requests, usage.completed, usage.key_id, usage.user_id) == (1, 1, 0, alice_id)
        assert (usage.prompt_tokens, usage.completion_tokens, usage.generated_tokens) == (10, 7, 9)
        assert (ledger.admitted, ledger.settled, ledger.live) == (1, 1, 0)
        assert differences(using) == {}


async def test_the_first_to_settle_decides_and_later_ones_change_nothing(
    using: str, alice_id: int, ledgers: Ledgers
) -> None:
    told: list[Settlement] = []
    async with ledgers(on_settled=lambda _, settlement: told.append(settlement)) as ledger:
        entry = ledger.open(make_opened(alice_id))
        await ledger.opened(entry)

        assert ledger.settle(entry, make_settlement(Outcome.CANCELLED)) is True
        assert ledger.settle(entry, make_settlement(Outcome.COMPLETED)) is False
        await ledger.committed(entry)

        assert Request.objects.using(using).get().state == "cancelled"
        assert [settlement.outcome for settlement in told] == [Outcome.CANCELLED]
        assert differences(using) == {}


async def test_a_request_settled_before_its_row_was_written_is_one_insert(
    using: str, alice_id: int, ledgers: Ledgers
) -> None:
    async with ledgers() as ledger:
        entry = ledger.open(make_opened(alice_id))
        ledger.settle(entry, make_settlement(Outcome.FAILED, error_code="no_worker_available"))

        assert entry.last is entry
        await ledger.opened(entry)
        await ledger.committed(entry)

        row = Request.objects.using(using).get()
        assert (row.state, row.error_code) == ("failed", "no_worker_available")
        assert differences(using) == {}


@pytest.mark.parametrize("outcome", Outcome)
async def test_every_outcome_adds_up(outcome: Outcome, using: str, alice_id: int, ledgers: Ledgers) -> None:
    async with ledgers() as ledger:
        await complete(ledger, make_opened(alice_id, "req_1"), outcome=outcome)
        await complete(ledger, make_opened(alice_id, "req_2"), outcome=outcome, ttft_ms=None)

        usage = UsageRollup.objects.using(using).get()
        assert (usage.requests, getattr(usage, outcome.value)) == (2, 2)
        assert differences(using) == {}


async def test_a_lost_request_bills_nothing(using: str, alice_id: int, ledgers: Ledgers) -> None:
    async with ledgers() as ledger:
        await complete(ledger, make_opened(alice_id), outcome=Outcome.LOST)

        row = Request.objects.using(using).get()
        assert (row.delivered_tokens, row.completion_tokens) == (7, 0)
        usage = UsageRollup.objects.using(using).get()
        assert (usage.prompt_tokens, usage.completion_tokens, usage.generated_tokens) == (0, 0, 9)


@pytest.mark.parametrize(
    ("settled", "billed"),
    [
        ({"outcome": Outcome.FAILED, "error_code": "engine_overloaded", "delivered_tokens": 0}, 0),
        ({"outcome": Outcome.EXPIRED, "error_code": "queue_timeout", "delivered_tokens": 0, "attempts": 0}, 0),
        ({"outcome": Outcome.CANCELLED, "delivered_tokens": 0, "attempts": 0}, 0),
        ({"outcome": Outcome.CANCELLED, "delivered_tokens": 0}, 10),
        ({"outcome": Outcome.FAILED, "error_code": "worker_lost"}, 10),
    ],
    ids=["refused", "expired in line", "left the line", "left a worker", "broke off"],
)
async def test_a_prompt_is_billed_only_if_somebody_read_it_for_the_client(
    settled: dict[str, Any], billed: int, using: str, alice_id: int, ledgers: Ledgers
) -> None:
    async with ledgers() as ledger:
        await complete(ledger, make_opened(alice_id), **settled)

        assert UsageRollup.objects.using(using).get().prompt_tokens == billed
        assert differences(using) == {}


async def test_prompts_billed_in_vain_before_are_taken_back_by_the_migration(
    using: str, alice_id: int, ledgers: Ledgers
) -> None:
    async with ledgers() as ledger:
        await complete(ledger, make_opened(alice_id, "req_1"))
        await complete(ledger, make_opened(alice_id, "req_2"), outcome=Outcome.FAILED, delivered_tokens=0)
    for model in (UsageRollup, KeyTotal):
        model.objects.using(using).update(prompt_tokens=20)

    migration = import_module("inference.migrations.0004_unserved_prompts")
    migration.take_back(apps, SimpleNamespace(connection=connections[using]))

    assert UsageRollup.objects.using(using).get().prompt_tokens == 10
    assert differences(using) == {}


NOTED = (
    Queued(0.1, WaitReason.NO_SLOT, 2),
    Assigned(1.5, 1, "wrk_1", "h100-1", "H100", 0, Choice(3, 0.9, 1.0)),
)


@pytest.mark.parametrize("flushed", [True, False], ids=["updated", "inserted"])
async def test_a_timeline_is_kept_with_its_row(using: str, alice_id: int, ledgers: Ledgers, flushed: bool) -> None:
    async with ledgers() as ledger:
        entry = ledger.open(make_opened(alice_id))
        if flushed:
            await ledger.opened(entry)
            assert Request.objects.using(using).get().timeline is None
        ledger.settle(entry, make_settlement(timeline=NOTED))
        await ledger.committed(entry)
        await complete(ledger, make_opened(alice_id, "req_plain"))

    assert tuple(tell_story(Request.objects.using(using).get(pk="req_1"))[1:3]) == NOTED
    assert Request.objects.using(using).get(pk="req_plain").timeline is None


async def test_many_requests_at_once_add_up_at_every_moment(using: str, alice_id: int, ledgers: Ledgers) -> None:
    async with ledgers() as ledger:

        async def client(number: int) -> None:
            for turn in range(10):
                opened = make_opened(alice_id, f"req_{number}_{turn}", model=f"m{number % 3}")
                await complete(ledger, opened, outcome=list(Outcome)[turn % 5], delivered_tokens=turn)

        clients = asyncio.gather(*[client(number) for number in range(20)])
        while not clients.done():
            assert differences(using) == {}
            await asyncio.sleep(0)
        await clients

        assert Request.objects.using(using).count() == 200
        assert UsageRollup.objects.using(using).count() == 3
        assert differences(using) == {}


async def test_a_bad_row_fails_alone(using: str, alice_id: int, ledgers: Ledgers) -> None:
    async with ledgers() as ledger:
        good = [ledger.open(make_opened(alice_id, f"req_{n}")) for n in range(3)]
        bad = ledger.open(make_opened(alice_id + 1_000, "req_bad"))
        more = [ledger.open(make_opened(alice_id, f"req_more_{n}")) for n in range(3)]

        with pytest.raises(UnableToCommit, match=r"IntegrityError|ForeignKeyViolation"):
            await ledger.opened(bad)
        for entry in good + more:
            await ledger.opened(entry)

        assert Request.objects.using(using).count() == 6
        assert ledger.healthy
        assert differences(using) == {}


async def test_text_that_cannot_be_stored_fails_alone_too(using: str, alice_id: int, ledgers: Ledgers) -> None:
    async with ledgers() as ledger:
        bad = ledger.open(make_opened(alice_id, "req_bad", model="\ud800"))
        good = ledger.open(make_opened(alice_id, "req_good"))

        with pytest.raises(UnableToCommit):
            await ledger.opened(bad)
        await ledger.opened(good)

        assert Request.objects.using(using).get().id == "req_good"


async def test_a_waiter_that_leaves_does_not_undo_the_row(using: str, alice_id: int, ledgers: Ledgers) -> None:
    async with ledgers() as ledger:
        entry = ledger.open(make_opened(alice_id))
        await ledger.opened(entry)
        ledger.settle(entry, make_settlement())
        waiter = asyncio.create_task(ledger.committed(entry))
        await asyncio.sleep(0)

        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        await ledger.committed(entry)

        assert Request.objects.using(using).get().state == "completed"


async def test_what_a_dead_predecessor_left_open_is_lost(using: str, alice_id: int, ledgers: Ledgers) -> None:
    crashed = open_database(using, timeout_s=5)
    store = LedgerStore(node="n", database=crashed, keep_s=1e9)
    store.write([Row(make_opened(alice_id, f"req_{n}", created_at_s=NOW_S - 2)) for n in range(3)])
    store.write([Row(make_opened(alice_id, "req_elsewhere", node="other"))])
    store.close()

    async with ledgers() as ledger:
        rows = Request.objects.using(using).filter(node="n")
        assert [(row.state, row.total_ms, row.completion_tokens) for row in rows] == [("lost", 2000.0, 0)] * 3
        assert Request.objects.using(using).get(node="other").state == "open"
        assert UsageRollup.objects.using(using).get().lost == 3
        assert ledger.live == 0
        assert differences(using) == {}


async def test_stopping_writes_all_that_is_queued(using: str, alice_id: int, ledgers: Ledgers) -> None:
    async with ledgers() as ledger:
        for number in range(50):
            ledger.settle(ledger.open(make_opened(alice_id, f"req_{number}")), make_settlement())

    assert Request.objects.using(using).filter(state="completed").count() == 50
    with pytest.raises(UnableToCommit):
        await ledger.opened(ledger.open(make_opened(alice_id, "req_late")))


async def test_waiting_for_a_request_without_outcome_is_a_clear_error(
    using: str, alice_id: int, ledgers: Ledgers
) -> None:
    async with ledgers() as ledger:
        entry = ledger.open(make_opened(alice_id))

        with pytest.raises(RuntimeError, match="req_1 has no outcome yet"):
            await ledger.committed(entry)


def test_a_batch_whose_commit_had_an_unknown_result_may_be_written_again(using: str, alice_id: int) -> None:
    store = LedgerStore(node="n", database=open_database(using, timeout_s=5), keep_s=1e9)
    row = Row(make_opened(alice_id))
    row.settlement, row.ended_at_s = make_settlement(), NOW_S

    store.write([row])
    store.write([row])
    store.close()

    assert UsageRollup.objects.using(using).get().requests == 1
    assert LedgerCounter.objects.using(using).get().settled == 1
    assert differences(using) == {}


def test_a_row_that_another_has_closed_refuses_a_second_outcome(using: str, alice_id: int) -> None:
    store = LedgerStore(node="n", database=open_database(using, timeout_s=5), keep_s=1e9)
    row = Row(make_opened(alice_id))
    row.settlement = make_settlement(Outcome.LOST)
    store.write([row])

    row.settlement = make_settlement(Outcome.COMPLETED)
    with pytest.raises(UnableToCommit, match="req_1 is on record as lost and cannot become completed"):
        store.write([row])
    store.close()

    assert Request.objects.using(using).get().state == "lost"
    assert differences(using) == {}


def test_an_outcome_finds_the_open_row_whose_own_commit_had_an_unknown_result(using: str, alice_id: int) -> None:
    store = LedgerStore(node="n", database=open_database(using, timeout_s=5), keep_s=1e9)
    opening = Row(make_opened(alice_id))
    store.write([opening])  # and the answer was lost: the ticket never became COMMITTED
    closing = Row(opening.opened, opening)
    closing.settlement, closing.ended_at_s = make_settlement(), NOW_S

    store.write([closing])
    store.close()

    assert Request.objects.using(using).get().state == "completed"
    assert differences(using) == {}


def test_retention_deletes_old_ended_rows_and_keeps_the_sums(using: str, alice_id: int) -> None:
    day_s = 86_400
    store = LedgerStore(
        node="n", database=open_database(using, timeout_s=5), keep_s=2 * day_s, keep_rows=2, clock=lambda: NOW_S
    )
    rows = [Row(make_opened(alice_id, f"req_{days}", created_at_s=NOW_S - days * day_s)) for days in range(6)]
    for row in rows[:5]:
        row.settlement, row.ended_at_s = make_settlement(), NOW_S
    store.write(rows)

    while store.tidy() == 0.0:
        pass
    store.close()

    kept = Request.objects.using(using).order_by("-created_at").values_list("id", "state")
    assert list(kept) == [("req_0", "completed"), ("req_1", "completed"), ("req_2", "completed"), ("req_5", "open")]
    assert sum(UsageRollup.objects.using(using).values_list("requests", flat=True)) == 5
    assert differences(using) == {"overdue": 1}


def test_retention_never_goes_below_the_newest_rows(using: str, alice_id: int) -> None:
    store = LedgerStore(
        node="n", database=open_database(using, timeout_s=5), keep_s=1, keep_rows=4, clock=lambda: NOW_S
    )
    rows = [Row(make_opened(alice_id, f"req_{hours}", created_at_s=NOW_S - hours * 3600)) for hours in range(6)]
    for row in rows:
        row.settlement, row.ended_at_s = make_settlement(), NOW_S
    store.write(rows)

    while store.tidy() == 0.0:
        pass
    store.close()

    assert set(Request.objects.using(using).values_list("id", flat=True)) == {"req_0", "req_1", "req_2", "req_3"}
    assert differences(using) == {}


@pytest.mark.parametrize("using", ["sqlite"], indirect=True)
async def test_waiting_for_a_locked_database_ends_in_time_and_health_returns_with_the_next_commit(
    using: str, alice_id: int, ledgers: Ledgers
) -> None:
    async with ledgers(commit_timeout_s=0.1) as ledger:
        entry = ledger.open(make_opened(alice_id))
        await ledger.opened(entry)
        lock = sqlite3.connect(connections[using].settings_dict["NAME"], isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        ledger.settle(entry, make_settlement())

        with pytest.raises(UnableToCommit):
            await ledger.committed(entry)

        assert not ledger.healthy
        with pytest.raises(UnableToCommit):
            await ledger.opened(ledger.open(make_opened(alice_id, "req_2")))

        lock.execute("ROLLBACK")
        lock.close()
        await until(lambda: ledger.healthy)

        # The client was told of an error, so the row that was written after all says so too.
        row = Request.objects.using(using).get(pk="req_1")
        assert (row.state, row.error_code, row.completion_tokens) == ("failed", "ledger_unavailable", 7)
    assert differences(using) == {}


@pytest.mark.parametrize("using", ["postgres"], indirect=True)
async def test_a_connection_that_the_server_drops_costs_no_row(using: str, alice_id: int, ledgers: Ledgers) -> None:
    async with ledgers() as ledger:
        entry = ledger.open(make_opened(alice_id))
        await ledger.opened(entry)
        with connections[using].cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )

        ledger.settle(entry, make_settlement())
        await ledger.committed(entry)

        assert ledger.healthy
        assert Request.objects.using(using).get().state == "completed"
        assert differences(using) == {}
