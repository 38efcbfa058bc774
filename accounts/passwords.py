"""Everything that asks for a password: logging in, registering, changing it. Pages, admin and REST come here.

Attempts are counted before anything is hashed, per account and per address. Whether an address is
unknown, a password wrong or an account switched off, the answer is the same and so is the work: one
hash. A password is never cut: bcrypt gets its SHA-256.
"""

from __future__ import annotations

import hmac
import logging

from django.conf import settings
from django.contrib.auth import authenticate
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from accounts.logins import TokenPair, end_logins, start_login
from accounts.models import User, normalize_email
from accounts.services import actor_of
from gpucloud.lib.audit import ADDITION, record
from gpucloud.lib.clientip import network_of
from gpucloud.lib.throttle import count, forgive

MAX_PASSWORD_CHARS = 4096
MAX_EMAIL_CHARS = 254
NEIGHBOURS_BITS = 24
"""Registrations are counted for the IPv4 network of this length."""

logger = logging.getLogger("gpucloud.audit")


class UnableToLogIn(Exception):
    """No active account has this address and password together."""


class RegistrationClosed(Exception):
    """Accounts of this cluster are made by its operators."""


def check_password(*, email: str, password: str, ip: str) -> User:
    """Return who has this address and password; raise `UnableToLogIn`, or `TooManyAttempts` without a look."""
    account, network = _hash_account(email), network_of(ip)
    count("login-ip-all", network, settings.LOGINS_PER_IP)
    count("login-ip", network, settings.LOGIN_FAILURES_PER_IP)
    count("login-account", account, settings.LOGIN_FAILURES_PER_ACCOUNT)
    user = authenticate(username=email, password=password) if len(password) <= MAX_PASSWORD_CHARS else None
    if not isinstance(user, User):
        logger.warning("audit failed login account=%s ip=%s", account[:12], ip)
        raise UnableToLogIn
    logger.info("audit login user=%s ip=%s", user.pk, ip)
    forgive("login-ip", network, settings.LOGIN_FAILURES_PER_IP)
    forgive("login-account", account, settings.LOGIN_FAILURES_PER_ACCOUNT)
    return user


def log_in(*, email: str, password: str, ip: str) -> TokenPair:
    """Log somebody in to the REST API; raise as `check_password` does."""
    return start_login(user=check_password(email=email, password=password, ip=ip))


def register_user(*, email: str, password: str, ip: str) -> User:
    """Create an account for somebody who asks for one; raise `ValidationError`, or `TooManyAttempts`."""
    if not settings.REGISTRATION:
        raise RegistrationClosed
    count("register-ip", network_of(ip, ipv4_bits=NEIGHBOURS_BITS), settings.REGISTRATIONS_PER_IP)
    user = User(email=normalize_email(email))
    user.full_clean(exclude=["password"])
    _check_new_password(password, user, "password")
    user.set_password(password)
    try:
        with transaction.atomic():
            user.save(force_insert=True)
            record(actor=actor_of(user), row=user, did="Registered.", action=ADDITION)
    except IntegrityError:  # somebody else took the address in between
        raise ValidationError({"email": "This address is taken."}) from None
    return user


def change_password(*, user: User, old_password: str, new_password: str, ip: str) -> User:
    """Give a user another password, which ends all sessions and logins.

    Raise `ValidationError`, or `TooManyAttempts`: the old password could be guessed here, too.
    """
    try:
        check_password(email=user.email, password=old_password, ip=ip)
    except UnableToLogIn:
        raise ValidationError({"old_password": "This is not your password."}) from None
    _check_new_password(new_password, user, "new_password")
    user.set_password(new_password)
    with transaction.atomic():
        user.save(update_fields=["password"])
        end_logins(user=user)
        record(actor=actor_of(user), row=user, did="Password changed.")
    return user


def change_password_and_log_in(*, user: User, old_password: str, new_password: str, ip: str) -> TokenPair:
    """Change a password as `change_password` does and start a login: the caller's own has ended, too."""
    change_password(user=user, old_password=old_password, new_password=new_password, ip=ip)
    return start_login(user=user)


def _check_new_password(password: str, user: User, field: str) -> None:
    if len(password) > MAX_PASSWORD_CHARS:
        raise ValidationError({field: f"At most {MAX_PASSWORD_CHARS} characters."})
    if "\0" in password:
        raise ValidationError({field: "The character NUL cannot be in a password."})
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise ValidationError({field: error.messages}) from None


def _hash_account(email: str) -> str:
    """Return what an account is counted and logged by: addresses typed by mistake may be secrets."""
    address = normalize_email(email[:MAX_EMAIL_CHARS]).encode("utf-8", "surrogatepass")
    return hmac.digest(settings.SECRET_KEY.encode(), address, "sha256").hex()
