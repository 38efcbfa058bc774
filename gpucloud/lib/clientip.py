"""Whose request is this, by address? For limits that count before anybody has said who they are.

The peer of the socket, unless it is one of `GPUCLOUD_TRUSTED_PROXIES`: then the nearest hop that is
not, read from the right of X-Forwarded-For. What stands left of that is the client's own words.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

from django.conf import settings
from django.http import HttpRequest

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNKNOWN = "unknown"
IPV6_BITS = 64
"""What one customer is given of IPv6, and may choose addresses from."""


def client_ip(request: HttpRequest) -> str:
    """Return the client's address; `UNKNOWN` for a peer without one, such as a Unix socket."""
    trusted = _networks(tuple(settings.TRUSTED_PROXIES))
    hops = [request.META.get("REMOTE_ADDR", ""), *reversed(request.META.get("HTTP_X_FORWARDED_FOR", "").split(","))]
    client = UNKNOWN
    for hop in hops:
        address = _parse(hop)
        if address is None:
            break  # nobody whom we trust writes such a thing: stay with the hop before
        client = str(address)
        if not any(address in network for network in trusted):
            break
    return client


def network_of(ip: str, *, ipv4_bits: int = 32) -> str:
    """Return the network that an address counts for: its own, or the /64 around one of IPv6."""
    address = _parse(ip)
    if address is None:
        return UNKNOWN
    bits = ipv4_bits if address.version == 4 else IPV6_BITS
    return str(ipaddress.ip_network(f"{address}/{bits}", strict=False))


def _parse(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.strip().partition("%")[0])
    except ValueError:
        return None
    if address.version == 6 and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@lru_cache(maxsize=8)
def _networks(texts: Sequence[str]) -> list[Network]:
    return [ipaddress.ip_network(text) for text in texts]
