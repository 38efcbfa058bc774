"""What is wrong with the settings of a server that others can reach: sentences, and Django's checks.

`serve` refuses to start on account of the errors, once it would listen to others than this machine or
a public URL is set, outside debug. `manage.py check --deploy` says the same, and what is merely unwise.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from gpucloud.env import is_from_environment

MIN_SECRET_BYTES = 32
MIN_DIFFERENT_CHARS = 12
HOW_TO = 'python3 -c "import secrets; print(secrets.token_urlsafe(48))"'
SECRETS = {
    "GPUCLOUD_SECRET_KEY": "SECRET_KEY",
    "GPUCLOUD_KEY_PEPPER": "KEY_PEPPER",
    "GPUCLOUD_JWT_KEY": "JWT_KEY",
    "GPUCLOUD_WORKER_TOKEN": "WORKER_TOKEN",
}
MAY_BE_MADE_HERE = {"GPUCLOUD_WORKER_TOKEN"}
"""Random, and only what workers on this machine show: tokens for others have rows of their own."""
WELL_KNOWN = ("django-insecure", "changeme", "change-me", "change_me", "your-secret", "insecure")


def is_public(host: str) -> bool:
    """Tell whether a server that listens on `host` is for others than this machine."""
    if settings.PUBLIC_URL:
        return True
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host != "localhost"


def list_weak_secrets() -> list[str]:
    """Return a sentence for each secret that a public server must not run with."""
    return [
        f"{name} {problem}. Set it to one of your own: {HOW_TO}"
        for name, setting in SECRETS.items()
        if (problem := _problem(name, str(getattr(settings, setting))))
    ]


@register(Tags.security, deploy=True)
def check_secrets(app_configs: Any = None, **kwargs: Any) -> Iterable[CheckMessage]:
    """Report secrets that a public server must not run with."""
    return [Error(sentence, id="gpucloud.E001") for sentence in list_weak_secrets()]


@register(Tags.security, deploy=True)
def check_public_url(app_configs: Any = None, **kwargs: Any) -> Iterable[CheckMessage]:
    """Report a public URL that cannot work, or that protects nobody."""
    if not settings.PUBLIC_URL:
        yield Warning(
            "GPUCLOUD_PUBLIC_URL is not set: without https://… there are no secure cookies, no HSTS and no redirect.",
            id="gpucloud.W001",
        )
    elif settings.PUBLIC_URL.startswith("https:") and not settings.TRUSTED_PROXIES:
        yield Warning(
            "GPUCLOUD_PUBLIC_URL is https, so a proxy ends TLS, but GPUCLOUD_TRUSTED_PROXIES is not set: its word that "
            "a request came by https is not believed, and every page redirects to itself. Set it to the proxy's "
            "address, such as 127.0.0.1.",
            id="gpucloud.W002",
        )


def _problem(name: str, value: str) -> str | None:
    if not is_from_environment(name):
        return None if name in MAY_BE_MADE_HERE else "is not set; what this checkout made for itself is for one machine"
    if len(value.encode()) < MIN_SECRET_BYTES:
        return f"has {len(value.encode())} bytes, and {MIN_SECRET_BYTES} is the least"
    if any(word in value.lower() for word in WELL_KNOWN):
        return "is a value that everybody knows"
    if len(set(value)) < MIN_DIFFERENT_CHARS:
        return f"has fewer than {MIN_DIFFERENT_CHARS} different characters: it is not random"
    return None
