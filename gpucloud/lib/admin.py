"""What the admins of several apps share: acting on the selected rows, and finding revoked secrets.

Nothing here writes a row: an action calls a service, one row at a time, and the service puts each
change on record. The `type: ignore`s: Django's admin classes are generic to the type checker only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from django.contrib import admin, messages
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from gpucloud.lib.audit import Actor

M = TypeVar("M", bound=Model)


def actor_in(request: HttpRequest) -> Actor:
    """Return the operator who acts."""
    return Actor(request.user.pk, str(request.user))


class AuditedByServices:
    """For admin classes whose services write the audit, with values: the admin's own entry would be a second."""

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Leave it to the service."""

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Leave it to the service."""


def act_on_each(
    model_admin: admin.ModelAdmin[Any],
    request: HttpRequest,
    rows: Iterable[M],
    act: Callable[[M, Actor], bool],
    *,
    summary: str,
) -> None:
    """Call a service for each row and tell how many it changed."""
    actor = actor_in(request)
    changed = sum([act(row, actor) for row in rows])
    level = messages.SUCCESS if changed else messages.WARNING
    model_admin.message_user(request, f"{summary}: {changed}.", level)


class RevokedFilter(admin.SimpleListFilter):
    """Separates revoked secrets from the others."""

    title = "revoked"
    parameter_name = "revoked"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Name the choices."""
        return [("no", "No"), ("yes", "Yes")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        """Apply the choice."""
        return queryset.filter(revoked_at__isnull=self.value() == "no") if self.value() in ("no", "yes") else None
