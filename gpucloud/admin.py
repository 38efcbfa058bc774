"""The audit in the admin: everything that operators and keys' owners did, to look at and never to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db.models import Model
from django.http import HttpRequest

if TYPE_CHECKING:
    Admin = admin.ModelAdmin[Any]
else:
    Admin = admin.ModelAdmin


@admin.register(LogEntry)
class LogEntryAdmin(Admin):
    """Who did what to which row, when."""

    list_display = ("action_time", "user", "content_type", "object_repr", "what")
    list_filter = ("action_flag", "content_type", "action_time")
    list_select_related = ("user", "content_type")
    search_fields = ("object_repr", "change_message", "user__email", "object_id")
    search_help_text = "A row's name, what was done, or an operator's address."
    fields = ("action_time", "user", "content_type", "object_id", "object_repr", "what")
    readonly_fields = fields
    ordering = ("-action_time", "-pk")
    list_per_page = 50
    show_full_result_count = False
    actions = None

    @admin.display(description="what")
    def what(self, entry: LogEntry) -> str:
        """Say what was done, in the words of the service that did it."""
        return entry.get_change_message() or str(entry.get_action_flag_display())

    def has_module_permission(self, request: HttpRequest) -> bool:
        """All staff may look: what operators do is no secret among them."""
        return _is_staff(request)

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return _is_staff(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


def _is_staff(request: HttpRequest) -> bool:
    user: Any = request.user
    return bool(user.is_active and user.is_staff)
