"""Logins to the REST API: pairs of tokens, renewed one after the other, ended all at once.

A login is a row that its tokens name by the claim `login`. Each refresh token is good for once; the
row says which is the newest. An older one that comes back was stolen, or is in the hands of the one
it was stolen from: either way the login is over, with every token of it. Renewing is one
conditional UPDATE, so of two that come at the same time one is the second.

Not simplejwt's blacklist: that keeps whole tokens, knows no families and lets access tokens live.
"""

from __future__ import annotations

import logging
from datetime import datetime
from uuid import uuid4

import msgspec
from django.conf import settings
from django.db import transaction
from django.utils import timezone
from rest_framework_simplejwt.exceptions import TokenError
from rest_framework_simplejwt.settings import api_settings
from rest_framework_simplejwt.tokens import RefreshToken, Token
from rest_framework_simplejwt.utils import get_md5_hash_password

from accounts.models import ApiLogin, User
from gpucloud.lib.clientip import network_of
from gpucloud.lib.throttle import count

LOGIN_CLAIM = "login"
MAX_LOGINS = 100
"""Of one user at a time; the oldest make room."""

logger = logging.getLogger("gpucloud.audit")


class UnableToRefresh(Exception):
    """The refresh token is not one of ours, was used before, or its login has ended."""


class TokenPair(msgspec.Struct, frozen=True):
    """What a client holds."""

    access: str
    refresh: str
    expires_in: int
    """Seconds that the access token lives."""


def start_login(*, user: User) -> TokenPair:
    """Log a user in and return the first pair of tokens."""
    now = timezone.now()
    refresh = RefreshToken.for_user(user)
    login = ApiLogin(
        id=uuid4().hex,
        user=user,
        newest=refresh["jti"],
        created_at=now,
        expires_at=now + api_settings.REFRESH_TOKEN_LIFETIME,
    )
    refresh[LOGIN_CLAIM] = login.id
    with transaction.atomic():
        login.save(force_insert=True)
        User.objects.filter(pk=user.pk).update(last_login=now)
        _make_room(user, now)
    return _pair(refresh)


def refresh_login(*, refresh: str, ip: str) -> TokenPair:
    """Take a refresh token for a new pair, or raise `UnableToRefresh`; one that was used before ends the login."""
    count("refresh-ip", network_of(ip), settings.REFRESHES_PER_IP)
    token = _read(refresh)
    login = get_login(token)
    if login is None:
        raise UnableToRefresh
    used = token["jti"]
    token.set_jti()
    token.set_iat(at_time=timezone.now())
    if not ApiLogin.objects.filter(pk=login.pk, newest=used).update(newest=token["jti"]):
        logger.warning("audit a used refresh token came back: login %s of user %s is over", login.pk, login.user_id)
        end_login_of(token=token)
        raise UnableToRefresh
    return _pair(token)


def end_login(*, refresh: str) -> None:
    """End the login of a refresh token, or raise `UnableToRefresh` for what is no token of ours."""
    end_login_of(token=_read(refresh))


def end_login_of(*, token: Token) -> None:
    """End the login that a verified token came from, if it has not ended."""
    ApiLogin.objects.filter(pk=str(token.get(LOGIN_CLAIM))).delete()


def end_logins(*, user: User) -> None:
    """End all logins of a user."""
    ApiLogin.objects.filter(user=user).delete()


def get_login(token: Token) -> ApiLogin | None:
    """Return the login, with its user, that a verified token came from, if it still holds."""
    login = ApiLogin.objects.select_related("user").filter(pk=str(token.get(LOGIN_CLAIM))).first()
    if login is None or not login.user.is_active or str(login.user_id) != token.get(api_settings.USER_ID_CLAIM):
        return None
    # Tokens die with the password that they were got by, whoever changed it and where.
    known = get_md5_hash_password(login.user.password)
    return login if token.get(api_settings.REVOKE_TOKEN_CLAIM) == known else None


def _read(refresh: str) -> RefreshToken:
    try:
        return RefreshToken(refresh)  # type: ignore[arg-type]  # it takes what it makes a token from
    except TokenError:
        raise UnableToRefresh from None


def _make_room(user: User, now: datetime) -> None:
    """Delete what is long over, and what is too much: nobody else cleans up."""
    ApiLogin.objects.filter(user=user, expires_at__lt=now).delete()
    newest = ApiLogin.objects.filter(user=user).values_list("pk", flat=True)[:MAX_LOGINS]
    ApiLogin.objects.filter(user=user).exclude(pk__in=list(newest)).delete()


def _pair(refresh: RefreshToken) -> TokenPair:
    lifetime_s = int(api_settings.ACCESS_TOKEN_LIFETIME.total_seconds())
    return TokenPair(str(refresh.access_token), str(refresh), lifetime_s)
