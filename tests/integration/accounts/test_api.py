"""`/api/auth`: registering, logging in and out, renewing tokens, and every way to get in without the right to."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from django.conf import settings
from django.contrib.admin.models import LogEntry
from rest_framework_simplejwt.tokens import AccessToken

from accounts.models import ApiLogin, User
from accounts.services import save_user
from tests.factories import PASSWORD, make_user

pytestmark = pytest.mark.django_db

OTHER_PASSWORD = "a wholly different passphrase"


def call(client, name, body=None, *, token="", **headers):
    if token:
        headers["authorization"] = f"Bearer {token}"
    return client.post(f"/api/auth/{name}", json.dumps(body or {}), content_type="application/json", headers=headers)


def me(client, token):
    return client.get("/api/auth/me", headers={"authorization": f"Bearer {token}"})


def log_in(client, email="alice@example.com", password=PASSWORD):
    response = call(client, "login", {"email": email, "password": password})
    assert response.status_code == 200, response.content
    return response.json()


def claims_of(token):
    return jwt.decode(token, options={"verify_signature": False})


def sign(claims, key=None, algorithm="HS256", **header):
    key = settings.JWT_KEY if key is None else key
    return jwt.encode(claims, key, algorithm=algorithm, headers=header or None)


def switch_off(user):
    user.is_active = False
    save_user(user=user)


def assert_refused(response, code="token_not_valid"):
    assert (response.status_code, response.json()["code"]) == (401, code), response.content
    assert response["WWW-Authenticate"].startswith("Bearer")


def test_an_account_is_registered_and_may_log_in(client):
    response = call(client, "register", {"email": "Dana@Example.com", "password": PASSWORD})

    user = User.objects.get(email="dana@example.com")
    assert response.status_code == 201
    assert response.json() == {"id": user.pk, "email": "dana@example.com"}
    assert log_in(client, "dana@example.com")
    assert LogEntry.objects.get(object_id=str(user.pk)).change_message == "Registered."


def test_a_login_gives_a_pair_of_tokens_and_tells_who_one_is(client, alice):
    tokens = log_in(client)

    assert set(tokens) == {"access", "refresh", "expires_in"}
    assert tokens["expires_in"] == 300
    answer = me(client, tokens["access"])
    alice.refresh_from_db()
    assert answer.json() == {
        "id": alice.pk,
        "email": "alice@example.com",
        "is_staff": False,
        "created_at": alice.created_at.isoformat().replace("+00:00", "Z"),
    }
    assert alice.last_login is not None


def test_asvs_9_2_3_tokens_say_who_made_them_for_whom_and_of_which_kind(client, alice):
    tokens = log_in(client)

    access, refresh = claims_of(tokens["access"]), claims_of(tokens["refresh"])
    assert jwt.get_unverified_header(tokens["access"]) == {"alg": "HS256", "typ": "JWT"}
    assert {access["iss"], refresh["iss"]} == {"gpucloud"}
    assert {access["aud"], refresh["aud"]} == {"gpucloud-api"}
    assert (access["token_type"], refresh["token_type"]) == ("access", "refresh")
    assert access["exp"] - access["iat"] == 300
    assert access["jti"] != refresh["jti"]


@pytest.mark.parametrize(
    "email", ["ALICE@example.com", " alice@example.com", "alice@EXAMPLE.com", "alice@example.com "]
)
def test_a_twin_of_an_address_makes_no_second_account(client, alice, email):
    response = call(client, "register", {"email": email, "password": OTHER_PASSWORD})

    assert response.status_code == 400
    assert response.json()["fields"] == {"email": ["This address is taken."]}
    assert User.objects.count() == 1


@pytest.mark.parametrize(
    "email", ["alice", "alice@", "@example.com", "a b@example.com", "ａlice@example.com", "", "x" * 300]
)
def test_what_is_no_address_is_refused(client, email):
    response = call(client, "register", {"email": email, "password": PASSWORD})

    assert response.status_code == 400
    assert list(response.json()["fields"]) == ["email"]
    assert not User.objects.exists()


@pytest.mark.parametrize(
    "password",
    ["short", "password123", "12345678901234", "dana@example.com", "", "x" * 4097, "with \0 in it, which is bad"],
)
def test_asvs_6_2_4_a_weak_password_is_refused(client, password):
    response = call(client, "register", {"email": "dana@example.com", "password": password})

    assert response.status_code == 400
    assert not User.objects.exists()


def test_asvs_6_2_9_a_long_password_counts_to_its_last_character(client):
    long = "correct horse battery staple " * 10
    call(client, "register", {"email": "dana@example.com", "password": long})

    assert call(client, "login", {"email": "dana@example.com", "password": long[:-1]}).status_code == 401
    assert call(client, "login", {"email": "dana@example.com", "password": long.strip()}).status_code == 401
    assert call(client, "login", {"email": "dana@example.com", "password": long}).status_code == 200


@pytest.mark.parametrize(
    "more",
    [{"is_staff": True}, {"is_superuser": True}, {"is_active": False}, {"id": 1}, {"created_at": "2020-01-01"}],
)
def test_asvs_15_3_3_nobody_makes_themselves_more_than_they_are(client, more):
    response = call(client, "register", {"email": "dana@example.com", "password": PASSWORD} | more)

    assert response.status_code == 400
    assert list(response.json()["fields"]) == list(more)
    assert not User.objects.exists()


def test_registration_can_be_closed(client, settings):
    settings.REGISTRATION = False

    response = call(client, "register", {"email": "dana@example.com", "password": PASSWORD})

    assert (response.status_code, response.json()["code"]) == (403, "registration_closed")
    assert not User.objects.exists()


def test_asvs_6_3_8_unknown_wrong_inactive_and_without_a_password_are_one_answer(client, alice):
    switch_off(make_user("bob"))
    make_user("dana", password=None)

    answers = [
        call(client, "login", {"email": email, "password": password})
        for email, password in (
            ("nobody@example.com", PASSWORD),
            ("not an address", PASSWORD),
            ("alice@example.com", "wrong"),
            ("alice@example.com", "x" * 4096),
            ("bob@example.com", PASSWORD),
            ("dana@example.com", PASSWORD),
        )
    ]

    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert len({str(sorted(answer.headers.items())) for answer in answers}) == 1


def test_every_refused_login_hashes_once(client, alice, monkeypatch):
    from django.contrib.auth.hashers import MD5PasswordHasher

    switch_off(make_user("bob"))
    make_user("dana", password=None)
    hashed = []
    encode = MD5PasswordHasher.encode
    monkeypatch.setattr(MD5PasswordHasher, "encode", lambda *args: hashed.append(1) or encode(*args))

    counts = []
    for email in ("nobody@example.com", "alice@example.com", "bob@example.com", "dana@example.com"):
        hashed.clear()
        call(client, "login", {"email": email, "password": "wrong"})
        counts.append(len(hashed))

    assert counts == [1, 1, 1, 1]


def test_a_refresh_token_is_good_for_one_new_pair(client, alice):
    first = log_in(client)

    second = call(client, "refresh", {"refresh": first["refresh"]})

    assert second.status_code == 200
    assert set(second.json()) == {"access", "refresh"}
    assert second.json()["refresh"] != first["refresh"]
    assert me(client, second.json()["access"]).status_code == 200
    assert claims_of(second.json()["refresh"])["exp"] == claims_of(first["refresh"])["exp"]


def test_a_replayed_refresh_token_ends_the_whole_family_and_no_other(client, alice):
    elsewhere = log_in(client)
    first = log_in(client)
    second = call(client, "refresh", {"refresh": first["refresh"]}).json()
    third = call(client, "refresh", {"refresh": second["refresh"]}).json()

    assert_refused(call(client, "refresh", {"refresh": first["refresh"]}))

    assert_refused(call(client, "refresh", {"refresh": third["refresh"]}))
    for tokens in (first, second, third):
        assert_refused(me(client, tokens["access"]))
    assert me(client, elsewhere["access"]).status_code == 200
    assert call(client, "refresh", {"refresh": elsewhere["refresh"]}).status_code == 200


def test_logging_out_ends_the_login_with_all_of_its_tokens(client, alice):
    first = log_in(client)
    second = call(client, "refresh", {"refresh": first["refresh"]}).json()

    assert call(client, "logout", {"refresh": second["refresh"]}).status_code == 204

    assert_refused(call(client, "refresh", {"refresh": second["refresh"]}))
    assert_refused(me(client, second["access"]))
    assert call(client, "logout", {"refresh": second["refresh"]}).status_code == 204
    assert not ApiLogin.objects.exists()


def test_logging_out_works_by_the_access_token_too(client, alice):
    tokens = log_in(client)

    assert call(client, "logout", token=tokens["access"]).status_code == 204

    assert_refused(call(client, "refresh", {"refresh": tokens["refresh"]}))
    assert_refused(call(client, "logout"), "not_authenticated")
    assert_refused(call(client, "logout", {"refresh": tokens["access"]}))


def test_asvs_7_4_3_a_new_password_ends_all_logins_but_the_one_that_set_it(client, alice):
    elsewhere = log_in(client)
    here = log_in(client)

    response = call(
        client, "password", {"old_password": PASSWORD, "new_password": OTHER_PASSWORD}, token=here["access"]
    )

    assert response.status_code == 200
    assert me(client, response.json()["access"]).status_code == 200
    for tokens in (elsewhere, here):
        assert_refused(me(client, tokens["access"]))
        assert_refused(call(client, "refresh", {"refresh": tokens["refresh"]}))
    assert call(client, "login", {"email": alice.email, "password": PASSWORD}).status_code == 401
    assert log_in(client, password=OTHER_PASSWORD)


def test_a_password_that_was_changed_elsewhere_ends_all_logins(client, alice):
    tokens = log_in(client)

    alice.set_password(OTHER_PASSWORD)
    alice.save()

    assert_refused(me(client, tokens["access"]))
    assert_refused(call(client, "refresh", {"refresh": tokens["refresh"]}))


@pytest.mark.parametrize(
    ("old", "new", "field"), [("wrong", OTHER_PASSWORD, "old_password"), (PASSWORD, "short", "new_password")]
)
def test_a_password_is_changed_by_the_old_one_to_a_good_one(client, alice, old, new, field):
    tokens = log_in(client)

    response = call(client, "password", {"old_password": old, "new_password": new}, token=tokens["access"])

    assert response.status_code == 400
    assert list(response.json()["fields"]) == [field]
    assert me(client, tokens["access"]).status_code == 200


def test_asvs_7_4_2_tokens_of_somebody_switched_off_are_refused(client, alice):
    tokens = log_in(client)
    User.objects.update(is_active=False)

    assert_refused(me(client, tokens["access"]))
    assert_refused(call(client, "refresh", {"refresh": tokens["refresh"]}))
    assert_refused(call(client, "login", {"email": alice.email, "password": PASSWORD}), "authentication_failed")


def test_somebody_switched_off_and_on_again_logs_in_anew(client, alice):
    tokens = log_in(client)
    switch_off(alice)

    alice.is_active = True
    save_user(user=alice)

    assert_refused(me(client, tokens["access"]))
    assert_refused(call(client, "refresh", {"refresh": tokens["refresh"]}))
    assert log_in(client)


def forge(kind, tokens):
    """Return an access token that must not be believed."""
    claims = claims_of(tokens["access"])
    match kind:
        case "alg none":
            return sign(claims, key="", algorithm="none")
        case "alg none by hand":
            head, payload, _ = tokens["access"].split(".")
            none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
            return f"{none}.{payload}."
        case "no signature":
            return tokens["access"].rpartition(".")[0] + "."
        case "another key":
            return sign(claims, key="x" * 48)
        case "the session key":
            return sign(claims, key=settings.SECRET_KEY)
        case "HS512 with our key":
            return sign(claims, algorithm="HS512")
        case "jku":
            return sign(claims, key="x" * 48, jku="http://127.0.0.1:1/keys", kid="1")
        case "jwk in the header":
            return sign(claims, key="x" * 48, jwk={"kty": "oct", "k": "eHh4"})
        case "kid that leads to a file":
            return (
                sign(claims, key="", kid="../../../../dev/null")
                if False
                else sign(claims, key="x" * 48, kid="/dev/null")
            )
        case "a refresh token":
            return tokens["refresh"]
        case "a kind of its own":
            return sign(claims | {"token_type": "sliding"})
        case "no kind":
            return sign({name: value for name, value in claims.items() if name != "token_type"})
        case "expired":
            return sign(claims | {"exp": int((datetime.now(UTC) - timedelta(seconds=1)).timestamp())})
        case "without an end":
            return sign({name: value for name, value in claims.items() if name != "exp"})
        case "of another issuer":
            return sign(claims | {"iss": "somebody"})
        case "for another audience":
            return sign(claims | {"aud": "somebody"})
        case "without an audience":
            return sign({name: value for name, value in claims.items() if name != "aud"})
        case "not yet":
            return sign(claims | {"nbf": int((datetime.now(UTC) + timedelta(hours=1)).timestamp())})
        case "another user":
            return sign(claims | {"user_id": "999999"})
        case "no user":
            return sign({name: value for name, value in claims.items() if name != "user_id"})
        case "an unknown login":
            return sign(claims | {"login": "0" * 32})
        case "no login":
            return str(AccessToken.for_user(User.objects.get(email="alice@example.com")))
        case "another password":
            return sign(claims | {"hash_password": "0" * 32})
        case "changed by a byte":
            head, payload, signature = tokens["access"].split(".")
            return f"{head}.{payload}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"
        case "no token at all":
            return "a.b.c"
        case "an API key":
            return "sk-0123456789"
        case "not ASCII":
            return "é.é.é"
        case "huge":
            return "a" * 7000
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "alg none", "alg none by hand", "no signature", "another key", "the session key", "HS512 with our key", "jku",
        "jwk in the header", "kid that leads to a file", "a refresh token", "a kind of its own", "no kind", "expired",
        "without an end", "of another issuer", "for another audience", "without an audience", "not yet", "another user",
        "no user", "an unknown login", "no login", "another password", "changed by a byte", "no token at all",
        "an API key", "not ASCII", "huge",
    ],
)  # fmt: skip
def test_asvs_9_1_1_a_forged_token_lets_nobody_in(client, alice, kind):
    tokens = log_in(client)

    answer = me(client, forge(kind, tokens))

    assert_refused(answer)
    assert answer.content == me(client, "a.b.c").content


@pytest.mark.parametrize("kind", ["access", "alg none", "another key", "expired", "garbage"])
def test_a_forged_refresh_token_renews_nothing(client, alice, kind):
    tokens = log_in(client)
    claims = claims_of(tokens["refresh"])
    forged = {
        "access": tokens["access"],
        "alg none": sign(claims, key="", algorithm="none"),
        "another key": sign(claims, key="x" * 48),
        "expired": sign(claims | {"exp": 1}),
        "garbage": "a.b.c",
    }[kind]

    assert_refused(call(client, "refresh", {"refresh": forged}))
    assert call(client, "refresh", {"refresh": tokens["refresh"]}).status_code == 200


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Bearer a b", "Basic YTpi", "bearer", "Token x", ""])
def test_a_header_that_is_no_bearer_token_lets_nobody_in(client, alice, header):
    response = client.get("/api/auth/me", headers={"authorization": header})

    assert response.status_code == 401


def test_a_session_of_the_pages_is_worth_nothing_here(client, alice):
    client.force_login(alice)

    assert_refused(client.get("/api/auth/me"), "not_authenticated")


def test_an_expired_token_in_the_header_does_not_keep_one_from_logging_in(client, alice):
    tokens = log_in(client)
    expired = forge("expired", tokens)

    for name, body in (
        ("refresh", {"refresh": tokens["refresh"]}),
        ("login", {"email": alice.email, "password": PASSWORD}),
    ):
        assert call(client, name, body, token=expired).status_code == 200


def test_logins_do_not_pile_up(client, alice, monkeypatch):
    monkeypatch.setattr("accounts.logins.MAX_LOGINS", 3)
    first = log_in(client)
    ApiLogin.objects.create(id="old", user=alice, newest="x", expires_at=datetime.now(UTC) - timedelta(seconds=1))

    rest = [log_in(client) for _ in range(3)]

    assert ApiLogin.objects.count() == 3
    assert_refused(me(client, first["access"]))
    assert {me(client, tokens["access"]).status_code for tokens in rest} == {200}


def test_neither_passwords_nor_tokens_nor_addresses_of_failed_logins_are_logged(client, alice, caplog):
    caplog.set_level("DEBUG")
    tokens = log_in(client)
    call(client, "login", {"email": "my-password-by-mistake@example.com", "password": "canary-password"})
    call(client, "refresh", {"refresh": tokens["refresh"]})
    call(client, "refresh", {"refresh": tokens["refresh"]})

    assert "audit failed login" in caplog.text
    assert "a used refresh token came back" in caplog.text
    for secret in ("canary-password", "my-password-by-mistake", PASSWORD, tokens["refresh"], tokens["access"]):
        assert secret not in caplog.text
