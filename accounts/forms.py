"""Forms of this app; plain, never ModelForms, so that rows are only written by services."""

from __future__ import annotations

from django import forms
from django.contrib.auth.forms import AuthenticationForm


class LoginForm(AuthenticationForm):
    """Asks for an address and a password, and says no in one sentence whatever was wrong."""

    username = forms.EmailField(
        label="Email",
        max_length=254,
        widget=forms.EmailInput(attrs={"autofocus": True, "autocomplete": "email"}),
        error_messages={
            "required": "Enter your email address.",
            "invalid": "This is not an email address; it should look like you@example.com.",
        },
    )
    password = forms.CharField(
        label="Password",
        strip=False,
        max_length=4096,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
        error_messages={"required": "Enter your password."},
    )

    error_messages = {
        "invalid_login": "No account has this email and password together. Check both; passwords are case-sensitive.",
        "inactive": "This account is switched off. Ask an operator of this cluster.",
    }
