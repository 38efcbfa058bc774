"""Walks every URL of the site as everybody: what there is, the cast whose things it is, and one request."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import msgspec
from asgiref.sync import async_to_sync
from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group
from django.db import transaction
from django.http.response import HttpResponseBase
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import timezone

from accounts.logins import start_login
from accounts.models import ApiKey, ApiLogin, User
from accounts.services import actor_of
from cluster.models import Worker, WorkerToken
from inference.histograms import Bars
from inference.models import KeyTotal, LatencyHistogram, LedgerCounter, Request, UsageRollup
from tests.factories import PASSWORD, make_key, make_user, make_worker_token

BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/api/auth/register"): {"email": "dora@example.com", "password": PASSWORD},
    ("POST", "/api/auth/login"): {"email": "alice@example.com", "password": PASSWORD},
    ("POST", "/api/auth/password"): {"old_password": PASSWORD, "new_password": PASSWORD + " again"},
    ("POST", "/api/keys"): {"name": "new"},
    ("PATCH", "/api/keys/<int:key_id>"): {"name": "renamed"},
    ("POST", "/api/keys/<int:key_id>/rotate"): {"overlap_s": 60},
    ("POST", "/api/worker-tokens"): {"name": "new"},
}


class Cast(msgspec.Struct):
    """Who calls, and Alice's things."""

    clients: dict[str, Client]
    bearers: dict[str, str]
    refresh: str
    names: dict[str, str]
    """What stands for a parameter of a URL."""
    marks: tuple[bytes, ...]
    """What nobody but Alice and staff may read."""


def make_cast(charlie: User) -> Cast:
    """Return everybody, logged in, and what is Alice's."""
    alice, bob = make_user("alice"), make_user("bob")
    key, secret = make_key(alice, name="alices-laptop", actor=actor_of(alice))
    make_key(bob, name="bobs-laptop")
    token, _ = make_worker_token(name="charlies-token")
    now = timezone.now()
    Worker.objects.create(
        id="wrk_1", instance="i", gpu="H100", gpus=1, capacity=1, first_seen_at=now, last_seen_at=now, link="lnk_1"
    )
    _record_a_request(alice, key)
    Group.objects.create(name="helpers")
    clients = {name: Client(raise_request_exception=False) for name in ("nobody", "alice", "bob", "staff")}
    for name, user in (("alice", alice), ("bob", bob), ("staff", charlie)):
        clients[name].force_login(user)
    pairs = {"alice": start_login(user=alice), "bob": start_login(user=bob), "staff": start_login(user=charlie)}
    bearers = {f"{name}-jwt": pair.access for name, pair in pairs.items()} | {"alice-key": secret}
    return Cast(
        clients=clients,
        bearers=bearers,
        refresh=pairs["alice"].refresh,
        names={
            "<int:key_id>": str(key.pk),
            "<slug:request_id>": "req_alices",
            "<slug:worker_id>": "wrk_1",
            "<int:token_id>": str(token.pk),
            "<path:name>": "architecture",
            "<alice>": str(alice.pk),
            "<id>": str(alice.pk),
        },
        marks=(b"alice@example.com", b"alices-laptop", key.prefix.encode(), b"req_alices", b"alices-only-model"),
    )


def list_routes() -> list[str]:
    """Return every URL pattern of the site as `/path/<parameter>`, but for the admin's."""
    return sorted({route for route in _routes(get_resolver()) if not route.startswith("/admin/")})


def list_admin_routes() -> list[str]:
    """Return every URL pattern of the admin."""
    return sorted({route for route in _routes(get_resolver()) if route.startswith("/admin/")})


def call(cast: Cast, caller: str, method: str, url: str, look: Callable[[], None] | None = None) -> HttpResponseBase:
    """Send one request and `look` at what it has done; then it is undone."""
    body: dict[str, Any] = BODIES.get((method, url.partition("?")[0]), {})
    for parameter, value in (_admin_names(url) | cast.names).items():
        url = url.replace(parameter, value)
    path, _, query = url.partition("?")
    if url in ("/api/auth/refresh", "/api/auth/logout"):
        body = {"refresh": cast.refresh}
    headers = {"Authorization": f"Bearer {cast.bearers[caller]}"} if caller in cast.bearers else {}
    client = cast.clients.get(caller, cast.clients["nobody"])
    cookies = copy.deepcopy(client.cookies)
    try:
        with transaction.atomic():
            response = client.generic(
                method,
                path,
                msgspec.json.encode(body),
                content_type="application/json",
                QUERY_STRING=query,
                headers=headers,
            )
            if getattr(response, "streaming", False):
                response.read = async_to_sync(_join)(response)  # type: ignore[attr-defined]
            if look is not None:
                look()
            raise _Undo
    except _Undo:
        pass
    client.cookies = cookies
    return response


def read(response: Any) -> bytes:
    """Return the body of an answer, streamed or not."""
    return bytes(response.read) if getattr(response, "streaming", False) else bytes(response.content)


def describe_state() -> list[Any]:
    """Return all that a request of somebody else must leave as it was."""
    return [
        list(model._default_manager.order_by("pk").values())
        for model in (User, ApiKey, ApiLogin, WorkerToken, Worker, Request, UsageRollup, LogEntry)
    ]


def _record_a_request(user: User, key: ApiKey) -> None:
    now = timezone.now()
    hour = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    summed = {"hour": hour, "user": user, "key_id": key.pk, "model": "alices-only-model", "node": "node-1"}
    served = {"state": "completed", "worker_id": "wrk_1", "created_at": now, "ended_at": now, "prompt_tokens": 1}
    asked = {"model": "llama-3-8b", "source": "api", "stream": False, "tier": "default", "node": "node-1"}
    Request.objects.create(id="req_alices", user=user, key=key, **asked, **served)
    outcomes = dict.fromkeys(("requests", "completed", "prompt_tokens", "completion_tokens", "generated_tokens"), 1)
    UsageRollup.objects.create(**summed, **outcomes, failed=0, cancelled=0, expired=0, lost=0)
    LatencyHistogram.objects.create(**summed, bars=Bars().encode())
    KeyTotal.objects.create(key_id=key.pk, node="node-1", requests=1, prompt_tokens=1, completion_tokens=1)
    LedgerCounter.objects.create(node="node-1", admitted=1, settled=1)


async def _join(response: Any) -> bytes:
    parts = response.streaming_content
    return b"".join([part async for part in parts] if response.is_async else list(parts))


class _Undo(Exception):
    pass


def _admin_names(url: str) -> dict[str, str]:
    """Return which row of its model a URL of the admin is about: the first."""
    parts = url.split("/")
    if parts[1] != "admin" or "<path:object_id>" not in parts or "<path:content_type_id>" in parts:
        return {"<path:content_type_id>": "1", "<path:object_id>": "1"}
    model = apps.get_model(parts[2], parts[3])
    row = model._default_manager.order_by("pk").first()
    return {"<path:object_id>": str(row.pk) if row else "1"}


def _routes(resolver: Any, prefix: str = "/") -> Iterator[str]:
    for pattern in resolver.url_patterns:
        route = prefix + re.sub(r"^\^|\$$", "", str(pattern.pattern))
        if isinstance(pattern, URLResolver):
            yield from _routes(pattern, route)
        elif isinstance(pattern, URLPattern):
            yield route
