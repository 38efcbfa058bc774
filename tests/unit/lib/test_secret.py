from __future__ import annotations

import random

import pytest

from gpucloud.lib.secret import PREFIX_CHARS, digest_secret, is_well_formed, make_secret, mask, prefix_of

SECRET = make_secret("sk-", random.Random(1).choice)


def test_a_secret_is_made_of_kind_prefix_random_part_and_checksum() -> None:
    assert len(SECRET) == 60
    assert SECRET[3:].isalnum() and SECRET.isascii()
    assert prefix_of(SECRET) == SECRET[:11]


def test_the_prefix_of_the_longest_kind_fits_its_column() -> None:
    assert len(prefix_of(make_secret("sk-test-"))) == PREFIX_CHARS


def test_a_made_secret_is_well_formed_as_text_and_as_bytes() -> None:
    for _ in range(200):
        secret = make_secret("wk-")
        assert is_well_formed("wk-", secret)
        assert is_well_formed("wk-", secret.encode())


def test_two_secrets_differ() -> None:
    assert len({make_secret("sk-") for _ in range(100)}) == 100


def test_a_secret_of_another_kind_is_not_well_formed() -> None:
    assert not is_well_formed("wk-", SECRET)


@pytest.mark.parametrize("position", range(60))
def test_any_single_typo_is_noticed(position: int) -> None:
    wrong = "a" if SECRET[position] != "a" else "b"
    typo = SECRET[:position] + wrong + SECRET[position + 1 :]

    assert not is_well_formed("sk-", typo)


@pytest.mark.parametrize(
    "stray",
    [
        "",
        "sk-",
        SECRET[:-1],
        SECRET + "a",
        "sk-" + "é" * 57,
        "sk-" + "\udc80" * 57,
        "sk-" + "\x00" * 57,
        "x" * 1_000_000,
    ],
    ids=["empty", "kind alone", "short", "long", "accents", "surrogates", "nul", "huge"],
)
def test_a_stray_string_is_not_well_formed(stray: str) -> None:
    assert not is_well_formed("sk-", stray)


def test_a_right_checksum_does_not_excuse_a_wrong_alphabet() -> None:
    forged = make_secret("sk-", lambda alphabet: "-")

    assert not is_well_formed("sk-", forged)


def test_the_digest_is_hmac_sha256_and_depends_on_secret_and_pepper() -> None:
    # RFC 4231, test case 2.
    rfc = digest_secret("what do ya want for nothing?", b"Jefe")
    assert rfc.hex() == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"

    assert digest_secret(SECRET, b"one") == digest_secret(SECRET.encode(), b"one")
    assert digest_secret(SECRET, b"one") != digest_secret(SECRET, b"two")


def test_a_masked_secret_shows_its_prefix_and_its_end_only() -> None:
    assert mask("sk-abcdefgh", "wxyz") == "sk-abcdefgh…wxyz"
