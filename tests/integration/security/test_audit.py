"""Who did what, when, and what changed: written by every service that changes a row, and kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from inspect import isfunction
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils import timezone

from accounts import services as accounts
from accounts.models import User
from accounts.passwords import change_password, register_user
from accounts.selfservice import change_own_key, create_own_key
from cluster import services as cluster
from cluster.domain import Intent
from cluster.models import Worker
from gpucloud.lib.audit import Actor
from tests.factories import PASSWORD, make_key, make_user, make_worker_token

pytestmark = pytest.mark.django_db


def entries() -> list[tuple[int, str, str, str]]:
    """Return what is on record, the oldest first."""
    return [
        (entry.user_id, entry.content_type.model, entry.object_id, entry.change_message)
        for entry in LogEntry.objects.select_related("content_type").order_by("pk")
    ]


def joined_worker() -> Worker:
    now = timezone.now()
    more = {"gpu": "H100", "gpus": 1, "capacity": 1, "first_seen_at": now, "last_seen_at": now}
    Worker.objects.create(id="wrk_2", instance="i", intent=Intent.CORDONED.value, **more)
    return Worker.objects.create(id="wrk_1", instance="i", link="lnk_1", **more)


def changed(row: Any, **values: Any) -> Any:
    for name, value in values.items():
        setattr(row, name, value)
    return row


ACTS: dict[str, tuple[Callable[[Any, Actor], Any], str]] = {
    "create key": (lambda cast, actor: accounts.create_key(user=cast["bob"], actor=actor), "Created."),
    "change key": (
        lambda cast, actor: accounts.save_key(key=changed(cast["key"], requests_per_minute=7), actor=actor),
        "Changed: requests_per_minute: 60 → 7",
    ),
    "rotate key": (
        lambda cast, actor: accounts.rotate_key(key=cast["key"], overlap=timedelta(hours=1), actor=actor),
        "Rotated; the secret before works until ",
    ),
    "revoke key": (lambda cast, actor: accounts.revoke_key(key=cast["key"], actor=actor), "Revoked."),
    "switch user off": (
        lambda cast, actor: accounts.save_user(user=changed(cast["bob"], is_active=False), actor=actor),
        "Changed: is_active: True → False",
    ),
    "make staff": (
        lambda cast, actor: accounts.save_user(user=changed(cast["bob"], is_staff=True), actor=actor),
        "Changed: is_staff: False → True",
    ),
    "create worker token": (lambda cast, actor: cluster.create_worker_token(name="t", actor=actor), "Created."),
    "change worker token": (
        lambda cast, actor: cluster.save_worker_token(token=changed(cast["token"], models=["a*"]), actor=actor),
        "Changed: models: ['*'] → ['a*']",
    ),
    "revoke worker token": (
        lambda cast, actor: cluster.revoke_worker_token(token=cast["token"], actor=actor),
        "Revoked.",
    ),
    "uncordon": (
        lambda cast, actor: cluster.uncordon_worker(worker_id="wrk_2", actor=actor),
        "Uncordoned.",
    ),
    "cordon": (lambda cast, actor: cluster.cordon_worker(worker_id="wrk_1", actor=actor), "Cordoned."),
    "drain": (lambda cast, actor: cluster.drain_worker(worker_id="wrk_1", actor=actor), "Drained."),
    "evict": (lambda cast, actor: cluster.evict_worker(worker_id="wrk_1", actor=actor), "Evicted."),
}


@pytest.mark.parametrize("act", ACTS)
def test_asvs_16_3_3_each_act_is_on_record_once_with_its_author_and_values(
    charlie: User, caplog: pytest.LogCaptureFixture, act: str
) -> None:
    bob = make_user("bob")
    key, secret = make_key(bob)
    token, token_secret = make_worker_token()
    cast = {"bob": bob, "key": key, "token": token, "worker": joined_worker()}
    LogEntry.objects.all().delete()
    caplog.clear()
    does, words = ACTS[act]

    with caplog.at_level(logging.INFO, "gpucloud.audit"):
        result = does(cast, Actor(charlie.pk, charlie.email))

    ((author, _, _, said),) = entries()
    assert author == charlie.pk
    assert said.startswith(words)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "gpucloud.audit"]
    assert f"actor={charlie.pk}" in line
    secrets = [
        secret,
        token_secret,
        *[part for part in (result if isinstance(result, tuple) else [result]) if isinstance(part, str)],
    ]
    for each in secrets:
        assert each not in said + line
        assert each[-49:] not in said + line


UNAUDITED = {
    "accounts.services": {
        "actor_of",
        "create_user",  # by the manager, which puts it on record for commands
        "ensure_user",
        "mark_keys_used",  # not an act: when a key was last used
    },
    "accounts.selfservice": {"ceiling_for"},
    "accounts.passwords": {"check_password", "log_in"},  # in the log, as logins are
    "cluster.services": {"authenticate_worker", "record_worker_joined", "record_workers_seen"},
}
"""Public functions that change nothing that an operator or owner decides."""
AUDITED = {
    "accounts.services": {"create_key", "save_key", "rotate_key", "revoke_key", "save_user"},
    "accounts.selfservice": {"create_own_key", "change_own_key"},
    "accounts.passwords": {"register_user", "change_password", "change_password_and_log_in"},
    "cluster.services": {
        *("create_worker_token", "save_worker_token", "revoke_worker_token"),
        *("cordon_worker", "uncordon_worker", "drain_worker", "evict_worker"),
    },
}
"""Those that put what they do on record; each has its test here or beside its module."""


@pytest.mark.parametrize("module", AUDITED)
def test_a_new_service_says_whether_it_is_audited(module: str) -> None:
    here = vars(import_module(module)).values()
    public = {f.__name__ for f in here if isfunction(f) and f.__module__ == module and not f.__name__.startswith("_")}

    assert public == AUDITED[module] | UNAUDITED[module]


def test_what_a_command_creates_is_in_the_log_with_nobody_behind_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gpucloud.audit"):
        User.objects.create_superuser("root@example.com", PASSWORD)

    (line,) = [record.getMessage() for record in caplog.records if record.name == "gpucloud.audit"]
    assert "actor='command line'" in line
    assert "Created, as a superuser." in line
    assert entries() == []


def test_owners_acts_on_their_own_keys_and_passwords_are_on_record_as_theirs() -> None:
    bob = register_user(email="bob@example.com", password=PASSWORD, ip="127.0.0.1")
    key, _ = create_own_key(user=bob, terms={"name": "mine"})
    change_own_key(user=bob, key_id=key.pk, terms={"name": "still mine"})
    change_password(user=bob, old_password=PASSWORD, new_password=PASSWORD + "!", ip="127.0.0.1")

    assert [(author, said) for author, _, _, said in entries()] == [
        (bob.pk, "Registered."),
        (bob.pk, "Created."),
        (bob.pk, "Changed: name: mine → still mine"),
        (bob.pk, "Password changed."),
    ]


def test_what_changes_nothing_is_not_on_record(charlie: User) -> None:
    bob = make_user("bob")
    key, _ = make_key(bob)
    actor = Actor(charlie.pk, charlie.email)
    accounts.revoke_key(key=key, actor=actor)
    before = entries()

    accounts.revoke_key(key=key, actor=actor)
    accounts.save_key(key=key, actor=actor)
    accounts.save_user(user=bob, actor=actor)

    assert entries() == before


def test_the_admin_shows_the_history_of_a_row_and_to_all_staff_the_whole_list(client: Client, charlie: User) -> None:
    bob = make_user("bob")
    key, _ = make_key(bob, name="laptop")
    accounts.revoke_key(key=key, actor=Actor(charlie.pk, charlie.email))
    dora = make_user("dora", is_staff=True)

    client.force_login(charlie)
    history = client.get(reverse("admin:accounts_apikey_history", args=[key.pk])).content.decode()
    client.force_login(dora)
    whole = client.get(reverse("admin:admin_logentry_changelist")).content.decode()
    client.force_login(bob)
    stranger = client.get(reverse("admin:admin_logentry_changelist"))

    assert "Revoked." in history
    assert "charlie@example.com" in history
    assert "Revoked." in whole
    assert "laptop" in whole
    assert stranger.status_code == 302


def test_nobody_deletes_or_edits_people_keys_tokens_workers_the_ledger_or_the_audit(charlie: User) -> None:
    request = RequestFactory().get("/admin/")
    request.user = charlie
    ours = ("accounts", "cluster", "inference", "admin")

    registered = [model for model in admin.site._registry if model._meta.app_label in ours]
    assert len(registered) >= 10
    for model in registered:
        page = admin.site._registry[model]
        assert not page.has_delete_permission(request), model
        assert "delete_selected" not in page.get_actions(request), model
        if model._meta.app_label in ("inference", "admin"):
            assert not page.has_change_permission(request), model
            assert not page.has_add_permission(request), model


def test_asvs_8_2_3_no_superuser_is_made_in_the_admin(client: Client, charlie: User) -> None:
    bob = make_user("bob")
    client.force_login(charlie)

    client.post(
        reverse("admin:accounts_user_change", args=[bob.pk]),
        {"email": bob.email, "is_active": "on", "is_staff": "on", "is_superuser": "on"},
    )

    bob.refresh_from_db()
    assert bob.is_staff
    assert not bob.is_superuser


def test_rights_that_are_given_are_on_record(client: Client, charlie: User) -> None:
    bob = make_user("bob", is_staff=True)
    helpers = Group.objects.create(name="helpers")
    may = Permission.objects.get(codename="view_apikey")
    client.force_login(charlie)

    client.post(
        reverse("admin:accounts_user_change", args=[bob.pk]),
        {"email": bob.email, "is_active": "on", "is_staff": "on", "groups": [helpers.pk], "user_permissions": [may.pk]},
    )

    assert bob.groups.get() == helpers
    ((author, _, row, said),) = entries()
    assert (author, row) == (charlie.pk, str(bob.pk))
    assert said == "Changed: groups: none → helpers; permissions: none → view_apikey"


def test_groups_are_for_superusers(client: Client) -> None:
    dora = make_user("dora", is_staff=True)
    dora.user_permissions.add(*Permission.objects.filter(content_type__model="group"))
    group = Group.objects.create(name="helpers")
    client.force_login(dora)

    for url in (reverse("admin:auth_group_changelist"), reverse("admin:auth_group_change", args=[group.pk])):
        assert client.get(url).status_code == 403


def test_asvs_8_2_3_who_may_change_users_gets_no_further_by_that(client: Client, charlie: User) -> None:
    dora = make_user("dora", is_staff=True)
    dora.user_permissions.add(*Permission.objects.filter(codename__in=["view_user", "change_user"]))
    everything = list(Permission.objects.values_list("pk", flat=True))
    client.force_login(dora)

    client.post(
        reverse("admin:accounts_user_change", args=[dora.pk]),
        {
            "email": dora.email,
            "is_active": "on",
            "is_staff": "on",
            "is_superuser": "on",
            "user_permissions": everything,
        },
    )
    of_superuser = client.post(
        reverse("admin:accounts_user_change", args=[charlie.pk]), {"email": "mine@example.com", "is_active": "on"}
    )
    password = client.post(
        reverse("admin:auth_user_password_change", args=[charlie.pk]),
        {"password1": "mine-1234567", "password2": "mine-1234567"},
    )

    dora.refresh_from_db()
    assert not dora.is_superuser
    assert dora.user_permissions.count() == 2
    assert of_superuser.status_code == 403
    assert password.status_code == 403
