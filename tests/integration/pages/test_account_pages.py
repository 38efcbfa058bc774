"""The pages about oneself: registering, logging in, changing the password. Without JavaScript, all of it."""

from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from accounts.logins import start_login
from accounts.models import User
from tests.factories import PASSWORD

pytestmark = pytest.mark.django_db

NEW = "a wholly different passphrase"


def register(client: Client, **more: str):
    form = {"email": "Dana@Example.com", "password": PASSWORD, "password_again": PASSWORD} | more
    return client.post("/register/", form)


def change(client: Client, **more: str):
    form = {"old_password": PASSWORD, "new_password": NEW, "new_password_again": NEW} | more
    return client.post("/password/", form)


def test_whoever_registers_is_logged_in(client):
    assert "Make an account" in client.get("/register/").content.decode()

    response = register(client)

    assert response["location"] == "/"
    assert client.get("/").status_code == 200
    user = User.objects.get(email="dana@example.com")
    assert (user.is_staff, user.is_superuser) == (False, False)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"email": "dana"}, "should look like you@example.com"),
        ({"email": "alice@example.com"}, "This address is taken."),
        ({"email": "ALICE@example.com"}, "This address is taken."),
        ({"password": "short", "password_again": "short"}, "too short"),
        ({"password": "password123", "password_again": "password123"}, "too common"),
        ({"password_again": "something else"}, "This is not the same password."),
        ({"password": ""}, "Choose a password."),
    ],
)
def test_what_is_wrong_is_said_beside_its_field_and_no_password_comes_back(client, alice, more, sentence):
    response = register(client, **more)

    page = response.content.decode()
    assert response.status_code == 200
    assert sentence in page
    assert PASSWORD not in page
    assert User.objects.count() == 1


def test_nobody_registers_as_staff(client):
    register(client, is_staff="1", is_superuser="1", is_active="0")

    user = User.objects.get()
    assert (user.is_staff, user.is_superuser, user.is_active) == (False, False, True)


def test_where_registration_is_closed_there_is_no_page_and_no_link(client, settings):
    assert 'href="/register/"' in client.get("/login/").content.decode()
    settings.REGISTRATION = False

    assert client.get("/register/").status_code == 404
    assert register(client).status_code == 404
    assert "register" not in client.get("/login/").content.decode().lower()
    assert not User.objects.exists()


def test_whoever_is_logged_in_has_no_use_for_the_page(client, alice):
    client.force_login(alice)

    assert client.get("/register/")["location"] == "/"


@pytest.mark.parametrize("path", ["/login/", "/register/"])
def test_asvs_7_2_4_a_session_gets_another_id_when_somebody_logs_in(client, alice, path):
    session = client.session
    session["before"] = True
    session.save()
    before = client.cookies["sessionid"].value

    client.post(path, {"username": alice.email, "password": PASSWORD})
    register(client)

    assert client.cookies["sessionid"].value != before


def test_asvs_7_4_3_a_new_password_keeps_this_session_and_ends_all_others(client, alice):
    elsewhere = Client()
    for browser in (client, elsewhere):
        browser.post("/login/", {"username": alice.email, "password": PASSWORD})
    before = client.cookies["sessionid"].value
    token = start_login(user=alice)

    response = change(client)

    assert response["location"] == "/"
    page = client.get("/")
    assert page.status_code == 200
    assert "Your password is changed." in page.content.decode()
    assert client.cookies["sessionid"].value != before
    assert elsewhere.get("/")["location"].startswith("/login/")
    assert client.get("/api/auth/me", headers={"authorization": f"Bearer {token.access}"}).status_code == 401
    assert Client().post("/login/", {"username": alice.email, "password": NEW})["location"] == "/"
    assert LogEntry.objects.get().change_message == "Password changed."


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"old_password": "wrong"}, "This is not your password."),
        ({"new_password": "short", "new_password_again": "short"}, "too short"),
        ({"new_password_again": "another"}, "This is not the same password."),
    ],
)
def test_a_password_is_not_changed_by_a_wrong_form(client, alice, more, sentence):
    client.force_login(alice)

    response = change(client, **more)

    assert sentence in response.content.decode()
    alice.refresh_from_db()
    assert alice.check_password(PASSWORD)
    assert client.get("/").status_code == 200


def test_a_stranger_has_no_password_to_change(client):
    assert client.get("/password/")["location"] == "/login/?next=/password/"
    assert change(client)["location"] == "/login/?next=/password/"


def test_the_admin_sends_those_who_change_their_password_to_the_same_page(client, charlie):
    client.force_login(charlie)

    assert client.get("/admin/password_change/")["location"] == "/password/"


def test_the_admin_lets_no_ordinary_user_in_and_says_the_same_as_for_a_wrong_password(client, alice, charlie):
    def ask(email, password):
        form = {"username": email, "password": password, "next": "/admin/"}
        return Client().post("/admin/login/", form).content.decode().partition("errornote")[2][:200]

    assert ask(alice.email, PASSWORD) == ask(charlie.email, "wrong") != ""
    response = client.post("/admin/login/?next=/admin/", {"username": charlie.email, "password": PASSWORD})
    assert response["location"] == "/admin/"


def test_forms_need_their_token(alice):
    strict = Client(enforce_csrf_checks=True)

    for path in ("/login/", "/register/"):
        assert strict.post(path, {"username": alice.email, "password": PASSWORD}).status_code == 403
    strict.force_login(alice)
    assert change(strict).status_code == 403


def test_the_login_of_the_api_is_not_one_of_the_pages(client, alice):
    pair = start_login(user=alice)

    assert client.get("/", headers={"authorization": f"Bearer {pair.access}"}).status_code == 302
