"""What this app has under `/api/`."""

from __future__ import annotations

from django.urls import path

from cluster.api.monitoring import QueueView, WorkersNowView
from cluster.api.operations import CordonView, DrainView, EvictView, TokensView, TokenView, UncordonView

api_patterns = [
    path("monitoring/workers", WorkersNowView.as_view(), name="api-workers-now"),
    path("monitoring/queue", QueueView.as_view(), name="api-queue"),
    path("workers/<slug:worker_id>/cordon", CordonView.as_view(), name="api-worker-cordon"),
    path("workers/<slug:worker_id>/uncordon", UncordonView.as_view(), name="api-worker-uncordon"),
    path("workers/<slug:worker_id>/drain", DrainView.as_view(), name="api-worker-drain"),
    path("workers/<slug:worker_id>/evict", EvictView.as_view(), name="api-worker-evict"),
    path("worker-tokens", TokensView.as_view(), name="api-worker-tokens"),
    path("worker-tokens/<int:token_id>", TokenView.as_view(), name="api-worker-token"),
]
