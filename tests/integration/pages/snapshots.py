"""Snapshots for tests of what people see: a fleet and a queue in a few words."""

from __future__ import annotations

import time
from typing import Any

from cluster.domain import (
    ClusterSnapshot,
    GpuInfo,
    GpuReading,
    Tier,
    TierView,
    WaitingView,
    WorkerStatus,
    WorkerView,
)

GIB = 1024**3


def worker(name: str, /, **changes: Any) -> WorkerView:
    """Return a healthy node of eight H100, but for the changes."""
    fields: dict[str, Any] = {
        "id": name,
        "name": name,
        "status": WorkerStatus.ONLINE,
        "gpu": GpuInfo(name="H100", count=8, vram_total_bytes=640 * GIB),
        "models": ("llama-3-70b", "mixtral-8x7b"),
        "running": 0,
        "capacity": 64,
        "kv_used_bytes": 0,
        "kv_bytes": 400 * GIB,
        "reading": GpuReading(
            vram_total_bytes=640 * GIB,
            vram_weights_bytes=140 * GIB,
            vram_kv_bytes=90 * GIB,
            utilization=0.61,
            power_w=3120.0,
            temperature_c=63.0,
        ),
        "tokens_per_s": 0.0,
        "simulated": True,
        "heartbeat_age_s": 1.0,
    }
    return WorkerView(**(fields | changes))


def waiting(position: int, tenant: str = "u:0", label: str = "somebody@example.com") -> WaitingView:
    """Return a task that has waited for two seconds."""
    return WaitingView(
        task=f"req-{tenant[2:]}-{position}",
        model="llama-3-70b",
        tenant=tenant,
        tenant_label=label,
        tier=Tier.DEFAULT,
        position=position,
        waited_s=2.0,
    )


def snapshot(
    version: int, *workers: WorkerView, head: tuple[WaitingView, ...] = (), taken_at_s: float | None = None
) -> ClusterSnapshot:
    """Return a snapshot of these workers and these waiting tasks, its figures added up."""
    depth = {tier: sum(task.tier == tier for task in head) for tier in Tier}
    return ClusterSnapshot(
        version=version,
        taken_at_s=time.time() if taken_at_s is None else taken_at_s,
        running=sum(each.running for each in workers),
        waiting=len(head),
        capacity=sum(each.capacity for each in workers),
        workers=workers,
        tiers=tuple(TierView(tier=tier, depth=depth[tier], oldest_wait_s=2.0 if depth[tier] else 0.0) for tier in Tier),
        head=head,
    )
