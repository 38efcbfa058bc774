"""Who is believed before Django is asked: proxies about their clients, and browsers' sockets.

`believe_proxies` takes the headers away by which a proxy speaks for its client, unless the peer is one
of `GPUCLOUD_TRUSTED_PROXIES`: from anybody else they are the client's own words. `own_pages_only` refuses
a browser's socket from any other origin than the page's own. Cookies do not tell ports apart, and
SameSite counts every port of a host as the same site, so hosts are compared with their ports.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from django.conf import settings
from django.http.request import split_domain_port, validate_host

from gpucloud.lib.asgi import Application, Receive, Scope, Send

FORWARDING = frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-forwarded-server",
        b"x-forwarded-ssl",
        b"x-real-ip",
    }
)


def believe_proxies(application: Application, networks: Sequence[str]) -> Application:
    """Return the application behind a check of who may say for whom a request is."""
    trusted = [ipaddress.ip_network(network) for network in networks]

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope.get("headers", ())
        if any(name in FORWARDING for name, _ in headers) and not _is_in(scope.get("client"), trusted):
            scope["headers"] = [header for header in headers if header[0] not in FORWARDING]
        await application(scope, receive, send)

    return door


def own_pages_only(application: Application) -> Application:
    """Return the application of a socket, closed to pages of other origins and to those without one."""

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        if is_own_page(scope["headers"]):
            await application(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.close", "code": 4403})

    return door


def is_own_page(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Tell whether a request comes from a page of the host that it goes to, or of the public URL."""
    origins = [value.decode("latin-1").lower() for name, value in headers if name == b"origin"]
    hosts = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
    if len(origins) != 1 or len(hosts) != 1:
        return False
    if origins[0] and origins[0] == settings.PUBLIC_URL:
        return True
    schemes = ("https",) if settings.PUBLIC_URL.startswith("https:") else ("http", "https")
    known = validate_host(split_domain_port(hosts[0])[0], settings.ALLOWED_HOSTS)
    return known and origins[0] in [f"{scheme}://{hosts[0]}" for scheme in schemes]


def _is_in(client: tuple[str, int] | None, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return False
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)
