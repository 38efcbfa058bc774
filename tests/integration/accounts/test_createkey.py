from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from accounts.keys import is_well_formed
from accounts.models import ApiKey, User

pytestmark = pytest.mark.django_db


def createkey(*args: Any) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command("createkey", *args, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_the_key_alone_is_on_stdout() -> None:
    out, err = createkey("--user", "dora@example.com")

    secret = out.removesuffix("\n")
    assert is_well_formed(secret)
    assert secret not in err
    assert ApiKey.objects.get().prefix == secret[:11]


def test_an_absent_user_is_created_without_a_password() -> None:
    _, err = createkey("--user", "Dora@Example.com")

    assert not User.objects.get(email="dora@example.com").has_usable_password()
    assert "Created user dora@example.com" in err


def test_a_user_who_exists_gets_one_more_key(alice: User) -> None:
    createkey("--user", "alice@example.com")
    _, err = createkey("--user", "ALICE@example.com", "--name", "ci", "--rpm", "0", "--tier", "batch")

    key = ApiKey.objects.get(name="ci")
    assert (key.user, key.tier, key.requests_per_minute) == (alice, "batch", 0)
    assert "Created" not in err and "no request limit" in err
    assert alice.api_keys.count() == 2


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("--user", "alice"), "--user: Enter a valid email"),
        (("--user", "a@example.com", "--rpm", "-1"), "--rpm: .*greater than or equal to 0"),
        (("--user", "a@example.com", "--rpm", "many"), "--rpm: invalid int"),
        (("--user", "a@example.com", "--tier", "gold"), "--tier: invalid choice: 'gold' .*priority"),
        (("--user", "a@example.com", "--name", ""), "--name: "),
        ((), "--user"),
    ],
)
def test_a_bad_option_is_named_and_nothing_is_made(args: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        createkey(*args)

    assert not User.objects.exists()
    assert not ApiKey.objects.exists()
