"""A server that others can reach does not start with secrets that anybody could know."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from gpucloud.checks import MAY_BE_MADE_HERE, SECRETS, check_public_url, is_public, list_weak_secrets
from gpucloud.env import BASE_DIR
from tests.live import LiveServer

GOOD = {name: secrets.token_urlsafe(48) for name in SECRETS}
PRODUCTION = {
    **GOOD,
    "GPUCLOUD_PUBLIC_URL": "https://gpu.example",
    "GPUCLOUD_TRUSTED_PROXIES": "127.0.0.1",
}
"""What `templates/docs/operations.md` tells operators to set."""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Any:
    """Set secrets as an operator would."""

    def set_secrets(**values: str) -> None:
        for name, setting in SECRETS.items():
            value = {**GOOD, **values}[name]
            monkeypatch.setenv(name, value)
            setattr(settings, setting, value or "x" * 40)

    return set_secrets


def test_good_secrets_are_not_complained_about(environment: Any) -> None:
    environment()

    assert list_weak_secrets() == []


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("", "is not set"),
        ("short", "has 5 bytes"),
        ("ü" * 15, "has 30 bytes"),
        ("django-insecure-" + "abcdefghijklmnopqrstuvwxyz012345", "is a value that everybody knows"),
        ("please-changeme-please-0123456789-abcdefgh", "is a value that everybody knows"),
        ("abc" * 20, "has fewer than 12 different characters: it is not random"),
    ],
)
def test_asvs_13_3_1_each_weak_secret_gets_a_sentence_with_its_name_and_a_remedy(
    environment: Any, name: str, value: str, complaint: str
) -> None:
    environment(**{name: value})

    if not value and name == "GPUCLOUD_WORKER_TOKEN":
        assert list_weak_secrets() == []  # made here it is random, and for workers of this machine
        return
    (sentence,) = list_weak_secrets()
    assert sentence.startswith(f"{name} {complaint}")
    assert "secrets.token_urlsafe(48)" in sentence
    assert not value or value not in sentence


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("127.0.0.1", False),
        ("127.1.2.3", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("10.0.0.5", True),
        ("gpu.example", True),
        ("127.0.0.1.evil.example", True),
    ],
)
def test_what_is_not_loopback_is_public(settings: Any, host: str, public: bool) -> None:
    settings.PUBLIC_URL = ""
    assert is_public(host) is public

    settings.PUBLIC_URL = "https://gpu.example"
    assert is_public(host)


def test_an_https_url_without_a_trusted_proxy_is_warned_about(settings: Any) -> None:
    settings.PUBLIC_URL, settings.TRUSTED_PROXIES = "https://gpu.example", []
    assert [warning.id for warning in check_public_url()] == ["gpucloud.W002"]

    settings.TRUSTED_PROXIES = ["127.0.0.1/32"]
    assert list(check_public_url()) == []


def test_operators_are_told_to_set_what_the_tests_set() -> None:
    page = (BASE_DIR / "templates" / "docs" / "operations.md").read_text()

    for name in set(PRODUCTION) - MAY_BE_MADE_HERE:
        assert f"{name}=" in page


def test_serve_refuses_a_public_bind_with_the_checkouts_own_secrets(tmp_path: Path) -> None:
    server = LiveServer(tmp_path)

    refused = server.run_manage("serve", "--host", "0.0.0.0", "--port", str(server.port))

    assert refused.returncode == 1
    for name in ("GPUCLOUD_SECRET_KEY", "GPUCLOUD_KEY_PEPPER", "GPUCLOUD_JWT_KEY"):
        assert f"- {name} is not set" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_key_for_tokens_that_can_be_guessed_is_refused_by_every_command(tmp_path: Path) -> None:
    refused = LiveServer(tmp_path).run_manage("check", GPUCLOUD_JWT_KEY="x" * 31)

    assert refused.returncode == 1
    assert "GPUCLOUD_JWT_KEY has 31 bytes: tokens need a random key of at least 32." in refused.stderr


def test_without_its_docs_the_api_answers_404_in_their_place(tmp_path: Path) -> None:
    asked = (
        "from django.test import Client; client = Client(headers={'host': 'localhost'});"
        "print([client.get(path).status_code for path in ('/api/schema', '/api/docs', '/api/auth/me')])"
    )

    assert (
        LiveServer(tmp_path)
        .run_manage("shell", "-c", asked, GPUCLOUD_API_DOCS="0")
        .stdout.strip()
        .endswith("[404, 404, 401]")
    )


def test_asvs_13_4_2_production_settings_pass_djangos_own_deployment_checks(tmp_path: Path) -> None:
    server = LiveServer(tmp_path)

    checked = server.run_manage("check", "--deploy", "--fail-level", "WARNING", **PRODUCTION)

    assert checked.returncode == 0, checked.stderr
    assert "no issues" in checked.stdout + checked.stderr
