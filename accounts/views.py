"""Pages of this app: logging in, registering, changing the password. Logging out is Django's own view, by POST only.

Whoever tries too often is answered by the site (`gpucloud.middleware.answer_too_many`).
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login, update_session_auth_hash
from django.contrib.auth.mixins import LoginRequiredMixin
from django.contrib.auth.views import LoginView as DjangoLoginView
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse_lazy
from django.utils.decorators import method_decorator
from django.views.decorators.debug import sensitive_post_parameters
from django.views.generic import FormView

from accounts.forms import LoginForm, PasswordForm, RegisterForm
from accounts.passwords import change_password, register_user
from gpucloud.lib.clientip import client_ip


class LoginView(DjangoLoginView):
    """Log somebody in by email and password, then go where they were heading."""

    template_name = "accounts/login.html"
    authentication_form = LoginForm
    redirect_authenticated_user = True

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Show the form; a place to go afterwards that is not ours is taken out of the URL."""
        if request.GET.get(self.redirect_field_name) and not self.get_redirect_url():
            return redirect("login")
        return super().get(request, *args, **kwargs)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Tell whether accounts are for the asking."""
        return super().get_context_data(registration=settings.REGISTRATION, **kwargs)


@method_decorator(sensitive_post_parameters(), name="dispatch")
class RegisterView(FormView):  # type: ignore[type-arg]  # generic to the type checker only
    """Create an account and log its owner in."""

    template_name = "accounts/register.html"
    form_class = RegisterForm
    success_url = reverse_lazy("home")

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Send those who have an account to their first page."""
        if not settings.REGISTRATION:
            raise Http404
        if request.user.is_authenticated:
            return redirect(self.get_success_url())
        return super().dispatch(request, *args, **kwargs)

    def form_valid(self, form: RegisterForm) -> HttpResponse:
        """Register, or say what is wrong."""
        email, password = form.cleaned_data["email"], form.cleaned_data["password"]
        try:
            user = register_user(email=email, password=password, ip=client_ip(self.request))
        except ValidationError as error:
            form.add_error(None, error)
            return self.form_invalid(form)
        login(self.request, user)
        return super().form_valid(form)


@method_decorator(sensitive_post_parameters(), name="dispatch")
class PasswordView(LoginRequiredMixin, FormView):  # type: ignore[type-arg]  # as above
    """Change one's password: this session goes on, all others end."""

    template_name = "accounts/password.html"
    form_class = PasswordForm
    success_url = reverse_lazy("home")

    def form_valid(self, form: PasswordForm) -> HttpResponse:
        """Change it, or say what is wrong."""
        user: Any = self.request.user
        old, new = form.cleaned_data["old_password"], form.cleaned_data["new_password"]
        try:
            change_password(user=user, old_password=old, new_password=new, ip=client_ip(self.request))
        except ValidationError as error:
            form.add_error(None, error)
            return self.form_invalid(form)
        update_session_auth_hash(self.request, user)
        messages.success(self.request, "Your password is changed. Other sessions and all API logins have ended.")
        return super().form_valid(form)
