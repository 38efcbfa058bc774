"""Who is believed: proxies about their clients, and browsers' sockets."""

from __future__ import annotations

from typing import Any

import pytest

from gpucloud.doors import FORWARDING, believe_proxies, is_own_page

LIES = [(name, b"https") for name in sorted(FORWARDING)]


async def headers_behind(client: Any, *networks: str) -> list[tuple[bytes, bytes]]:
    seen: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])

    scope = {"type": "http", "client": client, "headers": [(b"host", b"x"), *LIES]}
    await believe_proxies(inner, networks)(scope, None, None)  # type: ignore[arg-type]
    return seen


@pytest.mark.parametrize("client", [("127.0.0.1", 1), ("203.0.113.7", 1), ("::1", 1), None, ("", 0), ("a.sock", 0)])
async def test_without_proxies_nobody_speaks_for_another(client: Any) -> None:
    assert await headers_behind(client) == [(b"host", b"x")]


@pytest.mark.parametrize("client", [("10.1.2.3", 1), ("::ffff:10.1.2.3", 1), ("::1", 1)])
async def test_asvs_4_1_3_only_a_trusted_proxy_speaks_for_its_clients(client: Any) -> None:
    assert await headers_behind(client, "10.0.0.0/8", "::1/128") == [(b"host", b"x"), *LIES]
    assert await headers_behind(("11.1.2.3", 1), "10.0.0.0/8", "::1/128") == [(b"host", b"x")]


@pytest.mark.parametrize(
    ("origin", "host", "public_url", "own"),
    [
        ("http://localhost:8000", "localhost:8000", "", True),
        ("https://localhost", "localhost", "", True),
        ("http://localhost:3000", "localhost:8000", "", False),
        ("http://evil.example", "localhost:8000", "", False),
        ("http://evil.example", "evil.example", "", False),
        ("null", "localhost:8000", "", False),
        ("", "localhost:8000", "", False),
        (None, "localhost:8000", "", False),
        ("https://gpu.example", "10.0.0.5:8000", "https://gpu.example", True),
        ("http://localhost:8000", "localhost:8000", "https://gpu.example", False),
        ("file://localhost:8000", "localhost:8000", "", False),
    ],
)
def test_asvs_4_4_2_a_socket_is_for_pages_of_its_own_origin(
    settings: Any, origin: str | None, host: str, public_url: str, own: bool
) -> None:
    settings.ALLOWED_HOSTS = ["localhost"]
    settings.PUBLIC_URL = public_url
    headers = [(b"host", host.encode())]
    if origin is not None:
        headers.append((b"origin", origin.encode()))

    assert is_own_page(headers) is own
    assert not is_own_page([*headers, (b"origin", b"x"), (b"origin", b"http://localhost:8000")])
