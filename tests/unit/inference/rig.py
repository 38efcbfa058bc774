"""The use-case of the house on a real engine, with a ledger that only remembers."""

from __future__ import annotations

import json
import time
from typing import Any, cast

from accounts.keyring import Identity
from accounts.limiter import MemoryLimitStore
from gpucloud.lib.groupcommit import Told
from inference.completions import Completion, Completions
from inference.openai.schemas import parse_chat
from inference.records import Opened, Settlement
from tests.unit.cluster.engine.rig import Rig


class RememberedRow:
    """A row of the remembering ledger."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.settlements: list[Settlement] = []
        self.given_up = False


class RememberingLedger:
    """Commits everything at once and remembers what it was told."""

    def __init__(self) -> None:
        self.healthy = True
        self.rows: list[RememberedRow] = []

    def open(self, opened: Opened) -> RememberedRow:
        self.rows.append(RememberedRow(opened))
        return self.rows[-1]

    def settle(self, row: RememberedRow, settlement: Settlement) -> bool:
        row.settlements.append(settlement)
        return len(row.settlements) == 1

    async def opened(self, row: RememberedRow) -> None:
        """Return at once."""

    async def committed(self, row: RememberedRow) -> None:
        """Return at once."""

    def tell_committed(self, row: RememberedRow, told: Told) -> None:
        told(None)

    def give_up(self, row: RememberedRow) -> None:
        row.given_up = True


class Desk:
    """Admits requests into a rig's engine."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.ledger = RememberingLedger()
        self.limits = MemoryLimitStore()
        self.completions = Completions(rig.gateway, cast("Any", self.ledger), rig.board, self.limits)

    async def start(
        self,
        id: str = "req_1",
        *,
        tier: str = "default",
        highest_tier: str = "",
        terms: dict[str, Any] | None = None,
        **body: Any,
    ) -> Completion:
        """Admit a request of somebody whose key has these tiers and terms."""
        chat = {"model": "llama-3-8b", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8} | body
        fields: dict[str, Any] = {
            "key_id": 1,
            "user_id": 1,
            "tenant": "u:1",
            "tenant_label": "Alice",
            "key_label": "laptop",
            "prefix": "sk",
            "tier": tier,
            "highest_tier": highest_tier or tier,
        }
        identity = Identity(**fields | (terms or {}))
        return await self.completions.start(parse_chat(json.dumps(chat).encode()), identity, request_id=id)

    def publish_snapshot(self, version: int) -> None:
        """Show the engine as it is now."""
        self.rig.board.publish(self.rig.scheduler.snapshot(time.monotonic(), version=version, wall_s=0.0))

    @property
    def settlement(self) -> Settlement:
        """How the only request ended: decided once."""
        (row,) = self.ledger.rows
        (settlement,) = row.settlements
        return settlement
