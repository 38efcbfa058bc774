"""What this app has under `/api/`."""

from __future__ import annotations

from django.urls import path

from inference.api.metrics import MetricsView
from inference.api.requests import RequestsView, RequestView
from inference.api.usage import UsageView

api_patterns = [
    path("usage", UsageView.as_view(), name="api-usage"),
    path("requests", RequestsView.as_view(), name="api-requests"),
    path("requests/<slug:request_id>", RequestView.as_view(), name="api-request"),
    path("monitoring/metrics", MetricsView.as_view(), name="api-metrics"),
]
