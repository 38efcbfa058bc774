"""How requests went, for monitoring: counts and times to the first token, by hour and by model.

Read from the sums by `selectors`. What a request costs is usage, and not told here.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

import msgspec

from inference import selectors
from inference.histograms import Histogram, merge
from inference.selectors import Percentiles, Usage


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """Some ended requests."""

    requests: int = 0
    errors: int = 0
    """Failed, expired or lost; a client that left is no error."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_ms: Percentiles = Percentiles()
    """To the first token, of completed requests."""


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """All of them, and what they are made of."""

    total: Metric
    by_model: dict[str, Metric]
    by_hour: dict[datetime, Metric]
    """Hours and models with any request, in order."""


def get_metrics(*, since: datetime, until: datetime, user_id: int | None = None) -> Metrics:
    """Return how the requests of a user, or of everybody, went in the hours from `since` to before `until`."""
    total: Histogram = {}
    by_model: dict[str, Histogram] = defaultdict(dict)
    by_hour: dict[datetime, Histogram] = defaultdict(dict)
    for (hour, model), ttft in selectors.list_ttfts(since=since, until=until, user_id=user_id).items():
        for histogram in (total, by_model[model], by_hour[hour]):
            merge(histogram, ttft)
    models = selectors.list_usage_by_model(since=since, until=until, user_id=user_id)
    hours = selectors.list_usage_by_hour(since=since, until=until, user_id=user_id)
    return Metrics(
        total=_metric(selectors.get_usage(since=since, until=until, user_id=user_id), total),
        by_model={model: _metric(usage, by_model[model]) for model, usage in models},
        by_hour={hour: _metric(usage, by_hour[hour]) for hour, usage in hours},
    )


def _metric(usage: Usage, ttft: Histogram) -> Metric:
    return Metric(
        requests=usage.requests,
        errors=usage.failed + usage.expired + usage.lost,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        ttft_ms=selectors.percentiles_of(ttft),
    )
