"""Forms of this app; plain, never ModelForms, so that rows are only written by services."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.forms import AuthenticationForm
from django.views.decorators.debug import sensitive_variables

from accounts.passwords import MAX_EMAIL_CHARS, MAX_PASSWORD_CHARS, UnableToLogIn, check_password
from gpucloud.lib.clientip import client_ip

HOW_LONG = "At least 8 characters. A few words are better than one; nothing is cut off."


def email_field() -> forms.EmailField:
    """Return the field for an address, which comes first."""
    return forms.EmailField(
        label="Email",
        max_length=MAX_EMAIL_CHARS,
        widget=forms.EmailInput(attrs={"autofocus": True, "autocomplete": "email"}),
        error_messages={
            "required": "Enter your email address.",
            "invalid": "This is not an email address; it should look like you@example.com.",
        },
    )


def password_field(label: str, required: str, *, autocomplete: str, help_text: str = "") -> forms.CharField:
    """Return a field for a password."""
    return forms.CharField(
        label=label,
        strip=False,
        max_length=MAX_PASSWORD_CHARS,
        widget=forms.PasswordInput(attrs={"autocomplete": autocomplete}),
        help_text=help_text,
        error_messages={"required": required},
    )


class _CountedLogin(AuthenticationForm):
    """Asks the service that counts attempts, where Django's own form asks the backends."""

    @sensitive_variables()
    def clean(self) -> dict[str, Any]:
        """Find out who it is; `TooManyAttempts` goes past the form to the site."""
        email, password = self.cleaned_data.get("username"), self.cleaned_data.get("password")
        if email and password and self.request is not None:
            try:
                self.user_cache = check_password(email=email, password=password, ip=client_ip(self.request))
            except UnableToLogIn:
                raise self.get_invalid_login_error() from None
            self.confirm_login_allowed(self.user_cache)
        return self.cleaned_data


class LoginForm(_CountedLogin):
    """Asks for an address and a password, and says no in one sentence whatever was wrong."""

    username = email_field()
    password = password_field("Password", "Enter your password.", autocomplete="current-password")

    error_messages = {
        "invalid_login": "No account has this email and password together. Check both; passwords are case-sensitive.",
        "inactive": "This account is switched off. Ask an operator of this cluster.",
    }


class AdminLoginForm(_CountedLogin, AdminAuthenticationForm):
    """The admin's own login, under the same limits."""


class _TwiceForm(forms.Form):
    """Has a new password typed twice: nobody could tell it to whoever mistyped it."""

    twice = ("", "")

    def clean(self) -> dict[str, Any]:
        """Refuse two that differ."""
        first, second = (self.cleaned_data.get(name) for name in self.twice)
        if first and second and first != second:
            self.add_error(self.twice[1], "This is not the same password.")
        return self.cleaned_data


class RegisterForm(_TwiceForm):
    """Asks for what an account is made of."""

    twice = ("password", "password_again")

    email = email_field()
    password = password_field("Password", "Choose a password.", autocomplete="new-password", help_text=HOW_LONG)
    password_again = password_field("Password again", "Type it again.", autocomplete="new-password")


class PasswordForm(_TwiceForm):
    """Asks for the password so far, and the next."""

    twice = ("new_password", "new_password_again")

    old_password = password_field("Current password", "Enter your password.", autocomplete="current-password")
    new_password = password_field("New password", "Choose a password.", autocomplete="new-password", help_text=HOW_LONG)
    new_password_again = password_field("New password again", "Type it again.", autocomplete="new-password")
