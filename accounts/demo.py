"""The demo's own login and key, for `make run` on a developer's machine."""

from __future__ import annotations

import secrets

import msgspec
from django.conf import settings

from accounts.keys import digest_key, is_well_formed
from accounts.models import ApiKey
from accounts.services import create_key, ensure_user, save_user


class DemoAccess(msgspec.Struct, frozen=True):
    """How to get in: a login for the pages, a key for the API."""

    email: str
    password: str
    secret: str


def ensure_demo_access(*, email: str, password: str, secret: str) -> DemoAccess:
    """Return working access for the demo user, keeping the password and key given where they still work.

    The demo user is an operator: it may see the admin and every page.
    """
    user, _ = ensure_user(email=email)
    if not (password and user.is_active and user.is_superuser and user.check_password(password)):
        password = secrets.token_urlsafe(12)
        user.set_password(password)
        user.is_active = user.is_staff = user.is_superuser = True
        save_user(user=user)
    if not _is_usable(secret):
        _, secret = create_key(user=user, name="demo", requests_per_minute=0)
    return DemoAccess(email, password, secret)


def _is_usable(secret: str) -> bool:
    if not is_well_formed(secret.encode()):
        return False
    digest = digest_key(secret, settings.KEY_PEPPER.encode()).hex()
    return ApiKey.objects.filter(digest=digest, revoked_at=None, expires_at=None, user__is_active=True).exists()
