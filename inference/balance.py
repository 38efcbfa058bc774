"""Compares the ledger's independent sources: rows, sums, histograms, keys' totals, writers' counters.

All are written in one transaction, so at any moment, also under load, they agree to the unit; a
difference is a fault. Rows are compared from the hour on that retention has not touched; open rows
also with the requests that the nodes say they hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import msgspec
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models import Count, F, Max, Q, Sum

from cluster.domain import Outcome
from inference.histograms import Bars
from inference.models import OPEN, KeyTotal, LatencyHistogram, LedgerCounter, Request, UsageRollup

GRACE_S = 60
"""How long after its time-out a request may still be open: the commit, and clocks that differ."""

NOT_LOST = ~Q(state=Outcome.LOST)


class Check(msgspec.Struct, frozen=True):
    """Two numbers from independent sources that must be equal."""

    name: str
    left: int
    right: int
    sources: str

    @property
    def difference(self) -> int:
        """How far they are apart."""
        return abs(self.left - self.right)


def list_checks(*, now: datetime, using: str = DEFAULT_DB_ALIAS) -> list[Check]:
    """Return all comparisons, made on one moment's state of the database."""
    with _one_moment(using):
        rows = Request.objects.using(using)
        counted = LedgerCounter.objects.using(using).aggregate(
            admitted=Sum("admitted", default=0), settled=Sum("settled", default=0), since=Max("retained_from")
        )
        sums = UsageRollup.objects.using(using)
        everything = sums.aggregate(
            requests=Sum("requests", default=0),
            completed=Sum("completed", default=0),
            prompt=Sum("prompt_tokens", default=0),
            completion=Sum("completion_tokens", default=0),
        )
        bars = LatencyHistogram.objects.using(using).values_list("bars", flat=True)
        since = counted["since"] or datetime.min.replace(tzinfo=UTC)
        by_row = rows.filter(created_at__gte=since).aggregate(
            **{outcome.value: Count("pk", filter=Q(state=outcome)) for outcome in Outcome},
            prompt=Sum("prompt_tokens", filter=~Q(state=OPEN) & NOT_LOST, default=0),
            completion=Sum("completion_tokens", default=0),
            generated=Sum("generated_tokens", default=0),
        )
        by_sum = sums.filter(hour__gte=since).aggregate(
            **{f"{outcome.value}_": Sum(outcome.value, default=0) for outcome in Outcome},
            prompt=Sum("prompt_tokens", default=0),
            completion=Sum("completion_tokens", default=0),
            generated=Sum("generated_tokens", default=0),
        )
        keys = KeyTotal.objects.using(using).aggregate(
            requests=Sum("requests", default=0),
            prompt=Sum("prompt_tokens", default=0),
            completion=Sum("completion_tokens", default=0),
        )
        overdue_at = now - timedelta(seconds=settings.TOTAL_TIMEOUT_S + GRACE_S)
        return [
            Check(
                "open",
                rows.filter(state=OPEN).count(),
                counted["admitted"] - counted["settled"],
                "rows, admitted less settled",
            ),
            Check(
                "overdue", rows.filter(state=OPEN, created_at__lt=overdue_at).count(), 0, "open rows past their time"
            ),
            Check("orphaned", _count_orphans(using), 0, "open rows older than all that their node holds"),
            Check("settled", everything["requests"], counted["settled"], "sums, counter"),
            *(
                Check(outcome.value, by_row[outcome.value], by_sum[f"{outcome.value}_"], "rows, sums")
                for outcome in Outcome
            ),
            *(
                Check(f"{kind}_tokens", by_row[kind], by_sum[kind], "rows, sums")
                for kind in ("prompt", "completion", "generated")
            ),
            Check("key_requests", keys["requests"], everything["requests"], "keys, sums"),
            *(
                Check(f"key_{kind}_tokens", keys[kind], everything[kind], "keys, sums")
                for kind in ("prompt", "completion")
            ),
            Check("misattributed", _count_misattributed(using), 0, "keys and nodes whose totals are not their sums"),
            Check(
                "misbilled",
                rows.filter(
                    Q(state=Outcome.LOST, completion_tokens__gt=0)
                    | (NOT_LOST & ~Q(completion_tokens=F("delivered_tokens")))
                ).count(),
                0,
                "rows billed for other tokens than the delivered",
            ),
            Check(
                "timed",
                sum(sum(Bars.decode(text).total.values()) for text in bars.iterator()),
                everything["completed"],
                "histograms, completed sums",
            ),
        ]


def _count_orphans(using: str) -> int:
    rows = Request.objects.using(using).filter(state=OPEN)
    nodes = LedgerCounter.objects.using(using).exclude(live_since=None).values_list("node", "live_since")
    return sum(rows.filter(node=node, created_at__lt=since).count() for node, since in nodes)


def _count_misattributed(using: str) -> int:
    """Count the keys and nodes that somebody else's usage was put down to."""
    fields = ("requests", "prompt_tokens", "completion_tokens")
    group = ("key_id", "node")
    totals = KeyTotal.objects.using(using).values_list(*group, *fields)
    sums = UsageRollup.objects.using(using).values(*group).order_by()
    added = sums.annotate(**{f"sum_{field}": Sum(field) for field in fields})
    by_sum = {(row["key_id"], row["node"]): tuple(row[f"sum_{field}"] for field in fields) for row in added}
    by_key = {(key_id, node): tuple(counts) for key_id, node, *counts in totals}
    return sum(by_sum.get(key) != by_key.get(key) for key in by_sum.keys() | by_key.keys())


@contextmanager
def _one_moment(using: str) -> Iterator[None]:
    """Let all reads inside see one state of the database, without holding up a writer."""
    connection = connections[using]
    if connection.in_atomic_block:
        yield
        return
    # Not `atomic()`: on SQLite ours takes the write lock, and the ledger would wait for our counting.
    begin = "BEGIN" if connection.vendor == "sqlite" else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    with connection.cursor() as cursor:
        cursor.execute(begin)
        try:
            yield
        finally:
            cursor.execute("ROLLBACK")
