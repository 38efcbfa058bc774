"""Reads of worker tokens and of the record of workers; what a worker does now is in the snapshot."""

from __future__ import annotations

from collections.abc import Collection

from django.db.models import Q, QuerySet
from django.utils import timezone

from cluster.models import Worker, WorkerToken


def list_dead_token_ids(ids: Collection[int]) -> set[int]:
    """Return which of these tokens were revoked, have expired or are gone: their links must close."""
    if not ids:
        return set()
    not_expired = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    live = WorkerToken.objects.filter(not_expired, pk__in=ids, revoked_at=None).order_by()
    return set(ids).difference(live.values_list("pk", flat=True))


def list_worker_tokens() -> QuerySet[WorkerToken]:
    """Return all tokens, the newest first."""
    return WorkerToken.objects.all()


def list_workers() -> QuerySet[Worker]:
    """Return every worker ever seen, the latest first."""
    return Worker.objects.all()
