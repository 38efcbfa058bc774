from __future__ import annotations

from collections.abc import Container
from typing import Any

import pytest

from inference import rollcall
from inference.rollcall import RollCall
from tests.client import until
from tests.unit.cluster.engine.rig import Rig


class FakeLedger:
    """Remembers what it was told, for two requests that might be held."""

    def __init__(self) -> None:
        self.reports: list[list[str]] = []

    def report_live(self, held: Container[str]) -> None:
        self.reports.append([id for id in ("req_1", "req_2") if id in held])


async def test_the_ledger_hears_at_the_start_every_few_seconds_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollcall, "EVERY_S", 0.001)
    rig, ledger = Rig(), FakeLedger()
    untyped: Any = ledger
    roll_call = RollCall(rig.gateway, untyped)
    rig.join()
    stream = rig.submit("req_1")

    roll_call.start()
    assert ledger.reports == [["req_1"]]
    rig.submit("req_2")
    await until(lambda: ["req_1", "req_2"] in ledger.reports, "both are reported")

    rig.gateway.close(stream)
    roll_call.stop()
    assert ledger.reports[-1] == ["req_2"]
    rig.stop()
