"""URLs of this app: its pages, and what it has under `/api/`."""

from __future__ import annotations

from django.contrib.auth.views import LogoutView
from django.urls import URLPattern, path

from accounts import api
from accounts.key_api import KeyRotationView, KeysView, KeyView, ListTotals
from accounts.views import LoginView, PasswordView, RegisterView

urlpatterns = [
    path("login/", LoginView.as_view(), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("register/", RegisterView.as_view(), name="register"),
    path("password/", PasswordView.as_view(), name="password"),
]


def api_patterns(*, list_totals: ListTotals) -> list[URLPattern]:
    """Return what is under `/api/`; `list_totals` reads what keys have used, which this app does not know."""
    return [
        path("auth/register", api.RegisterView.as_view(), name="api-register"),
        path("auth/login", api.LoginView.as_view(), name="api-login"),
        path("auth/refresh", api.RefreshView.as_view(), name="api-refresh"),
        path("auth/logout", api.LogoutView.as_view(), name="api-logout"),
        path("auth/me", api.MeView.as_view(), name="api-me"),
        path("auth/password", api.PasswordView.as_view(), name="api-password"),
        path("keys", KeysView.as_view(list_totals=list_totals), name="api-keys"),
        path("keys/<int:key_id>", KeyView.as_view(list_totals=list_totals), name="api-key"),
        path("keys/<int:key_id>/rotate", KeyRotationView.as_view(list_totals=list_totals), name="api-key-rotate"),
    ]
