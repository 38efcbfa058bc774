"""The ledger in the admin: to look at, never to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest
from django.template.loader import render_to_string

from inference.models import KeyTotal, LatencyHistogram, LedgerCounter, Request, UsageRollup
from inference.timeline import describe_story, tell_story

if TYPE_CHECKING:
    Admin = admin.ModelAdmin[Any]
else:
    Admin = admin.ModelAdmin


class ReadOnlyAdmin(Admin):
    """Shows rows, and lets nobody add, change or delete one."""

    # Two COUNTs over the whole ledger for every page would be its slowest part.
    show_full_result_count = False
    list_per_page = 50
    actions = None

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(Request)
class RequestAdmin(ReadOnlyAdmin):
    list_display = (
        "id",
        "state",
        "model",
        "user",
        "source",
        "prompt_tokens",
        "completion_tokens",
        "ttft_ms",
        "total_ms",
        "worker_name",
        "created_at",
    )
    list_filter = ("state", "source", "tier", "stream", "model", "node")
    list_select_related = ("user",)
    search_fields = ("id__startswith",)
    search_help_text = "The beginning of a request id, as in the x-request-id header."
    ordering = ("-created_at",)
    date_hierarchy = None
    exclude = ("timeline",)
    readonly_fields = ("story",)

    @admin.display(description="timeline")
    def story(self, row: Request) -> str:
        """Show what befell the request, with the time that each step took."""
        return render_to_string("inference/_timeline.html", {"lines": describe_story(tell_story(row))})


@admin.register(UsageRollup)
class UsageRollupAdmin(ReadOnlyAdmin):
    list_display = (
        "hour",
        "user",
        "key_id",
        "model",
        "node",
        "requests",
        "completed",
        "prompt_tokens",
        "completion_tokens",
    )
    list_filter = ("model", "node")
    list_select_related = ("user",)
    ordering = ("-hour", "pk")


@admin.register(LatencyHistogram)
class LatencyHistogramAdmin(ReadOnlyAdmin):
    list_display = ("hour", "user", "key_id", "model", "node")
    list_filter = ("model", "node")
    list_select_related = ("user",)
    ordering = ("-hour", "pk")


@admin.register(KeyTotal)
class KeyTotalAdmin(ReadOnlyAdmin):
    list_display = ("key_id", "node", "requests", "prompt_tokens", "completion_tokens")
    list_filter = ("node",)
    ordering = ("key_id", "node")


@admin.register(LedgerCounter)
class LedgerCounterAdmin(ReadOnlyAdmin):
    list_display = ("node", "admitted", "settled", "live_since", "retained_from")
