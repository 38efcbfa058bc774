"""Makes and recognises bearer secrets: API keys (`sk-…`) and worker tokens (`wk-…`).

A secret is its `kind` (`sk-`, `sk-test-`, `wk-`) and 57 more ASCII characters: a public part (8) that
with the kind is the prefix that finds its row, 43 random base-62 characters (256 bits) and a checksum
(6). The checksum is the CRC-32 of all that precedes it, in base 62: a typo or a stray string is
turned away before a digest is computed or a row read, and a secret scanner can tell a real secret
from a look-alike. It guards nothing by itself.

A row keeps the prefix, the last four characters and the HMAC-SHA-256 of the whole secret under
the pepper. 256 random bits need no slow hash; the pepper makes a stolen table useless.

Pure: the standard library only. Which rows there are is not decided here.
"""

from __future__ import annotations

import hmac
import secrets
from binascii import crc32
from collections.abc import Callable

PREFIX_CHARS = 16
"""The longest prefix, that of the longest kind."""
PRIVATE_CHARS = 49
"""What follows the prefix in a secret of any kind."""

_PUBLIC_CHARS = 8
_CHECKSUM_CHARS = 6
_RANDOM_CHARS = PRIVATE_CHARS - _CHECKSUM_CHARS
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS = [(a + b).encode() for a in _ALPHABET for b in _ALPHABET]
_SQUARE = len(_PAIRS)


def make_secret(kind: str, choice: Callable[[str], str] = secrets.choice) -> str:
    """Return a new secret of `kind`; `choice` draws one character."""
    body = kind + "".join([choice(_ALPHABET) for _ in range(_PUBLIC_CHARS + _RANDOM_CHARS)])
    return body + _checksum(body.encode()).decode()


def is_well_formed(kind: str, secret: str | bytes) -> bool:
    """Tell whether `secret` could be one of ours, at the cost of a CRC."""
    if len(secret) != len(kind) + _PUBLIC_CHARS + PRIVATE_CHARS:
        return False
    data = _to_bytes(secret)
    body, checksum = data[:-_CHECKSUM_CHARS], data[-_CHECKSUM_CHARS:]
    return data.startswith(kind.encode()) and data[len(kind) :].isalnum() and _checksum(body) == checksum


def digest_secret(secret: str | bytes, pepper: bytes) -> bytes:
    """Return the HMAC-SHA-256 of `secret` under `pepper`, 32 bytes."""
    return hmac.digest(pepper, _to_bytes(secret), "sha256")


def prefix_of(secret: str) -> str:
    """Return the public part that a row is found by."""
    return secret[:-PRIVATE_CHARS]


def mask(prefix: str, last4: str) -> str:
    """Return how a secret is shown once it is no longer known."""
    return f"{prefix}…{last4}"


def _checksum(body: bytes) -> bytes:
    rest = crc32(body)
    rest, low = divmod(rest, _SQUARE)
    high, middle = divmod(rest, _SQUARE)
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]


def _to_bytes(secret: str | bytes) -> bytes:
    # Not "strict": a lone surrogate in a header must make a bad secret, not an exception.
    return secret if isinstance(secret, bytes) else secret.encode("utf-8", "surrogatepass")
