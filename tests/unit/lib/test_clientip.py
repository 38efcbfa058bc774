"""Whose address counts: the peer's, and what a trusted proxy says of its own peer, never the client's words."""

from __future__ import annotations

import pytest
from django.test import RequestFactory

from gpucloud.lib.clientip import client_ip, network_of

PROXIES = ["10.0.0.0/8", "fd00::/8", "127.0.0.1/32"]


def ask(peer, forwarded=None):
    headers = {} if forwarded is None else {"x-forwarded-for": forwarded}
    return client_ip(RequestFactory().get("/", REMOTE_ADDR=peer, headers=headers))


@pytest.mark.parametrize("forwarded", [None, "1.2.3.4", "127.0.0.1", "10.0.0.1, 1.2.3.4", "garbage", ""])
def test_asvs_4_1_3_without_trusted_proxies_the_peer_counts_whatever_it_says(settings, forwarded):
    settings.TRUSTED_PROXIES = []

    assert ask("203.0.113.9", forwarded) == "203.0.113.9"


@pytest.mark.parametrize("forwarded", ["1.2.3.4", "10.0.0.1"])
def test_a_peer_that_is_no_trusted_proxy_speaks_for_itself_only(settings, forwarded):
    settings.TRUSTED_PROXIES = PROXIES

    assert ask("203.0.113.9", forwarded) == "203.0.113.9"


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("1.2.3.4, 203.0.113.9", "203.0.113.9"),
        ("127.0.0.1, 203.0.113.9", "203.0.113.9"),
        ("1.2.3.4, 203.0.113.9, 10.1.1.1", "203.0.113.9"),
        ("1.2.3.4,203.0.113.9 ,  10.1.1.1,fd00::7", "203.0.113.9"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("10.9.9.9, 10.1.1.1", "10.9.9.9"),
        ("203.0.113.9, garbage, 10.1.1.1", "10.1.1.1"),
        ("203.0.113.9:1234", "10.0.0.1"),
        ("", "10.0.0.1"),
        (None, "10.0.0.1"),
    ],
)
def test_asvs_15_3_4_behind_trusted_proxies_the_nearest_other_hop_counts(settings, forwarded, client):
    settings.TRUSTED_PROXIES = PROXIES

    assert ask("10.0.0.1", forwarded) == client


def test_an_ipv4_peer_of_an_ipv6_socket_is_known_by_its_address(settings):
    settings.TRUSTED_PROXIES = PROXIES

    assert ask("::ffff:10.0.0.1", "203.0.113.9") == "203.0.113.9"


def test_a_peer_without_an_address_is_unknown(settings):
    settings.TRUSTED_PROXIES = []

    assert ask("", "1.2.3.4") == "unknown"


def test_addresses_of_one_customer_count_together():
    assert network_of("203.0.113.9") == "203.0.113.9/32"
    assert network_of("203.0.113.9", ipv4_bits=24) == network_of("203.0.113.250", ipv4_bits=24) == "203.0.113.0/24"
    assert network_of("2001:db8:0:1::1") == network_of("2001:db8:0:1:ffff::2", ipv4_bits=24) == "2001:db8:0:1::/64"
    assert network_of("unknown") == "unknown"
