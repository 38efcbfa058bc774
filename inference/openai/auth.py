"""Who is calling `/v1`: an API key in the Authorization header, nowhere else."""

from __future__ import annotations

import time

from accounts.keyring import Identity, Keyring, Refused, UnableToReadKeys
from inference.openai.errors import ApiError, unavailable
from inference.openai.http import Exchange


def recognize(exchange: Exchange, keyring: Keyring) -> Identity | None:
    """Return whose key it is if that is in memory; None: ask `identify`."""
    secret = exchange.bearer()
    if secret is None:
        raise ApiError(401, _NO_KEY, headers=_CHALLENGE)
    found = keyring.peek(secret, time.time())
    if isinstance(found, Refused):
        raise _refusal(secret)
    return found


async def identify(exchange: Exchange, keyring: Keyring) -> Identity:
    """Return whose key it is. Unknown, revoked and expired keys are refused in the same words."""
    secret = exchange.bearer() or b""
    try:
        found = await keyring.resolve(secret)
    except UnableToReadKeys:
        raise unavailable("Keys cannot be checked just now. Try again in a moment.", "service_unavailable") from None
    if found is None:
        raise _refusal(secret)
    return found


def _refusal(secret: bytes) -> ApiError:
    return ApiError(
        401,
        f"Incorrect API key provided: {_mask(secret)}. You can find your API key in the dashboard.",
        code="invalid_api_key",
        headers=_CHALLENGE,
    )


def _mask(secret: bytes) -> str:
    """Return the first 3 and last 4 characters: enough to recognise a key, not to use it."""
    text = secret.decode("ascii", "replace")
    if len(text) < 16 or not text.isascii() or not text.isprintable():
        return "***"
    return f"{text[:3]}***{text[-4:]}"


_NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY)."
)
_CHALLENGE = ((b"www-authenticate", b"Bearer"),)
