"""What every answer tells browsers, and how htmx learns that it has been logged out."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import path

from accounts.models import User
from gpucloud.urls import *  # noqa: F403
from gpucloud.urls import urlpatterns as real_urlpatterns

pytestmark = pytest.mark.django_db

PAGES = (
    *("/", "/login/", "/docs/", "/docs/nowhere/", "/nowhere/", "/admin/", "/admin/login/", "/broken/"),
    *("/api/nowhere", "/api/auth/me", "/api/schema", "/api/docs"),
    *("/static/css/app.css", "/static/nowhere.css"),
)


def _broken(request: Any) -> Any:
    raise RuntimeError("broken")


urlpatterns = [path("broken/", _broken), *real_urlpatterns]


@pytest.mark.urls(__name__)
@pytest.mark.parametrize("url", PAGES)
@pytest.mark.parametrize("who", ["nobody", "charlie"])
def test_asvs_3_4_every_answer_is_guarded(charlie: User, url: str, who: str) -> None:
    client = Client(raise_request_exception=False)
    if who == "charlie":
        client.force_login(charlie)

    answer = client.get(url)

    policy = answer["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer["x-content-type-options"] == "nosniff"
    assert answer["x-frame-options"] == "DENY"
    assert answer["referrer-policy"] == "same-origin"
    assert answer["cross-origin-opener-policy"] == "same-origin"
    assert answer["cross-origin-resource-policy"] == "same-origin"
    assert "camera=()" in answer["permissions-policy"]
    if answer.status_code == 200 and url.startswith("/static/"):
        assert "max-age" in answer["cache-control"]
    else:
        assert "no-store" in answer["cache-control"]


@pytest.mark.urls(__name__)
def test_asvs_13_4_1_an_error_says_nothing_of_its_cause() -> None:
    answer = Client(raise_request_exception=False).get("/broken/")

    assert answer.status_code == 500
    assert b"RuntimeError" not in answer.content
    assert b"Traceback" not in answer.content


def test_asvs_13_4_4_trace_is_not_answered(client: Client) -> None:
    assert client.trace("/login/").status_code == 405
    assert client.get("/", HTTP_X_HTTP_METHOD_OVERRIDE="DELETE").status_code == 302


def test_htmx_is_led_to_the_login_and_back_to_its_page(client: Client) -> None:
    answer = client.get("/", HTTP_HX_REQUEST="true", HTTP_HX_CURRENT_URL="http://testserver/docs/?a=1")

    assert answer.status_code == 401
    assert answer["hx-redirect"] == "/login/?next=%2Fdocs%2F%3Fa%3D1"
    assert answer.content == b""


def test_htmx_is_never_led_elsewhere(client: Client, alice: User) -> None:
    answer = client.get("/", HTTP_HX_REQUEST="true", HTTP_HX_CURRENT_URL="https://evil.example//evil.example/x")

    target = answer["hx-redirect"]
    assert target.startswith("/login/?next=")
    after = client.post(target, {"username": alice.email, "password": "correct horse battery staple"})
    assert after["location"] == "/"


def test_asvs_3_5_1_a_form_without_the_pages_token_is_refused(alice: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)

    plain = client.post("/logout/")
    by_htmx = client.post("/logout/", HTTP_HX_REQUEST="true")

    assert plain.status_code == by_htmx.status_code == 403
    assert "too old" in plain.content.decode()
    assert by_htmx["hx-refresh"] == "true"
    assert client.get("/").status_code == 200


def test_a_stranger_whose_form_htmx_sends_is_led_to_the_login() -> None:
    answer = Client(enforce_csrf_checks=True).post("/logout/", HTTP_HX_REQUEST="true")

    assert answer.status_code == 403
    assert answer["hx-redirect"].startswith("/login/")


def test_htmx_gets_its_token_from_the_page_and_scripts_cannot_read_the_cookie(alice: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    page = client.get("/").content.decode()
    token = page.partition('"X-CSRFToken": "')[2].partition('"')[0]

    answer = client.post("/logout/", HTTP_X_CSRFTOKEN=token, HTTP_HX_REQUEST="true")

    assert len(token) == 64
    assert client.cookies["csrftoken"]["httponly"]
    assert answer.status_code in (302, 401)


def test_asvs_3_5_1_a_foreign_origin_is_refused_even_with_a_token(alice: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    token = client.get("/").content.decode().partition('"X-CSRFToken": "')[2].partition('"')[0]

    for origin in ("http://evil.example", "http://testserver:8443", "null"):
        assert client.post("/logout/", HTTP_X_CSRFTOKEN=token, HTTP_ORIGIN=origin).status_code == 403
    assert client.post("/logout/", HTTP_X_CSRFTOKEN=token, HTTP_ORIGIN="http://testserver").status_code == 302
