"""Pages of this app: logging in. Logging out is Django's own view, by POST only."""

from __future__ import annotations

from django.contrib.auth.views import LoginView as DjangoLoginView

from accounts.forms import LoginForm


class LoginView(DjangoLoginView):
    """Log somebody in by email and password, then go where they were heading."""

    template_name = "accounts/login.html"
    authentication_form = LoginForm
    redirect_authenticated_user = True
