"""The schema is the API: it names every URL and method, and answers are as it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import timezone
from schemathesis.core.failures import FailureGroup

from accounts.api import Account
from accounts.logins import start_login
from accounts.models import User
from cluster.services import record_worker_joined
from gpucloud.lib.rest.views import ApiView, UnknownView
from tests.apifuzz import fuzz
from tests.factories import make_key, make_worker_spec, make_worker_token
from tests.integration.pages.snapshots import snapshot, waiting, worker
from tests.unit.inference.test_selectors import make_latency, make_request, make_usage


def routed() -> Iterator[tuple[str, type[ApiView]]]:
    """Yield every URL under `/api` that a view of ours serves, with its parameters as the schema writes them."""

    def walk(patterns: list[URLPattern | URLResolver], before: str) -> Iterator[tuple[str, Any]]:
        for pattern in patterns:
            path = before + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns, path)
            else:
                yield path, getattr(pattern.callback, "view_class", None)

    for path, view in walk(get_resolver().url_patterns, "/"):
        if isinstance(view, type) and issubclass(view, ApiView) and view is not UnknownView:
            yield path.replace("<int:", "{").replace("<slug:", "{").replace(">", "}"), view


@pytest.fixture
def schema() -> dict[str, Any]:
    """The schema as anybody gets it."""
    described: dict[str, Any] = json.loads(Client().get("/api/schema").content)
    return described


def test_api9_the_schema_names_every_url_and_method_and_no_other(schema: dict[str, Any]) -> None:
    described = {(path, method) for path, methods in schema["paths"].items() for method in methods}

    assert described == {
        (path, method)
        for path, view in routed()
        for method in ("get", "post", "put", "patch", "delete")
        if hasattr(view, method)
    }


def test_every_operation_has_a_name_of_its_own_and_a_sentence(schema: dict[str, Any]) -> None:
    operations = [operation for methods in schema["paths"].values() for operation in methods.values()]

    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert [operation["operationId"] for operation in operations if not operation.get("description")] == []


def test_every_operation_says_what_it_answers(schema: dict[str, Any]) -> None:
    silent = [
        operation["operationId"]
        for methods in schema["paths"].values()
        for operation in methods.values()
        for status, answer in operation["responses"].items()
        if status not in ("204", "default") and not answer.get("content")
    ]

    assert silent == []


@pytest.fixture
def known(alice: User, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters of paths that lead to something of Alice's, or of the operators'; there is a bit of everything."""
    picture = snapshot(1, worker("h100-1", running=1), head=(waiting(1),))
    monkeypatch.setattr("cluster.api.monitoring.get_snapshot", lambda request: picture)
    record_worker_joined(spec=make_worker_spec(id="wrk_1"), token_id=None, link="lnk_1")
    make_request(alice, "req_1")
    key, _ = make_key(alice)
    this_hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    make_usage(alice, this_hour, requests=1, completed=1, key_id=key.pk)
    make_latency(alice, 12.5, hour=this_hour)
    return {
        "key_id": key.pk,
        "request_id": "req_1",
        "worker_id": "wrk_1",
        "token_id": make_worker_token()[0].pk,
    }


@pytest.fixture
def wsgi(db: None) -> Iterator[Any]:
    """The site, in this thread and on this test's own connection, which no request may close."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield get_wsgi_application()
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume asynchronous iterators:Warning")
@pytest.mark.parametrize("who", ["alice", "charlie"])
def test_whatever_is_asked_the_answer_is_as_the_schema_says(
    who: str, known: dict[str, Any], wsgi: Any, request: pytest.FixtureRequest, settings: Any
) -> None:
    settings.API_CALLS_PER_IP = settings.API_CALLS_PER_USER = ()
    user = request.getfixturevalue(who)
    schema = schemathesis.openapi.from_wsgi("/api/schema", wsgi)

    asked = fuzz(schema, lambda: start_login(user=user).access, known)

    assert asked > 250


def test_an_answer_that_is_not_as_the_schema_says_is_found(
    alice: User, known: dict[str, Any], wsgi: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Account, "to_representation", lambda self, user: {"id": "one", "email": user.email})
    schema = schemathesis.openapi.from_wsgi("/api/schema", wsgi).include(path="/api/auth/me")

    with pytest.raises(FailureGroup, match="Response violates schema"):
        fuzz(schema, lambda: start_login(user=alice).access, known)
