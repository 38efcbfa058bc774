"""How often anybody may try: per account and per address, on every way in, before anything is hashed."""

from __future__ import annotations

import json

import pytest
from django.core.cache import caches
from django.test import Client

from accounts import passwords
from accounts.logins import start_login
from accounts.models import User
from tests.factories import PASSWORD, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def limits(settings):
    """Small limits over long windows, so that no edge of one falls into a test."""
    settings.LOGIN_FAILURES_PER_ACCOUNT = ["10/d"]
    settings.LOGIN_FAILURES_PER_IP = ["12/d"]
    settings.LOGINS_PER_IP = ["20/d"]
    settings.REGISTRATIONS_PER_IP = ["5/d"]
    settings.REFRESHES_PER_IP = ["5/d"]
    caches["throttle"].clear()
    yield settings
    caches["throttle"].clear()


def post(path, body, ip="203.0.113.1", **headers):
    return Client().post(path, json.dumps(body), content_type="application/json", REMOTE_ADDR=ip, headers=headers)


def by_rest(email, password, ip="203.0.113.1", **headers):
    return post("/api/auth/login", {"email": email, "password": password}, ip, **headers)


def by_page(email, password, ip="203.0.113.1", path="/login/"):
    return Client().post(path, {"username": email, "password": password}, REMOTE_ADDR=ip)


def by_admin(email, password, ip="203.0.113.1"):
    return by_page(email, password, ip, "/admin/login/?next=/admin/")


@pytest.fixture
def hashes(monkeypatch):
    """A list that grows with each look at a password."""
    seen = []
    authenticate = passwords.authenticate
    monkeypatch.setattr(passwords, "authenticate", lambda **given: seen.append(given) or authenticate(**given))
    return seen


@pytest.mark.parametrize("way", [by_rest, by_page, by_admin])
def test_asvs_6_3_1_the_eleventh_bad_login_of_an_account_is_refused_from_wherever_it_comes(charlie, hashes, way):
    answers = [way(charlie.email, "wrong", f"203.0.{number}.7").status_code for number in range(11)]

    assert answers == [401 if way is by_rest else 200] * 10 + [429]
    assert len(hashes) == 10


@pytest.mark.parametrize("way", [by_rest, by_page, by_admin])
@pytest.mark.parametrize("other_way", [by_rest, by_page, by_admin])
def test_the_right_password_during_a_lock_gets_the_same_answer_and_all_ways_share_it(charlie, limits, way, other_way):
    limits.LOGIN_FAILURES_PER_ACCOUNT = ["2/d"]
    for _ in range(2):
        way(charlie.email, "wrong")

    right, wrong = other_way(charlie.email, PASSWORD), other_way(charlie.email, "wrong")

    assert (right.status_code, wrong.status_code) == (429, 429)
    assert int(right["Retry-After"]) >= 1
    assert "sessionid" not in right.cookies
    if other_way is by_rest:
        assert right.json()["code"] == wrong.json()["code"] == "throttled"
        assert set(right.json()) == set(wrong.json())


def test_an_account_is_the_same_in_any_spelling(alice):
    spellings = ["alice@example.com", "ALICE@example.com", " Alice@Example.com", "alice@EXAMPLE.COM "]

    answers = [by_rest(spellings[number % 4], "wrong").status_code for number in range(11)]

    assert answers[-1] == 429


def test_an_unknown_account_is_locked_like_a_known_one(alice):
    known = [by_rest(alice.email, "wrong", f"203.0.{n}.1").content for n in range(12)]
    unknown = [by_rest("nobody@example.com", "wrong", f"203.0.{n}.1").content for n in range(12)]

    assert known[:10] == unknown[:10]
    assert [json.loads(body)["code"] for body in known[10:]] == [json.loads(body)["code"] for body in unknown[10:]]


def test_one_address_may_not_try_many_accounts(alice, hashes):
    answers = [by_rest(f"user{number}@example.com", "wrong").status_code for number in range(13)]

    assert answers == [401] * 12 + [429]
    assert by_rest(alice.email, PASSWORD).status_code == 429
    assert by_rest(alice.email, PASSWORD, ip="203.0.113.2").status_code == 200
    assert len(hashes) == 13


def test_addresses_of_one_ipv6_network_count_together(alice):
    for number in range(12):
        by_rest(f"user{number}@example.com", "wrong", f"2001:db8:0:1::{number:x}")

    assert by_rest(alice.email, PASSWORD, "2001:db8:0:1:ffff::1").status_code == 429
    assert by_rest(alice.email, PASSWORD, "2001:db8:0:2::1").status_code == 200


