from __future__ import annotations

from accounts.keys import is_well_formed, make_key
from gpucloud.lib.secret import make_secret


def test_a_made_key_is_well_formed() -> None:
    key = make_key()

    assert key.startswith("sk-")
    assert is_well_formed(key)
    assert is_well_formed(key.encode())


def test_a_test_key_says_so_and_is_well_formed() -> None:
    key = make_key(test=True)

    assert key.startswith("sk-test-")
    assert is_well_formed(key)
    assert not is_well_formed(key.replace("sk-test-", "sk-"))


def test_a_worker_token_is_not_a_key() -> None:
    assert not is_well_formed(make_secret("wk-"))
