"""Whether the books add up, and that each check finds what it is there to find; on every database."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connections
from django.db.models import Model

from cluster.domain import Outcome
from inference.balance import list_checks
from inference.ledger import Ledger
from inference.ledger_sql import open_database
from inference.ledger_store import LedgerStore, Row
from inference.models import KeyTotal, LatencyHistogram, LedgerCounter, Request, UsageRollup
from tests.contract.conftest import NOW, NOW_S, Ledgers
from tests.contract.test_ledger import complete, differences, make_opened


def change(model: type[Model], **values: object) -> Callable[[str], object]:
    """Return what changes all rows of a table behind the ledger's back."""
    return lambda using: model._default_manager.using(using).update(**values)


def delete(model: type[Model]) -> Callable[[str], object]:
    return lambda using: model._default_manager.using(using).all().delete()


TAMPERED: list[tuple[Callable[[str], object], set[str]]] = [
    (change(Request, state="failed"), {"completed", "failed"}),
    (change(Request, state="cancelled"), {"completed", "cancelled"}),
    (change(UsageRollup, completed=0, expired=1), {"completed", "expired", "timed"}),
    (change(UsageRollup, lost=1), {"lost"}),
    (delete(Request), {"completed", "prompt_tokens", "completion_tokens", "generated_tokens"}),
    (change(Request, state="open"), {"completed", "open", "orphaned", "overdue", "prompt_tokens"}),
    (change(Request, completion_tokens=8), {"completion_tokens", "misbilled"}),
    (change(Request, completion_tokens=8, delivered_tokens=8), {"completion_tokens"}),
    (change(Request, generated_tokens=8), {"generated_tokens"}),
    (change(Request, prompt_tokens=9), {"prompt_tokens"}),
    (change(UsageRollup, prompt_tokens=11), {"prompt_tokens", "key_prompt_tokens", "misattributed"}),
    (change(UsageRollup, key_id=77), {"misattributed"}),
    (delete(LatencyHistogram), {"timed"}),
    (change(LedgerCounter, admitted=2), {"open"}),
    (change(LedgerCounter, settled=0, admitted=0), {"settled"}),
    (change(KeyTotal, requests=2), {"key_requests", "misattributed"}),
    (change(KeyTotal, prompt_tokens=9), {"key_prompt_tokens", "misattributed"}),
    (change(KeyTotal, completion_tokens=8), {"key_completion_tokens", "misattributed"}),
    (change(KeyTotal, node="other"), {"misattributed"}),
    (delete(KeyTotal), {"key_requests", "key_prompt_tokens", "key_completion_tokens", "misattributed"}),
]


async def test_balance_prints_a_line_per_check_and_zero_at_the_end(
    using: str, alice_id: int, ledgers: Ledgers, capsys: pytest.CaptureFixture[str]
) -> None:
    async with ledgers() as ledger:
        await complete(ledger, make_opened(alice_id))

    call_command("balance", database=using)

    lines = capsys.readouterr().out.splitlines()
    assert "completed: 1 = 1 (rows, sums)" in lines
    assert "key_completion_tokens: 7 = 7 (keys, sums)" in lines
    assert lines[-1] == "balance: 0"
    assert len(lines) == len(list_checks(now=NOW, using=using)) + 1


