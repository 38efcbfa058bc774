"""Every write of worker tokens and of workers: who came, and what operators want of them.

Synchronous: the data plane calls these from a thread. Bad values raise Django's `ValidationError`,
with a sentence per field.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from hmac import compare_digest
from typing import Any

import msgspec
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from cluster.domain import Intent, WorkerSpec
from cluster.models import Worker, WorkerToken
from gpucloud.lib.audit import ADDITION, COMMAND, Actor, find_changes, record
from gpucloud.lib.globs import any_model
from gpucloud.lib.secret import digest_secret, is_well_formed, make_secret, prefix_of

KIND = "wk-"
MARK_EVERY = timedelta(minutes=1)
"""A token's `last_used_at` is written at most this often."""
MAX_INTEGER = 2**31 - 1
"""What an integer column holds on Postgres."""

_NO_DIGEST = bytes(32)


class WorkerCredential(msgspec.Struct, frozen=True):
    """What a worker may do with the token it showed."""

    token_id: int | None
    """None for the token from the environment, which has no row."""
    name: str
    models: tuple[str, ...]
    """Globs of the model ids it may serve."""


def create_worker_token(
    *, name: str = "worker", models: Sequence[str] = (), expires_at: datetime | None = None, actor: Actor = COMMAND
) -> tuple[WorkerToken, str]:
    """Create a token for the models that match a glob (none given: for any) and return it with its secret.

    Nothing can show the secret again.
    """
    secret = make_secret(KIND)
    token = WorkerToken(name=name.strip(), models=list(models) or any_model(), expires_at=expires_at)
    token.describe(secret, _pepper())
    token.full_clean()
    with transaction.atomic():
        token.save(force_insert=True)
        record(actor=actor, row=token, did="Created.", action=ADDITION)
    return token, secret


def save_worker_token(*, token: WorkerToken, actor: Actor = COMMAND) -> WorkerToken:
    """Store a token whose name, models or expiry was changed; links that are up keep their models."""
    token.full_clean()
    with transaction.atomic():
        changes = find_changes(WorkerToken.objects.get(pk=token.pk), token, ("name", "models", "expires_at"))
        if changes:
            token.save(update_fields=list(changes))
            record(actor=actor, row=token, did="Changed:", changes=changes)
    return token


def revoke_worker_token(*, token: WorkerToken, actor: Actor = COMMAND) -> bool:
    """Refuse a token from now on, for good; return whether it was not revoked before.

    Its links are closed by the gateways, which ask `list_dead_token_ids`.
    """
    with transaction.atomic():
        revoked = WorkerToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=timezone.now())
        if revoked:
            record(actor=actor, row=token, did="Revoked.")
    token.refresh_from_db(fields=["revoked_at"])
    return bool(revoked)


def authenticate_worker(secret: str) -> WorkerCredential | None:
    """Return what a worker that shows `secret` may do, None if it may not come in."""
    configured = settings.WORKER_TOKEN
    if configured and compare_digest(_to_bytes(secret), _to_bytes(configured)):
        return WorkerCredential(token_id=None, name="environment", models=tuple(any_model()))
    if not is_well_formed(KIND, secret):
        return None
    now = timezone.now()
    token = WorkerToken.objects.filter(prefix=prefix_of(secret)).first()
    # Compared also when there is nothing to compare with: how long a refusal takes must not tell
    # which prefixes exist.
    matches = compare_digest(digest_secret(secret, _pepper()), bytes.fromhex(token.digest) if token else _NO_DIGEST)
    if token is None or not matches or not token.is_live(now):
        return None
    not_lately = Q(last_used_at=None) | Q(last_used_at__lte=now - MARK_EVERY)
    WorkerToken.objects.filter(not_lately, pk=token.pk).update(last_used_at=now)
    return WorkerCredential(token_id=token.pk, name=token.name, models=tuple(token.models))


def record_worker_joined(*, spec: WorkerSpec, token_id: int | None, link: str = "") -> None:
    """Write that a worker is here, over which link, and how it described itself; intents stand."""
    now = timezone.now()
    row = Worker(
        id=spec.id,
        name=spec.name,
        instance=spec.instance,
        token_id=token_id,
        gpu=_printable(spec.gpu.name),
        gpus=max(0, min(spec.gpu.count, MAX_INTEGER)),
        models=[_printable(offer.id) for offer in spec.models],
        capacity=spec.capacity,
        simulated=spec.simulated,
        first_seen_at=now,
        last_seen_at=now,
        link=link,
    )
    kept = ("id", "first_seen_at", "intent", "evict_link")
    Worker.objects.bulk_create(
        [row],
        update_conflicts=True,
        unique_fields=["id"],
        update_fields=[field.attname for field in Worker._meta.concrete_fields if field.name not in kept],
    )


def record_workers_seen(*, worker_ids: Collection[str]) -> None:
    """Write that these workers are still here."""
    Worker.objects.filter(pk__in=worker_ids).update(last_seen_at=timezone.now())


def cordon_worker(*, worker_id: str, actor: Actor = COMMAND) -> bool:
    """Keep new work away from a worker; what runs there goes on. Return whether that is news.

    This and the next three write what is wanted; gateways and dispatcher make it so within a second.
    """
    return _want(worker_id, Intent.CORDONED, actor, "Cordoned.")


def drain_worker(*, worker_id: str, actor: Actor = COMMAND) -> bool:
    """Have a worker finish what runs, take nothing new and leave. Return whether that is news."""
    return _want(worker_id, Intent.DRAINING, actor, "Drained.")


def uncordon_worker(*, worker_id: str, actor: Actor = COMMAND) -> bool:
    """Take back a cordon or a drain. Return whether there was one."""
    return _want(worker_id, Intent.NONE, actor, "Uncordoned.")


def evict_worker(*, worker_id: str, actor: Actor = COMMAND) -> bool:
    """Close the link of a worker now; its tasks move on. Return whether that is news.

    Only the link that it has is meant: it may dial in again, unless it is cordoned as well.
    """
    linked = Worker.objects.filter(pk=worker_id).exclude(link="").exclude(evict_link=F("link"))
    return _change(linked, actor, "Evicted.", evict_link=F("link"))


def _want(worker_id: str, intent: Intent, actor: Actor, did: str) -> bool:
    others = Worker.objects.filter(pk=worker_id).exclude(intent=intent.value)
    return _change(others, actor, did, intent=intent.value)


def _change(workers: QuerySet[Worker], actor: Actor, did: str, **values: Any) -> bool:
    with transaction.atomic():
        worker = workers.first()
        # Asked again by the update: of two who want the same at once, one has brought it about.
        changed = worker is not None and bool(workers.update(**values))
        if worker is not None and changed:
            record(actor=actor, row=worker, did=did)
    return changed


def _pepper() -> bytes:
    return settings.KEY_PEPPER.encode()


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _printable(text: str) -> str:
    # A worker names its own hardware: control characters break a terminal, NUL breaks Postgres.
    return "".join(character if character.isprintable() else "?" for character in text[:64])
