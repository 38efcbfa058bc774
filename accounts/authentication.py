"""Who is calling `/api`: access tokens in, users out.

simplejwt decides whether a token is ours, whole, of the right kind and in time. On top of that the
login it came from must not have ended, which one query with the user answers. Whatever is wrong, the
answer is the same; what it was is nobody's business who cannot show a good token.
"""

from __future__ import annotations

from typing import Any

from drf_spectacular.contrib.rest_framework_simplejwt import SimpleJWTScheme
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request
from rest_framework_simplejwt.authentication import JWTAuthentication
from rest_framework_simplejwt.exceptions import AuthenticationFailed as TokenRefused
from rest_framework_simplejwt.exceptions import InvalidToken
from rest_framework_simplejwt.tokens import Token

from accounts.logins import get_login


class InvalidAccessToken(AuthenticationFailed):
    """The token is not one that lets anybody in."""

    default_code = "token_not_valid"
    default_detail = "This access token is not valid, or not any more."


class TokenAuthentication(JWTAuthentication):
    """`Authorization: Bearer <access token>`."""

    def authenticate(self, request: Request) -> tuple[Any, Token] | None:
        """Return the user and the token; None where no token was sent."""
        try:
            return super().authenticate(request)
        except (InvalidToken, TokenRefused):
            raise InvalidAccessToken from None

    def get_user(self, validated_token: Token) -> Any:
        """Return whose token it is."""
        login = get_login(validated_token)
        if login is None:
            raise InvalidAccessToken
        return login.user


class TokenScheme(SimpleJWTScheme):  # type: ignore[no-untyped-call]
    """How the schema of `/api` describes it."""

    target_class = "accounts.authentication.TokenAuthentication"
    name = "accessToken"