@pytest.mark.parametrize(("tamper", "found"), TAMPERED, ids=[str(number) for number in range(len(TAMPERED))])
async def test_balance_finds_what_does_not_add_up_and_nothing_else(
    tamper: Callable[[str], object],
    found: set[str],
    using: str,
    alice_id: int,
    ledgers: Ledgers,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with ledgers() as ledger:
        await complete(ledger, make_opened(alice_id, created_at_s=NOW_S - 1))
        ledger.report_live(())
    call_command("balance", database=using)
    capsys.readouterr()

    tamper(using)

    with pytest.raises(SystemExit, match="1"):
        call_command("balance", "--json", database=using)
    report = json.loads(capsys.readouterr().out)
    assert report["balance"] >= 1
    assert {one["name"] for one in report["checks"] if one["difference"]} == found


async def test_no_check_is_one_that_nothing_has_ever_failed(using: str) -> None:
    failed = {name for _, found in TAMPERED for name in found}

    assert failed == {check.name for check in list_checks(now=NOW, using=using)}


async def test_balance_finds_a_request_that_is_open_past_its_time(
    using: str, alice_id: int, ledgers: Ledgers, settings: Any
) -> None:
    settings.TOTAL_TIMEOUT_S = 600
    async with ledgers() as ledger:
        await ledger.opened(ledger.open(make_opened(alice_id)))

        assert differences(using, NOW + timedelta(seconds=659)) == {}
        assert differences(using, NOW + timedelta(seconds=661)) == {"overdue": 1}


async def test_keys_add_up_each_for_itself(using: str, alice_id: int, ledgers: Ledgers) -> None:
    async with ledgers() as ledger:
        await complete(ledger, make_opened(alice_id, "req_1"))
        await complete(ledger, make_opened(alice_id, "req_2", model="mistral-7b"))
        await complete(ledger, make_opened(alice_id, "req_3", created_at_s=NOW_S - 7200), outcome=Outcome.LOST)

    total = KeyTotal.objects.using(using).get()
    assert (total.key_id, total.node) == (0, "n")
    assert (total.requests, total.prompt_tokens, total.completion_tokens) == (3, 20, 14)
    assert differences(using) == {}


async def test_an_open_row_is_an_orphan_once_its_node_holds_only_younger_requests(
    using: str, alice_id: int, ledgers: Ledgers
) -> None:
    async with ledgers() as ledger:
        forgotten, held = await open_two(ledger, alice_id)

        ledger.report_live({forgotten, held})
        await settle_writes(ledger, alice_id)
        assert differences(using) == {}

        ledger.report_live({held})
        await settle_writes(ledger, alice_id)
        assert differences(using) == {"orphaned": 1}

        ledger.report_live(())
        await settle_writes(ledger, alice_id)
        assert differences(using) == {"orphaned": 2}


async def test_a_report_is_never_ahead_of_the_outcomes_before_it(using: str, alice_id: int, ledgers: Ledgers) -> None:
    async with ledgers() as ledger:
        for number in range(50):
            await complete(ledger, make_opened(alice_id, f"req_{number}", created_at_s=NOW_S - 50 + number))
            ledger.report_live(())
            assert differences(using) == {}


async def test_an_idle_node_leaves_the_disk_alone(
    using: str, alice_id: int, ledgers: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ledgers() as ledger:
        await complete(ledger, make_opened(alice_id))
        ledger.report_live(())
        written: list[object] = []
        monkeypatch.setattr(ledger._writer, "put", written.append)

        ledger.report_live(())

    assert written == []
    assert LedgerCounter.objects.using(using).get().live_since == NOW


async def test_other_nodes_answer_for_themselves(using: str, alice_id: int, ledgers: Ledgers) -> None:
    store = LedgerStore(node="other", database=open_database(using, timeout_s=5), keep_s=1e9)
    store.write([Row(opened=make_opened(alice_id, "req_other", node="other", created_at_s=NOW_S - 5))])
    store.close()

    async with ledgers() as ledger:
        ledger.report_live(())

    assert differences(using) == {}


async def test_totals_of_keys_start_from_the_sums_that_were_there_before_them(
    using: str, alice_id: int, ledgers: Ledgers
) -> None:
    async with ledgers() as ledger:
        await complete(ledger, make_opened(alice_id, "req_1"))
        await complete(ledger, make_opened(alice_id, "req_2", model="mistral-7b"))
    KeyTotal.objects.using(using).all().delete()

    migration = import_module("inference.migrations.0003_balance")
    migration.add_up_keys(apps, SimpleNamespace(connection=connections[using]))

    assert differences(using) == {}


async def open_two(ledger: Ledger, user_id: int) -> tuple[str, str]:
    """Put two requests on record, the older one first, and return their ids."""
    older = ledger.open(make_opened(user_id, "req_older", created_at_s=NOW_S - 20))
    younger = ledger.open(make_opened(user_id, "req_younger", created_at_s=NOW_S - 10))
    await ledger.opened(older)
    await ledger.opened(younger)
    return "req_older", "req_younger"


async def settle_writes(ledger: Ledger, user_id: int) -> None:
    """Return once all that was queued before is on disk."""
    await complete(ledger, make_opened(user_id, f"req_after_{ledger.admitted}"))
