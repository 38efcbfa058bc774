"""Admission: what is refused, and that nothing can slip in behind a refusal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from accounts.keyring import Identity
from accounts.limiter import MemoryLimitStore
from cluster.engine.board import SnapshotBoard
from inference import tokens
from inference.completions import Completions
from inference.openai.errors import ApiError
from inference.openai.schemas import parse_chat

CHAT = b'{"model":"llama-3-8b","messages":[{"role":"user","content":"hi"}]}'
IDENTITY = Identity(
    key_id=1,
    user_id=1,
    tenant="u:1",
    tenant_label="Alice",
    key_label="laptop",
    prefix="sk",
    tier="default",
    highest_tier="default",
)


class Untouched:
    """Stands for what a refused request must not reach."""

    node = "node-1"

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was used for a request that is refused")


async def start(completions: Completions) -> ApiError:
    """Return the refusal."""
    with pytest.raises(ApiError) as refused:
        await completions.start(parse_chat(CHAT), IDENTITY, request_id="req_1")
    return refused.value


@pytest.mark.parametrize("healthy", [True, False])
async def test_what_changes_while_tokens_are_counted_is_still_heeded(monkeypatch, healthy):
    """The drain waits for the streams there are; one that came after the last look would be cut off."""
    ledger = SimpleNamespace(healthy=True)
    completions = Completions(cast("Any", Untouched()), cast("Any", ledger), SnapshotBoard(), MemoryLimitStore())

    async def count(*_: object) -> int:
        completions.draining = healthy
        ledger.healthy = healthy
        return 3

    monkeypatch.setattr(tokens, "is_long", lambda _: True)
    monkeypatch.setattr(tokens, "count_long_chat", count)

    error = await start(completions)

    assert (error.status, error.code) == (503, "server_draining" if healthy else "service_unavailable")
