from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import connection
from django.utils import timezone

from cluster import services
from cluster.models import WorkerToken
from cluster.selectors import list_dead_token_ids, list_worker_tokens
from cluster.services import (
    WorkerCredential,
    authenticate_worker,
    create_worker_token,
    revoke_worker_token,
    save_worker_token,
)
from gpucloud.lib.secret import is_well_formed, make_secret

pytestmark = pytest.mark.django_db


def test_a_worker_is_known_by_its_token() -> None:
    token, secret = create_worker_token(name="rack 1", models=["llama-*", "mistral-7b"])

    assert is_well_formed("wk-", secret)
    assert authenticate_worker(secret) == WorkerCredential(token.pk, "rack 1", ("llama-*", "mistral-7b"))


def test_a_token_for_no_model_in_particular_serves_any() -> None:
    _, secret = create_worker_token()

    credential = authenticate_worker(secret)
    assert credential is not None and credential.models == ("*",)


def test_a_new_token_stores_no_secret() -> None:
    token, secret = create_worker_token()

    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM cluster_workertoken")
        stored = repr(cursor.fetchall())
    assert secret[11:40] not in stored
    assert secret not in repr(vars(token)) + str(token) + repr(authenticate_worker(secret))


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", ""), ("name", "a\x1bb"), ("models", [""]), ("models", ["*"] * 65), ("models", ["x" * 65])],
)
def test_a_token_with_a_bad_value_is_refused_with_the_field_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        create_worker_token(**{field: value})  # type: ignore[arg-type]

    assert set(caught.value.message_dict) == {field}
    assert not WorkerToken.objects.exists()


@pytest.mark.parametrize("models", ["llama-*", {}, [], [1], None])
def test_models_that_are_no_list_of_globs_are_refused(models: object) -> None:
    token, _ = create_worker_token()
    token.models = models

    with pytest.raises(ValidationError):
        save_worker_token(token=token)


def test_a_revoked_token_is_refused() -> None:
    token, secret = create_worker_token()

    assert revoke_worker_token(token=token)
    assert not revoke_worker_token(token=token)

    assert authenticate_worker(secret) is None


def test_an_expired_token_is_refused() -> None:
    _, secret = create_worker_token(expires_at=timezone.now())

    assert authenticate_worker(secret) is None


def test_an_api_key_does_not_let_a_worker_in() -> None:
    assert authenticate_worker(make_secret("sk-")) is None


@pytest.mark.parametrize("stray", ["", "wk-", "é" * 60, "\udc80" * 60, "wk-" + "0" * 57, "x" * 10**6])
def test_a_malformed_token_is_refused_without_a_query(stray: str, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert authenticate_worker(stray) is None


def test_the_prefix_of_a_token_with_another_secret_is_refused() -> None:
    token, _ = create_worker_token()
    token.describe(make_secret("wk-"), b"")
    _, secret = create_worker_token()
    WorkerToken.objects.filter(prefix=secret[:11]).update(digest=token.digest)

    assert authenticate_worker(secret) is None


def test_after_a_rotation_of_the_pepper_no_token_is_known(settings: Any) -> None:
    _, secret = create_worker_token()

    settings.KEY_PEPPER = "a new pepper"

    assert authenticate_worker(secret) is None


def test_a_digest_is_compared_also_when_the_prefix_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def spy(left: bytes, right: bytes) -> bool:
        compared.append(right)
        return left == right

    monkeypatch.setattr(services, "compare_digest", spy)
    assert authenticate_worker(make_secret("wk-")) is None

    assert compared[-1] == bytes(32)


def test_the_token_of_the_environment_serves_any_model(settings: Any) -> None:
    settings.WORKER_TOKEN = "from the environment"

    assert authenticate_worker("from the environment") == WorkerCredential(None, "environment", ("*",))
    assert authenticate_worker("from the environmen") is None


def test_without_a_token_in_the_environment_an_empty_one_is_refused(settings: Any) -> None:
    settings.WORKER_TOKEN = ""

    assert authenticate_worker("") is None


def test_when_a_token_was_last_used_is_written_at_most_once_a_minute() -> None:
    token, secret = create_worker_token()
    now = timezone.now()

    authenticate_worker(secret)
    token.refresh_from_db()
    assert token.last_used_at is not None and token.last_used_at >= now

    for ago, written in ((timedelta(seconds=50), False), (timedelta(seconds=61), True)):
        WorkerToken.objects.update(last_used_at=now - ago)
        authenticate_worker(secret)
        token.refresh_from_db()
        assert (token.last_used_at >= now) is written


def test_dead_tokens_are_those_revoked_expired_or_gone() -> None:
    now = timezone.now()
    live, _ = create_worker_token()
    later, _ = create_worker_token(expires_at=now + timedelta(hours=1))
    expired, _ = create_worker_token(expires_at=now)
    revoked, _ = create_worker_token()
    revoke_worker_token(token=revoked)
    unasked, _ = create_worker_token(expires_at=now)

    assert list_dead_token_ids({live.pk, later.pk, expired.pk, revoked.pk, 10**6}) == {expired.pk, revoked.pk, 10**6}
    assert list_worker_tokens().first() == unasked


def test_asking_about_no_tokens_costs_no_query(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert list_dead_token_ids(set()) == set()
