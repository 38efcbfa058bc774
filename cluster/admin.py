"""Worker tokens and workers in the admin. It writes through `services`, deletes nothing.

A token cannot be added here: its secret is shown once, by the command `createworkertoken`, and
must not wait in a session or a message for the next page.

The `type: ignore`s: Django's admin classes are generic to the type checker only.
"""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest

from cluster import services
from cluster.models import Worker, WorkerToken
from gpucloud.lib.admin import AuditedByServices, RevokedFilter, act_on_each, actor_in
from gpucloud.lib.audit import Actor


@admin.register(WorkerToken)
class WorkerTokenAdmin(AuditedByServices, admin.ModelAdmin):  # type: ignore[type-arg]
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
        act_on_each(self, request, queryset, _revoke, summary="Tokens revoked")

    def save_model(self, request: HttpRequest, obj: WorkerToken, form: ModelForm[WorkerToken], change: bool) -> None:
        """Store the token by the service."""
        services.save_worker_token(token=obj, actor=actor_in(request))

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Tokens are made where their secret can be shown once."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: WorkerToken | None = None) -> bool:
        """Tokens are revoked, never deleted: workers refer to them."""
        return False


@admin.register(Worker)
class WorkerAdmin(AuditedByServices, admin.ModelAdmin):  # type: ignore[type-arg]
    """Every worker that ever joined; to be read, and to be told what is wanted of it."""

    list_display = (
        "name",
        "id",
        "intent",
        "gpu",
        "gpus",
        "capacity",
        "simulated",
        "token",
        "first_seen_at",
        "last_seen_at",
    )
    list_filter = ("intent", "simulated", "gpu", "last_seen_at")
    list_select_related = ("token",)
    show_full_result_count = False
    search_fields = ("id", "name", "instance")
    actions = ("cordon_selected", "uncordon_selected", "drain_selected", "evict_selected")

    @admin.action(description="Cordon selected workers: nothing new, what runs goes on", permissions=["operate"])
    def cordon_selected(self, request: HttpRequest, queryset: QuerySet[Worker]) -> None:
        """Keep new work away from the workers."""
        act_on_each(self, request, queryset, _cordon, summary="Workers cordoned")

    @admin.action(description="Uncordon selected workers: work as usual", permissions=["operate"])
    def uncordon_selected(self, request: HttpRequest, queryset: QuerySet[Worker]) -> None:
        """Take back a cordon or a drain."""
        act_on_each(self, request, queryset, _uncordon, summary="Workers uncordoned")

    @admin.action(description="Drain selected workers: finish what runs, then leave", permissions=["operate"])
    def drain_selected(self, request: HttpRequest, queryset: QuerySet[Worker]) -> None:
        """Have the workers finish and leave."""
        act_on_each(self, request, queryset, _drain, summary="Workers to drain")

    @admin.action(description="Evict selected workers: close their links now", permissions=["operate"])
    def evict_selected(self, request: HttpRequest, queryset: QuerySet[Worker]) -> None:
        """Close the workers' links; their tasks move on, and they may dial in again."""
        act_on_each(self, request, queryset, _evict, summary="Workers to evict")

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whoever might change a worker may say what is wanted of it, though nobody edits its row."""
        return request.user.has_perm("cluster.change_worker")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Workers join by themselves."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Worker | None = None) -> bool:
        """A worker describes itself."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Worker | None = None) -> bool:
        """The record stays: the ledger names workers."""
        return False


def _revoke(token: WorkerToken, actor: Actor) -> bool:
    return services.revoke_worker_token(token=token, actor=actor)


def _cordon(worker: Worker, actor: Actor) -> bool:
    return services.cordon_worker(worker_id=worker.pk, actor=actor)


def _uncordon(worker: Worker, actor: Actor) -> bool:
    return services.uncordon_worker(worker_id=worker.pk, actor=actor)


def _drain(worker: Worker, actor: Actor) -> bool:
    return services.drain_worker(worker_id=worker.pk, actor=actor)


def _evict(worker: Worker, actor: Actor) -> bool:
    return services.evict_worker(worker_id=worker.pk, actor=actor)
