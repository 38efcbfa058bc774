"""The picture of the cluster that everybody else sees.

Built at most twice a second from the Scheduler's records; costs a pass over workers and over the
heads of queues, and never a sort of all who wait.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.domain import ClusterSnapshot, Tier, TierView, WaitingView, WorkerStatus, WorkerView
from cluster.scheduler import admission, waiting
from cluster.scheduler.placement import Placement
from cluster.scheduler.queue import ModelQueue, Queues
from cluster.scheduler.workers import WorkerRecord

HEAD = 100
"""Waiting tasks shown per tier."""


def take_snapshot(
    placement: Placement,
    queues: Queues,
    dropped: dict[str, int],
    *,
    now: float,
    stale_s: float,
    version: int,
    wall_s: float,
) -> ClusterSnapshot:
    """Return the picture at `now`, monotonic seconds, which is `wall_s` for people."""
    workers = placement.workers.values()
    views = tuple(sorted((_view(worker, now, stale_s) for worker in workers), key=lambda view: (view.name, view.id)))
    return ClusterSnapshot(
        version=version,
        taken_at_s=wall_s,
        running=sum(view.running for view in views),
        waiting=queues.depth,
        capacity=sum(view.capacity for view in views),
        workers=views,
        tiers=tuple(_tier(tier, queues.values(), now) for tier in Tier),
        head=tuple(view for tier in Tier for view in _head(tier, queues, placement, now)),
        dropped=dropped,
    )


def _view(worker: WorkerRecord, now: float, stale_s: float) -> WorkerView:
    spec = worker.spec
    age_s = now - worker.last_seen_at_s
    if age_s > stale_s or worker.suspect:
        status = WorkerStatus.SUSPECT
    elif worker.draining:
        status = WorkerStatus.DRAINING
    elif worker.cordoned:
        status = WorkerStatus.CORDONED
    elif worker.quarantined_until_s:
        status = WorkerStatus.QUARANTINED
    else:
        status = WorkerStatus.BUSY if worker.held >= spec.capacity else WorkerStatus.ONLINE
    return WorkerView(
        id=spec.id,
        name=spec.name,
        status=status,
        gpu=spec.gpu,
        models=tuple(worker.offers),
        running=worker.held,
        capacity=spec.capacity,
        kv_used_bytes=worker.kv_used_bytes,
        kv_bytes=spec.kv_bytes,
        reading=worker.reading,
        tokens_per_s=worker.tokens_per_s,
        simulated=spec.simulated,
        heartbeat_age_s=age_s,
        cordoned=worker.cordoned,
    )


def _tier(tier: Tier, queues: Iterable[ModelQueue], now: float) -> TierView:
    of_models = [queue.tiers[tier] for queue in queues]
    oldest_s = max((oldest.waited_s(now) for queue in of_models if (oldest := queue.oldest)), default=0.0)
    return TierView(tier=tier, depth=sum(queue.depth for queue in of_models), oldest_wait_s=oldest_s)


def _head(tier: Tier, queues: Queues, placement: Placement, now: float) -> list[WaitingView]:
    views = []
    for model, queue in queues.items():
        ahead = sum(higher.depth for higher in queue.tiers[:tier])
        for position, record in enumerate(queue.tiers[tier].in_order(HEAD), start=ahead + 1):
            task = record.task
            eta_s = admission.eta_s(queues, model, position, now)
            view = WaitingView(
                task=task.id,
                model=model,
                tenant=task.tenant,
                tenant_label=task.tenant_label,
                tier=tier,
                position=position,
                waited_s=record.waited_s(now),
                why=waiting.reason(record, placement, queues).value,
                eta_ms=round(eta_s * 1000) if eta_s is not None else None,
            )
            views.append((record.sequence, view))
    return [view for _, view in sorted(views, key=lambda pair: pair[0])[:HEAD]]