def test_asvs_4_1_3_a_header_does_not_change_the_address(alice):
    for number in range(12):
        by_rest(f"user{number}@example.com", "wrong", x_forwarded_for=f"198.51.100.{number}")

    assert by_rest(alice.email, PASSWORD, x_forwarded_for="198.51.100.200").status_code == 429


def test_behind_a_trusted_proxy_its_clients_are_counted(alice, settings):
    settings.TRUSTED_PROXIES = ["203.0.113.0/24"]
    for number in range(13):
        by_rest(f"user{number}@example.com", "wrong", x_forwarded_for=f"192.0.2.{number}, 198.51.100.1")

    assert by_rest(alice.email, PASSWORD, x_forwarded_for="198.51.100.1").status_code == 429
    assert by_rest(alice.email, PASSWORD, x_forwarded_for="198.51.100.2").status_code == 200


def test_good_logins_do_not_lock_an_account(alice):
    answers = {by_rest(alice.email, PASSWORD).status_code for _ in range(15)}

    assert answers == {200}


def test_even_good_logins_have_an_end_for_each_costs_a_hash(alice, hashes):
    answers = [by_rest(alice.email, PASSWORD).status_code for _ in range(21)]

    assert answers == [200] * 20 + [429]
    assert len(hashes) == 20


@pytest.mark.parametrize("way", ["rest", "page"])
def test_the_old_password_cannot_be_guessed_by_changing_it(alice, limits, way):
    limits.LOGIN_FAILURES_PER_ACCOUNT = ["3/d"]

    def change(old):
        client = Client()
        if way == "page":
            client.force_login(alice)
            again = {"new_password": "another passphrase", "new_password_again": "another passphrase"}
            return client.post("/password/", {"old_password": old} | again)
        body = {"old_password": old, "new_password": "another passphrase"}
        return post("/api/auth/password", body, authorization=f"Bearer {token}")

    token = start_login(user=alice).access

    answers = [change("wrong").status_code for _ in range(4)]

    assert answers == [400 if way == "rest" else 200] * 3 + [429]
    assert change(PASSWORD).status_code == 429
    assert by_rest(alice.email, PASSWORD).status_code == 429


@pytest.mark.parametrize("way", ["rest", "page"])
def test_api6_one_network_may_not_register_many_accounts(way):
    def register(number):
        body = {"email": f"user{number}@example.com", "password": PASSWORD}
        ip = f"203.0.113.{number}"
        if way == "rest":
            return post("/api/auth/register", body, ip)
        return Client().post("/register/", body | {"password_again": PASSWORD}, REMOTE_ADDR=ip)

    answers = [register(number).status_code for number in range(7)]

    assert answers == [201 if way == "rest" else 302] * 5 + [429] * 2
    assert User.objects.count() == 5


def test_refresh_tokens_cannot_be_tried_for_ever():
    answers = [post("/api/auth/refresh", {"refresh": "a.b.c"}).status_code for _ in range(6)]

    assert answers == [401] * 5 + [429]


def test_the_api_is_throttled_by_address_before_it_looks_at_a_token(alice, settings):
    settings.API_CALLS_PER_IP = ["5/d"]
    good = {"authorization": f"Bearer {start_login(user=alice).access}"}
    answers = [Client().get("/api/auth/me", headers={"authorization": "Bearer a.b.c"}) for _ in range(6)]

    assert [answer.status_code for answer in answers] == [401] * 5 + [429]
    refused = Client().get("/api/auth/me", headers=good)
    assert (refused.status_code, refused.json()["code"]) == (429, "throttled")
    assert int(refused["Retry-After"]) >= 1
    assert Client().get("/api/auth/me", headers=good, REMOTE_ADDR="203.0.113.5").status_code == 200


def test_the_api_is_throttled_by_user_from_wherever_it_is_called(alice, settings):
    settings.API_CALLS_PER_USER = ["5/d"]
    tokens = {user.email: start_login(user=user).access for user in (alice, make_user("bob"))}

    def ask(user, number):
        headers = {"authorization": f"Bearer {tokens[user]}"}
        return Client().get("/api/auth/me", headers=headers, REMOTE_ADDR=f"203.0.113.{number}").status_code

    assert [ask("alice@example.com", number) for number in range(6)] == [200] * 5 + [429]
    assert ask("bob@example.com", 1) == 200
