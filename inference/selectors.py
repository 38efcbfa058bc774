"""Reads of the ledger. Async code gets frozen structs; sync code may get rows.

Charts and bills read the sums, never the rows: a sum is there from the moment its request ended,
and stays when retention deletes the row. Hours are those of admission, `since` and `until` whole.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, cast

import msgspec
from django.db import DEFAULT_DB_ALIAS
from django.db.models import DateTimeField, F, Q, QuerySet, Sum
from django.db.models.functions import Trunc

from inference.histograms import METRICS, Bars, Histogram, decode_ttft, merge, percentile
from inference.models import OPEN, KeyTotal, LatencyHistogram, Request, UsageRollup
from inference.records import Opened, TimelineEvent
from inference.timeline import tell_story

BREATH = 100
"""Rows to work on in Python at a time: then the event loop, which waits 5 ms otherwise, may have the interpreter."""


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


class Period(StrEnum):
    """How long a line of a usage table is: in UTC, for sums are by hours of it."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class Dimension(StrEnum):
    """What usage may be told apart by; the words are those of the API."""

    MODEL = "model"
    KEY = "key"
    USER = "user"


class KeyUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a key has used since its first day."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Latency of completed requests; None where nothing completed."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


def list_requests(*, user_id: int | None = None) -> QuerySet[Request]:
    """Return the requests of a user, or of everybody, the newest first."""
    requests = Request.objects.select_related("key", "user").order_by("-created_at")
    return requests if user_id is None else requests.filter(user_id=user_id)


def search_requests(
    *,
    user_id: int | None = None,
    request_id: str | None = None,
    key_id: int | None = None,
    model: str | None = None,
    state: str | None = None,
    worker: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> QuerySet[Request]:
    """Return the requests that match everything given, the newest first, without their timelines.

    `key_id` 0 is the playground, `worker` an id or a name; `since` counts, `until` does not.
    """
    equal = {"pk": request_id, "model": model, "state": state, "created_at__gte": since, "created_at__lt": until}
    found = list_requests(user_id=user_id).filter(**{name: value for name, value in equal.items() if value is not None})
    if key_id is not None:
        found = found.filter(key_id=key_id or None)
    if worker is not None:
        found = found.filter(Q(worker_id=worker) | Q(worker_name=worker))
    return found.order_by("-created_at", "-pk").defer("timeline")


def get_request(*, request_id: str, user_id: int | None = None) -> Request | None:
    """Return a request if there is one and it is this user's."""
    return list_requests(user_id=user_id).filter(pk=request_id).first()


def get_timeline(*, request_id: str, user_id: int | None = None) -> list[TimelineEvent]:
    """Return all that happened to a request, in order; nothing if there is none or it is not this user's."""
    row = get_request(request_id=request_id, user_id=user_id)
    return [] if row is None else tell_story(row)


def get_usage(
    *,
    since: datetime,
    until: datetime,
    user_id: int | None = None,
    key_id: int | None = None,
    model: str | None = None,
) -> Usage:
    """Return what a user, or everybody, used in the hours from `since` to before `until`."""
    sums = _usage(since, until, user_id, key_id, model).aggregate(**_TOTALS)
    return Usage(**{name[4:]: count or 0 for name, count in sums.items()})


def list_usage(
    *,
    since: datetime,
    until: datetime,
    user_id: int | None = None,
    key_id: int | None = None,
    model: str | None = None,
    period: Period,
    by: Collection[Dimension] = (),
) -> QuerySet[UsageRollup, dict[str, Any]]:
    """Return a line for each period, and each of what it is told `by`, with any usage; the oldest first.

    A line is a dict: `start`, the fields of `by` (`model`, `key_id`, `user_id` and `user__email`), and the
    fields of `Usage` with `sum_` before them. Key 0 is the playground.
    """
    sums = _usage(since, until, user_id, key_id, model)
    if period is Period.HOUR:
        sums = sums.annotate(start=F("hour"))
    else:
        sums = sums.annotate(start=Trunc("hour", period.value, output_field=DateTimeField(), tzinfo=UTC))
    names = [name for dimension in Dimension if dimension in by for name in _COLUMNS[dimension]]
    lines = sums.values("start", *names).annotate(**_TOTALS)
    return cast("QuerySet[UsageRollup, dict[str, Any]]", lines.order_by("start", *names))


def list_key_totals(key_ids: Sequence[int]) -> dict[int, KeyUse]:
    """Return what these keys have used, by id; one that was never used is left out."""
    rows = KeyTotal.objects.filter(key_id__in=key_ids).values("key_id").order_by()
    sums: Any = rows.annotate(**{f"sum_{name}": Sum(name) for name in KeyUse.__struct_fields__})
    return {row["key_id"]: KeyUse(**{name: row[f"sum_{name}"] for name in KeyUse.__struct_fields__}) for row in sums}


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
    total = Bars()
    for text in _sums(LatencyHistogram, since, until, user_id).values_list("bars", flat=True).iterator():
        total.add(Bars.decode(text))
    return {metric: percentiles_of(getattr(total, metric)) for metric in METRICS}


def list_ttfts(
    *, since: datetime, until: datetime, user_id: int | None = None
) -> dict[tuple[datetime, str], Histogram]:
    """Return the times to the first token of completed requests, by hour and model."""
    found: dict[tuple[datetime, str], Histogram] = defaultdict(dict)
    sums = _sums(LatencyHistogram, since, until, user_id).order_by().values_list("hour", "model", "bars")
    for number, (hour, model, text) in enumerate(sums.iterator(chunk_size=BREATH)):
        merge(found[hour, model], decode_ttft(text))
        if number % BREATH == 0:
            time.sleep(0)
    return found


def percentiles_of(histogram: Histogram) -> Percentiles:
    """Return the percentiles of one histogram."""
    return Percentiles(
        p50=percentile(histogram, 0.50), p95=percentile(histogram, 0.95), p99=percentile(histogram, 0.99)
    )


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


def _sums(model: type[Any], since: datetime, until: datetime, user_id: int | None) -> QuerySet[Any]:
    sums: QuerySet[Any] = model.objects.filter(hour__gte=since, hour__lt=until)
    return sums if user_id is None else sums.filter(user_id=user_id)


def _usage(
    since: datetime, until: datetime, user_id: int | None, key_id: int | None, model: str | None
) -> QuerySet[UsageRollup]:
    sums = _sums(UsageRollup, since, until, user_id)
    if key_id is not None:
        sums = sums.filter(key_id=key_id)
    return sums if model is None else sums.filter(model=model)


def _group(since: datetime, until: datetime, user_id: int | None, field: str) -> list[tuple[Any, Usage]]:
    groups = _sums(UsageRollup, since, until, user_id).values(field).annotate(**_TOTALS).order_by(field)
    return [(group.pop(field), Usage(**{name[4:]: count for name, count in group.items()})) for group in groups]


# Named apart from their fields: Django refuses an annotation with a field's name.
_TOTALS = {f"sum_{name}": Sum(name) for name in Usage.__struct_fields__}

_COLUMNS: dict[Dimension, tuple[str, ...]] = {
    Dimension.MODEL: ("model",),
    Dimension.KEY: ("key_id",),
    Dimension.USER: ("user_id", "user__email"),
}
