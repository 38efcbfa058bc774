from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from cluster.models import WorkerToken
from cluster.services import authenticate_worker

pytestmark = pytest.mark.django_db


def createworkertoken(*args: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command("createworkertoken", *args, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_the_token_alone_is_on_stdout_and_lets_a_worker_in() -> None:
    out, err = createworkertoken()

    secret = out.removesuffix("\n")
    credential = authenticate_worker(secret)
    assert credential is not None and credential.models == ("*",)
    assert secret not in err


def test_models_may_be_given_more_than_once() -> None:
    _, err = createworkertoken("--name", "rack 1", "--model", "llama-*", "--model", "gpt-4")

    token = WorkerToken.objects.get()
    assert (token.name, token.models) == ("rack 1", ["llama-*", "gpt-4"])
    assert "llama-*, gpt-4" in err


@pytest.mark.parametrize(("args", "complaint"), [(("--model", ""), "not a glob"), (("--name", ""), "blank")])
def test_a_bad_option_is_explained_and_nothing_is_made(args: tuple[str, str], complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        createworkertoken(*args)

    assert not WorkerToken.objects.exists()
