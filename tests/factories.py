"""Makes rows for tests, by the product's own services, with sensible defaults."""

from __future__ import annotations

from typing import Any

from accounts.models import ApiKey, User
from accounts.services import create_key, create_user
from cluster.domain import Generation, GpuInfo, Message, ModelOffer, Task, Tier, WorkerSpec
from cluster.models import WorkerToken
from cluster.services import create_worker_token

PASSWORD = "correct horse battery staple"


def make_user(name: str = "alice", **fields: Any) -> User:
    """Return a user who can log in with `PASSWORD`."""
    fields.setdefault("password", PASSWORD)
    return create_user(email=f"{name}@example.com", **fields)


def make_key(user: User, **fields: Any) -> tuple[ApiKey, str]:
    """Return a key of `user` and its secret."""
    return create_key(user=user, **fields)


def make_worker_token(**fields: Any) -> tuple[WorkerToken, str]:
    """Return a worker token and its secret."""
    return create_worker_token(**fields)


def make_worker_spec(**fields: Any) -> WorkerSpec:
    """Return what a small simulated worker says of itself."""
    described: dict[str, Any] = {
        "id": "wrk_1",
        "name": "h100-1",
        "instance": "one",
        "gpu": GpuInfo(name="H100", count=2),
        "models": (ModelOffer(id="llama-3-8b", context_tokens=8192, kv_bytes_per_token=131_072),),
        "capacity": 8,
        "kv_bytes": 0,
        "simulated": True,
    }
    return WorkerSpec(**described | fields)


def make_task(id: str = "req_1", **fields: Any) -> Task:
    """Return a small task for `llama-3-8b` on `node-1`."""
    described: dict[str, Any] = {
        "id": id,
        "model": "llama-3-8b",
        "tenant": "usr_alice",
        "tenant_label": "Alice",
        "tier": Tier.DEFAULT,
        "node": "node-1",
        "prompt_tokens": 3,
        "generation": Generation(messages=(Message("user", "hi"),), max_tokens=8, seed=7),
    }
    return Task(**described | fields)
