"""`/api/monitoring/metrics`: how requests went."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from inference.api.spans import HoursQuery, WhoseView
from inference.metrics import Metric, get_metrics

USUAL, LONGEST = timedelta(days=1), timedelta(days=31)


class MetricsQuery(HoursQuery):
    """Which hours."""

    def lengths(self, attrs: dict[str, Any]) -> tuple[timedelta, timedelta]:
        """Return the usual and the longest span."""
        return USUAL, LONGEST


class TokenCounts(serializers.Serializer[Any]):
    """Billed tokens."""

    prompt = serializers.IntegerField()
    completion = serializers.IntegerField()


class Milliseconds(serializers.Serializer[Any]):
    """Percentiles to within 5 %; null where nothing completed."""

    p50 = serializers.FloatField(allow_null=True)
    p95 = serializers.FloatField(allow_null=True)
    p99 = serializers.FloatField(allow_null=True)


class Figures(serializers.Serializer[Any]):
    """How some requests went."""

    requests = serializers.IntegerField(help_text="Ended ones.")
    # DRF takes declared fields out of the class: the attribute of this name stays what it was.
    errors = serializers.IntegerField(  # type: ignore[assignment]
        help_text="Failed, expired and lost ones; a client that leaves is no error."
    )
    tokens = TokenCounts()
    ttft_ms = Milliseconds(help_text="To the first token, of completed requests.")


class ModelFigures(Figures):
    """Those of one model."""

    model = serializers.CharField()


class HourFigures(Figures):
    """Those admitted in one hour."""

    at = serializers.DateTimeField(help_text="When the hour begins.")


class MetricsShown(Figures):
    """All of them, and what they are made of: models and hours with any request."""

    by_model = ModelFigures(many=True)
    series = HourFigures(many=True)

    def get_fields(self) -> dict[str, Any]:
        """Return the fields with one that is a keyword of Python."""
        return {"from": serializers.DateTimeField(), "to": serializers.DateTimeField()} | super().get_fields()


class MetricsView(WhoseView):
    """How requests went."""

    query_class = MetricsQuery

    @extend_schema(operation_id="get_metrics", responses=MetricsShown)
    def get(self, request: Request) -> Response:
        """Tell how your requests went. Staff see everybody's, or one `user_id`'s.

        `from` and `to` are widened to whole hours, of a request's admission: the last 24 if nothing is said,
        31 days at most.
        """
        since, until = self.query["since"], self.query["until"]
        metrics = get_metrics(since=since, until=until, user_id=self.whose())
        shown = {
            "from": since,
            "to": until,
            **_show(metrics.total),
            "by_model": [{"model": model, **_show(metric)} for model, metric in metrics.by_model.items()],
            "series": [{"at": hour, **_show(metric)} for hour, metric in metrics.by_hour.items()],
        }
        return Response(MetricsShown(shown).data)


def _show(metric: Metric) -> dict[str, Any]:
    return {
        "requests": metric.requests,
        "errors": metric.errors,
        "tokens": {"prompt": metric.prompt_tokens, "completion": metric.completion_tokens},
        "ttft_ms": msgspec.structs.asdict(metric.ttft_ms),
    }
