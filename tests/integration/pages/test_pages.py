"""The pages over HTTP: who may see them, what they say, and what they never let through."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser

import pytest
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.test import Client, RequestFactory
from django.urls import reverse

from accounts.models import User
from accounts.selectors import tenant_of
from cluster.domain import ClusterSnapshot
from cluster.engine.board import SnapshotBoard
from cluster.panels import audience_for, get_snapshot
from gpucloud.docs import list_pages
from gpucloud.env import BASE_DIR
from tests.factories import PASSWORD
from tests.integration.pages.snapshots import snapshot, worker

pytestmark = pytest.mark.django_db


class Links(HTMLParser):
    """Collects where a page leads, and what a strict CSP would refuse."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.ids: set[str] = set()
        self.refused: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("a", "link") and values.get("href"):
            self.targets.add(values["href"] or "")
        if values.get("id"):
            self.ids.add(values["id"] or "")
        if tag == "style" or (tag == "script" and "src" not in values):
            self.refused.append(f"<{tag}>")
        self.refused += [name for name in values if name == "style" or re.match(r"on[a-z]|hx-on", name)]


def test_the_first_page_sends_strangers_to_the_login_and_back(client: Client, alice: User) -> None:
    response = client.get("/")
    assert response.status_code == 302
    assert response["location"] == "/login/?next=/"

    response = client.post("/login/?next=/docs/", {"username": "Alice@Example.com", "password": PASSWORD})

    assert response["location"] == "/docs/"
    assert client.get("/").status_code == 200


def test_the_login_never_leads_to_another_site(client: Client, alice: User) -> None:
    response = client.post("/login/?next=https://evil.example/", {"username": alice.email, "password": PASSWORD})

    assert response["location"] == "/"


@pytest.mark.parametrize("email", ["alice@example.com", "nobody@example.com"])
def test_a_wrong_login_is_told_in_one_sentence_that_betrays_no_account(client: Client, alice: User, email: str) -> None:
    response = client.post("/login/", {"username": email, "password": "wrong"})

    assert response.status_code == 200
    assert "No account has this email and password together." in response.content.decode()


def test_logging_out_takes_a_post(client: Client, alice: User) -> None:
    client.force_login(alice)

    assert client.get("/logout/").status_code == 405
    assert client.get("/").status_code == 200
    assert client.post("/logout/").status_code == 302
    assert client.get("/").status_code == 302


def test_private_pages_are_not_kept_by_caches(client: Client, alice: User) -> None:
    client.force_login(alice)

    assert "no-store" in client.get("/")["cache-control"]


def test_staff_learn_the_commands_and_others_whom_to_ask(client: Client, alice: User, charlie: User) -> None:
    client.force_login(alice)
    page = client.get("/").content.decode()
    assert "runworker" not in page
    assert "An operator of this cluster can start a worker." in page
    assert reverse("admin:index") not in page

    client.force_login(charlie)
    page = client.get("/").content.decode()
    assert "manage.py runworker --gateway http://testserver" in page
    assert reverse("admin:index") in page


def test_the_public_url_wins_over_the_hosts_name_in_commands(
    client: Client, charlie: User, settings: pytest.FixtureRequest
) -> None:
    settings.PUBLIC_URL = "https://gpu.example"  # type: ignore[attr-defined]
    client.force_login(charlie)

    assert "--gateway https://gpu.example" in client.get("/").content.decode()


def test_the_first_paint_shows_the_newest_snapshot_and_escapes_what_workers_say(client: Client, alice: User) -> None:
    board = SnapshotBoard()
    board.publish(snapshot(1, worker("w-1", name="<img src=x onerror=alert(1)>", models=("<b>m</b>",))))
    request = RequestFactory().get("/")
    request.user = alice
    request.scope = {"gpucloud.board": board}  # type: ignore[attr-defined]

    page = render_to_string("home.html", {}, request=request)

    assert 'id="worker-w-1"' in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert Links(page).refused == []


def test_without_a_running_cluster_the_snapshot_is_empty() -> None:
    assert get_snapshot(HttpRequest()) == ClusterSnapshot()
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    assert get_snapshot(ASGIRequest(scope, None)) == ClusterSnapshot()  # type: ignore[arg-type]


def test_panels_and_keys_spell_a_users_tenant_alike(alice: User) -> None:
    assert audience_for(alice, host="h", secure=False).tenant == tenant_of(alice.pk)


def every_page() -> list[str]:
    return [entry.url for group in list_pages() for entry in group.pages]


def test_the_documentation_is_open_and_none_of_its_links_is_dead(client: Client) -> None:
    assert {"/docs/", "/docs/architecture/", "/docs/glossary/"} <= set(every_page())
    for url in every_page():
        response = client.get(url)
        page = Links(response.content.decode())
        assert response.status_code == 200, url
        assert page.refused == [], url
        for target in page.targets:
            path, _, anchor = target.partition("#")
            if path.startswith(("http:", "https:", "mailto:", "/static/")):
                continue
            answer = client.get(path or url)
            assert answer.status_code in (200, 302), f"{url} links to {target}"
            if anchor:
                assert anchor in Links(answer.content.decode()).ids, f"{url} links to {target}"


@pytest.mark.parametrize(
    "name",
    [
        "../base",
        "..%2f..%2fmanage",
        "%2e%2e/%2e%2e/README",
        "/etc/passwd",
        "index.md",
        "nowhere",
        "decisions",
        "a\x00b",
    ],
)
def test_no_name_leads_out_of_the_documentation(client: Client, name: str) -> None:
    assert client.get(f"/docs/{name}/").status_code == 404


def test_pages_carry_a_strict_policy_and_nothing_that_it_would_refuse(client: Client, alice: User) -> None:
    for url in ("/login/", "/docs/", "/nowhere/"):
        response = client.get(url)
        assert "default-src 'none'" in response["content-security-policy"]
        assert "unsafe" not in response["content-security-policy"]
        assert Links(response.content.decode()).refused == []
        assert response["x-frame-options"] == "DENY"
        assert response["x-content-type-options"] == "nosniff"


def test_the_error_page_needs_neither_a_request_nor_a_user() -> None:
    assert "Something broke on our side" in render_to_string("500.html")


def test_a_form_that_is_too_old_gets_a_page_of_ours(alice: User) -> None:
    response = Client(enforce_csrf_checks=True).post("/login/", {"username": "a", "password": "b"})

    assert response.status_code == 403
    assert "This form is too old to be sent" in response.content.decode()


def test_vendored_files_are_what_their_list_says() -> None:
    vendor = BASE_DIR / "static" / "vendor"
    listed = (vendor / "README").read_text()

    for path in vendor.glob("*.js"):
        assert path.name in listed
        assert hashlib.sha256(path.read_bytes()).hexdigest() in listed
        assert "sourceMappingURL" not in path.read_text()
