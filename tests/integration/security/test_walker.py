"""Everybody at every door: each URL and method of the site, as each kind of caller, against the matrix."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.conf import settings as site_settings
from django.contrib import admin

from accounts.models import ApiKey, ApiLogin, User
from cluster.models import Worker, WorkerToken
from inference.models import Request
from tests.factories import make_user
from tests.integration.security.matrix import (
    ADMIN_MODELS,
    ADMIN_SITE,
    CALLERS,
    FOR_ALL_STAFF,
    METHODS,
    SITE,
)
from tests.integration.security.walk import (
    Cast,
    call,
    describe_state,
    list_admin_routes,
    list_routes,
    make_cast,
    read,
)

pytestmark = pytest.mark.django_db

SAFE = ("GET", "HEAD", "OPTIONS", "TRACE")
OTHERS = ("nobody", "bob", "bob-jwt")
"""Who must neither read nor change what is Alice's."""
A_FEW = ("nobody", "bob-jwt", "staff-jwt")
"""Who tries the methods that are asked for by nobody."""
BOBS = (("GET", "bob"), ("POST", "bob"), ("DELETE", "bob"))
WITH_HER_SECRETS = ("/api/auth/login", "/api/auth/refresh", "/api/auth/logout", "/api/auth/register")
"""Where the body says who calls, and is Alice's own: her password or her token."""


def rows() -> dict[str, dict[str, tuple[int, ...]]]:
    """Return what the matrix says, by URL and method."""
    table: dict[str, dict[str, tuple[int, ...]]] = {}
    for line in SITE.split("\n"):
        if not line.strip():
            continue
        url, *rest = line.split()
        methods = [word for word in rest if not word.isdigit()]
        statuses = tuple([int(word) for word in rest if word.isdigit()])
        assert len(statuses) == len(CALLERS), line
        for method in methods:
            assert method not in table.setdefault(url, {}), f"two lines for {method} {url}"
            table[url][method] = statuses
    for methods in table.values():
        if "*" in methods:
            rest_of_them = methods.pop("*")
            methods |= {method: methods.get(method, rest_of_them) for method in METHODS}
    return table


@pytest.fixture
def cast(charlie: User, settings: Any) -> Cast:
    """Everybody, and no throttle: it is one and the same address that asks thousands of times."""
    for name in dir(site_settings):
        if name.endswith(("_PER_IP", "_PER_USER", "_PER_ACCOUNT")):
            setattr(settings, name, [])
    return make_cast(charlie)


def test_every_url_has_a_row_and_every_row_a_url() -> None:
    # The pattern of whatever else is under /api has a question mark of its own.
    told = {url if "(" in url else url.partition("?")[0] for url in rows()}

    assert told == set(list_routes())


def test_asvs_8_2_2_every_caller_gets_what_the_matrix_says_and_others_leave_alices_alone(cast: Cast) -> None:
    before, hers = describe_state(), _alices()
    wrong: list[str] = []
    for url, methods in rows().items():
        for method, statuses in methods.items():
            for caller, expected in zip(CALLERS, statuses, strict=True):
                if method in ("HEAD", "OPTIONS", "TRACE") and caller not in A_FEW:
                    continue
                left: list[Any] = []
                is_other = caller in OTHERS and url not in WITH_HER_SECRETS
                look = (lambda left=left: left.append(_alices())) if is_other and method not in SAFE else None

                response = call(cast, caller, method, url, look)

                if response.status_code != expected:
                    wrong.append(f"{method} {url} as {caller}: {response.status_code}, not {expected}")
                if is_other:
                    wrong += [f"{method} {url} tells {caller} {m!r}" for m in cast.marks if m in read(response)]
                if left and left != [hers]:
                    wrong.append(f"{method} {url} as {caller} changed what is Alice's")
    assert wrong == []
    assert describe_state() == before  # each request was undone, so the walk compared like with like


def test_every_page_of_the_admin_is_in_the_matrix() -> None:
    pages = set(ADMIN_SITE)
    for name in ADMIN_MODELS:
        pages |= {f"/admin/{name}/", f"/admin/{name}/add/", f"/admin/{name}/<path:object_id>/"}
        pages |= {f"/admin/{name}/<path:object_id>/{page}/" for page in ("change", "delete", "history")}
        if "password" in ADMIN_MODELS[name]:
            pages.add(f"/admin/{name}/<id>/password/")

    routes = {re.sub(r"(\(\?P<app_label>)[^)]*\)", r"\1)", route) for route in list_admin_routes()}

    assert routes == pages
    assert {model._meta.label_lower.replace(".", "/") for model in admin.site._registry} == set(ADMIN_MODELS)


def test_the_admin_sends_everybody_but_staff_to_its_login(cast: Cast) -> None:
    wrong = []
    for url in list_admin_routes():
        if url in ("/admin/login/", "/admin/logout/", "/admin/password_change/"):
            continue  # open to all, and led to the pages that everybody has
        for method, caller in (("GET", "nobody"), ("GET", "staff-jwt"), ("GET", "alice-key"), *BOBS):
            response = call(cast, caller, method, url)
            if response.status_code != 302 or "login" not in response["location"]:
                wrong.append(f"{method} {url} as {caller}: {response.status_code}")
    assert wrong == []


def test_a_superuser_gets_from_the_admin_what_the_matrix_says_and_staff_without_rights_the_log(cast: Cast) -> None:
    dora = make_user("dora", is_staff=True)
    cast.clients["dora"] = type(cast.clients["nobody"])(raise_request_exception=False)
    cast.clients["dora"].force_login(dora)
    wrong = []
    for name, may in ADMIN_MODELS.items():
        row = f"/admin/{name}/<path:object_id>"
        pages = {"list": f"/admin/{name}/", "add": f"/admin/{name}/add/", "change": f"{row}/change/"}
        pages |= {"delete": f"{row}/delete/", "history": f"{row}/history/"}
        if "password" in may:
            pages["password"] = f"/admin/{name}/<id>/password/"
        for page, url in pages.items():
            allowed = page in may.split() or (page == "change" and "look" in may.split())
            found = call(cast, "staff", "GET", url).status_code
            if (found in (200, 302)) != allowed or found not in (200, 302, 403):
                wrong.append(f"GET {url} as a superuser: {found}")
            if page == "change" and "look" in may.split() and call(cast, "staff", "POST", url).status_code != 403:
                wrong.append(f"POST {url} as a superuser")
            found = call(cast, "dora", "GET", url).status_code
            if (found in (200, 302)) != (name in FOR_ALL_STAFF and allowed):
                wrong.append(f"GET {url} as staff without rights: {found}")
    for url, expected in ADMIN_SITE.items():
        found = call(cast, "staff", "GET", url).status_code
        if expected != "open" and found != int(expected):
            wrong.append(f"GET {url} as a superuser: {found}, not {expected}")
    assert wrong == []


def _alices() -> list[Any]:
    """Return Alice's rows, and the workers and tokens, which are the operators'."""
    alice = User.objects.get(email="alice@example.com")
    return [
        alice.password,
        alice.is_active,
        *[list(model.objects.filter(user=alice).order_by("pk").values()) for model in (ApiKey, ApiLogin, Request)],
        *[list(model.objects.order_by("pk").values()) for model in (Worker, WorkerToken)],
    ]
