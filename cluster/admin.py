"""Worker tokens and the record of workers in the admin. It writes through `services`, deletes nothing.

A token cannot be added here: its secret is shown once, by the command `createworkertoken`, and
must not wait in a session or a message for the next page.

The `type: ignore`s: Django's admin classes are generic to the type checker only.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest

from cluster import services
from cluster.models import Worker, WorkerToken


class RevokedFilter(admin.SimpleListFilter):
    """Separates revoked tokens from the others."""

    title = "revoked"
    parameter_name = "revoked"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Name the choices."""
        return [("no", "No"), ("yes", "Yes")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        """Apply the choice."""
        return queryset.filter(revoked_at__isnull=self.value() == "no") if self.value() in ("no", "yes") else None


@admin.register(WorkerToken)
class WorkerTokenAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Tokens: which models their workers may serve, and whether they still work."""

    list_display = ("masked", "name", "models", "created_at", "expires_at", "revoked_at", "last_used_at")
    list_filter = (RevokedFilter, "created_at")
    search_fields = ("prefix", "last4", "name")
    fields = ("masked", "name", "models", "expires_at", "created_at", "revoked_at", "last_used_at")
    readonly_fields = ("masked", "created_at", "revoked_at", "last_used_at")
    actions = ("revoke_selected",)

    @admin.display(description="token", ordering="prefix")
    def masked(self, token: WorkerToken) -> str:
        """Show the token as prefix and last characters."""
        return token.masked

    @admin.action(description="Revoke selected tokens", permissions=["change"])
    def revoke_selected(self, request: HttpRequest, queryset: QuerySet[WorkerToken]) -> None:
        """Refuse the tokens from now on, for good; the gateways close their links."""
        revoked = 0
        for token in queryset:
            if services.revoke_worker_token(token=token):
                revoked += 1
                self.log_change(request, token, "Revoked.")
        self.message_user(request, f"Tokens revoked: {revoked}.", messages.SUCCESS)

    def save_model(self, request: HttpRequest, obj: WorkerToken, form: ModelForm[WorkerToken], change: bool) -> None:
        """Store the token by the service."""
        services.save_worker_token(token=obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Tokens are made where their secret can be shown once."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: WorkerToken | None = None) -> bool:
        """Tokens are revoked, never deleted: workers refer to them."""
        return False


@admin.register(Worker)
class WorkerAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Every worker that ever joined; to be read."""

    list_display = ("name", "id", "gpu", "gpus", "capacity", "simulated", "token", "first_seen_at", "last_seen_at")
    list_filter = ("simulated", "gpu", "last_seen_at")
    list_select_related = ("token",)
    search_fields = ("id", "name", "instance")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Workers join by themselves."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Worker | None = None) -> bool:
        """A worker describes itself."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Worker | None = None) -> bool:
        """The record stays: the ledger names workers."""
        return False
