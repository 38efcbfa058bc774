"""Reads of worker tokens and of workers: who came, and what is wanted of them.

What a worker does now is in the snapshot.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from cluster.domain import Intent
from cluster.models import Worker, WorkerToken


class Intents(msgspec.Struct, frozen=True):
    """The workers, by id, of which operators want something that lasts."""

    cordoned: frozenset[str] = frozenset()
    draining: frozenset[str] = frozenset()


def get_intents() -> Intents:
    """Return what operators want of workers, linked or not."""
    wanted = Worker.objects.exclude(intent=Intent.NONE.value).order_by().values_list("pk", "intent")
    by_intent: dict[str, set[str]] = {intent.value: set() for intent in Intent}
    for worker_id, intent in wanted:
        by_intent[intent].add(worker_id)
    return Intents(frozenset(by_intent[Intent.CORDONED.value]), frozenset(by_intent[Intent.DRAINING.value]))


def list_evicted_links(worker_ids: Collection[str]) -> set[str]:
    """Return the links of these workers that operators want closed."""
    if not worker_ids:
        return set()
    evicted = Worker.objects.filter(pk__in=worker_ids, evict_link=F("link")).exclude(link="").order_by()
    return set(evicted.values_list("link", flat=True))


def list_dead_token_ids(ids: Collection[int]) -> set[int]:
    """Return which of these tokens were revoked, have expired or are gone: their links must close."""
    if not ids:
        return set()
    live = WorkerToken.objects.filter(_not_expired(), pk__in=ids, revoked_at=None).order_by()
    return set(ids).difference(live.values_list("pk", flat=True))


def list_worker_tokens() -> QuerySet[WorkerToken]:
    """Return all tokens, the newest first."""
    return WorkerToken.objects.all()


def search_worker_tokens(*, state: str | None = None) -> QuerySet[WorkerToken]:
    """Return the tokens that are `live`, `expired` or `revoked`, or all of them, the newest first."""
    tokens = list_worker_tokens()
    match state:
        case "live":
            return tokens.filter(_not_expired(), revoked_at=None)
        case "expired":
            return tokens.filter(~_not_expired(), revoked_at=None)
        case "revoked":
            return tokens.exclude(revoked_at=None)
    return tokens


def get_worker_token(*, token_id: int) -> WorkerToken | None:
    """Return a token if there is one with this id."""
    return WorkerToken.objects.filter(pk=token_id).first()


def get_worker(*, worker_id: str) -> Worker | None:
    """Return a worker if one with this id was ever seen."""
    return Worker.objects.filter(pk=worker_id).first()


def list_workers() -> QuerySet[Worker]:
    """Return every worker ever seen, the latest first."""
    return Worker.objects.all()


def _not_expired() -> Q:
    return Q(expires_at=None) | Q(expires_at__gt=timezone.now())
