"""Reads of the ledger. Async code gets frozen structs; sync code may get rows.

Charts and bills read the sums, never the rows: a sum is there from the moment its request ended,
and stays when retention deletes the row. Hours are those of admission, `since` and `until` whole.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from django.db import DEFAULT_DB_ALIAS
from django.db.models import QuerySet, Sum

from inference.histograms import METRICS, Bars, Histogram, percentile
from inference.models import OPEN, LatencyHistogram, Request, UsageRollup
from inference.records import Opened, TimelineEvent
from inference.timeline import tell_story


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Ended requests and their tokens."""

    requests: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    lost: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Billed ones."""
    generated_tokens: int = 0


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Latency of completed requests; None where nothing completed."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


def list_requests(*, user_id: int | None = None) -> QuerySet[Request]:
    """Return the requests of a user, or of everybody, the newest first."""
    requests = Request.objects.select_related("key", "user").order_by("-created_at")
    return requests if user_id is None else requests.filter(user_id=user_id)


def get_request(*, request_id: str, user_id: int | None = None) -> Request | None:
    """Return a request if there is one and it is this user's."""
    return list_requests(user_id=user_id).filter(pk=request_id).first()


def get_timeline(*, request_id: str, user_id: int | None = None) -> list[TimelineEvent]:
    """Return all that happened to a request, in order; nothing if there is none or it is not this user's."""
    row = get_request(request_id=request_id, user_id=user_id)
    return [] if row is None else tell_story(row)


def get_usage(*, since: datetime, until: datetime, user_id: int | None = None) -> Usage:
    """Return what a user, or everybody, used in the hours from `since` to before `until`."""
    return Usage(**_add_up(_sums(UsageRollup, since, until, user_id)))


def list_usage_by_hour(*, since: datetime, until: datetime, user_id: int | None = None) -> list[tuple[datetime, Usage]]:
    """Return the usage of each hour that has any, in order."""
    return _group(since, until, user_id, "hour")


def list_usage_by_model(*, since: datetime, until: datetime, user_id: int | None = None) -> list[tuple[str, Usage]]:
    """Return the usage of each model that has any, by name."""
    return _group(since, until, user_id, "model")


def list_usage_by_key(*, since: datetime, until: datetime, user_id: int | None = None) -> list[tuple[int, Usage]]:
    """Return the usage of each key that has any, by id; 0 is the playground."""
    return _group(since, until, user_id, "key_id")


def get_latency(*, since: datetime, until: datetime, user_id: int | None = None) -> dict[str, Percentiles]:
    """Return the percentiles of `queue`, `ttft` and `total`, in milliseconds; see `histograms` for their error."""
    bars = Bars()
    for text in _sums(LatencyHistogram, since, until, user_id).values_list("bars", flat=True).iterator():
        bars.add(Bars.decode(text))
    return {metric: _percentiles(getattr(bars, metric)) for metric in METRICS}


def list_open(*, node: str, using: str = DEFAULT_DB_ALIAS) -> list[Opened]:
    """Return the requests of a node that have no outcome on record, the oldest first."""
    rows = Request.objects.using(using).filter(node=node, state=OPEN).order_by("created_at")
    return [
        Opened(
            id=row.id,
            key_id=row.key_id,
            user_id=row.user_id,
            model=row.model,
            source=row.source,
            stream=row.stream,
            tier=row.tier,
            node=row.node,
            prompt_tokens=row.prompt_tokens,
            created_at_s=row.created_at.timestamp(),
        )
        for row in rows.iterator()
    ]


def _percentiles(histogram: Histogram) -> Percentiles:
    return Percentiles(
        p50=percentile(histogram, 0.50), p95=percentile(histogram, 0.95), p99=percentile(histogram, 0.99)
    )


def _sums(model: type[Any], since: datetime, until: datetime, user_id: int | None) -> QuerySet[Any]:
    sums: QuerySet[Any] = model.objects.filter(hour__gte=since, hour__lt=until)
    return sums if user_id is None else sums.filter(user_id=user_id)


def _group(since: datetime, until: datetime, user_id: int | None, field: str) -> list[tuple[Any, Usage]]:
    groups = _sums(UsageRollup, since, until, user_id).values(field).annotate(**_TOTALS).order_by(field)
    return [(group.pop(field), Usage(**{name[4:]: count for name, count in group.items()})) for group in groups]


def _add_up(sums: QuerySet[UsageRollup]) -> dict[str, int]:
    return {name[4:]: count or 0 for name, count in sums.aggregate(**_TOTALS).items()}


# Named apart from their fields: Django refuses an annotation with a field's name.
_TOTALS = {f"sum_{name}": Sum(name) for name in Usage.__struct_fields__}
