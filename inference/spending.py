"""What the ledger remembers of each key's spending, for limits to take over when a node starts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.db import connection
from django.db.models import Sum

from accounts.limiter import Spent
from accounts.limits import MINUTE_S
from inference.balance import SERVED
from inference.models import OPEN, Request, UsageRollup


def read_spending(now_s: float) -> tuple[list[tuple[int, int]], list[Spent]]:
    """Return the tokens billed this month (UTC) by key, and every request of the last minute.

    For a thread of its own: it closes the connection.
    """
    now = datetime.fromtimestamp(now_s, UTC)
    try:
        return _list_month_tokens(now), _list_spent(now)
    finally:
        connection.close()


def _list_month_tokens(now: datetime) -> list[tuple[int, int]]:
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    sums = UsageRollup.objects.filter(hour__gte=month, key_id__gt=0).order_by().values_list("key_id")
    return list(sums.annotate(total=Sum("prompt_tokens") + Sum("completion_tokens")))


def _list_spent(now: datetime) -> list[Spent]:
    rows = Request.objects.filter(created_at__gt=now - timedelta(seconds=MINUTE_S), key_id__isnull=False)
    counted = rows.filter(SERVED) | rows.filter(state=OPEN)
    spent = counted.order_by("created_at").values_list("key_id", "created_at", "prompt_tokens", "completion_tokens")
    return [Spent(key_id, at.timestamp(), prompt + completion) for key_id, at, prompt, completion in spent.iterator()]
