"""`/api/monitoring/workers` and `queue`: the cluster now, from the snapshot.

Everybody sees the same: nothing of it is of any tenant.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from cluster.domain import TIERS, WorkerStatus, WorkerView
from cluster.panels import get_snapshot
from gpucloud.lib.rest.serializers import PageQuery
from gpucloud.lib.rest.views import ApiView, page_of, paginate


class WorkerNow(serializers.Serializer[Any]):
    """A worker that is connected now. Nothing in it is of any tenant."""

    id = serializers.CharField()
    name = serializers.CharField()
    status = serializers.ChoiceField(list(WorkerStatus))
    gpu = serializers.CharField()
    gpus = serializers.IntegerField()
    models = serializers.ListField(child=serializers.CharField())
    running = serializers.IntegerField(help_text="Requests that it has now.")
    capacity = serializers.IntegerField(help_text="How many it takes at once.")
    vram_used_bytes = serializers.IntegerField(help_text="Weights and KV cache.")
    vram_total_bytes = serializers.IntegerField()
    utilization = serializers.FloatField(help_text="0 to 1.")
    power_w = serializers.FloatField()
    temperature_c = serializers.FloatField()
    tokens_per_s = serializers.FloatField()
    last_heartbeat_at = serializers.DateTimeField()


class Lane(serializers.Serializer[Any]):
    """One tier of the queue."""

    depth = serializers.IntegerField()
    oldest_wait_ms = serializers.IntegerField()


class QueueNow(serializers.Serializer[Any]):
    """The queue now, over all models. Whose requests wait is not told."""

    depth = serializers.IntegerField(help_text="Requests that wait.")
    running = serializers.IntegerField()
    oldest_wait_ms = serializers.IntegerField()
    by_tier = serializers.DictField(child=Lane(), help_text=f"By {', '.join(TIERS)}.")


class WorkersNowView(ApiView):
    """The fleet."""

    query_class = PageQuery

    @extend_schema(operation_id="list_workers", responses=page_of(WorkerNow))
    def get(self, request: Request) -> Response:
        """List the workers that are connected now, by name. Figures are those of their last heartbeat."""
        snapshot = get_snapshot(request)
        return paginate(
            request,
            snapshot.workers,
            lambda page: [_show_worker(worker, snapshot.taken_at_s) for worker in page],
            page=self.query["page"],
            page_size=self.query["page_size"],
        )


class QueueView(ApiView):
    """The queue."""

    @extend_schema(operation_id="get_queue", responses=QueueNow)
    def get(self, request: Request) -> Response:
        """Tell how many requests wait and run now, and how long the oldest has waited."""
        snapshot = get_snapshot(request)
        waits_ms = {lane.tier.word: round(1000 * lane.oldest_wait_s) for lane in snapshot.tiers if lane.depth}
        depths = {lane.tier.word: lane.depth for lane in snapshot.tiers}
        return Response(
            {
                "depth": snapshot.waiting,
                "running": snapshot.running,
                "oldest_wait_ms": max(waits_ms.values(), default=0),
                "by_tier": {
                    tier: {"depth": depths.get(tier, 0), "oldest_wait_ms": waits_ms.get(tier, 0)} for tier in TIERS
                },
            }
        )


def _show_worker(worker: WorkerView, taken_at_s: float) -> dict[str, Any]:
    reading = worker.reading
    return {
        "id": worker.id,
        "name": worker.name,
        "status": worker.status.value,
        "gpu": worker.gpu.name,
        "gpus": worker.gpu.count,
        "models": list(worker.models),
        "running": worker.running,
        "capacity": worker.capacity,
        "vram_used_bytes": reading.vram_weights_bytes + reading.vram_kv_bytes,
        "vram_total_bytes": reading.vram_total_bytes or worker.gpu.vram_total_bytes,
        "utilization": reading.utilization,
        "power_w": reading.power_w,
        "temperature_c": reading.temperature_c,
        "tokens_per_s": worker.tokens_per_s,
        "last_heartbeat_at": datetime.fromtimestamp(taken_at_s - worker.heartbeat_age_s, UTC),
    }
