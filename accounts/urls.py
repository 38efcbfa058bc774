"""URLs of this app: its pages, and what it has under `/api/`."""

from __future__ import annotations

from django.contrib.auth.views import LogoutView
from django.urls import URLPattern, path

from accounts.api import MeView
from accounts.views import LoginView

urlpatterns = [
    path("login/", LoginView.as_view(), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
]

api_patterns: list[URLPattern] = [
    path("auth/me", MeView.as_view(), name="api-me"),
]
